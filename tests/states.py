"""Nested states of trainings, compared bit for bit."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from vq_ihdm.training.checkpoints import list_checkpoints
from vq_ihdm.training.state import load_state


def differences(first: object, second: object, name: str = "state") -> list[str]:
    """Where two nested states differ, in values or types; nothing if they are equal bit for bit."""
    if isinstance(first, dict) and isinstance(second, dict) and list(first) == list(second):
        return [found for key in first for found in differences(first[key], second[key], f"{name}.{key}")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [found for i in range(len(first)) for found in differences(first[i], second[i], f"{name}.{i}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [name]
    return [] if type(first) is type(second) and first == second else [name]


def final_state(folder: Path) -> dict:
    """The last checkpoint of a run, but for what is not of the training: the flags and the clock."""
    state = load_state(list_checkpoints(folder)[-1])
    run = state["parts"]["run"]
    del state["args"], run["seconds"]
    for metrics in (run["best"], run["last"]):
        if metrics is not None:
            del metrics["seconds"]
    return state


def tensors_of(node: object) -> Iterator[torch.Tensor]:
    """The tensors of a nested state."""
    if isinstance(node, torch.Tensor):
        yield node
    elif isinstance(node, (dict, list)):
        for part in node.values() if isinstance(node, dict) else node:
            yield from tensors_of(part)


def assert_same_weights(first: Path, second: Path) -> None:
    files = [file.relative_to(first) for file in first.rglob("*.safetensors")]
    assert files and files == [file.relative_to(second) for file in second.rglob("*.safetensors")]
    for file in files:
        ours, theirs = load_file(first / file), load_file(second / file)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
