"""How good is stage 2 for itself: its codes, and its images against decoded codes of real ones.

Against scans the tokenizer's error covers every difference between second stages. Here both sides went through the same
decoder, or are codes.
"""

from typing import NamedTuple

import numpy as np

from .report import Figure
from .resampling import Estimate, estimate, half_samples

LAGS = (1, 2, 4)  # cells between the two codes of a pair


class Tokenized(NamedTuple):
    """Real images as a tokenizer sees them.

    Attributes:
        training_codes: (M, 2, h, w) code indices of all training images and of their mirror images.
        held_out_codes: (M', 2, h, w) the same of the held-out images.
        training, held_out: (M, H, W) and (M', H, W) uint8, the codes of the images decoded, as they are.
        codebook_size: K, how many codes there are.
        training_views, held_out_views: (M, V, h, w) and (M', V, h, w), the codes of all views that a second stage
            learnt from, and of the same views of the held-out images.
    """

    training_codes: np.ndarray
    held_out_codes: np.ndarray
    training: np.ndarray
    held_out: np.ndarray
    codebook_size: int
    training_views: np.ndarray
    held_out_views: np.ndarray


def code_figures(
    codes: np.ndarray, tokenized: Tokenized, training_index: np.ndarray, training_groups: np.ndarray, people: np.ndarray
) -> list[Figure]:
    """Statistics of generated codes (N, h, w) beside those of real ones.

    Args:
        training_index: which training images stand for N generated ones; training_groups: their subjects.
        people: (M',) int, the subjects of the held-out images.
    """
    each, size = np.arange(len(codes)), tokenized.codebook_size
    stand_in, held_out_codes = tokenized.training_codes[training_index, 0], tokenized.held_out_codes[:, 0]
    measured = usage(codes, each, held_out_codes, people, size)
    best = usage(stand_in, training_groups, held_out_codes, people, size)
    figures = [Figure(name, "codes", measured[name], ceiling=best[name]) for name in measured]
    training = tokenized.training_codes.reshape(-1, *codes.shape[1:])
    for lag in LAGS:
        if lag < min(codes.shape[1:]):
            found = known_pairs(training, lag, size)
            generated, held_out = (
                known_pair_share(c, found, lag, groups) for c, groups in ((codes, each), (held_out_codes, people))
            )
            figures.append(Figure("known_pairs", f"lag {lag}", generated, ceiling=held_out))
    return figures


def usage(
    codes: np.ndarray, groups: np.ndarray, real: np.ndarray, real_groups: np.ndarray, size: int
) -> dict[str, Estimate]:
    """Which of `size` codes are used how often: `code_usage`, the total variation distance (half of the sum of absolute
    differences) to the real shares, and `code_perplexity`, the exponential of the entropy."""
    counts, real_counts = (np.stack([np.bincount(grid.flat, minlength=size) for grid in c]) for c in (codes, real))

    def shares(rows: np.ndarray) -> np.ndarray:
        return rows.sum(axis=0) / rows.sum()

    def distance(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.abs(p - q).sum() / 2)

    def perplexity(p: np.ndarray) -> float:
        p = p[p > 0]
        return float(np.exp(-(p * np.log(p)).sum()))

    halves = [
        (shares(counts[i]), shares(real_counts[j]))
        for i, j in zip(half_samples(groups), half_samples(real_groups, real=True), strict=True)
    ]
    p = shares(counts)
    return {
        "code_usage": estimate(
            distance(p, shares(real_counts)), [distance(*half) for half in halves], len(codes), 0, 1
        ),
        "code_perplexity": estimate(perplexity(p), [perplexity(half) for half, _ in halves], len(codes), 1, size),
    }


def neighbours(codes: np.ndarray, lag: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two ends (N, pairs) of all pairs of codes that stand `lag` cells apart, in a row and in a column."""
    ends = ((codes[:, :, :-lag], codes[:, :, lag:]), (codes[:, :-lag], codes[:, lag:]))
    return [(a.reshape(len(codes), -1), b.reshape(len(codes), -1)) for a, b in ends]


def known_pairs(codes: np.ndarray, lag: int, size: int) -> list[np.ndarray]:
    """(size, size) bool for each direction: whether that pair of codes occurs anywhere."""
    tables = []
    for a, b in neighbours(codes, lag):
        table = np.zeros((size, size), bool)
        table[a.ravel(), b.ravel()] = True
        tables.append(table)
    return tables


def known_pair_share(codes: np.ndarray, known: list[np.ndarray], lag: int, groups: np.ndarray) -> Estimate:
    """Share of the pairs of codes that occur in the training images too."""
    found = [table[a, b] for table, (a, b) in zip(known, neighbours(codes, lag), strict=True)]
    shares = np.concatenate(found, axis=1).mean(axis=1)
    return estimate(shares.mean(), [shares[half].mean() for half in half_samples(groups)], len(codes), 0, 1)
