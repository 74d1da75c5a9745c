"""What a radiologist would check and no ImageNet feature sees: sizes of brain, CSF and ventricles, and symmetry.

The segmentation is by grey level alone (Otsu thresholds), the same for real and generated slices. It is meant for
axial T1 slices, skull-stripped, on a dark ground: there CSF is the darkest of three classes. With the skull left on,
"brain" is the head and the shares shift, for both sides alike.
"""

import numpy as np
from scipy import ndimage
from scipy.stats import wasserstein_distance
from skimage import filters, measure, morphology
from tqdm.auto import tqdm

from .resampling import Estimate, estimate, half_samples

MEASURES = {
    "brain_area": "brain area / image area",
    "csf_share": "CSF area / brain area",
    "ventricle_share": "ventricle area / brain area",
    "asymmetry": "left-right difference / mean grey level",
}


def segment(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Masks (H, W) of brain, CSF and ventricles of a slice (H, W) uint8; None where there is no brain to be seen.

    The ventricles are the CSF deep in the brain that a small disc fits into, which the sulci are too narrow for.
    """
    disc = morphology.disk(max(1, round(min(image.shape) / 88)))  # 2 pixels at 176
    # CSF at the rim is far darker than tissue but brighter than the ground: a quarter of Otsu's threshold lies between.
    foreground = morphology.opening(image > filters.threshold_otsu(image) / 4, disc)
    regions = measure.label(foreground)
    if regions.max() == 0:
        return None
    brain = ndimage.binary_fill_holes(regions == np.bincount(regions.flat)[1:].argmax() + 1)
    smooth = filters.gaussian(image, 1, preserve_range=True)
    try:
        csf_threshold, _ = filters.threshold_multiotsu(smooth[brain], 3, nbins=64)
    except ValueError:  # fewer than three grey levels
        return None
    csf = brain & (smooth < csf_threshold)
    depth = ndimage.distance_transform_edt(brain)
    ventricles = morphology.opening(csf & (depth > 0.35 * depth.max()), disc)
    return brain, csf, ventricles


def measure_anatomy(images: np.ndarray) -> dict[str, np.ndarray]:
    """Each of `MEASURES` for N slices (N, H, W) uint8, as (N,) float; zeros for a slice without a brain."""
    rows = np.zeros((len(images), len(MEASURES)))
    for row, image in zip(rows, tqdm(images, "anatomy", leave=False), strict=True):
        masks = segment(image)
        if masks is not None:
            brain, csf, ventricles = masks
            row[:] = (
                brain.mean(),
                csf.sum() / brain.sum(),
                ventricles.sum() / brain.sum(),
                asymmetry(image, brain),
            )
    return dict(zip(MEASURES, rows.T, strict=True))


def asymmetry(image: np.ndarray, brain: np.ndarray) -> float:
    """Mean difference between a slice and its mirror image about the brain's midline, over the mean grey level.

    The image is smoothed first: gross asymmetry is meant, not the noise of single pixels.
    """
    smooth = filters.gaussian(np.where(brain, image, 0), image.shape[1] / 60, preserve_range=True)
    centre = round(2 * np.nonzero(brain)[1].mean())  # columns j and centre - j face each other
    columns = np.arange(max(0, centre - image.shape[1] + 1), min(image.shape[1], centre + 1))
    difference = np.abs(smooth[:, columns] - smooth[:, centre - columns])
    return float(difference[brain[:, columns]].mean() / smooth[brain].mean())


def compare_anatomy(
    measured: dict[str, np.ndarray],
    real: dict[str, np.ndarray],
    groups: np.ndarray,
    real_groups: np.ndarray,
) -> dict[str, Estimate]:
    """Wasserstein-1 distance of each measure's distribution (N values) to the real one (M values), with interval."""
    halves = list(zip(half_samples(groups), half_samples(real_groups, real=True), strict=True))
    estimates = {}
    for name, values in measured.items():
        distance = float(wasserstein_distance(values, real[name]))
        resampled = [wasserstein_distance(values[i], real[name][j]) for i, j in halves]
        medians = {"median": float(np.median(values)), "real_median": float(np.median(real[name]))}
        estimates[f"wasserstein_{name}"] = estimate(distance, resampled, len(values), 0, **medians)
    return estimates
