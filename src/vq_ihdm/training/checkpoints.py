"""Checkpoints a run can be resumed from bit for bit."""

import re
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..errors import InputError
from ..files import replacing
from .state import load_state, save_state


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
        args: the effective configuration, saved beside the state.
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

    def save(self, step: int) -> Path:
        """Write `checkpoint-<step>`, then drop what exceeds the limit. To be called by every process.

        Raises:
            InputError: a weight is NaN or infinite: such a state must not take the place of a good one.
        """
        for name, part in self.parts.items():
            if isinstance(part, nn.Module):
                for key, weight in part.state_dict().items():
                    if not torch.isfinite(weight).all():
                        raise InputError(
                            f"{name}.{key} is not finite at step {step}; the last checkpoint is intact: resume from "
                            "it with a lower --learning_rate, or without --mixed_precision"
                        )
        folder = self.output_dir / f"checkpoint-{step}"
        random_states = gather_object([_random_state()])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "step": step,
                "args": self.args,
                "random": random_states,
                "scaler": scaler.state_dict() if scaler else None,
                "parts": {name: part.state_dict() for name, part in self.parts.items()},
            }
            with replacing(folder) as temporary:
                temporary.mkdir()
                save_state(state, temporary)
            for old in list_checkpoints(self.output_dir)[: -self.total_limit]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        return folder

    def resume(self, where: str | None) -> int:
        """Restore from `where`, a checkpoint folder or `latest`, and return its step; 0 for None or without any.

        Raises:
            InputError: no such checkpoint, an incomplete one, one of another architecture, one that was written by
                another number of processes, or the folder holds later ones, with which the run would be confused.
        """
        found = list_checkpoints(self.output_dir)
        if where == "latest":
            where = found[-1] if found else None
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
                part.load_state_dict(state["parts"][name])
            except (KeyError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"{where} does not fit this configuration ({name}: {reason})") from error
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        _set_random_state(state["random"][self.accelerator.process_index])
        return state["step"]


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The `checkpoint-<step>` folders of `output_dir`, oldest step first."""
    folders = [p for p in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(folders, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _random_state() -> dict[str, torch.Tensor]:
    """Torch's random states: the train scripts draw from no other source."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
