"""Axial slices of volumes: window the intensities, then resample once to the grid of the slices.

World coordinates are RAS mm, as the affine says: neither the order nor the direction of a file's axes matters.
"""

import gzip
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from nibabel.processing import resample_from_to
from nibabel.spaces import vox2out_vox
from scipy.ndimage import gaussian_filter

from ..errors import InputError, naming
from ..files import replacing
from .pixels import encode_png
from .preprocessing import correct_bias, strip_skull

FOREGROUND = 0.1  # of the intensity window: above the noise of air, below tissue
EDGE_SHARE = 0.01  # of the pixels on the edges of a head's slices; more are not noise but the head
SURVEY_MM = 2.0  # fine enough to find the head
REMEDY = "download or convert it again"

# More is a wrong header, or more than memory should be asked for: a volume within these limits takes below 2 GB.
MAX_VOXELS = 2**27  # 0.5 mm over 256 mm each way
MAX_EXTENT_MM = 600.0  # of the box around a volume, along the world's axes
MAX_DISTANCE_MM = 10_000.0  # of the first voxel from the world's origin
FEWEST_LEVELS = 16  # of a scan, which has hundreds
COLUMNS = ("image", "slice", "is_cut")  # of a finished volume
MAX_INTENSITY = 1e30  # sums and differences stay within float32


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
    skull_strip: bool = False
    bias_correction: bool = False


def open_volume(path: Path) -> nib.spatialimages.SpatialImage:
    """The volume in a file whose header is plausible; its voxels are not read yet.

    Raises:
        InputError: no file, or a header that does not describe one 3-D volume of a head's extent.
    """
    if not str(path).isprintable():
        raise InputError("has a name that is not UTF-8, or with characters that cannot be printed; rename it.")
    if not path.is_file():
        raise InputError("is a folder, a pipe or a link to nothing; fetch what it stands for (datalad get).")
    image = nib.load(path)
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"holds {image.get_data_dtype()}, not grey values; convert it to float.")
    if isinstance(image, nib.Nifti1Pair) and not (image.header["sform_code"] or image.header["qform_code"]):
        raise InputError(
            "does not say how the head lies in it (sform and qform codes 0); set one, or convert it again."
        )
    shape, affine = image.shape, image.affine
    if len(shape) < 3 or 0 in shape or math.prod(shape[3:]) != 1:
        raise InputError(f"has the shape {shape}; extract one 3-D volume from it.")
    if math.prod(shape) > MAX_VOXELS:
        raise InputError(f"has {math.prod(shape):,} voxels, more than {MAX_VOXELS:,}; resample it to larger ones.")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise InputError("has a singular affine; repair the header's sform or qform, or convert it again.")
    extent, distance = (np.abs(affine[:3, :3]) @ shape[:3]).max(), np.abs(affine[:3, 3]).max()
    if extent > MAX_EXTENT_MM or distance > MAX_DISTANCE_MM:
        raise InputError(
            f"spans {extent:.0f} mm and begins {distance:.0f} mm from the origin; repair the voxel size and the origin "
            "in its header, or convert it again."
        )
    return image


def files_of(image: nib.spatialimages.SpatialImage) -> list[Path]:
    """The files an image was opened from: one, or two where header and voxels lie apart."""
    paths = [Path(holder.filename) for holder in image.file_map.values() if holder.filename]
    return [path for path in paths if path.exists()]


def read_voxels(image: nib.spatialimages.SpatialImage) -> np.ndarray:
    """The voxels (X, Y, Z) of an open volume in float32.

    What some tools write outside the brain becomes 0, or the lowest value where there are lower ones: NaN, and zeros
    around intensities that were standardised.

    Raises:
        InputError: the voxels have a handful of values, or some are too large.
        OSError, EOFError, zlib.error, ...: the file is damaged.
    """
    for path in files_of(image):
        if path.suffix in (".gz", ".mgz"):
            # The checksum stands at the end of the file, which reading just the voxels need not reach.
            with gzip.open(path) as stream:
                while stream.read(2**20):
                    pass
    with np.errstate(over="ignore", invalid="ignore"):  # judged below
        data = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
    lowest = np.fmin.reduce(data, axis=None, initial=np.float32(0))
    outside = np.isnan(data)
    if lowest < 0 and not data[np.ix_(*[[0, -1]] * 3)].any():  # 0 in all corners
        outside |= data == 0
    data = np.where(outside, lowest, data)
    if max(-data.min(), data.max()) > MAX_INTENSITY:
        raise InputError("holds infinite values, or nearly so; set them to zero or convert it again.")
    if data.min() == data.max():
        raise InputError(f"is empty (every voxel is {data.min():g}); convert it again or leave it out.")
    some = data.reshape(-1)[:: 1 + data.size // 10**6]  # sorting all would take a second
    if (levels := len(np.unique(some))) < FEWEST_LEVELS:
        raise InputError(f"holds {levels} values only, as a mask or a segmentation does; use the scan itself.")
    return data


def window(data: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Scale intensities to [0, 1] between two robust limits, and clip.

    The upper percentile is taken over the voxels above the mean, so that the amount of air around a head, or of
    zeros around a stripped brain, does not matter.
    """
    low = np.percentile(data, percentiles[0])
    high = np.percentile(data[data > data.mean(dtype=np.float64)], percentiles[1], overwrite_input=True)
    scaled = data - low
    scaled /= max(high - low, np.finfo(np.float32).tiny)
    return np.clip(scaled, 0, 1, out=scaled)


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
            raise InputError(f"covers z from {reach} only; choose --slices_mm inside that or leave the file out.")
        return zero + np.arange(low, high + 1e-6, step)
    if depth < settings.middle:
        raise InputError(f"has {depth} axial slices of {settings.voxel_size:g} mm; ask for fewer with --slices.")
    first = (depth - settings.middle) // 2
    return bottom + (first + np.arange(settings.middle)) * settings.voxel_size


def is_cut(slices: np.ndarray) -> bool:
    """Whether a head reaches beyond its slices (N, H, W): there is tissue on their edges, not merely noise."""
    edges = np.concatenate([slices[:, [0, -1]].reshape(-1), slices[:, :, [0, -1]].reshape(-1)])
    return bool((edges > FOREGROUND).mean() > EDGE_SHARE)


def volume_slices(path: Path, settings: SliceSettings) -> np.ndarray:
    """Axial slices of the volume at `path`, from inferior to superior.

    Anterior is up and the subject's left is on the left. The middle of the head, over all the slices together, is
    the middle of the images; what lies outside the volume is black.

    Returns:
        float32 (N, H, W) in [0, 1].

    Raises:
        InputError: the volume cannot be used; the message names it and the remedy.
    """
    with naming(path, REMEDY):
        return axial_slices(open_volume(path), settings)


def axial_slices(image: nib.spatialimages.SpatialImage, settings: SliceSettings) -> np.ndarray:
    """`volume_slices` of an open volume."""
    affine, size = image.affine, settings.voxel_size
    # Low-pass before sampling coarser, by what the width of a pixel exceeds that of a voxel.
    excess = np.maximum((size / nib.affines.voxel_sizes(affine)) ** 2 - 1, 0)
    data = read_voxels(image)
    if settings.skull_strip:
        data = strip_skull(data, affine)
    if settings.bias_correction:
        data = correct_bias(data, affine)
    data = window(data, settings.percentiles)
    image = nib.Nifti1Image(gaussian_filter(data, np.sqrt(excess) / 2.355, output=data), affine)

    blank = InputError("shows nothing in some of the slices; choose others with --slices or --slices_mm.")
    mask, origin = survey(image)
    try:
        zero = vertex(mask, origin) if settings.z_zero == "vertex" else 0.0
    except IndexError:
        raise blank from None
    positions = slice_positions(image, zero, settings)
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

    Its columns are `COLUMNS`; `is_cut` is the same for all slices.

    Returns:
        (key, ""): the file's stem, a hash of the settings, the volume's path and its content; or ("", message) when
        the volume cannot be used: a value, not an exception, so that a pool of workers goes on.
    """
    try:
        with naming(path, REMEDY):
            image = open_volume(path)
            digest = hashlib.sha256(json.dumps([asdict(settings), str(path), COLUMNS]).encode())
            for file in files_of(image):
                with open(file, "rb") as stream:
                    while chunk := stream.read(2**20):
                        digest.update(chunk)
            finished = folder / f"{digest.hexdigest()}.parquet"
            if finished.exists():
                return finished.stem, ""
            slices = axial_slices(image, settings)
            images = [encode_png(slice, settings.bit_depth) for slice in slices]
    except InputError as error:
        return "", str(error)
    # Outside the boundary: a full disk is no fault of the volume.
    with replacing(finished) as temporary:
        columns = (images, range(len(images)), [is_cut(slices)] * len(images))
        pq.write_table(pa.table(dict(zip(COLUMNS, columns, strict=True))), temporary)
    return finished.stem, ""
