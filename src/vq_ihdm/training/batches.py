"""The order in which a training sees its examples."""

from collections.abc import Iterator

import torch

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
