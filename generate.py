"""Draw many images from a pipeline into files.

    accelerate launch generate.py --pipeline checkpoints/vq-ihdm-oasis --num_images 1000 --output_dir images

Under --output_dir stand `000000.png`, `000001.png`, ... and, as --format asks, `000000.nii.gz`, ...; the first of them
together as `contact_sheet.png`; and `manifest.json` with the seed, the settings and the versions of the libraries.

Image i depends on the seed and on i alone, however many processes share the work. Interrupted, the same command goes
on with what is missing; --num_images may have grown. Another --batch_size gives the same images but for rounding:
a few pixels may differ by one grey level.
"""

import argparse
import gzip
import hashlib
import inspect
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub import snapshot_download
from PIL import Image
from tqdm.auto import tqdm

from vq_ihdm import load_pipeline
from vq_ihdm.arguments import positive_int
from vq_ihdm.errors import InputError, run
from vq_ihdm.files import replacing
from vq_ihdm.hub.record import read_record
from vq_ihdm.pictures import contact_sheet, save_picture

SAMPLING = ("num_inference_steps", "temperature", "top_p")
SUFFIXES = {"png": [".png"], "nifti": [".nii.gz"], "both": [".png", ".nii.gz"]}
LIBRARIES = ("vq-ihdm", "torch", "diffusers", "transformers")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pipeline", required=True, help="a pipeline's folder or Hub id")
    add("--output_dir", type=Path, required=True)
    add("--num_images", type=positive_int, required=True)
    add("--num_inference_steps", type=positive_int, help="by default as many as the pipeline takes")
    add("--temperature", type=float, help="of the draw of codes; by default the pipeline's own")
    add("--top_p", type=float, help="of the draw of codes; by default the pipeline's own")
    add("--seed", type=int, default=0)
    add("--batch_size", type=positive_int, default=32, help="images a process works on at a time")
    add("--format", choices=SUFFIXES, default="png")
    add("--spacing_mm", type=float, nargs="+", help="height and width of a pixel, or one number; for NIfTI, where "
        "the pipeline's training.json does not say")  # fmt: skip
    add("--torch_dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    accelerator = Accelerator()
    pipeline = load_pipeline(args.pipeline, torch_dtype=getattr(torch, args.torch_dtype)).to(accelerator.device)
    pipeline.set_progress_bar_config(disable=True)
    sampling = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    for name in sampling:
        if name not in inspect.signature(pipeline.__call__).parameters:
            raise InputError(f"a {type(pipeline).__name__} takes no --{name}; leave it out")
    spacing_mm = find_spacing(args) if args.format != "png" else None

    settings = {
        "pipeline": type(pipeline).__name__,
        "weights": fingerprint(args.pipeline, list(pipeline.components)),
        "seed": args.seed,
        "sampling": sampling,
        "format": args.format,
        "spacing_mm": spacing_mm,
        "torch_dtype": args.torch_dtype,
    }
    earlier = read_manifest(args.output_dir, settings)
    accelerator.wait_for_everyone()  # until every process has read what the first one is about to write
    if accelerator.is_main_process:
        with replacing(args.output_dir / "manifest.json") as temporary:
            num_images = max(args.num_images, earlier.get("num_images", 0))
            versions = {name: version(name) for name in LIBRARIES}
            manifest = {"num_images": num_images, "settings": settings, "versions": versions}
            temporary.write_text(json.dumps(manifest, indent=2) + "\n")

    # A batch is the same images whoever draws it and whatever exists of it: the arithmetic of some kernels depends
    # on the size of a batch.
    suffixes = SUFFIXES[args.format]
    batches = [range(start, min(start + args.batch_size, args.num_images))
               for start in range(0, args.num_images, args.batch_size)]  # fmt: skip
    shard = batches[accelerator.process_index :: accelerator.num_processes]
    for batch in tqdm(shard, "generating", unit="batch", disable=not accelerator.is_local_main_process):
        missing = [i for i in batch if not all(file_of(args.output_dir, i, suffix).exists() for suffix in suffixes)]
        if not missing:
            continue
        generators = [torch.Generator().manual_seed(seed_of_image(args.seed, i)) for i in batch]
        try:
            images = pipeline(len(batch), generator=generators, batch_size=args.batch_size, **sampling).images
        except ValueError as error:  # an argument outside the pipeline's range
            raise InputError(str(error)) from error
        for i in missing:
            pixels = np.asarray(images[i - batch.start])
            for suffix in suffixes:
                write_image(pixels, file_of(args.output_dir, i, suffix), spacing_mm)

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shown = [read_image(file_of(args.output_dir, i, suffixes[0])) for i in range(min(args.num_images, 64))]
        save_picture(contact_sheet(np.stack(shown), columns=8), args.output_dir / "contact_sheet.png")
        print(f"{args.num_images} images are in {args.output_dir}")
    accelerator.end_training()


def seed_of_image(seed: int, i: int) -> int:
    """The seed of image i: 32 bits, since torch's CPU generator takes no more; no two images of a seed share one."""
    return (seed * 0x9E3779B1 + i) % 2**32


def fingerprint(path_or_id: str, components: Sequence[str]) -> str:
    """A digest of the components' weights and configs, to tell pipelines apart without naming a path."""
    folder = Path(path_or_id) if Path(path_or_id).is_dir() else Path(snapshot_download(path_or_id))
    digest = hashlib.sha256()
    for name in components:
        for file in sorted((folder / name).iterdir()):
            if file.suffix in (".json", ".safetensors"):
                digest.update(f"{name}/{file.name}".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def find_spacing(args: argparse.Namespace) -> list[float]:
    """Height and width of a pixel in mm: as asked, or as the pipeline's record says.

    Raises:
        InputError: neither says.
    """
    record = read_record(args.pipeline)
    spacing_mm = args.spacing_mm or (record or {"data": {}})["data"].get("spacing_mm")
    if spacing_mm is None:
        raise InputError(f"{args.pipeline} has no record of its voxel size, which NIfTI needs; give --spacing_mm")
    if len(spacing_mm) > 2 or min(spacing_mm) <= 0:
        raise InputError("--spacing_mm takes one or two positive numbers: height and width of a pixel in mm")
    return [spacing_mm[0], spacing_mm[-1]]


def read_manifest(output_dir: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The manifest of an earlier run with these settings; empty for a new folder.

    Raises:
        InputError: the folder holds images of other settings, or something else.
    """
    file = output_dir / "manifest.json"
    if not file.is_file():
        if output_dir.exists() and any(output_dir.iterdir()):
            raise InputError(f"{output_dir} holds files but no manifest.json; name a new --output_dir")
        return {}
    if not any(output_dir.glob("[0-9]*")):  # an earlier run was stopped by a mistake in its settings
        return {}
    manifest = json.loads(file.read_text())
    for name, value in settings.items():
        if manifest["settings"].get(name) != value:
            there = manifest["settings"].get(name)
            raise InputError(
                f"{output_dir} holds images of other settings ({name}: {there} there, {value} now); "
                "name a new --output_dir"
            )
    return manifest


def file_of(output_dir: Path, i: int, suffix: str) -> Path:
    return output_dir / f"{i:06d}{suffix}"


def write_image(pixels: np.ndarray, file: Path, spacing_mm: Sequence[float] | None) -> None:
    """Write (H, W) uint8 as PNG, or as a NIfTI volume of one slice.

    An image has anterior up and the subject's left on its left. In RAS its rows therefore run against y. The middle
    lies at the origin; of a lone slice the thickness is a convention, 1 mm.
    """
    if file.suffix == ".png":
        save_picture(Image.fromarray(pixels), file)
        return
    (height, width), (vertical, horizontal) = pixels.shape, spacing_mm
    affine = np.diag([horizontal, vertical, 1.0, 1.0])
    affine[:2, 3] = -horizontal * (width - 1) / 2, -vertical * (height - 1) / 2
    volume = nib.Nifti1Image(pixels[::-1].T[:, :, None], affine)
    volume.header.set_xyzt_units("mm")
    with replacing(file) as temporary:
        temporary.write_bytes(gzip.compress(volume.to_bytes(), mtime=0))  # no date: the same image, the same file


def read_image(file: Path) -> np.ndarray:
    """What `write_image` wrote, (H, W) uint8."""
    if file.suffix == ".png":
        return np.asarray(Image.open(file))
    return np.asarray(nib.load(file).dataobj)[:, :, 0].T[::-1]


if __name__ == "__main__":
    run(main)
