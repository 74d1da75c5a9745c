"""How near a set of images comes to the real ones: FID, KID, ISC, precision and recall, density and coverage.

Values of FID, KID, ISC, precision and recall are torch-fidelity's. Time and memory grow linearly with the number of
images: FID takes moments that are summed block by block, KID subsets of a thousand images, and what needs all pairs is
measured on a random choice where there are more images than `MAX_NEIGHBOURS` (precision, recall, density, coverage) or
`MAX_RESAMPLED` (intervals, which then are as wide as those of so many images, and the extrapolated FID). All but ISC
depend on the features only through inner products, so these are computed on index sets into three Gram matrices.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from tqdm.auto import tqdm

from .features import Features
from .resampling import MAX_NEIGHBOURS, Estimate, choice, estimate, half_sample, half_samples

RANGES = {
    "fid": (0, np.inf),
    "fid_infinity": (-np.inf, np.inf),
    "kid": (-np.inf, np.inf),
    "isc": (1, np.inf),
    "precision": (0, 1),
    "recall": (0, 1),
    "density": (0, np.inf),
    "coverage": (0, 1),
}
MAX_RESAMPLED = 2000  # images a side from which half-samples are drawn
BLOCK = 4096  # images whose moments are summed at a time
QUARTERS = 2  # of each half-sample: the smaller sets from which its FID is extrapolated


class Grams(NamedTuple):
    """Inner products within and between features x (n, D) and y (m, D), each divided by D."""

    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray
    dimension: int

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor) -> "Grams":
        dimension = x.shape[1]
        x, y = (features.numpy().astype(np.float64) / np.sqrt(dimension) for features in (x, y))
        return cls(x @ x.T, x @ y.T, y @ y.T, dimension)

    def take(self, i: np.ndarray, j: np.ndarray) -> "Grams":
        return Grams(self.xx[np.ix_(i, i)], self.xy[np.ix_(i, j)], self.yy[np.ix_(j, j)], self.dimension)


def fidelity(
    generated: Features, real: Features, groups: np.ndarray, real_groups: np.ndarray, paired: bool = False
) -> dict[str, Estimate]:
    """Every fidelity measure of `generated` (N images) against `real` (M images), with its interval.

    Args:
        groups: (N,) int, images of one group are resampled together: each its own if generated, the subject if real.
        real_groups: (M,) int, the subjects.
        paired: row i of both sides is the same image (a reconstruction), so both are resampled alike.

    Returns:
        `fid`, `fid_infinity`, `kid`, `precision`, `recall`, `density`, `coverage`, and `isc` where there are logits.
    """
    x, y = generated.pooled, real.pooled
    statistics = moments(x), moments(y)
    subset_size = min(1000, len(x) // 2, len(y) // 2)
    kid = kid_features_to_metric(x, y, kid_subset_size=subset_size, verbose=False)
    values = {
        "fid": fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID],
        "kid": kid[KEY_METRIC_KID_MEAN],
        **neighbourhoods(Grams.of(x[choice(groups, MAX_NEIGHBOURS)], y[choice(real_groups, MAX_NEIGHBOURS)])),
    }
    if generated.logits is not None:
        values["isc"] = inception_score(generated.logits)

    i, j = choice(groups, MAX_RESAMPLED), choice(real_groups, MAX_RESAMPLED)
    grams = Grams.of(x[i], y[j])
    logits = None if generated.logits is None else generated.logits[i]
    resampled = resample(grams, groups[i], real_groups[j], paired, logits)
    values["fid_infinity"] = extrapolate(frechet_distance(grams), resampled["fid"])
    details = {"kid": {"subset_sd": kid[KEY_METRIC_KID_STD], "subset_size": subset_size}}
    return {
        name: estimate(value, resampled[name], len(x), *RANGES[name], **details.get(name, {}))
        for name, value in values.items()
    }


def resample(
    grams: Grams, groups: np.ndarray, real_groups: np.ndarray, paired: bool, logits: torch.Tensor | None
) -> dict[str, list[float]]:
    """The measures of each half-sample; arguments as of `fidelity`. KID is over all pairs, as torch-fidelity's."""
    rng = np.random.default_rng(0)  # of the quarters
    resampled = {name: [] for name in RANGES}
    rows, columns = half_samples(groups), half_samples(real_groups, real=True)
    for i, j in zip(tqdm(rows, "intervals of fidelity", leave=False), rows if paired else columns, strict=True):
        half = grams.take(i, j)
        half_fid = frechet_distance(half)
        quarters = []
        for _ in range(QUARTERS):
            k = half_sample(groups[i], rng)
            quarters.append(frechet_distance(half.take(k, k if paired else half_sample(real_groups[j], rng))))
        measured = neighbourhoods(half)
        measured |= {"fid": half_fid, "fid_infinity": extrapolate(half_fid, quarters)}
        measured["kid"] = kernel_distance(half, np.arange(len(i)), np.arange(len(j)))
        if logits is not None:
            measured["isc"] = inception_score(logits[i])
        for name, value in measured.items():
            resampled[name].append(value)
    return resampled


def moments(features: torch.Tensor) -> dict[str, np.ndarray]:
    """Mean (D,) and covariance (D, D) of (N, D) features, as torch-fidelity's `fid_features_to_statistics`."""
    mu = features.mean(dim=0, dtype=torch.float64)
    sigma = torch.zeros(len(mu), len(mu), dtype=torch.float64)
    for block in features.split(BLOCK):
        centred = block.double() - mu
        sigma += centred.T @ centred
    return {"mu": mu.numpy(), "sigma": (sigma / (len(features) - 1)).numpy()}


def inception_score(logits: torch.Tensor) -> float:
    """Inception Score (Salimans et al., 2016), the mean over ten splits of (N, 1008) logits."""
    return isc_features_to_metric(logits, splits=min(10, len(logits)))[KEY_METRIC_ISC_MEAN]


def frechet_distance(grams: Grams) -> float:
    """Frechet distance of two Gaussians fitted to the features (Heusel et al., 2017), exact, from inner products.

    With centred features A (n, D) and B (m, D) scaled to covariances A'A and B'B, the trace of (A'A B'B)^(1/2) is the
    sum of the singular values of A B' (n, m), which is the centred cross Gram matrix.
    """
    n, m = grams.xy.shape
    dof_x, dof_y = max(n - 1, 1), max(m - 1, 1)  # the covariance of a single image is 0
    mean_xx, mean_xy, mean_yy = grams.xx.mean(), grams.xy.mean(), grams.yy.mean()
    trace_x = (np.trace(grams.xx) - n * mean_xx) / dof_x
    trace_y = (np.trace(grams.yy) - m * mean_yy) / dof_y
    cross = grams.xy - grams.xy.mean(axis=0) - grams.xy.mean(axis=1, keepdims=True) + mean_xy
    overlap = np.linalg.norm(cross, "nuc") / np.sqrt(dof_x * dof_y)
    return float(grams.dimension * (mean_xx + mean_yy - 2 * mean_xy + trace_x + trace_y - 2 * overlap))


def extrapolate(fid: float, fids_at_half_size: list[float]) -> float:
    """FID at infinite N: the line in 1/N (Chong and Forsyth, 2020) through N and the mean of many sets of N/2.

    Both sides shrink together. The bias is linear in 1/N only once N exceeds the feature dimension; below that a part
    of it stays, as the floor shows.
    """
    return float(2 * fid - np.mean(fids_at_half_size))


def kernel_distance(grams: Grams, groups: np.ndarray, real_groups: np.ndarray) -> float:
    """Squared MMD with the kernel (x'y / D + 1)^3 (Binkowski et al., 2018), over all pairs of different groups.

    Unbiased where the groups are independent. With the slices of a person as a group each, pairs of them count too:
    they are alike, which adds the more the fewer people there are.

    Args:
        groups: (n,) and real_groups: (m,) int.
    """
    kxx, kxy, kyy = ((gram + 1) ** 3 for gram in grams[:3])
    within = (k[g[:, None] != g].mean() for k, g in ((kxx, groups), (kyy, real_groups)))
    return float(sum(within) - 2 * kxy.mean())


def neighbourhoods(grams: Grams) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al., 2019; k = 3), density and coverage (Naeem et al., 2020; k = 5).

    x are the generated and y the real features; a ball around each point reaches its k-th nearest neighbour.
    """
    norms_x, norms_y = np.diagonal(grams.xx), np.diagonal(grams.yy)
    xx = norms_x[:, None] + norms_x - 2 * grams.xx
    xy = norms_x[:, None] + norms_y - 2 * grams.xy
    yy = norms_y[:, None] + norms_y - 2 * grams.yy

    def radius(distances: np.ndarray, k: int) -> np.ndarray:
        k = min(k, len(distances) - 1)
        return np.partition(distances, k, axis=1)[:, k]

    in_wider_ball = xy <= radius(yy, 5)
    return {
        "precision": float((xy <= radius(yy, 3)).any(axis=1).mean()),
        "recall": float((xy <= radius(xx, 3)[:, None]).any(axis=0).mean()),
        "density": float(in_wider_ball.sum(axis=1).mean() / 5),
        "coverage": float(in_wider_ball.any(axis=0).mean()),
    }
