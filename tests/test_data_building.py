"""What every built set promises, seen through the builder of 2-D images."""

import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import left_out, run_script
from datasets import ClassLabel, DatasetDict, Image, Value, load_dataset
from huggingface_hub import DatasetCard
from PIL import Image as PILImage

from vq_ihdm.data.building import slice_levels
from vq_ihdm.data.pixels import crop_or_pad, encode_png
from vq_ihdm.data.subjects import SPLITS, pseudonym, split_subjects

NUM_SUBJECTS, NUM_SLICES = 20, 2


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """Images 32 wide and 40 high of random grey levels, black in the 4 rows at the top and at the bottom."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "private place"
    folder.mkdir()
    lines = ["file_name,subject,slice,age,sex,cdr,scanner"]
    for subject in range(NUM_SUBJECTS):
        for index in range(NUM_SLICES):
            name = f"scan_of_{subject:02d}_{index}.png"
            pixels = np.zeros((40, 32), np.uint8)
            pixels[4:36] = rng.integers(0, 256, (32, 32))
            PILImage.fromarray(pixels).save(folder / name)
            rating = ["0", "0.5", "1.0", ""][subject % 4]
            lines.append(f"{name},person-{subject:02d},{index},{60 + subject}.5,{'MF'[subject % 2]},{rating},secret")
    (folder / "slices.csv").write_text("\n".join(lines) + "\n")
    return folder


def build(source: Path, output: Path, *options: object) -> DatasetDict:
    run_script(
        "dataset_scripts/slices.py", "--input_dir", source, "--spacing_mm", 1, 1.5, "--image_size", 32,
        "--output_dir", output, *options,
    )  # fmt: skip
    return load_dataset(str(output))


def split_of_images(splits: DatasetDict) -> dict[bytes, str]:
    return {row["image"].tobytes(): name for name in splits for row in splits[name]}


def test_columns_and_pixels(slices: Path, tmp_path: Path):
    splits = build(slices, tmp_path / "set")
    assert list(splits) == list(SPLITS)
    assert splits["train"].features == {
        "image": Image(mode="L"),
        "subject": Value("string"),
        "slice": Value("int32"),
        "slice_level": Value("float32"),
        "age": Value("float32"),
        "sex": ClassLabel(names=["F", "M"]),
        "cdr": ClassLabel(names=["0", "0.5", "1", "2", "3"]),
    }
    built = {row["image"].tobytes(): row for name in splits for row in splits[name]}
    assert len(built) == NUM_SUBJECTS * NUM_SLICES
    for subject in range(NUM_SUBJECTS):
        source = np.asarray(PILImage.open(slices / f"scan_of_{subject:02d}_1.png"))
        row = built[source[4:36].tobytes()]  # 8 bits in, the same 8 bits out
        assert (row["slice"], row["age"], row["sex"]) == (1, 60.5 + subject, 1 - subject % 2)
        assert row["cdr"] == [0, 1, 2, None][subject % 4]


def test_the_level_that_is_white(slices: Path, tmp_path: Path):
    """12 bits in a 16-bit file would be nearly black; what a file cannot mean is not clipped."""
    for file in slices.glob("*.png"):
        PILImage.fromarray(np.asarray(PILImage.open(file)).astype(np.uint16) * 16).save(file)
    with pytest.raises(SystemExit, match="is nearly black, its highest level 4080 of 65535; tell which is white by"):
        build(slices, tmp_path / "set", "--strict")
    with pytest.raises(SystemExit, match="has levels up to 4080, above 1000; pass a higher --white"):
        build(slices, tmp_path / "set", "--strict", "--white", 1000)
    splits = build(slices, tmp_path / "set", "--white", 4080)
    assert {np.asarray(row["image"]).max() for row in splits["train"]} == {255}


def test_subjects_are_whole_and_balanced(slices: Path, tmp_path: Path):
    splits = build(slices, tmp_path / "set")
    subjects = [set(splits[name]["subject"]) for name in SPLITS]
    assert [len(found) for found in subjects] == [14, 3, 3]
    assert len(set.union(*subjects)) == NUM_SUBJECTS
    assert set(Counter(subject for name in SPLITS for subject in splits[name]["subject"]).values()) == {NUM_SLICES}


@pytest.mark.parametrize("seed", range(5))
def test_split_is_in_proportion_in_every_stratum(seed: int):
    rng = np.random.default_rng(seed)
    strata = {f"s{i}": str(rng.integers(4)) for i in range(rng.integers(30, 300))}
    shares = (0.6, 0.3, 0.1)
    split = split_subjects(strata, shares, seed)
    assert split == split_subjects(dict(reversed(strata.items())), shares, seed)
    assert split != split_subjects(strata, shares, seed + 1)
    for members, slack in [(strata, 1), *(({s for s in strata if strata[s] == label}, 2) for label in "0123")]:
        for name, share in zip(SPLITS, shares, strict=True):
            assert abs(sum(split[s] == name for s in members) - share * len(members)) <= slack


def test_a_set_that_nothing_can_be_evaluated_by_is_told(slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    build(slices, tmp_path / "few", "--split", 0.8, 0.15, 0.05)
    assert "cannot be evaluated: test has" in capsys.readouterr().out
    build(slices, tmp_path / "enough", "--split", 0.4, 0.2, 0.4)
    assert "cannot be evaluated" not in capsys.readouterr().out


def test_no_share_no_split(slices: Path, tmp_path: Path):
    assert list(build(slices, tmp_path / "set", "--split", 0.8, 0.2, 0)) == ["train", "validation"]


def test_salt_hides_subjects_and_leaves_the_split_alone(slices: Path, tmp_path: Path):
    def digest() -> str:
        return json.loads((tmp_path / "set" / "vq_ihdm.json").read_text())["digest"]

    first = build(slices, tmp_path / "set")
    told = digest()
    second = build(slices, tmp_path / "set", "--salt_file", tmp_path / "other")
    assert split_of_images(first) == split_of_images(second) and digest() == told
    assert not set(first["train"]["subject"]) & set(second["train"]["subject"])

    salt = tmp_path / "set.salt"
    assert salt.stat().st_mode & 0o077 == 0
    secret = salt.read_bytes().strip()
    assert pseudonym("person-00", secret) in {s for name in first for s in first[name]["subject"]}
    for path in (tmp_path / "set").rglob("*"):
        if path.is_file():
            text = path.read_bytes()
            assert not [word for word in (b"person-", b"scan_of", b"private", b"secret", secret) if word in text]
    assert sorted(first["train"]["subject"]) == list(first["train"]["subject"])  # not in the order of the ids

    build(slices, tmp_path / "set", "--seed", 1)  # as many slices of as many people, split otherwise
    assert digest() != told
    kept = build(slices, tmp_path / "set", "--keep_subject_ids")
    assert all(re.fullmatch(r"person-\d\d", subject) for subject in kept["test"]["subject"])


def test_same_seed_and_salt_same_bytes(slices: Path, tmp_path: Path):
    def content(folder: Path) -> dict[str, bytes]:
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    build(slices, tmp_path / "a", "--salt_file", tmp_path / "salt")
    build(slices, tmp_path / "b", "--salt_file", tmp_path / "salt")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_set_built_again_is_not_read_from_the_cache(slices: Path, tmp_path: Path):
    first = build(slices, tmp_path / "set", "--seed", 0)
    second = build(slices, tmp_path / "set", "--seed", 1)
    assert split_of_images(first) != split_of_images(second)


def test_sixteen_bits(slices: Path, tmp_path: Path):
    levels = np.linspace(0, 65535, 40 * 32).reshape(40, 32).astype(np.uint16)
    PILImage.fromarray(levels).save(slices / "scan_of_03_0.png")
    splits = build(slices, tmp_path / "set", "--bit_depth", 16)
    assert splits["train"].features["image"] == Image(mode="I;16")
    images = [np.asarray(row["image"]) for name in splits for row in splits[name]]
    assert images[0].dtype == np.uint16
    assert any(np.array_equal(image, levels[4:36]) for image in images)


def test_card_and_facts(slices: Path, tmp_path: Path):
    build(slices, tmp_path / "set", "--preset", "oasis1")
    card = DatasetCard.load(tmp_path / "set" / "README.md")
    assert card.data.license == "odbl"
    assert card.data.task_categories == ["unconditional-image-generation"]
    assert "| train | 14 | 28 |" in card.text
    assert "`slice_level`" in card.text and "90+" in card.text
    facts = json.loads((tmp_path / "set" / "vq_ihdm.json").read_text())
    assert facts["spacing_mm"] == [1.0, 1.5]
    assert facts["image_size"] == [32, 32]
    assert facts["redistribution"] is True
    build(slices, tmp_path / "set")
    assert json.loads((tmp_path / "set" / "vq_ihdm.json").read_text())["redistribution"] is False
    assert "must not be redistributed" in DatasetCard.load(tmp_path / "set" / "README.md").text
    build(slices, tmp_path / "set", "--license", "cc-by-4.0")
    assert json.loads((tmp_path / "set" / "vq_ihdm.json").read_text())["redistribution"] is True


def test_bad_images_are_named_and_the_rest_is_built(slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (slices / "scan_of_00_0.png").write_bytes(b"this is no image")
    damaged = slices / "scan_of_01_0.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    PILImage.new("L", (30, 40)).save(slices / "scan_of_02_0.png")
    (slices / "scan_of_03_0.png").unlink()
    PILImage.new("F", (32, 40)).save(slices / "scan_of_04_0.png", format="TIFF")
    splits = build(slices, tmp_path / "set")
    assert sum(map(len, splits.values())) == NUM_SUBJECTS * NUM_SLICES - 5
    out, err = capsys.readouterr()
    named = left_out(tmp_path / "set")
    for name, remedy in {
        "scan_of_00_0.png": "export it again",
        "scan_of_01_0.png": "export it again",
        "scan_of_02_0.png": "resample it",
        "scan_of_03_0.png": "take its row out",
        "scan_of_04_0.png": "8 or 16 bits",
    }.items():
        assert [row["kind"] for row in named if row["input"] == name and remedy in row["reason"]] == ["unusable"]
    assert "5 inputs left out (5 unusable)" in out
    assert "scan_of" not in out + err  # one line, not one an input


def test_the_report_is_of_this_build(slices: Path, tmp_path: Path):
    image = slices / "scan_of_00_0.png"
    whole = image.read_bytes()
    image.write_bytes(b"this is no image")
    build(slices, tmp_path / "set")
    assert len(left_out(tmp_path / "set")) == 1
    image.write_bytes(whole)
    build(slices, tmp_path / "set")
    assert not (tmp_path / "set.left_out.csv").exists()


def test_slice_level_is_the_place_within_the_scan():
    assert slice_levels([{"slice": number} for number in (40, 60, 41)]) == [0, 1, 0.05]
    assert slice_levels([{"slice": 7}]) == [0.5]
    two_scans = [{"slice": number, "scan": scan} for scan in (0, 1) for number in range(3 + scan)]
    assert slice_levels(two_scans) == pytest.approx([0, 1 / 2, 1, 0, 1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("content", [b"this is no image", None])
def test_strict_stops_and_leaves_nothing(slices: Path, tmp_path: Path, content: bytes | None):
    path = slices / "scan_of_05_0.png"
    path.write_bytes(content or path.read_bytes()[:300])  # found by its header, or only on reading
    with pytest.raises(SystemExit, match="scan_of_05_0.png"):
        build(slices, tmp_path / "out" / "set", "--strict")
    assert {path.name for path in (tmp_path / "out").glob("*")} <= {"set.salt"}


def test_a_failed_build_leaves_the_old_set(slices: Path, tmp_path: Path):
    build(slices, tmp_path / "set")
    before = (tmp_path / "set" / "vq_ihdm.json").read_text()
    path = slices / "scan_of_05_0.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SystemExit):
        build(slices, tmp_path / "set", "--strict", "--seed", 3)
    assert (tmp_path / "set" / "vq_ihdm.json").read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image_size", 40], "48x48|32x32"),
        (["--image_size", 32, 50], "downsampling factor 16"),
        (["--split", 0.5, 0.2, 0.2], "--split"),
        (["--split", 0, 0.5, 0.5], "--split"),
        (["--table", "nowhere.csv"], "nowhere.csv"),
        (["--input_dir", "nowhere", "--table", "slices.csv"], "--input_dir"),
        (["--split", 0.98, 0.01, 0.01], "no usable slice for the"),
    ],
)
def test_impossible_requests(slices: Path, tmp_path: Path, options: list, message: str):
    options = [slices / option if option == "slices.csv" else option for option in options]
    with pytest.raises(SystemExit, match=message):
        build(slices, tmp_path / "set", *options)
    assert not (tmp_path / "set").exists()


def test_a_folder_that_is_no_set_is_not_replaced(slices: Path, tmp_path: Path):
    with pytest.raises(SystemExit, match="no earlier output"):
        build(slices, slices)
    assert (slices / "slices.csv").exists()


def test_spaces_make_no_other_subject(slices: Path, tmp_path: Path):
    table = slices / "slices.csv"
    table.write_text(re.sub("(person-[0-9]+),1", r" \1 ,1", table.read_text()))
    splits = build(slices, tmp_path / "set", "--keep_subject_ids")
    people = [set(splits[name]["subject"]) for name in splits]
    assert sum(map(len, people)) == NUM_SUBJECTS and all(name == name.strip() for side in people for name in side)


@pytest.mark.parametrize(("old", "new"), [("subject", "who"), ("person-03", ""), (",1,", ",one,")])
def test_incomplete_table(slices: Path, tmp_path: Path, old: str, new: str):
    table = slices / "slices.csv"
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(SystemExit, match="'subject'|'slice'"):
        build(slices, tmp_path / "set")


@pytest.mark.parametrize("size", [(5, 9), (8, 8), (3, 12)])
def test_crop_or_pad_keeps_the_centre(size: tuple[int, int]):
    image = np.zeros((7, 9))
    image[3, 4] = 1
    result = crop_or_pad(image, size)
    assert result.shape == size
    row, column = np.argwhere(result == 1)[0]
    assert abs(row - (size[0] - 1) / 2) <= 0.5
    assert abs(column - (size[1] - 1) / 2) <= 0.5


def test_png_keeps_every_level():
    for bit_depth, white in ((8, 255), (16, 65535)):
        levels = np.arange(white + 1).reshape(-1, 256)
        assert np.array_equal(np.asarray(PILImage.open(io.BytesIO(encode_png(levels / white, bit_depth)))), levels)
