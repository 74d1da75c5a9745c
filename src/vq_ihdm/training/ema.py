"""Exponential moving average of a module's weights."""

import copy

import torch
from torch import nn


class EMA:
    """A shadow of `module` whose floating-point tensors follow it: shadow <- decay * shadow + (1 - decay) * module.

    The decay warms up as (1 + n) / (10 + n) after n updates, so that a short run is not dominated by its
    initial weights. Buffers are followed like parameters, whole numbers copied. Every process computes the same
    average, since every process holds the same weights.

    `diffusers.training_utils.EMAModel` averages parameters alone: batch normalisation's statistics would stay those of
    the start, and it cannot save a transformers model.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for shadow, value in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
            if shadow.is_floating_point():
                shadow.lerp_(value, 1 - decay)
            else:
                shadow.copy_(value)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.module.load_state_dict(state["module"])
