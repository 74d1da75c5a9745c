"""What the trainings on pixels share: slices to learn from and slices to measure on."""

import torch
from datasets import Dataset

from .images import SliceTensors


def mirror_at_random(images: torch.Tensor, random_flip: bool) -> torch.Tensor:
    """Slices (B, 1, H, W), each as it is or, with `random_flip`, mirrored left and right with probability 1/2."""
    flip = torch.rand(len(images)) < (0.5 if random_flip else 0)  # on the CPU: the same draws on every device
    return torch.where(flip.to(images.device)[:, None, None, None], images.flip(-1), images)


def spread_slices(split: Dataset, num_slices: int) -> torch.Tensor:
    """At most `num_slices` slices, evenly spread over a split: its first ones belong to few subjects."""
    return SliceTensors(split).stack(spread_indices(len(split), num_slices))


def spread_indices(length: int, count: int) -> list[int]:
    """At most `count` of the numbers 0..length-1, evenly spread from the first to the last."""
    return torch.linspace(0, length - 1, min(count, length)).long().tolist()
