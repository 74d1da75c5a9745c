"""The order of examples: a function of seed and position, shared out among processes."""

import itertools

import pytest

from vq_ihdm.errors import InputError
from vq_ihdm.training.batches import batch_order


@pytest.mark.parametrize(("examples", "batch_size", "processes"), [(23, 4, 1), (23, 2, 3), (16, 4, 2), (5, 5, 1)])
def test_batches(examples, batch_size, processes):
    orders = [batch_order(examples, batch_size, 7, 0, process, processes) for process in range(processes)]
    batches_per_epoch = examples // (batch_size * processes)
    epochs = []
    for _ in range(3):
        batches = [batch for order in orders for batch in itertools.islice(order, batches_per_epoch)]
        assert {len(batch) for batch in batches} == {batch_size}
        seen = [index for batch in batches for index in batch]
        assert len(set(seen)) == len(seen) == batches_per_epoch * batch_size * processes  # nobody sees one twice
        assert set(seen) <= set(range(examples))
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_are_a_function_of_the_position():
    whole = list(itertools.islice(batch_order(23, 4, seed=7), 20))
    for start in (0, 1, 4, 5, 13):  # in and between epochs of five batches
        assert list(itertools.islice(batch_order(23, 4, seed=7, start=start), 20 - start)) == whole[start:]
    assert list(itertools.islice(batch_order(23, 4, seed=8), 20)) != whole


def test_two_processes_see_what_one_with_the_double_batch_sees():
    one = itertools.islice(batch_order(23, 4, 7), 15)
    two = [batch_order(23, 2, 7, process_index=process, num_processes=2) for process in range(2)]
    assert [[*next(two[0]), *next(two[1])] for _ in range(15)] == list(one)


def test_every_example_is_seen_within_a_few_epochs():
    seen = itertools.chain.from_iterable(itertools.islice(batch_order(23, 4, 7), 25))
    assert set(seen) == set(range(23))


def test_too_few_examples():
    with pytest.raises(InputError, match="lower --train_batch_size"):
        next(batch_order(7, 4, 0, num_processes=2))
