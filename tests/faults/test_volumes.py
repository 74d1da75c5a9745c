"""Damaged volumes are used or named: the build goes on, shows no traceback, leaves nothing behind, and stays small.

VQ_IHDM_FAULTS=20 tries twenty times as many.
"""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import left_out, run_script
from damaged_volumes import large, write_damaged, write_odd
from datasets import load_dataset
from volume_helpers import distinct, save, volume

from vq_ihdm.data.volumes import SliceSettings, volume_slices
from vq_ihdm.errors import InputError

NUM_VOLUMES = 500 * int(os.environ.get("VQ_IHDM_FAULTS", 1))
LIMIT = 2e9  # bytes


@pytest.fixture
def peak_memory():
    """Bytes that Python and numpy held at most since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def build(source: Path, output: Path, *options: object) -> dict[str, list[bytes]]:
    """Build a set; the slices of every subject in it."""
    run_script(
        "dataset_scripts/nifti.py", "--input_dir", source, "--image_size", 32, "--voxel_size", 2, "--slices",
        "middle:4", "--split", 0.6, 0.2, 0.2, "--keep_subject_ids", "--output_dir", output, *options,
    )  # fmt: skip
    built = {}
    for split in load_dataset(str(output)).values():
        for row in split:
            built.setdefault(row["subject"], []).append(row["image"].tobytes())
    return built


@pytest.mark.slow
def test_every_damaged_volume_is_used_or_named(tmp_path, capfd, peak_memory):
    (tmp_path / "scans").mkdir()
    names = write_damaged(tmp_path / "scans", NUM_VOLUMES)
    built = build(tmp_path / "scans", tmp_path / "out" / "set")
    reasons = {row["input"].partition(".")[0]: row["reason"] for row in left_out(tmp_path / "out" / "set")}

    assert built.keys() | reasons.keys() == names and not built.keys() & reasons.keys()
    assert all(name in reason and "\n" not in reason for name, reason in reasons.items())
    assert len(built) > NUM_VOLUMES / 20 and len(reasons) > NUM_VOLUMES / 3  # both happen
    # Under a checksum a file is right or refused.
    assert all(built[name] == built["whole"] for name in built if name.startswith("flipped_bit"))
    assert "Traceback" not in "".join(capfd.readouterr())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"set", "set.left_out.csv"}
    assert peak_memory() < LIMIT


def test_odd_files_and_links_in_circles(tmp_path):
    (tmp_path / "scans").mkdir()
    for number in range(3):
        save(distinct(1 + number), tmp_path / "scans" / f"whole{number}.nii.gz")
    odd = write_odd(tmp_path / "scans")
    built = build(tmp_path / "scans", tmp_path / "out" / "set", "--all_scans")
    assert {subject: len(slices) for subject, slices in built.items()} == dict.fromkeys(
        ["whole0", "whole1", "whole2", "impossible date"], 4
    )
    assert {row["input"] for row in left_out(tmp_path / "out" / "set")} == odd
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"set", "set.left_out.csv"}


def test_an_odd_file_is_what_strict_stops_at(tmp_path):
    (tmp_path / "scans").mkdir()
    write_odd(tmp_path / "scans")
    with pytest.raises(SystemExit) as refused:
        build(tmp_path / "scans", tmp_path / "out" / "set", "--strict")
    assert str(refused.value).startswith("error: ") and "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "set").exists()


def test_a_small_file_takes_little_memory(tmp_path, peak_memory):
    data = np.asarray(volume().dataobj)
    settings = SliceSettings(2.0, (32, 32), (0, 100), 8, middle=4)
    with pytest.raises(InputError, match="too-large.nii.gz spans 1646 mm"):
        volume_slices(save(large(data, 48), tmp_path / "too-large.nii.gz"), settings)
    file = save(large(data, 17), tmp_path / "large.nii.gz")  # nearly the largest that is not refused
    assert file.stat().st_size < 50_000
    assert volume_slices(file, settings).shape == (4, 32, 32)
    assert peak_memory() < LIMIT / 2
