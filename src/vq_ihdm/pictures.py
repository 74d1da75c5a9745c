"""Pictures to look at, as PNG: contact sheets of images."""

from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from .data.pixels import tensor_to_uint8
from .files import replacing


def contact_sheet(images: np.ndarray, columns: int, margin: int = 2) -> Image.Image:
    """(N, H, W) uint8 -> one picture, row by row."""
    count, height, width = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + margin) - margin, columns * (width + margin) - margin), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + margin), (i % columns) * (width + margin)
        sheet[y : y + height, x : x + width] = image
    return Image.fromarray(sheet)


def reconstruction_sheet(images: torch.Tensor, reconstructions: torch.Tensor) -> Image.Image:
    """Originals (B, 1, H, W) in [-1, 1] in the upper row, their reconstructions below."""
    return contact_sheet(tensor_to_uint8(torch.cat([images, reconstructions])), columns=len(images))


def sample_sheet(pipeline: DiffusionPipeline, seed: int, num_images: int = 8, columns: int = 4) -> Image.Image:
    """Samples of a pipeline, the same ones for the same weights."""
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num_images, generator=torch.Generator().manual_seed(seed)).images
    return contact_sheet(np.stack(images), columns)


def covariate_sheet(pipeline: DiffusionPipeline, seed: int, columns: int = 8) -> Image.Image:
    """One seed asked for one covariate after the other: a row each, from its lowest to its highest value.

    What is not asked for is drawn, but for the level of the slice, which stays in the middle.
    """
    pipeline.set_progress_bar_config(disable=True)
    rows, known = [], pipeline.known_covariates
    middle = {"slice_level": 0.5} if any(covariate.name == "slice_level" for covariate in known) else {}
    for covariate in known:
        if covariate.kind == "category":
            values = list(covariate.categories)[:columns]
        else:
            values = np.linspace(covariate.low, covariate.high, columns).tolist()
        generators = [torch.Generator().manual_seed(seed) for _ in values]
        images = pipeline(len(values), generator=generators, covariates=middle | {covariate.name: values}).images
        blank = np.full((columns - len(values), *np.shape(images[0])), 255, np.uint8)
        rows += [*map(np.asarray, images), *blank]
    return contact_sheet(np.stack(rows), columns)


def save_picture(picture: Image.Image, path: str | Path) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def save_sheets(pipeline: DiffusionPipeline, seed: int, folder: Path) -> None:
    """`samples.png` and, of a pipeline that can be asked for something, `covariates.png` beside its weights."""
    save_picture(sample_sheet(pipeline, seed, num_images=16, columns=8), folder / "samples.png")
    if pipeline.known_covariates:
        save_picture(covariate_sheet(pipeline, seed), folder / "covariates.png")
