"""A generator of damaged and odd volumes."""

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation
from volume_helpers import AFFINE, save, volume

HEADER_SIZE = 348
# Where fields of a NIfTI-1 header stand, and values that are wrong there or at least odd.
FIELDS = [
    *((40 + 2 * axis, "<h", value) for axis in range(5) for value in (-1, 0, 1, 2, 7, 30_000)),  # dim
    *((70, "<h", value) for value in (0, 1, 2, 8, 64, 128, 1536, 9999)),  # datatype
    *((76 + 4 * axis, "<f", value) for axis in range(4) for value in (0, -2, 48, 1e9, np.nan, np.inf)),  # pixdim
    *((108, "<f", value) for value in (0, -352, 1e9, np.nan)),  # vox_offset
    *((offset, "<f", value) for offset in (112, 116) for value in (0, -1, 1e-30, 1e38, np.nan, np.inf)),  # scaling
    *((offset, "<h", value) for offset in (252, 254) for value in (-1, 0, 1, 9)),  # qform_code, sform_code
    *((256 + 4 * i, "<f", value) for i in range(18) for value in (0, 1e-30, 1e30, 500, np.nan)),  # quaternion, sform
]


def header_field(content: bytearray, rng: np.random.Generator) -> None:
    offset, kind, value = FIELDS[rng.integers(len(FIELDS))]
    struct.pack_into(kind, content, offset, value)


def header_bytes(content: bytearray, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 9)):
        content[rng.integers(HEADER_SIZE)] = rng.integers(256)


def body_bytes(content: bytearray, rng: np.random.Generator) -> None:
    start = rng.integers(HEADER_SIZE, len(content))
    length = int(min(2 ** rng.integers(12), len(content) - start))
    content[start : start + length] = rng.bytes(length)


def flipped_bit(content: bytearray, rng: np.random.Generator) -> None:
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))


def cut_off(content: bytearray, rng: np.random.Generator) -> None:
    del content[rng.integers(len(content)) :]


Damage = Callable[[bytearray, np.random.Generator], None]
PLAIN: list[Damage] = [header_field, header_bytes, body_bytes, cut_off]
PACKED: list[Damage] = [flipped_bit, cut_off]


def write_damaged(folder: Path, count: int, seed: int = 0) -> set[str]:
    """Write `whole.nii.gz` and `count` volumes, each damaged in one way; returns all the names without suffix."""
    rng = np.random.default_rng(seed)
    packed = save(volume(), folder / "whole.nii.gz").read_bytes()
    whole_numbers = nib.Nifti1Image(np.asarray(volume().dataobj).astype(np.int16), AFFINE)
    plain = [gzip.decompress(packed), whole_numbers.to_bytes()]
    for number in range(count):
        if rng.random() < 2 / 3:
            content, damages, suffix = bytearray(plain[rng.integers(len(plain))]), PLAIN, ".nii"
        else:
            content, damages, suffix = bytearray(packed), PACKED, ".nii.gz"
        damage = damages[rng.integers(len(damages))]
        damage(content, rng)
        (folder / f"{damage.__name__}-{number:05d}{suffix}").write_bytes(content)
    return {path.name.partition(".")[0] for path in folder.iterdir()}


def write_odd(folder: Path) -> set[str]:
    """Write files that are no volumes, or strange ones; returns the names of those that must be left out."""
    data = np.asarray(volume().dataobj)
    (folder / "a folder.nii.gz").mkdir()
    (folder / "dangling.nii.gz").symlink_to(".git/annex/objects/MD5E-s123--0f")
    (folder / "looping.nii.gz").symlink_to("looping.nii.gz")
    os.mkfifo(folder / "pipe.nii.gz")
    (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.nii.gz"))).write_bytes(volume().to_bytes())
    (folder / "two\nlines.nii").write_bytes(volume().to_bytes())
    without_rows = bytearray(volume().to_bytes())
    struct.pack_into("<h", without_rows, 42, 0)
    (folder / "dimension 0.nii").write_bytes(without_rows)
    save(nib.Nifti1Image(data * np.float32(3e38 / data.max()), AFFINE), folder / "beyond float32.nii.gz")
    odd_voxel = np.full(data.shape, 1000, np.float32)
    odd_voxel[3, 4, 5] = 1001
    save(nib.Nifti1Image(odd_voxel, AFFINE), folder / "one odd voxel.nii.gz")
    save(large(data, 48), folder / "large.nii.gz")
    save(volume(), folder / "2008-02-31" / "impossible date.nii.gz")  # a date to pass over, and a usable volume
    (folder / "2008-02-31" / "up").symlink_to("..")
    return {
        "dangling.nii.gz",
        "looping.nii.gz",
        "pipe.nii.gz",
        "caf\\udce9.nii.gz",
        "two\nlines.nii",
        "dimension 0.nii",
        "beyond float32.nii.gz",
        "one odd voxel.nii.gz",
        "large.nii.gz",
    }


def large(data: np.ndarray, voxel_mm: float) -> nib.Nifti1Image:
    """A rotated cube of 20 voxels a side: a small file, a large room."""
    turn = Rotation.from_euler("xyz", [35, 35, 35], degrees=True).as_matrix() * voxel_mm
    return nib.Nifti1Image(data[6:26, 8:28, 2:22], nib.affines.from_matvec(turn, -turn @ [10, 10, 10]))
