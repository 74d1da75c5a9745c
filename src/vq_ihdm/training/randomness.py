"""Torch's random states: the train scripts draw from no other source."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Of the CPU and of this process's device, by kind."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore what `random_state` returned, on the same kind of device or on another."""
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type])


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws inside are those of `seed`; outside, all goes on as if none had been made."""
    state = random_state(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(state, device)
