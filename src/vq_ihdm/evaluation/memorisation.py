"""Are patients given away: nearest training image against nearest held-out image.

A generator that learned the distribution stands as near to people it never saw as to those it trained on; one that
copies stands nearer to the latter. The same audit serves any space with a distance: pixels, what the tokenizer makes of
them, perceptual features, code grids, the blurry states of the prior.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from .report import Figure
from .resampling import MAX_NEIGHBOURS, Estimate, choice, estimate, half_samples

CLOSE_QUANTILE = 0.01  # share of real held-out images that count as close to a training image
COPY_FACTOR = 0.8  # how much nearer than any real held-out image a copy is
VERBATIM = 0.25  # relative distance below which an image is a training image, hardly changed
BLOCK = 512  # images a side whose distances are in memory at a time


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
    norm: float = 2.0,
    mirrored: bool = False,
) -> Nearest:
    """Nearest candidate of each query, over all and by subject.

    Args:
        queries: (Q, ...) and candidates: (M, ...) of any dtype, compared as flat vectors times `scale`.
        subjects: (M,) int, the subject of each candidate; there are S.
        own: (Q,) int, the subject of each query, whose candidates do not count.
        norm: of the difference of two vectors; 0 counts the entries that differ.
        mirrored: the query's left-right mirror image counts as well.
    """
    order = np.argsort(subjects, kind="stable")
    subjects = subjects[order]
    labels, label = np.unique(subjects, return_inverse=True)
    by_subject = np.full((len(queries), len(labels)), np.inf, np.float32)
    index = np.zeros(len(queries), int)
    distance = np.full(len(queries), np.inf, np.float32)
    views = [queries, queries[..., ::-1]] if mirrored else [queries]
    starts = [(row, column) for row in range(0, len(queries), BLOCK) for column in range(0, len(candidates), BLOCK)]
    for row, column in tqdm(starts, "nearest neighbours", leave=False):
        rows, columns = slice(row, row + BLOCK), slice(column, column + BLOCK)
        block = _flat(candidates[order[columns]])
        distances = np.min([torch.cdist(_flat(view[rows]), block, norm).numpy() for view in views], axis=0) * scale
        if own is not None:
            distances[own[rows, None] == subjects[columns]] = np.inf
        winner = distances.argmin(axis=1)
        lowest = distances[np.arange(len(distances)), winner]
        nearer = lowest < distance[rows]
        index[rows][nearer] = order[columns][winner[nearer]]
        distance[rows][nearer] = lowest[nearer]
        present, first = np.unique(label[columns], return_index=True)
        known = by_subject[rows, present[0] : present[-1] + 1]  # subjects are in order, so those of a block adjoin
        np.minimum(known, np.minimum.reduceat(distances, first, axis=1), out=known)
    # cdist works by inner products, too coarse near zero: the nearest is measured again, so that a copy is at 0.
    for row in range(0, len(queries), BLOCK):
        rows = slice(row, row + BLOCK)
        winners = _flat(candidates[index[rows]])
        exact = [torch.linalg.vector_norm(_flat(view[rows]) - winners, norm, dim=1).numpy() for view in views]
        distance[rows] = np.min(exact, axis=0) * scale
    winner = np.searchsorted(labels, subjects[np.argsort(order)[index]])
    by_subject[np.arange(len(queries)), winner] = distance
    return Nearest(by_subject, distance, index)


def _flat(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows).reshape(len(rows), -1)).float()


@dataclass(frozen=True)
class Space:
    """Vectors of the real images, (M, ...) of any dtype, with a distance; see `nearest` for `scale` to `mirrored`."""

    name: str
    training: np.ndarray
    training_subjects: np.ndarray
    held_out: np.ndarray
    held_out_subjects: np.ndarray
    scale: float = 1.0
    norm: float = 2.0
    mirrored: bool = False

    def search(self, queries: np.ndarray, own: np.ndarray | None = None) -> tuple[Nearest, Nearest]:
        """The nearest training and the nearest held-out images; `own` as in `nearest`, for the held-out side."""
        how = {"scale": self.scale, "norm": self.norm, "mirrored": self.mirrored}
        return (
            nearest(queries, self.training, self.training_subjects, **how),
            nearest(queries, self.held_out, self.held_out_subjects, own=own, **how),
        )

    @cached_property
    def people(self) -> np.ndarray:
        """(Q,) int, the subjects of the held-out images that `real` is about: all, or `MAX_NEIGHBOURS` of them."""
        return self.held_out_subjects[choice(self.held_out_subjects, MAX_NEIGHBOURS)]

    @cached_property
    def real(self) -> tuple[Nearest, Nearest]:
        """The same for held-out images, whose own subject does not count."""
        return self.search(self.held_out[choice(self.held_out_subjects, MAX_NEIGHBOURS)], self.people)

    @cached_property
    def close(self) -> float:
        """The distance that one in a hundred held-out images falls below with its nearest training image."""
        return float(np.quantile(self.real[0].distance, CLOSE_QUANTILE))

    @cached_property
    def copy_threshold(self) -> float:
        """The relative distance below which an image is a copy: a fifth less than any held-out image has.

        Relative to held-out people, because images smoother than scans are nearer to everybody without copying
        anybody. The fifth is there because many generated images are compared with few people.
        """
        return COPY_FACTOR * float(relative_distance(*self.real).min())

    @property
    def verbatim_threshold(self) -> float:
        return min(VERBATIM, self.copy_threshold)


def relative_distance(to_training: Nearest, to_held_out: Nearest) -> np.ndarray:
    """(Q,) distance to the nearest training image over that to the nearest held-out image; 0 for a copy."""
    return to_training.distance / np.maximum(to_held_out.distance, 1e-9)


def memorisation_figures(space: Space, to_training: Nearest, to_held_out: Nearest) -> list[Figure]:
    """The audit of generated images; the floor has held-out images in their place."""
    estimates, floors = (
        training_proximity(*found, groups) | {"copy_rate": copy_rate(relative_distance(*found), space, groups)}
        for found, groups in (
            ((to_training, to_held_out), np.arange(len(to_training.distance))),
            (space.real, space.people),
        )
    )
    return [Figure(name, space.name, estimates[name], floor=floors[name]) for name in estimates]


def training_proximity(to_training: Nearest, to_held_out: Nearest, groups: np.ndarray) -> dict[str, Estimate]:
    """Whether Q images stand nearer to training subjects than to held-out ones.

    Args:
        groups: (Q,) int for the interval, which is over images, training subjects and held-out subjects.

    Returns:
        `nearest_ratio` (see `distance_ratio`) and `training_share`, the share of images to which a training subject is
        the nearest of all. If the two sides cannot be told apart, the ratio is 1 and the share S / (S + T).
    """
    training, held_out = to_training.by_subject, to_held_out.by_subject
    subjects = [half_samples(np.arange(distances.shape[1]), real=True) for distances in (training, held_out)]
    resampled = []
    for rows, a, b in zip(half_samples(groups), *subjects, strict=True):
        half = training[np.ix_(rows, a)], held_out[np.ix_(rows, b)]
        resampled.append((distance_ratio(*half), training_share(*half)))
    ratios, shares = zip(*resampled, strict=True)
    medians = {
        "median_to_training": float(np.median(to_training.distance)),
        "median_to_held_out": float(np.median(to_held_out.distance)),
    }
    return {
        "nearest_ratio": estimate(distance_ratio(training, held_out), ratios, len(groups), 0, **medians),
        "training_share": estimate(training_share(training, held_out), shares, len(groups), 0, 1),
    }


def distance_ratio(to_training: np.ndarray, to_held_out: np.ndarray) -> float:
    """Mean distance to the nearest of n training subjects over that to the nearest of n held-out subjects.

    The larger set would hold the nearer neighbour, so the mean is over all choices of equally many subjects. Of S
    training subjects n take part at a time: copies of single subjects lower the ratio to 1 - n / S, not to 0 (and would
    not lower a ratio of medians at all); the copy rate is there for them.

    Args:
        to_training: (Q, S) and to_held_out: (Q, T), distance by subject; inf marks an image's own subject, so that
            held-out images have T - 1 others, and no more take part for generated ones.
    """
    n = min(to_training.shape[1], to_held_out.shape[1] - 1)
    a, b = (mean_nearest(distances, n) for distances in (to_training, to_held_out))
    return a / max(b, 1e-9)  # 0 if the held-out images themselves are evaluated


def mean_nearest(distances: np.ndarray, n: int) -> float:
    """Mean over images and over all choices of n of S subjects of the distance (Q, S) to the nearest of them.

    The k-th nearest subject is the nearest one chosen with probability C(S - k, n - 1) / C(S, n). An image's own
    subject, at inf, is not among the S.
    """
    nearest_first = np.sort(distances, axis=1)
    others, total = np.isfinite(distances).sum(axis=1), 0.0
    for s in np.unique(others):
        # Of the recursion w_(k+1) / w_k = (S - k - n + 1) / (S - k), w_1 = n / S.
        k = np.arange(1, s)
        weights = n / s * np.cumprod(np.concatenate([[1], np.maximum(s - k - n + 1, 0) / (s - k)]))
        total += (nearest_first[others == s, :s] @ weights).sum()
    return total / len(distances)


def training_share(to_training: np.ndarray, to_held_out: np.ndarray) -> float:
    return float((to_training.min(axis=1) < to_held_out.min(axis=1)).mean())


def copy_rate(relative: np.ndarray, space: Space, groups: np.ndarray) -> Estimate:
    """Share of images whose `relative_distance` (N,) is below the copy threshold; its details: how many are verbatim.

    Args:
        groups: (N,) int for the interval.
    """
    copied, verbatim = relative < space.copy_threshold, int((relative < space.verbatim_threshold).sum())
    resampled = [copied[half].mean() for half in half_samples(groups)]
    return estimate(copied.mean(), resampled, len(copied), 0, 1, threshold=space.copy_threshold, verbatim=verbatim)
