"""What intervals of a difference say of two systems, over images and people and over trainings."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student_t

from vq_ihdm.evaluation.resampling import Estimate, estimate


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Of one figure for several trainings of a system; the interval is over images and people alone."""
    values, resampled = [e.value for e in estimates], [e.resampled for e in estimates]
    return estimate(np.mean(values), np.mean(resampled, axis=0), estimates[0].num_images)


def interval_over_trainings(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of two or more independent trainings, by Student's t."""
    n = len(values)
    margin = student_t.ppf(0.975, n - 1) * float(np.std(values, ddof=1)) / np.sqrt(n)
    return float(np.mean(values) - margin), float(np.mean(values) + margin)


def in_words(intervals: Sequence[tuple[float, float]], better: str) -> str:
    """What intervals of a difference "this system - that system" say of this one, all of them taken together.

    Args:
        better: `lower` or `higher`.

    Returns:
        `better`, `worse`, or `cannot be told apart` where an interval contains zero.
    """
    if any(low <= 0 <= high for low, high in intervals) or len({low > 0 for low, _ in intervals}) > 1:
        return "cannot be told apart"
    return "better" if (intervals[0][0] > 0) == (better == "higher") else "worse"
