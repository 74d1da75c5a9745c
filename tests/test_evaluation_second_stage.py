"""What stage 2 scores for itself: statistics of codes, and codes that come from the images' full depth."""

import numpy as np
import pytest
from evaluation_helpers import TinyExtractor, as_split, people

from vq_ihdm.evaluation.evaluator import EvaluationSet
from vq_ihdm.evaluation.features import FeatureNetwork
from vq_ihdm.evaluation.image_sets import ImageSet
from vq_ihdm.evaluation.pipelines import tokenize
from vq_ihdm.evaluation.second_stage import known_pair_share, known_pairs, usage

SIZE = 12  # of the codebook


def grids(count: int, seed: int) -> np.ndarray:
    """Codes (count, 9, 9) that rise along rows and columns, each by a step of its grid's own: neighbours depend."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(0, 3, (3, count, 1, 1))
    y, x = np.mgrid[:9, :9]
    return (steps[0] * y + steps[1] * x + steps[2] * 4) % SIZE


def test_pairs_are_known_where_codes_fit_together_and_not_where_they_are_independent():
    training, held_out = grids(200, 1), grids(50, 2)
    shuffled = np.random.default_rng(3).permuted(held_out.reshape(50, -1), axis=1).reshape(held_out.shape)
    for lag in (1, 2, 4):
        known = known_pairs(training, lag, SIZE)
        real, independent = (known_pair_share(codes, known, lag, np.arange(50)) for codes in (held_out, shuffled))
        assert real.value == 1 and independent.interval[1] < 0.9


def test_a_pair_is_known_by_its_direction():
    training = np.zeros((1, 3, 3), int)
    training[0, :, 1:] = 1  # 0 1 1 in each row: 0 stands left of 1, never above it
    known = known_pairs(training, 1, 2)
    assert known[0].tolist() == [[False, True], [False, True]] and known[1].tolist() == [[True, False], [False, True]]
    share = known_pair_share(training.swapaxes(1, 2).repeat(2, axis=0), known, 1, np.arange(2)).value
    assert share == pytest.approx((4 + 3) / 12)  # in rows, in columns


def test_usage_tells_a_collapsed_generator_from_one_that_uses_all_codes():
    real, each, people = grids(200, 1), np.arange(200), np.arange(200)
    alike = usage(grids(200, 2), each, real, people, SIZE)
    collapsed = usage(np.zeros_like(real), each, real, people, SIZE)
    assert collapsed["code_perplexity"].value == 1 and alike["code_perplexity"].value > 6
    share_of_zero = (real == 0).mean()
    assert collapsed["code_usage"].value == pytest.approx(1 - share_of_zero)
    assert alike["code_usage"].value < 0.1 < collapsed["code_usage"].interval[0]


def test_codes_are_those_that_training_saw_not_of_8_bit_copies(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("vq_ihdm.data.tokens.CACHE", tmp_path / "tokens")
    training, held_out = people(8, 3, seed=1), people(8, 3, seed=2)
    deep = training.images.astype(np.uint16) * 257 + np.random.default_rng(0).integers(-120, 120, training.images.shape)
    deep = deep.clip(0, 65535).astype(np.uint16)  # the same 8-bit images
    network = FeatureNetwork(TinyExtractor(), cache=tmp_path / "cache")

    def codes(split):
        image_set = ImageSet(training.images, training.subjects, training.slices, split)
        return tokenize(pipeline, EvaluationSet(image_set, held_out, [network])).training_codes

    assert (codes(as_split(deep)) != codes(training.split)).any()
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "tokens").iterdir()}
    codes(as_split(deep))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "tokens").iterdir()} == written
