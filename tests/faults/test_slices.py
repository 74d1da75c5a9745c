"""Odd images and rows of a table: slices.py leaves them out by name, or refuses the table."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import left_out, run_script
from datasets import load_dataset
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of three subjects with their table."""
    (tmp_path / "images").mkdir()
    lines = ["file_name,subject,slice"]
    for number in range(6):
        pixels = np.full((32, 32), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        lines.append(f"{number}.png,s{number % 3},{number}")
    (tmp_path / "images" / "slices.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "images"


def build(folder: Path, output: Path) -> None:
    run_script(
        "dataset_scripts/slices.py", "--input_dir", folder, "--spacing_mm", 1, 1, "--image_size", 32, "--split", 0.4,
        0.3, 0.3, "--output_dir", output,
    )  # fmt: skip


def decompression_bomb(file: Path) -> None:
    """A PNG whose header promises 30,000 x 30,000 pixels."""
    content = bytearray(file.read_bytes())
    content[16:24] = struct.pack(">II", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    file.write_bytes(content)


def test_odd_images_are_named(folder: Path, tmp_path: Path):
    decompression_bomb(folder / "0.png")
    (folder / "1.png").write_bytes(b"")
    Image.new("RGB", (32, 32), "red").save(folder / "2.png")
    Image.open(folder / "3.png").convert("RGBA").save(folder / "3.png")  # grey in all its channels
    table = folder / "slices.csv"
    table.write_bytes(table.read_bytes() + b"a\0b.png,s1,6\n.,s2,7\n")
    build(folder, tmp_path / "set")
    reasons = {row["input"]: row["reason"] for row in left_out(tmp_path / "set")}
    assert len(reasons) == 5 and {"0.png", "1.png", "2.png", "."} < set(reasons)
    assert "DecompressionBomb" in reasons["0.png"] and "convert it to grey" in reasons["2.png"]


def test_a_row_twice_is_refused_and_scans_of_one_person_are_told_apart(folder: Path, tmp_path: Path):
    table = folder / "slices.csv"
    lines = table.read_text()
    table.write_text(lines + "5.png,s9,1\n")
    with pytest.raises(SystemExit, match="has file_name 5.png twice; leave one of the rows"):
        build(folder, tmp_path / "set")
    again = lines.replace("3.png,s0,3", "3.png,s0,0")
    table.write_text(again)
    with pytest.raises(SystemExit, match="has subject s0, slice 0 twice; tell a subject's scans apart"):
        build(folder, tmp_path / "set")
    rows = again.splitlines()
    table.write_text("\n".join([rows[0] + ",scan", *(f"{row},ses-{i // 3}" for i, row in enumerate(rows[1:]))]) + "\n")
    build(folder, tmp_path / "set")
    splits = load_dataset(str(tmp_path / "set"))
    found = sorted((row["slice"], row["scan"]) for name in splits for row in splits[name])
    assert [scan for _, scan in found] == [0, 1, 0, 0, 1, 1] and "ses-" not in (
        tmp_path / "set" / "README.md"
    ).read_text()


@pytest.mark.parametrize("number", ["1e20", "100000000000000000000", "-1", "nan"])
def test_a_slice_number_that_is_none_is_refused(folder: Path, tmp_path: Path, number: str):
    table = folder / "slices.csv"
    table.write_text(table.read_text().replace("s2,5", f"s2,{number}"))
    with pytest.raises(SystemExit, match="'slice'"):
        build(folder, tmp_path / "set")
    assert not (tmp_path / "set").exists()
