"""A page to look at: draw synthetic brain slices in the browser.

    python app.py                                   # the shipped checkpoint
    python app.py --pipeline runs/ihdm/pipeline

It needs gradio (`pip install -e '.[app]'`). Where this package is not installed, in a Space (`publish.py --as_space`),
the pipeline that was published with the page is drawn from by the code beside its weights; of no other is code run.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from PIL import Image
from safetensors.torch import load_file

SHIPPED = Path(__file__).parent / "checkpoints" / "vq-ihdm-oasis"
ABOUT = """# Synthetic brain slices in one step
Discrete VQ-IHDM draws a blurry state from a prior, the codes of a VQGAN from a denoiser, and pixels from the VQGAN's
decoder. **For research, not for diagnosis.** The same numbers give the same images."""
BLEND = "from the blurry state of the first seed to that of the second"
AUDIT = """Under each image: root-mean-square difference in grey levels to the nearest training slice, both reduced
{pool}-fold, and the share of held-out slices that have a nearer one. A copy would be at 0 and 0 %."""


def load(folder: Path) -> DiffusionPipeline:
    """The pipeline in `folder`.

    Raises:
        ValueError: it is damaged, or not the shipped one where the package is missing.
    """
    try:
        from vq_ihdm import load_pipeline
    except ModuleNotFoundError as error:
        if folder != SHIPPED:
            raise ValueError("--pipeline needs this project's package: pip install -e .") from error
        return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    return load_pipeline(folder)


def blended_states(
    pipe: DiffusionPipeline, generators: list[torch.Generator], others: list[torch.Generator], blend: float
) -> torch.Tensor:
    """u_T between the prior draws of two lists of generators, (N, D, h, w); at `blend` 0 the pipeline's own draws."""
    blurred = torch.lerp(pipe.prior.sample(len(generators), generators), pipe.prior.sample(len(others), others), blend)
    return pipe.prepare_latents(generators, blurred)


def draw(
    pipe: DiffusionPipeline, num_images: int, seed: int, steps: int, temperature: float, second_seed: int, blend: float
) -> list[Image.Image]:
    generators, others = (
        pipe.image_generators(num_images, torch.Generator().manual_seed(s)) for s in (seed, second_seed)
    )
    return pipe(
        num_images,
        num_inference_steps=steps,
        temperature=temperature,
        generator=generators,
        sample=blended_states(pipe, generators, others, blend),
    ).images


def captions(images: list[Image.Image], index: dict[str, torch.Tensor] | None) -> list[str | None]:
    """How near each image is to the training set, where an audit index (`vq_ihdm.hub.audit_index`) is shipped."""
    if index is None:
        return [None] * len(images)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float()
    thumbnails = F.avg_pool2d(pixels, int(index["pool"])).flatten(1)
    distances = torch.cdist(thumbnails, index["training"].float()).amin(1) / thumbnails.shape[1] ** 0.5
    nearer = (index["held_out"] < distances[:, None]).float().mean(1)
    return [f"{distance:.1f} · {share:.0%}" for distance, share in zip(distances, nearer, strict=True)]


def save_nifti(images: list[Image.Image], spacing_mm: list[float], file: Path) -> None:
    """The images, anterior up, as the sections of one NIfTI file in RAS, the middle of each at x = y = 0."""
    sections = np.stack([np.asarray(image) for image in images]).transpose(2, 1, 0)[:, ::-1]
    vertical, horizontal = spacing_mm
    affine = np.diag([horizontal, vertical, 1.0, 1.0])
    affine[:2, 3] = -horizontal * (sections.shape[0] - 1) / 2, -vertical * (sections.shape[1] - 1) / 2
    nib.save(nib.Nifti1Image(np.ascontiguousarray(sections), affine), file)


def build_page(folder: Path, downloads: Path) -> gr.Blocks:
    """The page around the pipeline in `folder`; what can be downloaded is written to `downloads`."""
    pipe = load(folder)
    pipe.set_progress_bar_config(disable=True)
    index = load_file(folder / "audit_index.safetensors") if (folder / "audit_index.safetensors").is_file() else None
    record = folder / "training.json"
    spacing = json.loads(record.read_text())["data"].get("spacing_mm") if record.is_file() else None

    def generate(num_images, seed, steps, temperature, second_seed, blend):
        images = draw(pipe, num_images, seed, steps, temperature, second_seed, blend)
        name = f"vq-ihdm_{num_images}_{seed}_{steps}_{temperature:g}_{second_seed}_{blend:g}"
        columns = min(4, num_images)
        blank = [Image.new("L", images[0].size, 255)] * (-num_images % columns)
        make_image_grid(images + blank, -(-num_images // columns), columns).save(downloads / f"{name}.png")
        save_nifti(images, spacing or [1.0, 1.0], downloads / f"{name}.nii.gz")
        gallery = list(zip(images, captions(images, index), strict=True))
        return gallery, downloads / f"{name}.png", downloads / f"{name}.nii.gz"

    with gr.Blocks(title="Synthetic brain slices") as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                num_images = gr.Slider(1, 16, 8, step=1, label="Images")
                steps = gr.Slider(1, 12, 1, step=1, label="Steps")
                temperature = gr.Slider(0, 1.5, pipe.scheduler.config.temperature, step=0.05, label="Temperature")
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80)
                    second_seed = gr.Number(1, label="Second seed", precision=0, minimum=0, min_width=80)
                blend = gr.Slider(0, 1, 0, step=0.05, label="Blend", info=BLEND)
                button = gr.Button("Generate", variant="primary", elem_id="generate")
            with gr.Column(scale=3):
                gallery = gr.Gallery(label="Samples", columns=4, format="png", object_fit="contain", elem_id="samples")
                if index is not None:
                    gr.Markdown(AUDIT.format(pool=int(index["pool"])))
                with gr.Row():
                    files = [
                        gr.DownloadButton("Contact sheet (PNG)", elem_id="png"),
                        gr.DownloadButton("Slices (NIfTI)", elem_id="nifti"),
                    ]
        button.click(generate, [num_images, seed, steps, temperature, second_seed, blend], [gallery, *files])
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, default=SHIPPED, help="folder of a VQIHDMPipeline")
    args = parser.parse_args()
    if not (args.pipeline / "prior").is_dir():
        raise SystemExit(f"error: {args.pipeline} holds no VQIHDMPipeline; name one that train_ihdm.py saved")
    with tempfile.TemporaryDirectory() as downloads:
        try:
            page = build_page(args.pipeline, Path(downloads))
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error
        page.launch(allowed_paths=[downloads])


if __name__ == "__main__":
    main()
