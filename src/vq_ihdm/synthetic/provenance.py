"""How images were made, told inside every file: a synthetic image must never pass for a scan."""

import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..hub.model_files import weights_digest
from ..hub.record import read_record

DESCRIPTION = "Synthetic image drawn by a model; no person was scanned."


@dataclass(frozen=True)
class Provenance:
    """Where the images of one run come from; equal provenance and index, equal image.

    Attributes:
        pipeline: its class.
        model: Hub id and commit, or the class and the data it was trained on: no path.
        weights: digest of the weights, as record and evaluation of their model give it.
        configs: digest of the components' configs: how the pipeline draws unless told otherwise.
        licence: Hub id of the licence of the training data, under which the weights are passed on.
        torch_dtype: of the weights.
        sampling: arguments of the pipeline's call, where they are not its own defaults; `covariates` as `Asked`.
        seed: of the run.
        spacing_mm: height and width of a pixel; None where nobody knows.
    """

    pipeline: str
    model: str
    weights: str
    configs: str
    licence: str
    torch_dtype: str
    sampling: dict[str, Any]
    seed: int
    spacing_mm: Sequence[float] | None

    def of_image(self, i: int, covariates: dict[str, Any]) -> dict[str, Any]:
        """What the file of image i says about it; `covariates`: what it was asked to be, or drawn as."""
        about = {"synthetic": True, **asdict(self), "index": i, "image_seed": seed_of_image(self.seed, i)}
        return about | {"covariates": covariates} if covariates else about


def describe(
    path_or_id: str,
    pipeline: DiffusionPipeline,
    torch_dtype: str,
    sampling: dict[str, Any],
    seed: int,
    spacing_mm: Sequence[float] | None = None,
) -> Provenance:
    """The provenance of images of a pipeline that was loaded from `path_or_id`.

    Args:
        spacing_mm: height and width of a pixel, or one number for both, where the pipeline's record does not count.
    """
    name, folder = type(pipeline).__name__, pipeline.loaded_from
    record = read_record(folder)
    model = f"{name} trained on {record['data']['source']}" if record else name
    if not Path(path_or_id).is_dir():
        model = f"{path_or_id}@{folder.name}"  # a snapshot's folder is named after its commit
    licence = record["data"]["licence"] if record else "unknown"
    digests = weights_digest(folder), configs_digest(folder, list(pipeline.components))
    spacing_mm = spacing_mm or (record["data"].get("spacing_mm") if record else None)
    spacing_mm = spacing_mm and [spacing_mm[0], spacing_mm[-1]]
    return Provenance(name, model, *digests, licence, torch_dtype, sampling, seed, spacing_mm)


def configs_digest(folder: Path, components: Sequence[str]) -> str:
    """A digest of the components' configs, to tell pipelines of the same weights apart."""
    digest = hashlib.sha256()
    for name in components:
        for file in sorted((folder / name).glob("*config.json")):
            digest.update(f"{name}/{file.name}".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def seed_of_image(seed: int, i: int) -> int:
    """The seed of image i: 32 bits, since torch's CPU generator takes no more; no two images of a seed share one."""
    return (seed * 0x9E3779B1 + i) % 2**32


def png_bytes(pixels: np.ndarray, about: dict[str, Any]) -> bytes:
    """(H, W) uint8 as PNG with `about`, JSON, in a text chunk."""
    text = PngInfo()
    text.add_text("Description", DESCRIPTION)
    text.add_text("Comment", json.dumps(about))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def nifti_bytes(pixels: np.ndarray, about: dict[str, Any], spacing_mm: Sequence[float]) -> bytes:
    """(H, W) uint8 as a gzipped NIfTI volume of one slice, `about`, JSON, in a header extension.

    An image has anterior up and the subject's left on its left. In RAS its rows therefore run against y. The middle
    lies at the origin; of a lone slice the thickness is a convention, 1 mm.

    Args:
        spacing_mm: height and width of a pixel.
    """
    import nibabel as nib  # of the extra `data`: PNG files need no more than the pipeline itself

    (height, width), (vertical, horizontal) = pixels.shape, spacing_mm
    affine = np.diag([horizontal, vertical, 1.0, 1.0])
    affine[:2, 3] = -horizontal * (width - 1) / 2, -vertical * (height - 1) / 2
    volume = nib.Nifti1Image(pixels[::-1].T[:, :, None], affine)
    volume.header.set_xyzt_units("mm")
    volume.header["descrip"] = DESCRIPTION
    volume.header.extensions.append(nib.nifti1.Nifti1Extension("comment", json.dumps(about).encode()))
    return gzip.compress(volume.to_bytes(), mtime=0)  # no date: the same image, the same file
