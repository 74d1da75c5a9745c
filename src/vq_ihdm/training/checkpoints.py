"""Checkpoints a run can be resumed from bit for bit."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import InputError
from ..files import replacing
from .randomness import random_state, set_random_state
from .state import load_state, save_state

CHANGES = "changed_on_resume"
PLACES = ("config", "output_dir", "resume_from_checkpoint")  # flags that decide nothing about the training


class Stateful(Protocol):
    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> Any: ...


class Checkpointer:
    """Saves and restores everything that decides how a run goes on.

    Args:
        accelerator: its random states (one a process) and gradient scaler are part of a checkpoint.
        output_dir: `checkpoint-<step>` folders are kept here.
        parts: what else has a state, by name: networks, EMA, optimizers, schedulers. Networks are given
            unwrapped.
        args: the effective configuration, saved beside the state; `changed_on_resume` is added, a list of
            {from_step, setting, before, after}.
        total_limit: keep only so many, the newest.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: str | Path,
        parts: dict[str, Stateful],
        args: dict[str, Any],
        total_limit: int,
    ):
        self.accelerator, self.output_dir, self.parts = accelerator, Path(output_dir), parts
        self.args, self.total_limit = args, total_limit
        args[CHANGES] = []

    def save(self, step: int) -> Path:
        """Write `checkpoint-<step>`, then drop what exceeds the limit. To be called by every process.

        Raises:
            InputError: a weight, an average or a moment is NaN or infinite: such a state must not take the place of a
                good one.
        """
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        for name, tensor in _tensors(parts):
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"{name} is not finite at step {step}; the last checkpoint is intact: resume from it with a lower "
                    "--learning_rate, or without --mixed_precision"
                )
        folder = self.output_dir / f"checkpoint-{step}"
        random_states = gather_object([random_state(self.accelerator.device)])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "step": step,
                "args": self.args,
                "random": random_states,
                "scaler": scaler.state_dict() if scaler else None,
                "parts": parts,
            }
            with replacing(folder) as temporary:
                temporary.mkdir()
                save_state(state, temporary)
            saved = list_checkpoints(self.output_dir)
            damaged = [other for other in saved if _step_of(other) > step]  # `resume` allows no others
            whole = saved[: len(saved) - len(damaged)]
            for superseded in whole[: -self.total_limit] + damaged:
                shutil.rmtree(superseded)
        self.accelerator.wait_for_everyone()
        return folder

    def resume(self, where: str | None) -> int:
        """Restore from `where`, a checkpoint folder or `latest`, and return its step; 0 for None or without any.

        `latest` is the newest that is whole: it says so where it passes over a damaged one. Settings (learning rates
        and their schedule, ...) are those of this run, not those that were saved; what differs is noted in `args`.

        Raises:
            InputError: no such checkpoint, a damaged one, one of another architecture, one that was written by
                another number of processes, or the folder holds later ones, with which the run would be confused.
        """
        found = list_checkpoints(self.output_dir)
        if where == "latest":
            where, state = self._newest_whole(found)
        else:
            state = load_state(Path(where)) if where is not None else {"step": 0}
            if found and _step_of(found[-1]) > state["step"]:
                raise InputError(
                    f"{found[-1]} is of an earlier run that went further; go on with it by --resume_from_checkpoint "
                    "latest, or choose another --output_dir"
                )
        if where is None:
            return 0
        if len(state["random"]) != self.accelerator.num_processes:
            raise InputError(
                f"{where} was written by {len(state['random'])} processes, this run has "
                f"{self.accelerator.num_processes}; start it with as many"
            )
        for name, part in self.parts.items():
            try:
                _restore(part, state["parts"][name])
            except (KeyError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"{where} does not fit this configuration ({name}: {reason})") from error
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        set_random_state(state["random"][self.accelerator.process_index], self.accelerator.device)
        self._note_changes(state["args"], state["step"])
        return state["step"]

    def _note_changes(self, before: dict[str, Any], step: int) -> None:
        changes = [
            {"from_step": step, "setting": name, "before": before.get(name), "after": value}
            for name, value in self.args.items()
            if name not in (CHANGES, *PLACES) and value != before.get(name)
        ]
        self.args[CHANGES] = before[CHANGES] + changes
        for change in changes:
            self.accelerator.print(
                f"from step {step} on --{change['setting']} is {change['after']} instead of {change['before']}"
            )

    def _newest_whole(self, found: list[Path]) -> tuple[Path | None, dict[str, Any]]:
        """The newest of the checkpoints that is as it was saved, with its state; (None, step 0) without any."""
        for checkpoint in reversed(found):
            try:
                state = load_state(checkpoint)
            except InputError as error:
                self.accelerator.print(f"warning: {error}")
                continue
            if checkpoint != found[-1]:
                self.accelerator.print(f"going on with {checkpoint}")
            return checkpoint, state
        if found:
            raise InputError(
                f"no checkpoint in {self.output_dir} is whole; choose another --output_dir, or remove them to start "
                "anew"
            )
        return None, {"step": 0}


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The `checkpoint-<step>` folders of `output_dir`, oldest step first."""
    found = Path(output_dir).glob("checkpoint-*")
    return sorted((p for p in found if re.fullmatch(r"checkpoint-\d+", p.name) and p.is_dir()), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _restore(part: Stateful, state: dict) -> None:
    """Load a state, but keep the settings of an optimizer and of its schedule: they are this run's flags."""
    if isinstance(part, Optimizer):
        settings = [{name: value for name, value in g.items() if name != "params"} for g in part.param_groups]
        part.load_state_dict(state)
        for group, setting in zip(part.param_groups, settings, strict=True):
            group.update(setting)
    elif isinstance(part, LambdaLR):
        part.load_state_dict(state | {"base_lrs": part.base_lrs})
        rates = [rate * shape(part.last_epoch) for rate, shape in zip(part.base_lrs, part.lr_lambdas, strict=True)]
        part._last_lr = rates
        for group, rate in zip(part.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    else:
        part.load_state_dict(state)


def _tensors(node: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a nested state, with the names that lead to them."""
    if isinstance(node, torch.Tensor):
        yield name, node
    elif isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
