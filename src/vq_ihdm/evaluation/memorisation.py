"""Are patients given away: nearest training image against nearest held-out image.

A generator that learned the distribution stands as near to people it never saw as to those it trained on; one that
copies stands nearer to the latter. The same audit serves any space with a distance: pixels, perceptual features, the
blurry states of the prior.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from .report import Figure
from .resampling import RESAMPLES, Estimate, half_sample, interval_95

COPY_QUANTILE = 0.01  # share of real held-out images that are nearer to a training image than the copy threshold
DRAWS = 20  # of equally many training and held-out subjects


class Nearest(NamedTuple):
    """Distances from Q images to a set of S people.

    Attributes:
        by_subject: (Q, S) distance to the nearest image of each subject; inf for the image's own subject.
        distance, index: (Q,) the nearest image of all and where it stands in the set.
    """

    by_subject: np.ndarray
    distance: np.ndarray
    index: np.ndarray


def nearest(
    queries: np.ndarray,
    candidates: np.ndarray,
    subjects: np.ndarray,
    scale: float = 1.0,
    own: np.ndarray | None = None,
) -> Nearest:
    """Nearest candidate of each query, over all and by subject.

    Args:
        queries: (Q, ...) and candidates: (M, ...) of any dtype, compared as flat vectors times `scale`.
        subjects: (M,) int, the subject of each candidate; there are S.
        own: (Q,) int, the subject of each query, whose candidates do not count.
    """
    flat = torch.from_numpy(queries.reshape(len(queries), -1)).float()
    distances = np.empty((len(queries), len(candidates)), np.float32)
    for start in tqdm(range(0, len(candidates), 512), "nearest neighbours", leave=False):
        block = torch.from_numpy(candidates[start : start + 512].reshape(-1, flat.shape[1])).float()
        distances[:, start : start + 512] = torch.cdist(flat, block).numpy() * scale
    if own is not None:
        distances[own[:, None] == subjects] = np.inf
    index = distances.argmin(axis=1)
    # cdist works by inner products, too coarse near zero: the nearest is measured again, so that a copy is at 0.
    winners = torch.from_numpy(candidates[index].reshape(len(queries), -1)).float()
    distance = (flat - winners).norm(dim=1).numpy() * scale
    distances[np.arange(len(queries)), index] = distance
    order = np.argsort(subjects, kind="stable")
    first = np.unique(subjects[order], return_index=True)[1]
    return Nearest(np.minimum.reduceat(distances[:, order], first, axis=1), distance, index)


@dataclass(frozen=True)
class Space:
    """Vectors of the real images, (M, ...) of any dtype, whose distances are Euclidean after a factor `scale`."""

    name: str
    training: np.ndarray
    training_subjects: np.ndarray
    held_out: np.ndarray
    held_out_subjects: np.ndarray
    scale: float = 1.0

    def search(self, queries: np.ndarray, own: np.ndarray | None = None) -> tuple[Nearest, Nearest]:
        """The nearest training and the nearest held-out images; `own` as in `nearest`, for the held-out side."""
        return (
            nearest(queries, self.training, self.training_subjects, self.scale),
            nearest(queries, self.held_out, self.held_out_subjects, self.scale, own),
        )

    @cached_property
    def real(self) -> tuple[Nearest, Nearest]:
        """The same for every held-out image, whose own subject does not count."""
        return self.search(self.held_out, self.held_out_subjects)

    @cached_property
    def copy_threshold(self) -> float:
        """The distance that one in a hundred held-out images falls below with its nearest training image."""
        return _copy_threshold(self.real[0].distance)


def memorisation_figures(space: Space, to_training: Nearest, to_held_out: Nearest) -> list[Figure]:
    """The audit of generated images; the floor has held-out images in their place."""
    each, people = np.arange(len(to_training.distance)), space.held_out_subjects
    real_to_training, real_to_held_out = space.real
    real_distances = real_to_training.distance
    estimates = favour(to_training, to_held_out, each)
    estimates["copy_rate"] = copy_rate(to_training.distance, each, real_distances, people)
    floors = favour(real_to_training, real_to_held_out, people)
    floors["copy_rate"] = copy_rate(real_distances, people, real_distances, people)
    return [Figure(name, space.name, estimate, floor=floors[name]) for name, estimate in estimates.items()]


def favour(to_training: Nearest, to_held_out: Nearest, groups: np.ndarray) -> dict[str, Estimate]:
    """Whether Q images stand nearer to training subjects than to held-out ones.

    Args:
        groups: (Q,) int for the interval, which is over images, training subjects and held-out subjects.

    Returns:
        `nearest_ratio` (see `distance_ratio`) and `training_share`, the share of images to which a training subject is
        the nearest of all. If the two sides cannot be told apart, the ratio is 1 and the share S / (S + T).
    """
    rng = np.random.default_rng(0)
    training, held_out = to_training.by_subject, to_held_out.by_subject
    columns = [np.arange(distances.shape[1]) for distances in (training, held_out)]
    resampled = []
    for _ in range(RESAMPLES):
        rows, a, b = (half_sample(labels, rng) for labels in (groups, *columns))
        half = training[np.ix_(rows, a)], held_out[np.ix_(rows, b)]
        resampled.append((distance_ratio(*half, rng), training_share(*half)))
    ratios, shares = zip(*resampled, strict=True)
    ratio, share = distance_ratio(training, held_out, rng), training_share(training, held_out)
    medians = {
        "median_to_training": float(np.median(to_training.distance)),
        "median_to_held_out": float(np.median(to_held_out.distance)),
    }
    return {
        "nearest_ratio": Estimate(ratio, interval_95(ratio, ratios, 0), len(groups), medians),
        "training_share": Estimate(share, interval_95(share, shares, 0, 1), len(groups)),
    }


def distance_ratio(to_training: np.ndarray, to_held_out: np.ndarray, rng: np.random.Generator) -> float:
    """Mean distance to the nearest of n training subjects over that to the nearest of n held-out subjects.

    The larger set would hold the nearer neighbour, so random choices of equally many subjects are averaged. Of S
    training subjects n take part at a time: copies of single subjects lower the ratio to 1 - n / S, not to 0 (and would
    not lower a ratio of medians at all).

    Args:
        to_training: (Q, S) and to_held_out: (Q, T), distance by subject; inf marks an image's own subject.
    """
    n = min(to_training.shape[1], to_held_out.shape[1])
    means = []
    for distances in (to_training, to_held_out):
        draws = [rng.permutation(distances.shape[1])[:n] for _ in range(DRAWS)]
        means.append(np.mean([distances[:, columns].min(axis=1).mean() for columns in draws]))
    return float(means[0] / max(means[1], 1e-9))  # 0 if the held-out images themselves are evaluated


def training_share(to_training: np.ndarray, to_held_out: np.ndarray) -> float:
    return float((to_training.min(axis=1) < to_held_out.min(axis=1)).mean())


def copy_rate(
    distances: np.ndarray, groups: np.ndarray, real_distances: np.ndarray, real_groups: np.ndarray
) -> Estimate:
    """Share of images nearer to a training image than the copy threshold.

    Args:
        distances: (N,) to the nearest training image; real_distances: (M,) the same of the held-out images, whose
            lowest hundredth sets the threshold.
        groups, real_groups: (N,), (M,) int for the interval.
    """
    rng = np.random.default_rng(0)
    threshold = _copy_threshold(real_distances)
    value = float((distances < threshold).mean())
    resampled = [
        (distances[half_sample(groups, rng)] < _copy_threshold(real_distances[half_sample(real_groups, rng)])).mean()
        for _ in range(RESAMPLES)
    ]
    return Estimate(value, interval_95(value, resampled, 0, 1), len(distances), {"threshold": threshold})


def _copy_threshold(held_out_to_training: np.ndarray) -> float:
    return float(np.quantile(held_out_to_training, COPY_QUANTILE))
