"""What networks and arguments are asked before anything is drawn: finite, made for each other, of the right kind."""

from numbers import Integral
from typing import Any

import torch


def check_finite(model: torch.nn.Module, name: str) -> None:
    """
    Raises:
        ValueError: a parameter or buffer of `model`, called `name` in the message, is NaN or infinite.
    """
    for key, tensor in model.state_dict().items():
        if not tensor.is_meta and not torch.isfinite(tensor).all():  # meta: offloaded, and checked before
            raise ValueError(f"{name}.{key} holds numbers that are not finite")


def check_equal(what: str, **values: Any) -> None:
    """
    Raises:
        ValueError: components, given by name with what each says of `what`, do not belong together.
    """
    if len(set(values.values())) > 1:
        said = ", ".join(f"{name} {value}" for name, value in values.items())
        raise ValueError(f"components of one pipeline have one {what}, not {said}")


def check_count(name: str, value: int, most: int | None = None) -> None:
    """
    Raises:
        ValueError: an argument, called `name`, is no positive whole number, or more than `most`.
    """
    if most is not None and not (isinstance(value, Integral) and 1 <= value <= most):
        raise ValueError(f"{name} must be a whole number in 1..{most}, not {value!r}")
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")
