"""A step of adversarial training: updates of different networks, one after the other."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Update:
    """One kind of update within a step.

    Args:
        name: of the loss in the log.
        networks: that learn in it.
        loss: what they lower, a function of real images (B, 1, H, W) in [-1, 1].
        repeats: how many times in a row, each time on new images.
    """

    name: str
    networks: list[nn.Module]
    loss: Callable[[torch.Tensor], torch.Tensor]
    repeats: int = 1
