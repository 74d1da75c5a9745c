"""A held-out loss that can be compared from one validation to the next."""

from collections.abc import Callable

import torch

from .randomness import seeded


@torch.no_grad()
def held_out_mean(loss: Callable[..., torch.Tensor], seed: int, *columns: torch.Tensor, batch_size: int = 64) -> float:
    """The mean of a loss over held-out examples; the times, masks and noise it draws are the same at every validation.

    Args:
        loss: mean over a batch of examples, one argument for each of the columns.
        seed: of what it draws; the state of torch's generators stays as it was.
        columns: (M, ...) each, all on the device where the loss is worked out.
    """
    with seeded(seed, columns[0].device):
        parts = zip(*(column.split(batch_size) for column in columns), strict=True)
        total = sum(loss(*part).item() * len(part[0]) for part in parts)
    return total / len(columns[0])
