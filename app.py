"""A page to look at: draw synthetic brain slices in the browser.

    python app.py                                   # the shipped checkpoint
    python app.py --pipeline runs/ihdm/pipeline     # or a Hub id
    python app.py --dataset_name data/oasis         # and tells how near each image is to the nearest training slice

It takes no upload, and removes what it wrote. It needs gradio (`pip install -e '.[app]'`). Where this package is not
installed, in a Space (`publish.py --as_space`), the pipeline that was published with the page is drawn from by the code
beside its weights; of no other is code run.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput, make_image_grid
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

SHIPPED = Path(__file__).parent / "checkpoints" / "vq-ihdm-oasis-fine"
ABOUT = """# Synthetic brain slices
Discrete VQ-IHDM draws a blurry state from a prior, the codes of a VQGAN from a denoiser, and pixels from the VQGAN's
decoder. **For research, not for diagnosis.** The same numbers give the same images."""
LIMITS = """**Limits.** {known}Slices are drawn one by one and do not make up a volume; their finest texture is smoother
than a scanner's. Nobody has labelled or checked them, and what looks like a finding is none."""
GUIDANCE = "above 1: closer to what is asked for, at twice the time"
BLEND = "from the blurry state of the first seed to that of the second"
AUDIT = """Last under each image: root-mean-square difference in grey levels to the nearest training slice, mirrored or
not, both reduced {pool}-fold, and the share of held-out slices that have a nearer one. A copy would be at 0 and 0 %."""
NO_AUDIT = """How near an image is to a training slice is not shown: that takes the training slices, which do not come
with these weights; `python app.py --dataset_name FOLDER` shows it where you have them."""
POPULATION = "as in the training population"
DESCRIPTION = "Synthetic image drawn by a model; no person was scanned."
RANGES = {
    "Images": (1, 16),
    "Seed": (0, 2**32 - 1),
    "Steps": (1, 12),
    "Temperature": (0, 1.5),
    "Guidance": (1, 5),
    "Second seed": (0, 2**32 - 1),
    "Blend": (0, 1),
}
LIFETIME = 600  # seconds, of the files behind a visitor's images


def load(path_or_id: str | Path) -> DiffusionPipeline:
    """The pipeline in a folder or Hub repository.

    Raises:
        ValueError: it is damaged or no VQIHDMPipeline, or not the shipped one where the package is missing.
    """
    try:
        from vq_ihdm import load_pipeline
    except ModuleNotFoundError as error:
        if path_or_id != SHIPPED:
            raise ValueError("--pipeline needs this project's package: pip install -e .") from error
        return DiffusionPipeline.from_pretrained(path_or_id, trust_remote_code=True)
    pipe = load_pipeline(path_or_id)
    if type(pipe).__name__ != "VQIHDMPipeline":
        raise ValueError(f"{path_or_id} holds a {type(pipe).__name__}; name a VQIHDMPipeline as train_ihdm.py saves it")
    return pipe


def training_index(dataset_name: str, pipe: DiffusionPipeline) -> dict[str, torch.Tensor]:
    """The audit index of the data set that the pipeline was trained on.

    Raises:
        ValueError: the set cannot be read, or its slices have another size.
    """
    from vq_ihdm.data.images import load_slices
    from vq_ihdm.hub.audit_index import audit_index
    from vq_ihdm.vqgan.model import downsampling_factor

    splits = load_slices(dataset_name)
    factor = downsampling_factor(pipe.vqvae)
    drawn = pipe.denoiser.config.width * factor, pipe.denoiser.config.height * factor
    size = splits["train"][0]["image"].size
    if size != drawn:
        raise ValueError(f"{dataset_name} has slices of {size}, the pipeline draws {drawn}; name its own")
    return audit_index(splits)


def ranges_of(usual: Mapping[str, Any], is_asked: bool) -> dict[str, tuple[float, float]]:
    """`RANGES`, as far as they must be wider for a pipeline that draws in this way unless told otherwise.

    Args:
        is_asked: it can be asked for covariates; what cannot is not guided by them.
    """
    (fewest, most), (coldest, hottest) = RANGES["Steps"], RANGES["Temperature"]
    return RANGES | {
        "Steps": (fewest, max(most, usual["num_inference_steps"])),
        "Temperature": (coldest, max(hottest, usual["temperature"])),
        "Guidance": RANGES["Guidance"] if is_asked else (1, 1),
    }


def check(ranges: dict[str, tuple[float, float]], *numbers: float | None) -> None:
    """Refuse numbers outside their ranges: whoever calls the page by its API is not held by the sliders.

    Raises:
        gr.Error: with a sentence for the visitor.
    """
    for (name, (low, high)), number in zip(ranges.items(), numbers, strict=True):
        if number is None or not low <= number <= high:  # not a number is in no range
            raise gr.Error(f"{name} must be a number from {low} to {high}.")


def ask(pipe: DiffusionPipeline, free: Sequence[bool], values: Sequence) -> dict[str, Any]:
    """What a visitor asks for, by name: a value for each covariate of the pipeline; those that are `free` are left out.

    Raises:
        gr.Error: a value that the pipeline does not know, with a sentence for the visitor.
    """
    asked = {}
    for covariate, is_free, value in zip(pipe.known_covariates, free, values, strict=True):
        if not is_free:
            try:
                covariate.encode(value)
            except ValueError as error:
                raise gr.Error(f"{error}.") from error
            asked[covariate.name] = value
    return asked


def blended_states(
    pipe: DiffusionPipeline,
    generators: list[torch.Generator],
    others: list[torch.Generator],
    blend: float,
    asked: Mapping[str, Any],
) -> tuple[torch.Tensor, dict[str, list]]:
    """u_T between the prior draws of two lists of generators, and the covariates that belong to it.

    Returns:
        (N, D, h, w), at `blend` 0 the pipeline's own draws; and for each covariate a list of N values: numbers between
        those of the two draws, categories of the nearer one.
    """
    known = pipe.known_covariates
    table = torch.tensor([[covariate.encode(asked.get(covariate.name)) for covariate in known]] * len(generators))
    (first, told), (second, other_told) = (pipe.prior.draw(table, drawn_by) for drawn_by in (generators, others))
    between, nearer = torch.lerp(told, other_told, blend), told if blend < 0.5 else other_told
    covariates = {
        covariate.name: [covariate.decode(x) for x in (nearer if covariate.categories else between)[:, column].tolist()]
        for column, covariate in enumerate(known)
    }
    return pipe.prepare_latents(generators, torch.lerp(first, second, blend)), covariates


def draw(
    pipe: DiffusionPipeline,
    num_images: int,
    seed: int,
    steps: int,
    temperature: float,
    guidance_scale: float,
    second_seed: int,
    blend: float,
    asked: Mapping[str, Any],
) -> BaseOutput:
    """`images` at `blend` between two seeds, and the `covariates` they were asked for or drawn as.

    Args:
        asked: any subset of the pipeline's covariates, by name.
    """
    generators, others = (
        pipe.image_generators(num_images, torch.Generator().manual_seed(s)) for s in (seed, second_seed)
    )
    # Unblended, the pipeline draws for itself, and tells a conditional denoiser which covariates it drew.
    sample, covariates = blended_states(pipe, generators, others, blend, asked) if blend else (None, asked)
    return pipe(
        num_images,
        num_inference_steps=steps,
        temperature=temperature,
        guidance_scale=guidance_scale,
        generator=generators,
        sample=sample,
        covariates=covariates,
    )


def captions(
    images: list[Image.Image], covariates: Mapping[str, list] | None, index: dict[str, torch.Tensor] | None
) -> list[str]:
    """What each image was asked for or drawn as, and how near it is to the training set, as far as that is known.

    Args:
        index: the audit index (`vq_ihdm.hub.audit_index`).
    """
    told = [[] for _ in images]
    for name, values in (covariates or {}).items():
        for line, value in zip(told, values, strict=True):
            line.append(f"{name.replace('_', ' ')} {value if isinstance(value, str) else f'{value:.3g}'}")
    near = nearness(images, index) if index is not None else [[]] * len(images)
    return [" · ".join(line + distances) for line, distances in zip(told, near, strict=True)]


def nearness(images: list[Image.Image], index: dict[str, torch.Tensor]) -> list[list[str]]:
    """Of each image the distance to the nearest training slice, and the share of held-out slices nearer to theirs."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float()
    thumbnails = F.avg_pool2d(pixels, int(index["pool"]))
    # Both ways round, since slices are mirrored in training.
    views = (thumbnails, thumbnails.flip(-1))
    nearest = [torch.cdist(view.flatten(1), index["training"].float()).amin(1) for view in views]
    distances = torch.minimum(*nearest) / index["training"].shape[1] ** 0.5
    nearer = (index["held_out"] < distances[:, None]).float().mean(1)
    return [[f"{distance:.1f}", f"{share:.0%}"] for distance, share in zip(distances, nearer, strict=True)]


def save_nifti(images: list[Image.Image], spacing_mm: list[float], file: Path) -> None:
    """The images, anterior up, as the sections of one NIfTI file in RAS, the middle of each at x = y = 0."""
    sections = np.stack([np.asarray(image) for image in images]).transpose(2, 1, 0)[:, ::-1]
    vertical, horizontal = spacing_mm
    affine = np.diag([horizontal, vertical, 1.0, 1.0])
    affine[:2, 3] = -horizontal * (sections.shape[0] - 1) / 2, -vertical * (sections.shape[1] - 1) / 2
    volume = nib.Nifti1Image(np.ascontiguousarray(sections), affine)
    volume.header["descrip"] = DESCRIPTION
    volume.header.set_xyzt_units("mm")
    nib.save(volume, file)


def save_contact_sheet(images: list[Image.Image], file: Path) -> None:
    columns = min(4, len(images))
    blank = [Image.new("L", images[0].size, 255)] * (-len(images) % columns)
    text = PngInfo()
    text.add_text("Description", DESCRIPTION)
    make_image_grid(images + blank, -(-len(images) // columns), columns).save(file, pnginfo=text)


def remove_old(folder: Path) -> None:
    """Remove the files that were written longer ago than `LIFETIME`."""
    for file in folder.iterdir():
        if time.time() - file.stat().st_mtime > LIFETIME:
            file.unlink()


def describe_limits(record: dict) -> str:
    """The page's words about the model with this `training.json`."""
    data = record.get("data", {})
    subjects = data.get("splits", {}).get("train", {}).get("subjects")
    known = f"It knows {subjects} people of one collection, {data['source']}, and none beside. " if subjects else ""
    return LIMITS.format(known=known)


def covariate_controls(known: Sequence) -> tuple[list[gr.Checkbox], list[gr.Slider | gr.Radio]]:
    """For each covariate a box, ticked where it is left free, and the slider or choice that shows without the tick."""
    free, values = [], []
    for covariate in known:
        label = covariate.name.replace("_", " ")
        free.append(gr.Checkbox(True, label=f"{label} {POPULATION}"))
        if covariate.kind == "category":
            value = gr.Radio(list(covariate.categories), value=covariate.categories[0], label=label, visible=False)
        else:
            low, high = covariate.low, covariate.high
            digits = 0 if high - low > 10 else 2  # whole years, hundredths of a level
            middle = round((low + high) / 2, digits)
            value = gr.Slider(low, high, middle, step=10**-digits, label=label, visible=False)
        free[-1].change(hide, free[-1], value, api_name=False, queue=False)
        values.append(value)
    return free, values


def hide(is_free: bool) -> dict:
    return gr.update(visible=not is_free)


class NoUploads:
    """Middleware that closes gradio's upload endpoint: the page needs none."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        closed = scope["type"] == "http" and scope["path"].rstrip("/").endswith("/upload")
        await (PlainTextResponse("This page takes no files.", 403) if closed else self.app)(scope, receive, send)


def build_page(path_or_id: str | Path, downloads: Path, dataset_name: str | None = None) -> gr.Blocks:
    """The page around a pipeline; what can be downloaded is written to `downloads`, for a while.

    The data set it was trained on gives the distance to the nearest training slice where no index was saved with it.

    Raises:
        ValueError: as `load` and `training_index`.
    """
    pipe = load(path_or_id)
    pipe.set_progress_bar_config(disable=True)
    folder = getattr(pipe, "loaded_from", None) or Path(path_or_id)  # where the package is missing: a local one
    index_file, record_file = folder / "audit_index.safetensors", folder / "training.json"
    if dataset_name is not None:
        index = training_index(dataset_name, pipe)
    else:
        index = load_file(index_file) if index_file.is_file() else None
    record = json.loads(record_file.read_text()) if record_file.is_file() else {}
    spacing = record.get("data", {}).get("spacing_mm") or [1.0, 1.0]

    known, usual = pipe.known_covariates, pipe.scheduler.config
    ranges = ranges_of(usual, is_asked=bool(known))

    def generate(num_images, seed, steps, temperature, guidance_scale, second_seed, blend, *free_and_values):
        check(ranges, num_images, seed, steps, temperature, guidance_scale, second_seed, blend)
        asked = ask(pipe, free_and_values[: len(known)], free_and_values[len(known) :])
        num_images, seed, steps, second_seed = (int(number) for number in (num_images, seed, steps, second_seed))
        drawn = draw(pipe, num_images, seed, steps, temperature, guidance_scale, second_seed, blend, asked)
        images = drawn.images
        remove_old(downloads)
        # A category by its index: its name may hold what a file's name may not.
        told = [f"{covariate.encode(asked.get(covariate.name)):g}" for covariate in known]
        how = f"{num_images}_{seed}_{steps}_{temperature:g}_{guidance_scale:g}_{second_seed}_{blend:g}"
        name = "_".join(["vq-ihdm", how, *told])
        sheet, volume = downloads / f"{name}.png", downloads / f"{name}.nii.gz"
        save_contact_sheet(images, sheet)
        save_nifti(images, spacing, volume)
        return list(zip(images, captions(images, drawn.covariates, index), strict=True)), sheet, volume

    with gr.Blocks(title="Synthetic brain slices", delete_cache=(LIFETIME, LIFETIME)) as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                num_images = gr.Slider(*RANGES["Images"], 8, step=1, label="Images")
                seed = gr.Number(0, label="Seed", minimum=0, step=1, elem_id="seed")
                free, values = covariate_controls(known)
                guidance_scale = gr.Slider(
                    *RANGES["Guidance"], 1, step=0.5, label="Guidance", info=GUIDANCE, visible=bool(known)
                )
                button = gr.Button("Generate", variant="primary", elem_id="generate")
                steps = gr.Slider(*ranges["Steps"], usual.num_inference_steps, step=1, label="Steps")
                temperature = gr.Slider(*ranges["Temperature"], usual.temperature, step=0.05, label="Temperature")
                with gr.Accordion("Between two seeds", open=False):
                    second_seed = gr.Number(1, label="Second seed", minimum=0, step=1)
                    blend = gr.Slider(*RANGES["Blend"], 0, step=0.05, label="Blend", info=BLEND)
            with gr.Column(scale=3):
                gallery = gr.Gallery(label="Samples", columns=4, format="png", object_fit="contain", elem_id="samples")
                gr.Markdown(NO_AUDIT if index is None else AUDIT.format(pool=int(index["pool"])))
                with gr.Row():
                    files = [
                        gr.DownloadButton("Contact sheet (PNG)", elem_id="png"),
                        gr.DownloadButton("Slices (NIfTI)", elem_id="nifti"),
                    ]
        gr.Markdown(describe_limits(record))
        numbers = [num_images, seed, steps, temperature, guidance_scale, second_seed, blend]
        settings, shown = [*numbers, *free, *values], [gallery, *files]
        button.click(generate, settings, shown)
        page.load(generate, settings, shown, api_name=False)
    return page


def serve(page: gr.Blocks, downloads: Path, **options) -> str:
    """Launch the page; its address. `options` are those of `gr.Blocks.launch`."""
    middleware = {"middleware": [Middleware(NoUploads)]}
    return page.launch(allowed_paths=[str(downloads)], app_kwargs=middleware, **options)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default=SHIPPED, help="folder or Hub id of a VQIHDMPipeline")
    parser.add_argument("--dataset_name", help="the set it was trained on: how near is each image to a training slice?")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as downloads:
        try:
            page = build_page(args.pipeline, Path(downloads), args.dataset_name)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error
        serve(page, Path(downloads))


if __name__ == "__main__":
    main()
