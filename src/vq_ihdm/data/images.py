"""A built data set as the train scripts see it: grey slices in [-1, 1], split by subject."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_dataset
from PIL import Image

from ..errors import InputError


def load_slices(dataset_name: str | None, train_data_dir: str | None = None) -> DatasetDict:
    """Load a set with at least the splits `train` and `validation`.

    Args:
        dataset_name: a set built by `dataset_scripts` (a local folder) or a data set on the Hub.
        train_data_dir: instead, a plain folder of images (`datasets`' imagefolder); a tenth of its subjects,
            after the `subject` column of its `metadata.csv`, becomes the validation split.

    Raises:
        InputError: nothing was named, it cannot be read, or it has no split `train` or no column `image`.
    """
    if (dataset_name is None) == (train_data_dir is None):
        raise InputError("name the data with either --dataset_name or --train_data_dir")
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
    if "image" not in splits["train"].column_names:
        raise InputError(f"{source} has no column 'image' but {splits['train'].column_names}; name the pictures so")
    if "validation" not in splits:
        splits = _hold_out_subjects(splits["train"], source)
    return splits


def _hold_out_subjects(train: Dataset, source: str) -> DatasetDict:
    """Every tenth subject becomes the validation split: slices of one brain never stand on both sides."""
    if "subject" not in train.column_names:
        raise InputError(
            f"{source} has no validation split and no column 'subject' to make one from; "
            "add a metadata.csv with file_name,subject"
        )
    subjects = sorted(set(train["subject"]))
    if len(subjects) < 2:
        raise InputError(f"{source} has a single subject; a held-out measure needs at least two")
    held_out = set(subjects[::10])
    rows = np.array([subject in held_out for subject in train["subject"]])
    return DatasetDict(train=train.select(np.flatnonzero(~rows)), validation=train.select(np.flatnonzero(rows)))


def grey_levels(image: Image.Image) -> np.ndarray:
    """A grey PIL image -> (H, W), uint8 or uint16.

    Raises:
        InputError: the image has colours.
    """
    if image.mode == "L":
        return np.asarray(image)
    if image.mode in ("I;16", "I"):
        return np.asarray(image).astype(np.uint16)
    raise InputError(f"an image of mode {image.mode} was found where L or I;16 is needed; convert it to grey")


def levels_to_tensor(levels: np.ndarray) -> torch.Tensor:
    """(..., H, W) grey levels, uint8 or uint16 -> (..., 1, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(levels.astype(np.float32)).unsqueeze(-3)
    return pixels * (2 / np.iinfo(levels.dtype).max) - 1


def image_to_tensor(image: Image.Image) -> torch.Tensor:
    """A grey PIL image (8 or 16 bit) -> (1, H, W) float32 in [-1, 1].

    Raises:
        InputError: the image has colours.
    """
    return levels_to_tensor(grey_levels(image))


def tensor_to_uint8(images: torch.Tensor) -> np.ndarray:
    """(B, 1, H, W) in [-1, 1] -> (B, H, W) uint8: the one path from network output to pixels."""
    return ((images.squeeze(1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


class SliceTensors(torch.utils.data.Dataset):
    """The `image` column of a split as (1, H, W) tensors in [-1, 1].

    Decoding a PNG takes about as long as a convolution of it, so a split that fits is decoded once and kept as grey
    levels, of which 1 GiB holds about 35,000 slices of 176x176.
    """

    MEMORY = 2**30  # bytes

    def __init__(self, split: Dataset):
        self.images = split.select_columns("image")
        first = grey_levels(self.images[0]["image"])
        self.levels = None
        if first.nbytes * len(split) <= self.MEMORY:
            self.levels = np.stack([grey_levels(row["image"]) for row in self.images])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.stack([index])[0]

    def stack(self, indices: list[int]) -> torch.Tensor:
        """The images at `indices` as one (B, 1, H, W) batch."""
        if self.levels is not None:
            return levels_to_tensor(self.levels[indices])
        return torch.stack([image_to_tensor(self.images[i]["image"]) for i in indices])


def check_image_size(split: Dataset, source: str | Path, factor: int) -> tuple[int, int]:
    """The (height, width) of a set's images, which must be a multiple of the VQGAN's downsampling factor.

    A `VQModel` decodes any other size silently to a different one.

    Raises:
        InputError: the size is no multiple of `factor`.
    """
    width, height = split[0]["image"].size
    if height % factor or width % factor:
        raise InputError(
            f"{source} holds images of {height}x{width}, no multiple of the downsampling factor {factor}; "
            "build it again with a matching --image_size"
        )
    return height, width
