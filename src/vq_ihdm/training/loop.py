"""What every training loop needs around its mathematics: data order, interruption, a guard against NaN."""

import signal
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator

from ..errors import InputError


def batch_order(
    num_examples: int,
    batch_size: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
) -> Iterator[list[int]]:
    """Endless batches of example indices for one process, from global batch `start` on.

    Each epoch is a permutation drawn from (seed, epoch) alone, so the order is a function of the position and a
    resumed run, mid-epoch too, sees exactly what an uninterrupted one would. Together the processes see every
    example at most once an epoch; what does not fill a batch of all processes waits for the next permutation.

    Raises:
        InputError: fewer examples than one batch of all processes.
    """
    batches = num_examples // (batch_size * num_processes)
    if batches == 0:
        raise InputError(
            f"{num_examples} training images do not fill one batch of {batch_size} x {num_processes} processes; "
            "lower --train_batch_size"
        )
    while True:
        epoch, batch = divmod(start, batches)
        order = torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for position in range(batch, batches):
            first = (position * num_processes + process_index) * batch_size
            yield order[first : first + batch_size]
        start = (epoch + 1) * batches


class Interruption:
    """Turns SIGTERM and Ctrl-C into a request that the loop reads between two steps."""

    def __init__(self):
        self.requested = False
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._request)

    def _request(self, signum: int, frame: object) -> None:
        if self.requested:  # asked twice: the user does not want to wait for the checkpoint
            raise KeyboardInterrupt
        self.requested = True


def any_process(asked: bool, accelerator: Accelerator) -> bool:
    """Whether one of the processes asks for something that all of them must do at the same step."""
    if accelerator.num_processes == 1:
        return asked
    return bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), "sum").item() > 0)


class Stopwatch:
    """Seconds of training over all the sessions of a run."""

    def __init__(self):
        self.before, self.started = 0.0, time.monotonic()

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def state_dict(self) -> dict:
        return {"seconds": self.seconds()}

    def load_state_dict(self, state: dict) -> None:
        self.before, self.started = state["seconds"], time.monotonic()


def check_finite(losses: dict[str, float], step: int) -> None:
    """Stop before a checkpoint is overwritten by a run that has diverged.

    Raises:
        InputError: a loss is NaN or infinite.
    """
    for name, value in losses.items():
        if not abs(value) < float("inf"):
            raise InputError(
                f"{name} became {value} at step {step}; the last checkpoint is intact: resume from it with a lower "
                "--learning_rate, or without --mixed_precision"
            )
