"""Training state on disk: the tensors of a nested state in safetensors, everything else in JSON.

`torch.save` would pickle, and a checkpoint is something people hand to each other. The JSON holds a digest of both, so
that a state is read as it was written or not at all.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..errors import InputError

TENSORS, STRUCTURE = "state.safetensors", "state.json"


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
    save_file(tensors, folder / TENSORS)
    content = {"sha256": _digests(folder, structure), "structure": structure}
    (folder / STRUCTURE).write_text(json.dumps(content))


def load_state(folder: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; tuples come back as lists.

    Raises:
        InputError: the folder does not hold exactly what was saved.
    """
    try:
        content = json.loads((folder / STRUCTURE).read_text())
        structure, expected = content["structure"], content["sha256"]
        changed = [name for name, digest in _digests(folder, structure).items() if digest != expected[name]]
        if changed:
            raise ValueError(f"{changed[0]} is not what was saved")
        tensors = load_file(folder / TENSORS)
    except PermissionError:
        raise
    except Exception as error:  # whatever JSON, safetensors and foreign contents raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{folder} is no complete checkpoint ({reason}); resume from the one before it") from error

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


def _digests(folder: Path, structure: Any) -> dict[str, str]:
    """SHA-256 of the file of tensors and of the JSON's own content, by name."""
    digest = hashlib.sha256()
    with (folder / TENSORS).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {TENSORS: digest.hexdigest(), STRUCTURE: hashlib.sha256(json.dumps(structure).encode()).hexdigest()}
