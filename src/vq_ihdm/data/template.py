"""Synthetic subjects: the MNI152 template, deformed and recoloured at random.

One anatomy underlies them all, so they serve demonstrations and tests and say nothing about people. The maps come
with the nilearn wheel: no download.
"""

from functools import lru_cache

import numpy as np
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from scipy.ndimage import binary_erosion, binary_opening, gaussian_filter, label, map_coordinates
from scipy.spatial.transform import Rotation
from skimage.measure import block_reduce

FIELD_OF_VIEW_MM = 176.0
MIN_SIZE = 24  # pixels a side: with fewer the blocks of the atlas are as large as the ventricles
CENTRE_MM = np.array([0.0, -18.5, 18.0])  # of the brain, in MNI space
SLICES_MM = (-2.0, 38.0)  # in MNI z: from the basal ganglia to the top of the lateral ventricles


@lru_cache(maxsize=2)
def atlas(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The template averaged over blocks of `step` mm.

    Returns:
        tissue: float32 (3, X, Y, Z), shares of grey matter, white matter and fluid; zero outside the brain.
        opening: float32 (3, X, Y, Z), in mm; adding it to the sampling points widens the ventricles. At most 1 long.
        affine: (4, 4), voxel -> MNI mm.
    """
    template = load_mni152_template(resolution=1)
    images = (template, load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1))
    t1, grey, white = (block_reduce(image.get_fdata(dtype=np.float32), step, np.mean) for image in images)
    brain = t1 > 0
    fluid = np.clip(1 - grey - white, 0, 1)
    tissue = np.stack([grey, white, fluid]) * brain

    # The lateral ventricles are the largest body of fluid far inside the brain.
    inside = binary_erosion(brain, iterations=round(20 / step))
    bodies, _ = label(binary_opening(inside & (fluid > 0.5)))
    ventricles = (bodies == np.bincount(bodies.flat)[1:].argmax() + 1).astype(np.float32)
    opening = np.stack(np.gradient(gaussian_filter(ventricles, 5 / step)))
    opening /= np.linalg.norm(opening, axis=0).max()

    affine = template.affine @ np.diag([step, step, step, 1.0])
    affine[:3, 3] += (step - 1) / 2  # the centre of the first block
    return tissue, opening, affine


def smooth_field(axes: list[np.ndarray], wavelength_mm: float, rng: np.random.Generator) -> np.ndarray:
    """A random sum of cosines no shorter than `wavelength_mm`, about unit variance, on the grid of `axes` (in mm)."""
    extent = 220.0  # wider than the head, so that nothing repeats or mirrors inside it
    order = int(2 * extent / wavelength_mm) + 1
    bases = [np.cos(np.pi * np.outer(axis / extent + 0.5, np.arange(order))) for axis in axes]
    amplitudes = rng.standard_normal((order, order, order)) / np.sqrt(order**3 / 8)
    amplitudes[0, 0, 0] = 0  # no shift: the head stays in the image
    return np.einsum("xi,yj,zk,ijk->xyz", *bases, amplitudes, optimize=True)


def template_subject(
    number: int, *, num_slices: int = 16, image_size: tuple[int, int] = (64, 64), seed: int = 0
) -> np.ndarray:
    """Axial slices of synthetic subject `number`: skull-stripped, anterior up, from inferior to superior.

    Head size and shape, pose, gyri, ventricles, cortex, contrast, bias field and noise vary between subjects. The
    shorter side of an image spans `FIELD_OF_VIEW_MM`, whatever its size in pixels.

    Returns:
        float32 (num_slices, H, W) in [0, 1]; the same arguments give the same subject.
    """
    rng = np.random.default_rng([seed, number])
    height, width = image_size
    spacing = FIELD_OF_VIEW_MM / min(image_size)
    tissue, opening, affine = atlas(max(1, round(spacing * 0.75)))

    def sample(volume: np.ndarray, points: np.ndarray) -> np.ndarray:
        voxels = np.tensordot(np.linalg.inv(affine[:3, :3]), points - affine[:3, 3, None, None, None], 1)
        return np.stack([map_coordinates(channel, voxels, order=1) for channel in volume])

    # Where the pixels look in the template: head size and pose, smooth deformations, ventricles.
    axes = [
        (np.arange(width) - (width - 1) / 2) * spacing,
        ((height - 1) / 2 - np.arange(height)) * spacing,
        np.linspace(*SLICES_MM, num_slices) - CENTRE_MM[2],
    ]
    size = 0.85 * np.exp(rng.uniform(-1, 1, 3) * [0.07, 0.03, 0.05])
    rotation = Rotation.from_euler("xyz", rng.uniform(-1, 1, 3) * [6.0, 3.0, 4.0], degrees=True).as_matrix()
    points = np.tensordot(rotation / size, np.stack(np.meshgrid(*axes, indexing="ij")), 1)
    points += CENTRE_MM[:, None, None, None]
    for wavelength, amplitude in ((160.0, 1.6), (70.0, 1.6), (30.0, 1.0)):
        points += amplitude * np.stack([smooth_field(axes, wavelength, rng) for _ in range(3)])
    points += rng.uniform(-2.5, 8.0) * sample(opening, points)

    # Weights thicken the cortex or widen the sulci; the power undoes some of the blur of an averaged template.
    shares = sample(tissue, points)
    brain = shares.sum(0)
    shares = (
        shares ** rng.uniform(1.5, 2.5) * np.exp(rng.normal([0.0, 0.0, 0.6], [0.25, 0.1, 0.6]))[:, None, None, None]
    )
    shares /= np.maximum(shares.sum(0), 1e-6)

    contrast = rng.uniform([0.42, 0.78, 0.08], [0.62, 0.95, 0.2])
    bias = np.exp(rng.uniform(0.02, 0.1) * smooth_field(axes, 200.0, rng))
    noise = rng.uniform(0.005, 0.03) * rng.standard_normal(brain.shape)
    image = brain * (np.tensordot(contrast, shares, 1) * bias + noise)
    return np.clip(image, 0, 1).astype(np.float32).transpose(2, 1, 0)
