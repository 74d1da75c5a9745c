"""Training state on disk: the tensors of a nested state in safetensors, everything else in JSON.

`torch.save` would pickle, and a checkpoint is something people hand to each other.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..errors import InputError


def save_state(state: dict[str, Any], folder: Path) -> None:
    """Write a nested state of dicts, lists, tensors and JSON scalars as `state.safetensors` and `state.json`."""
    tensors: dict[str, torch.Tensor] = {}

    def outline(node: Any, name: str) -> Any:
        if isinstance(node, torch.Tensor):
            name = f"{name}#{len(tensors)}"  # unique, though keys hold dots: {"a.b": x, "a": {"b": y}}
            tensors[name] = node.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(node, dict):
            # Pairs, not an object: optimizers key their state by integers, which JSON's keys cannot be.
            return {"dict": [[key, outline(value, f"{name}.{key}")] for key, value in node.items()]}
        if isinstance(node, (list, tuple)):
            return {"list": [outline(value, f"{name}.{i}") for i, value in enumerate(node)]}
        return {"value": node}

    structure = outline(state, "state")
    save_file(tensors, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps(structure))


def load_state(folder: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; tuples come back as lists.

    Raises:
        InputError: the folder holds no complete state.
    """
    try:
        tensors = load_file(folder / "state.safetensors")
        structure = json.loads((folder / "state.json").read_text())
    except Exception as error:  # safetensors has its own error type, JSON another
        raise InputError(f"{folder} is no complete checkpoint ({error}); resume from another one") from error

    def restore(node: dict) -> Any:
        ((kind, content),) = node.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {key: restore(value) for key, value in content}
        if kind == "list":
            return [restore(value) for value in content]
        return content

    return restore(structure)
