"""A built data set as the train scripts see it: grey slices in [-1, 1], split by subject."""

import argparse
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_dataset
from PIL import Image

from ..arguments import positive_int
from ..errors import InputError, naming
from .pixels import grey_levels, levels_to_tensor


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """How the images of a set are read; evaluated is what was trained on."""
    add = parser.add_argument
    add("--image_column", default="image", help="where the set has its images")
    add("--resolution", type=positive_int, help="bring the shorter side of every image to so many pixels")
    add("--center_crop", action="store_true", help="with --resolution: then cut out the middle square")


def load_slices(
    dataset_name: str | None,
    train_data_dir: str | None = None,
    image_column: str = "image",
    resolution: int | None = None,
    center_crop: bool = False,
) -> DatasetDict:
    """Load a set with at least the splits `train` and `validation`.

    Where it has no `validation`, a tenth of the subjects of `train` becomes that split.

    Args:
        dataset_name: a set built by `dataset_scripts` (a local folder) or a data set on the Hub.
        train_data_dir: instead, a plain folder of images (`datasets`' imagefolder) with a `metadata.csv`, whose
            column `subject` tells whose they are.
        image_column: where the set has its images; `image` in what is returned.
        resolution: bring the shorter side of every image to so many pixels,
        center_crop: and then cut the middle square out of it.

    Raises:
        InputError: nothing was named, it cannot be read, it has no split `train` or no such column, an image has no
            subject, a subject stands in two splits, or the splits differ in the size of their images.
    """
    if (dataset_name is None) == (train_data_dir is None):
        raise InputError("name the data with either --dataset_name or --train_data_dir")
    if center_crop and resolution is None:
        raise InputError("--center_crop cuts a square of --resolution pixels; give that too")
    source = dataset_name or train_data_dir
    try:
        splits = (
            load_dataset(dataset_name)
            if dataset_name is not None
            else load_dataset("imagefolder", data_dir=train_data_dir)
        )
    except Exception as error:  # the readers raise everything from OSError to pyarrow's own
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{source} cannot be read as a data set ({reason}); build one with dataset_scripts/"
        ) from error
    if "train" not in splits:
        raise InputError(f"{source} has no split 'train' but {', '.join(splits)}; name the one to train on so")
    columns = splits["train"].column_names
    if image_column not in columns:
        raise InputError(
            f"{source} has no column '{image_column}' but {columns}; name that of the images with --image_column"
        )
    if image_column != "image":
        splits = splits.remove_columns("image") if "image" in columns else splits
        splits = splits.rename_column(image_column, "image")
    _check_subjects(splits, source)
    if "validation" not in splits:
        splits = DatasetDict(splits | _hold_out_subjects(splits["train"], source))
    if resolution is not None:
        splits = DatasetDict({name: _resized(split, resolution, center_crop) for name, split in splits.items()})
    sizes = {}
    for name, split in splits.items():
        if len(split) == 0:
            raise InputError(f"{source} has an empty split '{name}'; put images into it or take it out")
        sizes[name] = _size(read_levels(split, 0))
    if len(set(sizes.values())) > 1:
        raise InputError(f"the splits of {source} differ in their images: {sizes}; bring all to one size and depth")
    return splits


def _hold_out_subjects(train: Dataset, source: str) -> DatasetDict:
    """Every tenth subject becomes the validation split: slices of one brain never stand on both sides."""
    if "subject" not in train.column_names:
        raise InputError(
            f"{source} has no validation split and no column 'subject' to make one from; "
            "add a metadata.csv with file_name,subject"
        )
    people = _people(train)
    subjects = sorted(set(people))
    if len(subjects) < 2:
        raise InputError(f"{source} has a single subject; a held-out measure needs at least two")
    held_out = set(subjects[::10])
    rows = np.array([subject in held_out for subject in people])
    return DatasetDict(train=train.select(np.flatnonzero(~rows)), validation=train.select(np.flatnonzero(rows)))


def _people(split: Dataset) -> list[str]:
    """Whose each image is: ids without the spaces around them, empty where there is none."""
    return ["" if subject is None else str(subject).strip() for subject in split["subject"]]


def _check_subjects(splits: DatasetDict, source: str) -> None:
    """Held-out figures are worth nothing of people a model has seen, or was chosen by."""
    known = {name: set(_people(split)) for name, split in splits.items() if "subject" in split.column_names}
    if any("" in subjects for subjects in known.values()):
        raise InputError(f"{source} has images without a subject; give each one in its metadata.csv")
    for one, other in combinations(known, 2):
        if shared := known[one] & known[other]:
            raise InputError(
                f"{len(shared)} subjects of {source} stand both in {one} and in {other}; split it by subject"
            )


def _resized(split: Dataset, resolution: int, center_crop: bool) -> Dataset:
    def resize(row: dict, index: int) -> dict:
        levels = read_levels(split, index)
        scale = resolution / min(levels.shape)
        height, width = (round(side * scale) for side in levels.shape)
        image = Image.fromarray(levels.astype(np.float32)).resize((width, height), Image.Resampling.LANCZOS)
        if center_crop:
            top, left = (height - resolution) // 2, (width - resolution) // 2
            image = image.crop((left, top, left + resolution, top + resolution))
        levels = np.asarray(image).round().clip(0, np.iinfo(levels.dtype).max).astype(levels.dtype)
        return {"image": Image.fromarray(levels)}

    return split.map(resize, with_indices=True, desc=f"resizing to {resolution}")


@dataclass(frozen=True)
class _Row:
    """What an image of a split is called: its file where the set knows it, and its row."""

    split: Dataset
    index: int

    def __str__(self) -> str:
        path = self.split.cast_column("image", datasets.Image(decode=False))[self.index]["image"]["path"]
        return f"image {self.index} of the split '{self.split.split}'" + (f" ({path})" if path else "")


def read_levels(split: Dataset, index: int) -> np.ndarray:
    """Grey levels (H, W), uint8 or uint16, of an image of a split.

    Raises:
        InputError: it cannot be read or has colours; the message names it.
    """
    with naming(_Row(split, index), "take it out of the set or write it again"):
        image = split[index]["image"]
        if image is None:
            raise InputError("is missing; take its row out of the set.")
        return grey_levels(image)


class SliceTensors(torch.utils.data.Dataset):
    """The `image` column of a split as (1, H, W) tensors in [-1, 1].

    Decoding a PNG takes about as long as a convolution of it, so a split that fits is decoded once and kept as grey
    levels, of which 1 GiB holds about 35,000 slices of 176x176.

    Raises:
        InputError: an image cannot be read, has colours, or differs from the first one in size or depth: here where
            the split fits, else when it is asked for.
    """

    MEMORY = 2**30  # bytes

    def __init__(self, split: Dataset):
        self.images = split.select_columns("image")
        self.first = read_levels(self.images, 0)
        self.levels = None
        if self.first.nbytes * len(split) <= self.MEMORY:
            self.levels = np.stack([self._read(index) for index in range(len(split))])

    def _read(self, index: int) -> np.ndarray:
        levels = read_levels(self.images, index)
        if (levels.shape, levels.dtype) != (self.first.shape, self.first.dtype):
            raise InputError(
                f"{_Row(self.images, index)} has {_size(levels)} where the first one has {_size(self.first)}; bring "
                "all images to one size and depth, as dataset_scripts/slices.py does"
            )
        return levels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.stack([index])[0]

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        """What a `DataLoader` asks for a batch by."""
        return self.stack(indices)

    def stack(self, indices: list[int]) -> torch.Tensor:
        """The images at `indices` as one (B, 1, H, W) batch."""
        if self.levels is not None:
            return levels_to_tensor(self.levels[indices])
        return torch.stack([levels_to_tensor(self._read(int(index))) for index in indices])


def _size(levels: np.ndarray) -> str:
    return f"{levels.shape[0]}x{levels.shape[1]} pixels of {8 * levels.itemsize} bits"


def check_image_size(split: Dataset, source: str | Path, factor: int) -> tuple[int, int]:
    """The (height, width) of a set's images, which must be a multiple of the VQGAN's downsampling factor.

    A `VQModel` decodes any other size silently to a different one.

    Raises:
        InputError: the first image cannot be read, or the size is no multiple of `factor`.
    """
    height, width = read_levels(split, 0).shape
    if height % factor or width % factor:
        raise InputError(
            f"{source} holds images of {height}x{width}, no multiple of the downsampling factor {factor}; "
            "build it again with a matching --image_size"
        )
    return height, width
