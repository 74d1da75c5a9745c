"""What is evaluated: 8-bit grey images and, for real ones, whose they are."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from datasets import Dataset, concatenate_datasets
from PIL import Image
from tqdm.auto import tqdm

from ..data.images import load_slices, read_levels
from ..data.pixels import grey_levels, levels_to_tensor, tensor_to_uint8
from ..errors import InputError, naming


@dataclass(frozen=True)
class ImageSet:
    """Images of one size with the groups they are independent between.

    Attributes:
        images: (N, H, W) uint8.
        subjects: (N,) int, 0 .. S-1: the person a scan shows. A generated image is a subject of its own.
        slices: (N,) int, the level of the slice within its volume, or None where it is unknown.
        split: of a whole split, the data set it was read from, which has the images at their full depth.
        name: of a whole split, or of several joined by `+`.
    """

    images: np.ndarray
    subjects: np.ndarray
    slices: np.ndarray | None = None
    split: Dataset | None = None
    name: str | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_subjects(self) -> int:
        return len(np.unique(self.subjects))

    def take(self, index: np.ndarray) -> "ImageSet":
        return ImageSet(self.images[index], self.subjects[index], None if self.slices is None else self.slices[index])


def independent(images: np.ndarray) -> ImageSet:
    """Generated images (N, H, W) uint8: each is independent of every other."""
    return ImageSet(images, np.arange(len(images)))


def read_image_folder(folder: str | Path) -> np.ndarray:
    """The PNG files of a folder, or else its NIfTI slices, in the order of their names, as (N, H, W) uint8.

    `contact_sheet.png`, which generate.py lays beside its images, is left out.

    Raises:
        InputError: there are none, they differ in size, or one has colours or cannot be read.
    """
    files = [file for file in Path(folder).glob("*.png") if file.name != "contact_sheet.png"]
    files = sorted(files or [file for suffix in ("nii", "nii.gz") for file in Path(folder).glob(f"*.{suffix}")])
    if not files:
        raise InputError(f"{folder} holds neither PNG nor NIfTI files; name a folder of generated images")
    return _stack(map(_file_levels, files), [str(file) for file in files])


def _file_levels(file: Path) -> np.ndarray:
    """Grey levels (H, W), uint8 or uint16, of a PNG file or of a NIfTI file of a single axial slice.

    Raises:
        InputError: it cannot be read, has colours, or is no single 8-bit or 16-bit slice; the message names it.
    """
    with naming(file, "remove it or write it again"):
        return grey_levels(Image.open(file) if file.suffix == ".png" else _axial_slice(nib.load(file)))


def _axial_slice(volume: nib.spatialimages.SpatialImage) -> Image.Image:
    """A volume of one slice, anterior up and left on the left as generate.py writes it."""
    levels = np.asarray(nib.as_closest_canonical(volume).dataobj)
    if levels.shape[2:] != (1,) or levels.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"holds {levels.dtype} of shape {levels.shape} where one slice of 8-bit or 16-bit grey levels is needed; "
            "write slices with generate.py --format nifti"
        )
    return Image.fromarray(np.ascontiguousarray(levels[:, :, 0].T[::-1]))


def read_data_set(
    dataset_name: str, held_out_splits: list[str] | None = None, **reading: Any
) -> tuple[ImageSet, ImageSet]:
    """The training images and the held-out images of a built data set.

    Args:
        dataset_name: a folder or Hub id with the columns `image`, `subject` and, if known, `slice`.
        held_out_splits: the splits that training never saw; when None `test`, by which nothing was chosen, or all but
            `train` where there is no such split.
        reading: `image_column`, `resolution` and `center_crop` of `load_slices`, as in training.

    Raises:
        InputError: a split or column is missing, `train` is to be held out, images differ in size or have colours,
            a subject stands in two splits, or an image in both sides.
    """
    splits = load_slices(dataset_name, **reading)
    names = held_out_splits or (["test"] if "test" in splits else [name for name in splits if name != "train"])
    for name in names:
        if name not in splits:
            raise InputError(f"{dataset_name} has no split '{name}' but {', '.join(splits)}; choose among them")
    if "train" in names:
        raise InputError("what a model was trained on cannot be held out; leave train out of --split")
    training, held_out = splits["train"], concatenate_datasets([splits[name] for name in names])
    if "subject" not in training.column_names:
        raise InputError(f"{dataset_name} has no column 'subject': intervals and copies cannot be judged without it")
    training, held_out = _read_split(training, "train"), _read_split(held_out, "+".join(names))
    _check_images(training, held_out, dataset_name)
    return training, held_out


def _check_images(training: ImageSet, held_out: ImageSet, source: str) -> None:
    """A person under two names, or an empty slice in both sides, would make the audit of memorisation blind."""
    known = {image.tobytes(): i for i, image in enumerate(training.images)}
    for i, image in enumerate(held_out.images):
        if (twin := known.get(image.tobytes())) is not None:
            raise InputError(
                f"image {i} of {held_out.name} is image {twin} of train, pixel by pixel, in {source}; take one of them "
                "out, with all others of the same person"
            )


def _read_split(split: Dataset, name: str) -> ImageSet:
    rows = split.select_columns("image")
    levels = (read_levels(rows, i) for i in range(len(rows)))
    images = _stack(levels, [f"image {i} of {name}" for i in range(len(rows))])
    _, subjects = np.unique(split["subject"], return_inverse=True)
    return ImageSet(images, subjects, np.array(split["slice"]) if "slice" in split.column_names else None, split, name)


def _stack(images: Iterable[np.ndarray], names: list[str]) -> np.ndarray:
    """Images (H, W), uint8 or uint16 -> (N, H, W) uint8, by the path that network outputs take as well."""
    stacked = None
    for i, levels in enumerate(tqdm(images, "reading images", len(names), leave=False)):
        pixels = tensor_to_uint8(levels_to_tensor(levels))[0]
        if stacked is None:
            stacked = np.empty((len(names), *pixels.shape), np.uint8)
        if pixels.shape != stacked.shape[1:]:
            raise InputError(
                f"{names[i]} is {pixels.shape[0]}x{pixels.shape[1]} where {names[0]} is "
                f"{stacked.shape[1]}x{stacked.shape[2]}; all images must have one size"
            )
        stacked[i] = pixels
    return stacked
