"""Intervals: the random half-sample bootstrap over subjects (real side) and samples (generated side).

Drawing n groups out of n *with* replacement puts copies of the same image into a set, which shrinks every
nearest-neighbour radius to zero and biases KID and FID upwards. Half of the groups *without* replacement has no
copies, and its mean scatters exactly as much as the mean of the whole set does: s^2/(n/2) (1 - 1/2) = s^2/n
(Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, ch. 8; Politis and Romano, 1994).
The interval is centred at the estimate from all images, so that the bias of a half-sized set (FID grows as N falls)
does not enter it.

Two systems measured against the same people share their half-samples. Whatever a half of the people adds to both
figures cancels in their difference, which therefore has an interval of its own, narrower than theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

RESAMPLES = 100
MAX_NEIGHBOURS = 5000  # images whose nearest neighbours are sought, for which every pair is compared


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval.

    Attributes:
        num_images: it was measured on.
        resampled: its value on each half-sample, where differences of it are of interest.
    """

    value: float
    interval: tuple[float, float]
    num_images: int
    details: dict = field(default_factory=dict)
    resampled: tuple[float, ...] = ()


def choice(groups: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most `most` images: all, or those of a random choice of groups, each of which stays whole."""
    if len(groups) <= most:
        return np.arange(len(groups))
    labels, position, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = np.zeros(len(labels), bool)
    chosen[order[np.cumsum(counts[order]) <= most]] = True
    return np.flatnonzero(chosen[position])


def half_samples(groups: np.ndarray, real: bool = False) -> list[np.ndarray]:
    """Indices of all members of random halves of the groups, `RESAMPLES` times; each group moves as one.

    The same groups give the same halves, whatever stands on the other side of a comparison.

    Args:
        groups: (N,) int >= 0.
        real: of the side that is compared with; its halves are drawn apart from those of the side that is measured.
    """
    rng = np.random.default_rng(int(real))
    labels, position = np.unique(groups, return_inverse=True)
    return [np.flatnonzero(_half(len(labels), rng)[position]) for _ in range(RESAMPLES)]


def half_sample(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of all members of a random half of the groups."""
    labels, position = np.unique(groups, return_inverse=True)
    return np.flatnonzero(_half(len(labels), rng)[position])


def _half(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) bool, a random half of it true."""
    return rng.permutation(count) < count // 2


def estimate(
    value: float,
    resampled: Sequence[float],
    num_images: int,
    lowest: float = -np.inf,
    highest: float = np.inf,
    **details,
) -> Estimate:
    """value +- 1.96 standard deviations of its half-sample values, within the measure's range."""
    value, margin = float(value), 1.96 * float(np.std(resampled))
    interval = max(value - margin, lowest), min(value + margin, highest)
    return Estimate(value, interval, num_images, details, tuple(map(float, resampled)))


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b of two systems with the same number of images, measured against the same people."""
    return estimate(a.value - b.value, np.subtract(a.resampled, b.resampled), a.num_images)
