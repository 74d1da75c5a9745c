"""Drawn images as one file each, with a table: what `load_dataset("imagefolder", data_dir=...)` reads."""

import csv
import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..covariates import Covariate
from ..files import replacing
from .provenance import Provenance, nifti_bytes, png_bytes

COLUMNS = ("index", "image_seed")
SUFFIXES = {"png": [".png"], "nifti": [".nii.gz"], "both": [".png", ".nii.gz"]}


class ImageFiles:
    """`000000.png`, `000001.png`, ..., as NIfTI where asked, and `metadata.csv`.

    Args:
        folder: where they stand.
        suffixes: of the files an image has.
        provenance: what each of them tells.
        batch_size: images that are drawn, and looked after, together.
        known_covariates: what the model can be asked for: further columns of the table.
    """

    def __init__(
        self,
        folder: Path,
        suffixes: Sequence[str],
        provenance: Provenance,
        batch_size: int,
        known_covariates: Sequence[Covariate] = (),
    ):
        self.folder, self.suffixes, self.provenance = folder, suffixes, provenance
        self.images_per_part, self.known_covariates = batch_size, known_covariates

    def holds(self, part: range) -> bool:
        """Whether every image of `part` is there and whole."""
        return all(self._holds_image(i) for i in part)

    def write(self, part: range, images: Iterable[tuple[np.ndarray, dict[str, Any]]]) -> None:
        """Write the images (H, W) uint8 of `part` and their covariates; what is there and whole stays."""
        for i, (pixels, covariates) in zip(part, images, strict=True):
            if self._holds_image(i):
                continue
            about, spacing_mm = self.provenance.of_image(i, covariates), self.provenance.spacing_mm
            for suffix in self.suffixes:
                with replacing(self._file_of(i, suffix)) as temporary:
                    temporary.write_bytes(
                        png_bytes(pixels, about) if suffix == ".png" else nifti_bytes(pixels, about, spacing_mm)
                    )

    def read(self, count: int) -> list[np.ndarray]:
        """The first `count` images, (H, W) uint8."""
        return [read_image(self._file_of(i, self.suffixes[0])) for i in range(count)]

    def finish(self) -> None:
        """Write the table: a row an image, in the form `datasets` joins to the files."""
        suffix = self.suffixes[0]
        names = [covariate.name for covariate in self.known_covariates]
        with replacing(self.folder / "metadata.csv") as temporary, temporary.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["file_name", *COLUMNS, *names])
            for image in sorted(self.folder.glob(f"[0-9]*{suffix}")):
                covariates = read_about(image)["covariates"] if names else {}
                about = self.provenance.of_image(int(image.name.removesuffix(suffix)), covariates)
                table.writerow([image.name, *(about[column] for column in COLUMNS), *map(covariates.get, names)])

    def _file_of(self, i: int, suffix: str) -> Path:
        return self.folder / f"{i:06d}{suffix}"

    def _holds_image(self, i: int) -> bool:
        return all(is_whole(self._file_of(i, suffix)) for suffix in self.suffixes)


def is_whole(file: Path) -> bool:
    """Whether a file of an image is there, with the checksums that PNG and gzip carry right to its end."""
    if not file.is_file():
        return False
    try:
        if file.suffix == ".png":
            Image.open(file).verify()
            return True
        return gzip.decompress(file.read_bytes()) != b""
    except Exception:  # of a reader of foreign bytes: anything from SyntaxError to zlib.error
        return False


def read_image(file: Path) -> np.ndarray:
    """What `ImageFiles` wrote, (H, W) uint8."""
    if file.suffix == ".png":
        return np.asarray(Image.open(file))
    import nibabel as nib

    return np.asarray(nib.load(file).dataobj)[:, :, 0].T[::-1]


def read_about(file: Path) -> dict[str, Any]:
    """What the file of an image says about it."""
    if file.suffix == ".png":
        return json.loads(Image.open(file).text["Comment"])
    import nibabel as nib

    return json.loads(nib.load(file).header.extensions[0].get_content())
