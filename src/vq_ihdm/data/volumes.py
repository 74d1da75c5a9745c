"""Axial slices of NIfTI volumes: window the intensities, then resample once to the grid of the slices.

World coordinates are RAS mm, as the affine says: neither the order nor the direction of a file's axes matters.
"""

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from nibabel.processing import resample_from_to
from nibabel.spaces import vox2out_vox
from scipy.ndimage import gaussian_filter

from vq_ihdm.data.building import encode_png
from vq_ihdm.errors import InputError
from vq_ihdm.files import replacing

FOREGROUND = 0.1  # of the intensity window: above the noise of air, below tissue
MAX_EXTENT_MM = 1000.0  # more is a wrong header
NIFTI_ERRORS = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError)
SURVEY_MM = 2.0  # fine enough to find the head


@dataclass(frozen=True)
class SliceSettings:
    """How a volume becomes images. Either `middle`, a number of slices, or `range_mm` (low, high, step) is given.

    `z_zero` says where the z of `range_mm` is 0: "affine", as in the file (registered volumes), or "vertex", at the
    top of the head (volumes as they come from the scanner, where z depends on how the subject lay).
    """

    voxel_size: float
    image_size: tuple[int, int]
    percentiles: tuple[float, float]
    bit_depth: int
    middle: int | None = None
    range_mm: tuple[float, float, float] | None = None
    z_zero: str = "affine"


def read_volume(path: Path) -> nib.Nifti1Image:
    """A 3-D volume in float32 with a valid affine.

    Raises:
        InputError: the file is damaged or is no finite, non-constant 3-D volume of a head's extent.
    """
    try:
        image = nib.squeeze_image(nib.load(path))
        if image.get_data_dtype().kind not in "iuf":
            raise InputError(f"{path} holds {image.get_data_dtype()}, not grey values; convert it to float.")
        if image.ndim != 3:
            raise InputError(f"{path} has the shape {image.shape}; extract one 3-D volume from it.")
        data = np.asarray(image.dataobj, dtype=np.float32)
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, ArithmeticError, MemoryError, *NIFTI_ERRORS):
        raise InputError(f"{path} is truncated or no NIfTI file; download or convert it again.") from None
    if not np.isfinite(data).all():
        raise InputError(f"{path} holds NaN or infinite values; convert it again or set them to zero.")
    if data.min() == data.max():
        raise InputError(f"{path} is empty (every voxel is {data.min():g}); convert it again or delete it.")
    affine = image.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise InputError(f"{path} has a singular affine; repair the header's sform or qform, or convert it again.")
    extent = max(nib.affines.voxel_sizes(affine) * data.shape)
    if extent > MAX_EXTENT_MM:
        raise InputError(f"{path} spans {extent:.0f} mm; repair the voxel size in its header, or convert it again.")
    return nib.Nifti1Image(data, affine)


def window(data: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Scale intensities to [0, 1] between two robust limits, and clip.

    The upper percentile is taken over the voxels above the mean, so that the amount of air around a head, or of
    zeros around a stripped brain, does not matter.
    """
    low = np.percentile(data, percentiles[0])
    high = np.percentile(data[data > data.mean()], percentiles[1])
    return np.clip((data - low) / max(high - low, 1e-6), 0, 1)


def survey(image: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    """Where a windowed volume shows tissue: a mask (X, Y, Z) on a coarse grid along the world's axes; its origin."""
    coarse = resample_from_to(image, vox2out_vox(image, [SURVEY_MM] * 3), order=1)
    return np.asarray(coarse.dataobj) > FOREGROUND, coarse.affine[:3, 3]


def vertex(mask: np.ndarray, origin: np.ndarray) -> float:
    """World z in mm of the top of the head: the highest axial section of at least 10 cm2, more than stray voxels."""
    area = mask.sum((0, 1)) * SURVEY_MM**2
    return origin[2] + SURVEY_MM * np.flatnonzero(area >= 1000)[-1]


def slice_positions(image: nib.Nifti1Image, zero: float, settings: SliceSettings) -> np.ndarray:
    """World z in mm of the slices, ascending.

    Raises:
        InputError: the volume does not reach that far.
    """
    (_, _, depth), box = vox2out_vox(image, [settings.voxel_size] * 3)
    bottom, top = box[2, 3], box[2, 3] + (depth - 1) * settings.voxel_size
    if settings.range_mm:
        low, high, step = settings.range_mm
        if zero + low < bottom or zero + high > top:
            reach = f"{bottom - zero:.0f} to {top - zero:.0f} mm"
            raise InputError(f"covers z from {reach} only; choose --slices_mm inside that or delete the file.")
        return zero + np.arange(low, high + 1e-6, step)
    if depth < settings.middle:
        raise InputError(f"has {depth} axial slices of {settings.voxel_size:g} mm; ask for fewer with --slices.")
    first = (depth - settings.middle) // 2
    return bottom + (first + np.arange(settings.middle)) * settings.voxel_size


def volume_slices(path: Path, settings: SliceSettings) -> np.ndarray:
    """Axial slices of the volume at `path`, from inferior to superior.

    Anterior is up and the subject's left is on the left. The middle of the head, over all the slices together, is
    the middle of the images; what lies outside the volume is black.

    Returns:
        float32 (N, H, W) in [0, 1].

    Raises:
        InputError: the volume cannot be used; the message names it and the remedy.
    """
    image = read_volume(path)
    size = settings.voxel_size
    # Low-pass before sampling coarser, by what the width of a pixel exceeds that of a voxel.
    excess = np.maximum((size / nib.affines.voxel_sizes(image.affine)) ** 2 - 1, 0)
    data = window(np.asarray(image.dataobj), settings.percentiles)
    image = nib.Nifti1Image(gaussian_filter(data, np.sqrt(excess) / 2.355), image.affine)

    blank = InputError(f"{path} shows nothing in some of the slices; choose others with --slices or --slices_mm.")
    mask, origin = survey(image)
    try:
        zero = vertex(mask, origin) if settings.z_zero == "vertex" else 0.0
        positions = slice_positions(image, zero, settings)
    except IndexError:
        raise blank from None
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    sections = origin[2] + SURVEY_MM * np.arange(mask.shape[2])
    mask &= (sections > positions[0] - SURVEY_MM) & (sections < positions[-1] + SURVEY_MM)
    if not mask.any():
        raise blank
    # The middle of the head, not of its extremes: those may be stray voxels.
    x, y, _ = origin + SURVEY_MM * np.percentile(np.argwhere(mask), [1, 99], axis=0).mean(0)

    height, width = settings.image_size
    to_world = np.zeros((4, 4))  # (slice, row, column, 1) -> (x, y, z, 1)
    to_world[0, 2] = size
    to_world[1, 1] = -size
    to_world[2, 0] = settings.range_mm[2] if settings.range_mm else size
    to_world[:, 3] = [x - (width - 1) / 2 * size, y + (height - 1) / 2 * size, positions[0], 1]
    slices = resample_from_to(image, ((len(positions), height, width), to_world), order=1)
    slices = np.asarray(slices.dataobj, dtype=np.float32)
    if (slices > FOREGROUND).mean((1, 2)).min() < 0.01:
        raise blank
    return slices


def prepare_volume(path: Path, settings: SliceSettings, folder: Path) -> tuple[str, str]:
    """Write the slices of a volume to a parquet file in `folder`, unless an earlier run has.

    Returns:
        (key, ""): the file's stem, a hash of the settings, the volume's path and its content; or ("", message) when
        the volume cannot be used: a value, not an exception, so that a pool of workers goes on.
    """
    digest = hashlib.sha256(json.dumps([asdict(settings), str(path)]).encode())
    digest.update(path.read_bytes())
    finished = folder / f"{digest.hexdigest()}.parquet"
    if not finished.exists():
        try:
            images = [encode_png(image, settings.bit_depth) for image in volume_slices(path, settings)]
        except InputError as error:
            return "", str(error)
        with replacing(finished) as temporary:
            pq.write_table(pa.table({"image": images, "slice": range(len(images))}), temporary)
    return finished.stem, ""
