"""`audit_index.safetensors`: what app.py needs to say how near an image is to the training set.

It holds the training slices reduced `POOL`-fold, and how far held-out slices are from the nearest of them. That shows
the training set, if dimly: it is made and published only where the images themselves may be passed on.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from safetensors.torch import save_file

from ..data.images import SliceTensors
from .model_files import AUDIT_INDEX

POOL = 8


def write_audit_index(folder: Path, splits: DatasetDict) -> None:
    save_file(audit_index(splits), folder / AUDIT_INDEX)


def audit_index(splits: DatasetDict) -> dict[str, torch.Tensor]:
    """The index of a data set with the splits `train` and `validation`.

    Returns:
        `training` (N, P) uint8, the thumbnails; `held_out` (M,), the root-mean-square grey-level distance of each
        validation slice or its mirror image, whichever is nearer, to the nearest of them; `pool`, the reduction.
    """
    training, held_out = thumbnails(splits["train"]).flatten(1), thumbnails(splits["validation"])
    nearest = [torch.cdist(view.flatten(1), training).amin(1) for view in (held_out, held_out.flip(-1))]
    distances = torch.minimum(*nearest) / training.shape[1] ** 0.5
    return {"training": training.to(torch.uint8), "held_out": distances, "pool": torch.tensor(POOL)}


def thumbnails(split: Dataset) -> torch.Tensor:
    """(N, 1, h, w) grey levels in 0..255, as whole numbers, of the slices reduced `POOL`-fold."""
    slices = SliceTensors(split)
    return torch.stack([(F.avg_pool2d(slices[i], POOL) * 127.5 + 127.5).round() for i in range(len(slices))])
