"""Intervals: the random half-sample bootstrap over subjects (real side) and samples (generated side).

Drawing n groups out of n *with* replacement puts copies of the same image into a set, which shrinks every
nearest-neighbour radius to zero and biases KID and FID upwards. Half of the groups *without* replacement has no
copies, and its mean scatters exactly as much as the mean of the whole set does: s^2/(n/2) (1 - 1/2) = s^2/n
(Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, ch. 8; Politis and Romano, 1994).
The interval is centred at the estimate from all images, so that the bias of a half-sized set (FID grows as N falls)
does not enter it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

RESAMPLES = 100


@dataclass(frozen=True)
class Estimate:
    """A measured value, its 95 % interval and the number of images it was measured on."""

    value: float
    interval: tuple[float, float]
    num_images: int
    details: dict = field(default_factory=dict)


def half_sample(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of all members of a random half of the groups, each of which moves as one.

    Args:
        groups: (N,) int >= 0.
    """
    labels, position = np.unique(groups, return_inverse=True)
    chosen = np.zeros(len(labels), bool)
    chosen[rng.permutation(len(labels))[: len(labels) // 2]] = True
    return np.flatnonzero(chosen[position])


def interval_95(
    value: float, resampled: Sequence[float], lowest: float = -np.inf, highest: float = np.inf
) -> tuple[float, float]:
    """value +- 1.96 standard deviations of its half-sample values, within the measure's range."""
    margin = 1.96 * float(np.std(resampled))
    return max(value - margin, lowest), min(value + margin, highest)
