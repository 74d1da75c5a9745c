"""Positions of a step lie far apart."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from vq_ihdm.reveal_order import reveal_spread_out

HEIGHT, WIDTH = 6, 9


def uniform(batch: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, HEIGHT, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def nothing(batch: int = 3) -> torch.BoolTensor:
    return torch.zeros(batch, HEIGHT, WIDTH, dtype=torch.bool)


def gaps(position: tuple[int, int]) -> np.ndarray:
    """(H, W) distance of every position to one, by taking the nearest of its nine copies around the torus."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    copies = [(position[0] + i * HEIGHT, position[1] + j * WIDTH) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return np.min([np.hypot(y - row, x - column) for row, column in copies], axis=0)


def test_each_is_as_far_as_can_be_from_all_before_it():
    known = nothing(1)
    known[0, 2, 3] = True
    for num_known in range(2, HEIGHT * WIDTH + 1):
        after = reveal_spread_out(known, uniform(1), num_known)
        distance = np.min([gaps(tuple(position)) for position in known[0].nonzero().tolist()], axis=0)
        (new,) = (after & ~known)[0].nonzero().tolist()
        assert (after >= known).all() and distance[tuple(new)] == pytest.approx(distance.max())
        known = after
    assert known.all()


def test_at_once_or_one_after_the_other():
    at_once, known = reveal_spread_out(nothing(), uniform(), 20), nothing()
    for num_known in range(1, 21):
        known = reveal_spread_out(known, uniform(), num_known)
    assert torch.equal(at_once, known)


def test_a_quarter_has_no_neighbours():
    known = reveal_spread_out(nothing(), uniform(), HEIGHT * WIDTH // 4)
    for axis in (1, 2):
        assert not (known & known.roll(1, axis)).any()


def test_every_image_gets_as_many_whatever_it_has():
    known = nothing()
    known[1, :2], known[2] = True, True
    after = reveal_spread_out(known, uniform(), 30)
    assert after.sum((1, 2)).tolist() == [30, 30, HEIGHT * WIDTH] and (after >= known).all()
    for image in range(3):
        one = slice(image, image + 1)
        assert torch.equal(reveal_spread_out(known[one], uniform()[one], 30), after[one])


def test_no_position_is_preferred():
    counts = reveal_spread_out(nothing(3000), uniform(3000), 5).sum(0).flatten()
    # Of each image five positions that exclude each other, so counts vary less than those of independent draws.
    assert chisquare(counts).pvalue > 0.01
