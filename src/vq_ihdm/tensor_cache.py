"""Tensors that can be worked out again, kept in a file as long as it is whole."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .files import replacing


def cached_tensors(path: Path, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors kept at `path`; where there are none, or damaged ones, those of `compute`, which are then kept."""
    if path.is_file() and (kept := _read(path)) is not None:
        return kept
    tensors = compute()
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"sha256": _sha256(tensors)})
    return tensors


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of a file by their names; None where it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            names, about = file.keys(), file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError:
        return None
    return tensors if _sha256(tensors) == about.get("sha256") else None


def _sha256(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
