"""Is there variety: MS-SSIM between pairs, and images that come twice."""

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from .image_sets import ImageSet
from .resampling import Estimate, estimate, half_samples

MAX_PAIRS = 512


def ms_ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik, 2003) of image pairs.

    As defined, without padding. That of torchmetrics pads: it gives other values, the more so the smaller the images
    (0.79 instead of 0.75 at 32 pixels), and refuses four scales at 96 pixels.

    Args:
        x, y: (B, 1, H, W) float in [0, 255]. Images with a side below 176 are compared at fewer than the five scales,
            with the weights of the scales that fit normalised to sum 1.

    Returns:
        (B,) in [0, 1].
    """
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    window = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(image: torch.Tensor) -> torch.Tensor:
        # Without padding, as two banded matrices: on a CPU far faster than a one-channel convolution.
        rows, columns = (torch.eye(side).unfold(0, 11, 1) @ window for side in image.shape[2:])
        return rows @ image @ columns.T

    scales = min(5, int(np.log2(min(x.shape[2:]) / 11)) + 1)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    weights /= weights.sum()
    similarity = torch.ones(len(x))
    for scale, weight in enumerate(weights):
        mean_x, mean_y = blur(x), blur(y)
        variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
        covariance = blur(x * y) - mean_x * mean_y
        level = (2 * covariance + c2) / (variance_x + variance_y + c2)
        if scale == scales - 1:  # luminance counts at the coarsest scale only
            level = level * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        similarity = similarity * level.mean(dim=(1, 2, 3)).clamp(min=0) ** float(weight)
        x, y = avg_pool2d(x, 2), avg_pool2d(y, 2)
    return similarity


def pair_similarity(image_set: ImageSet, same_level: bool = False) -> Estimate | None:
    """Mean MS-SSIM between images of different subjects.

    The subjects are matched into disjoint couples, so that couples are independent and can be resampled.

    Args:
        same_level: compare slices of one level only; the result is None where the levels are not known.
    """
    if same_level and image_set.slices is None:
        return None
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(image_set.subjects == subject) for subject in np.unique(image_set.subjects)]
    order = rng.permutation(len(members))
    pairs = []  # (couple, image of one subject, image of the other)
    for couple, (a, b) in enumerate(zip(order[::2], order[1::2], strict=False)):
        left, right = rng.permutation(members[a]), rng.permutation(members[b])
        if same_level:
            levels = {image_set.slices[j]: j for j in right}
            left = [i for i in left if image_set.slices[i] in levels]
            right = [levels[image_set.slices[i]] for i in left]
        pairs += [(couple, i, j) for i, j in zip(left, right, strict=False)]
    if len({couple for couple, *_ in pairs}) < 2:  # of one alone no half-sample can be drawn
        return None
    pairs = np.array(pairs)[rng.permutation(len(pairs))[:MAX_PAIRS]]
    values = []
    for batch in np.array_split(pairs, -(-len(pairs) // 16)):
        x, y = (torch.from_numpy(image_set.images[batch[:, side]]).unsqueeze(1).float() for side in (1, 2))
        values.append(ms_ssim(x, y))
    values = torch.cat(values).numpy()
    resampled = [values[half].mean() for half in half_samples(pairs[:, 0])]
    return estimate(values.mean(), resampled, len(image_set), 0, 1, pairs=len(pairs))


def duplicate_rate(by_group: np.ndarray, threshold: float, groups: np.ndarray) -> Estimate:
    """Share of images with another one of the same set, but of another group, nearer than `threshold`.

    A half-sample knows the neighbours in its half alone: with those of the whole set its images would share them, and
    the interval would be too narrow.

    Args:
        by_group: (N, G) distance of each image to the nearest image of each group, inf for its own.
        groups: (N,) int.
    """
    near = by_group < threshold
    column = np.unique(groups, return_inverse=True)[1]

    def rate(rows: np.ndarray) -> float:
        return near[np.ix_(rows, np.unique(column[rows]))].any(axis=1).mean()

    return estimate(
        near.any(axis=1).mean(), [rate(half) for half in half_samples(groups)], len(near), 0, 1, threshold=threshold
    )
