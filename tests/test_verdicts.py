"""Words that follow from intervals."""

import runpy

import numpy as np
import pytest
from conftest import ROOT

verdicts = runpy.run_path(str(ROOT / "benchmarks" / "verdicts.py"))
in_words, interval_over_trainings = verdicts["in_words"], verdicts["interval_over_trainings"]


def test_words_follow_from_all_intervals_of_a_difference():
    assert in_words([(0.1, 0.2), (0.0001, 1)], "higher") == "better"
    assert in_words([(0.1, 0.2), (0.0001, 1)], "lower") == "worse"
    assert in_words([(-2, -1)], "lower") == "better"
    for intervals in ([(0.1, 0.2), (-0.1, 1)], [(0.1, 0.2), (-0.2, -0.1)]):
        assert in_words(intervals, "lower") == "cannot be told apart"


def test_the_interval_over_trainings_covers_their_mean_in_nineteen_of_twenty_cases():
    rng = np.random.default_rng(0)
    intervals = [interval_over_trainings(rng.normal(size=3)) for _ in range(2000)]
    assert np.mean([low < 0 < high for low, high in intervals]) == pytest.approx(0.95, abs=0.015)
