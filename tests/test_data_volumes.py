"""NIfTI volumes: geometry as properties of the slices, damaged files one by one."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import left_out, run_script
from datasets import DatasetDict, load_dataset
from scipy.spatial.transform import Rotation
from volume_helpers import AFFINE, distinct, save, volume

from vq_ihdm.data.volumes import SliceSettings, volume_slices, window
from vq_ihdm.errors import InputError

SETTINGS = SliceSettings(voxel_size=2.0, image_size=(32, 32), percentiles=(0, 100), bit_depth=8, middle=4)


def test_slices_are_in_the_axial_convention(tmp_path: Path):
    slices = volume_slices(save(volume(), tmp_path / "v.nii.gz"), SETTINGS)
    assert slices.shape == (4, 32, 32)
    assert slices.dtype == np.float32
    assert slices.min() >= 0 and slices.max() <= 1
    middle = slices[2]
    assert middle[8, 16] > 1.2 * middle[23, 16] > 0  # anterior is up
    assert middle[16, 8] < 0.8 * middle[16, 23]  # the left is on the left
    assert slices[-1][16, 16] > slices[0][16, 16]  # inferior to superior
    assert abs(np.argwhere(middle > 0).mean(0) - 15.5).max() < 0.6  # the head is in the middle


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PSR", "SAL", "IRP"])
def test_axes_of_the_file_do_not_matter(tmp_path: Path, codes: str):
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    turned = save(volume().as_reoriented(turn), tmp_path / "turned.nii.gz")
    expected = volume_slices(save(volume(), tmp_path / "v.nii.gz"), SETTINGS)
    np.testing.assert_allclose(volume_slices(turned, SETTINGS), expected, atol=1e-4)


def test_an_oblique_grid_shows_the_same_head(tmp_path: Path):
    oblique = np.eye(4)
    oblique[:3, :3] = Rotation.from_euler("xyz", [12, -9, 15], degrees=True).as_matrix() * 1.5
    oblique[:3, 3] = -oblique[:3, :3] @ [31.5, 31.5, 31.5]
    settings = SliceSettings(2.0, (32, 32), (0, 100), 8, range_mm=(-6, 6, 4))
    slanted = volume_slices(save(volume((64, 64, 64), oblique), tmp_path / "o.nii.gz"), settings)
    straight = volume_slices(save(volume(), tmp_path / "v.nii.gz"), settings)
    assert np.abs(slanted - straight).mean() < 0.04


@pytest.mark.parametrize("voxel_size", [1.0, 2.0, 4.0])
def test_pixels_have_the_size_asked_for(tmp_path: Path, voxel_size: float):
    settings = SliceSettings(voxel_size, (64, 64), (0, 100), 8, range_mm=(-1, 1, 1))
    middle = volume_slices(save(volume(), tmp_path / "v.nii.gz"), settings)[1]
    rows, columns = np.ptp(np.argwhere(middle > 0.4), axis=0) + 1
    assert rows * voxel_size == pytest.approx(52, abs=max(4, 1.5 * voxel_size))
    assert columns * voxel_size == pytest.approx(40, abs=max(4, 1.5 * voxel_size))


def test_middle_and_range_choose_the_same_slices(tmp_path: Path):
    path = save(volume(), tmp_path / "v.nii.gz")
    by_range = SliceSettings(2.0, (32, 32), (0, 100), 8, range_mm=(-3, 3, 2))
    np.testing.assert_allclose(volume_slices(path, SETTINGS), volume_slices(path, by_range), atol=1e-6)


def test_vertex_follows_the_head(tmp_path: Path):
    """The same head, moved in the scanner, gives the same slices below its top."""
    settings = SliceSettings(2.0, (32, 32), (0, 100), 8, range_mm=(-40, -20, 5), z_zero="vertex")
    tall = AFFINE.copy()
    tall[2, 3] = -60
    image = volume((32, 36, 60), tall)
    moved = nib.Nifti1Image(image.dataobj, nib.affines.from_matvec(np.diag([2, 2, 2]), [-20, 5, 37]))
    expected = volume_slices(save(image, tmp_path / "a.nii.gz"), settings)
    np.testing.assert_allclose(volume_slices(save(moved, tmp_path / "b.nii.gz"), settings), expected, atol=1e-4)


def test_window_ignores_spikes_and_air():
    rng = np.random.default_rng(0)
    tissue = rng.uniform(100, 200, 5000)
    expected = window(np.concatenate([np.zeros(5000), tissue]), (0.5, 99.5))[-5000:]
    with_spike = window(np.concatenate([np.zeros(5000), tissue, [1e5]]), (0.5, 99.5))[5000:-1]
    more_air = window(np.concatenate([np.zeros(50000), tissue]), (0.5, 99.5))[-5000:]
    np.testing.assert_allclose(with_spike, expected, atol=0.01)
    np.testing.assert_allclose(more_air, expected, atol=0.01)


def test_nan_around_a_head_is_black(tmp_path: Path):
    data = np.asarray(volume().dataobj)
    holed = nib.Nifti1Image(np.where(data == 0, np.nan, data), AFFINE)
    slices = volume_slices(save(holed, tmp_path / "holed.nii.gz"), SETTINGS)
    np.testing.assert_array_equal(slices, volume_slices(save(volume(), tmp_path / "v.nii.gz"), SETTINGS))
    normalised = nib.Nifti1Image(np.where(data == 0, np.nan, (data - data.mean()) / data.std()), AFFINE)
    assert (volume_slices(save(normalised, tmp_path / "n.nii.gz"), SETTINGS)[slices == 0] == 0).all()


def test_the_unit_of_intensities_does_not_matter(tmp_path: Path):
    data = np.asarray(volume().dataobj)
    tiny = nib.Nifti1Image((data * np.float32(1e-12)).astype(np.float32), AFFINE)
    slices = [volume_slices(save(v, tmp_path / f"{i}.nii.gz"), SETTINGS) for i, v in enumerate((tiny, volume()))]
    np.testing.assert_allclose(*slices, atol=1e-4)


def damaged_volumes(folder: Path) -> dict[str, str]:
    """Write one file of each kind of damage; returns its name and a word of the remedy that must be told."""
    whole = save(volume(), folder / "whole.nii.gz").read_bytes()
    plain = gzip.decompress(whole)
    (folder / "whole.nii.gz").unlink()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "corrupt.nii.gz").write_bytes(whole[:400] + bytes(100) + whole[500:])
    (folder / "short.nii").write_bytes(plain[: len(plain) // 2])
    (folder / "magic.nii").write_bytes(plain[:344] + b"oops" + plain[348:])
    (folder / "header.nii").write_bytes(plain[:42] + b"\xff\xff" + plain[44:])  # a negative dimension
    (folder / "nogzip.nii.gz").write_bytes(b"not a gzip file" * 50)
    (folder / "nothing.nii.gz").write_bytes(b"")
    data = np.asarray(volume().dataobj)
    save(nib.Nifti1Image(np.stack([data, data], 3), AFFINE), folder / "series.nii.gz")
    save(nib.Nifti1Image(data[:, :, 0], AFFINE), folder / "flat.nii.gz")
    colour = np.zeros(data.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(nib.Nifti1Image(colour, AFFINE), folder / "colour.nii.gz")
    holed = data.copy()
    holed[0, 0, 0] = np.inf
    save(nib.Nifti1Image(holed, AFFINE), folder / "infinite.nii.gz")
    save(nib.Nifti1Image(np.full_like(data, 7), AFFINE), folder / "constant.nii.gz")
    save(nib.Nifti1Image((data > 0).astype(np.uint8), AFFINE), folder / "binary.nii.gz")
    header = nib.Nifti1Header()
    header.set_sform(np.diag([2.0, 2, 0, 1]), code=1)
    save(nib.Nifti1Image(data, None, header), folder / "singular.nii.gz")
    save(nib.Nifti1Image(data, None), folder / "unplaced.nii.gz")
    save(nib.Nifti1Image(data, 1000 * AFFINE), folder / "metres.nii.gz")
    save(nib.Nifti1Image(data[:, :, :2], AFFINE), folder / "thin.nii.gz")
    for name, end in (("blank", 6), ("half", 12)):  # the middle slices are 10 to 13
        below = data.copy()
        below[:, :, end:] = 0
        save(nib.Nifti1Image(below, AFFINE), folder / f"{name}.nii.gz")
    return {
        "truncated.nii.gz": "download or convert",
        "corrupt.nii.gz": "download or convert",
        "short.nii": "download or convert",
        "magic.nii": "download or convert",
        "header.nii": "download or convert",
        "nogzip.nii.gz": "download or convert",
        "nothing.nii.gz": "download or convert",
        "series.nii.gz": "extract one 3-D volume",
        "flat.nii.gz": "extract one 3-D volume",
        "colour.nii.gz": "convert it to float",
        "infinite.nii.gz": "set them to zero",
        "constant.nii.gz": "is empty",
        "binary.nii.gz": "as a mask or a segmentation does",
        "singular.nii.gz": "repair the header",
        "unplaced.nii.gz": "does not say how the head lies in it",
        "metres.nii.gz": "repair the voxel size",
        "thin.nii.gz": "--slices",
        "blank.nii.gz": "--slices_mm",
        "half.nii.gz": "--slices_mm",
    }


def test_damage_is_named_with_its_remedy(tmp_path: Path):
    for name, remedy in damaged_volumes(tmp_path).items():
        with pytest.raises(InputError) as caught:
            volume_slices(tmp_path / name, SETTINGS)
        message = str(caught.value)
        assert name in message and remedy in message and "\n" not in message


def build(source: Path, output: Path, *options: object) -> DatasetDict:
    run_script(
        "dataset_scripts/nifti.py", "--input_dir", source, "--image_size", 32, "--voxel_size", 2,
        "--slices", "middle:4", "--split", 0.6, 0.2, 0.2, "--output_dir", output, *options,
    )  # fmt: skip
    return load_dataset(str(output))


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Ten subjects with a T1w and a T2w volume each, and a participants.tsv."""
    folder = tmp_path / "bids"
    lines = ["participant_id\tage\tsex\tname"]
    for number in range(10):
        affine = AFFINE.copy()
        affine[0, 0] += number / 50  # so that no two files are equal
        for suffix in ("T1w", "T2w"):
            save(volume(affine=affine), folder / f"sub-{number:02d}" / "anat" / f"sub-{number:02d}_{suffix}.nii.gz")
        lines.append(f"sub-{number:02d}\t{50 + number}\t{'MF'[number % 2]}\tSmith")
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_bids_tree(bids: Path, tmp_path: Path):
    splits = build(bids, tmp_path / "set", "--keep_subject_ids")
    rows = [row for name in splits for row in splits[name]]
    assert {row["subject"] for row in rows} == {f"{number:02d}" for number in range(10)}
    assert len(rows) == 40  # T1w alone
    assert all(row["age"] == 50 + int(row["subject"]) for row in rows)
    assert all(row["sex"] == 1 - int(row["subject"]) % 2 for row in rows)
    assert not (tmp_path / "set.work").exists()
    assert not any(
        b"Smith" in path.read_bytes() or b"bids" in path.read_bytes()
        for path in (tmp_path / "set").rglob("*")
        if path.is_file()
    )


def test_bad_inputs_are_left_out_and_counted(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    scan = bids / "sub-03" / "anat" / "sub-03_T1w.nii.gz"
    scan.write_bytes(scan.read_bytes()[:500])
    save(distinct(30), bids / "sub-04" / "anat" / "sub-04_run-2_T1w.nii.gz")
    save(volume(), bids / "sub-77" / "anat" / "sub-77_T1w.nii.gz")
    splits = build(bids, tmp_path / "set", "--keep_subject_ids")
    assert {s for name in splits for s in splits[name]["subject"]} == {f"{n:02d}" for n in range(10) if n != 3}
    named = [row for row in left_out(tmp_path / "set") if "T2w" not in row["input"]]
    assert len(named) == 3
    for word, remedy in {"sub-03_T1w": "download", "sub-04_T1w": "--all_scans", "sub-77_T1w": "add one"}.items():
        assert len([row for row in named if word in row["input"] and remedy in row["reason"]]) == 1
    assert "13 inputs left out (2 unusable, 11 not chosen)" in capsys.readouterr().out


def test_heads_that_are_cut_are_told(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    build(bids, tmp_path / "whole")
    assert "are cut there" not in capsys.readouterr().out
    build(bids, tmp_path / "cut", "--image_size", 16)
    assert "10 of 10 heads reach beyond 16x16 pixels of 2 mm and are cut there" in capsys.readouterr().out


def test_strict_stops_and_leaves_no_set(bids: Path, tmp_path: Path):
    scan = bids / "sub-03" / "anat" / "sub-03_T1w.nii.gz"
    scan.write_bytes(scan.read_bytes()[:500])
    with pytest.raises(SystemExit, match="sub-03_T1w"):
        build(bids, tmp_path / "set", "--strict")
    assert not (tmp_path / "set").exists()


def test_all_scans_of_a_subject_share_its_split(bids: Path, tmp_path: Path):
    for number in range(10):
        affine = AFFINE.copy()
        affine[1, 1] += 0.1
        save(volume(affine=affine), bids / f"sub-{number:02d}" / "anat" / f"sub-{number:02d}_run-2_T1w.nii.gz")
    splits = build(bids, tmp_path / "set", "--all_scans", "--keep_subject_ids")
    assert sum(map(len, splits.values())) == 80
    subjects = [set(splits[name]["subject"]) for name in splits]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == 10
    assert set(splits["train"]["scan"]) == {0, 1}


def test_finished_volumes_are_not_done_again(bids: Path, tmp_path: Path):
    scan = bids / "sub-09" / "anat" / "sub-09_T1w.nii.gz"
    whole = scan.read_bytes()
    scan.write_bytes(whole[:500])
    with pytest.raises(SystemExit):
        build(bids, tmp_path / "set", "--strict")
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "set.work").glob("*.parquet")}
    assert len(finished) == 9

    scan.write_bytes(whole[:400])  # still damaged: the work folder stays, and what is in it
    with pytest.raises(SystemExit):
        build(bids, tmp_path / "set", "--strict")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set.work").glob("*.parquet")} == finished
    with pytest.raises(SystemExit):  # other settings, other work
        build(bids, tmp_path / "set", "--strict", "--bit_depth", 16)
    assert len(list((tmp_path / "set.work").glob("*.parquet"))) == 18

    scan.write_bytes(whole)
    resumed = build(bids, tmp_path / "set", "--salt_file", tmp_path / "salt")
    assert not (tmp_path / "set.work").exists()
    straight = build(bids, tmp_path / "straight", "--salt_file", tmp_path / "salt")
    digests = [json.loads((tmp_path / name / "vq_ihdm.json").read_text())["digest"] for name in ("set", "straight")]
    assert digests[0] == digests[1]
    assert resumed["train"]["subject"] == straight["train"]["subject"]


def test_adni_layout_takes_the_visit_of_the_scan(tmp_path: Path):
    """The visit nearest to the scan's date gives the diagnosis; AGE is that of the first visit."""
    lines = ["RID,PTID,VISCODE,EXAMDATE,DX_bl,AGE,PTGENDER,DX,Years_bl"]
    for number in range(10):
        subject = f"002_S_{295 + number:04d}"
        folder = tmp_path / "ADNI" / subject / "MPR__GradWarp__B1_Correction__N3" / "2008-03-14_10_01_24.0" / "I4510"
        save(distinct(number), folder / f"ADNI_{subject}_MR_MPR_I4510{number}.nii")
        lines.append(f"{295 + number},{subject},bl,2006-03-10,CN,{70 + number},Male,CN,0")
        lines.append(f"{295 + number},{subject},m24,2008-03-10,CN,{70 + number},Male,Dementia,2.0")
    (tmp_path / "ADNIMERGE.csv").write_text("\n".join(lines) + "\n")
    save(volume(), tmp_path / "ADNI" / "phantom.nii")
    options = ("--preset", "adni", "--table", tmp_path / "ADNIMERGE.csv", "--keep_subject_ids")
    splits = build(tmp_path / "ADNI", tmp_path / "set", *options)
    rows = [row for name in splits for row in splits[name]]
    assert {row["subject"] for row in rows} == {f"002_S_{295 + number:04d}" for number in range(10)}
    assert all(row["age"] == 72 + int(row["subject"][-4:]) - 295 for row in rows)
    assert {splits["train"].features["diagnosis"].int2str(row["diagnosis"]) for row in rows} == {"AD"}
    facts = json.loads((tmp_path / "set" / "vq_ihdm.json").read_text())
    assert facts["redistribution"] is False


def test_one_person_under_two_ids_is_not_in_two_splits(bids: Path, tmp_path: Path):
    for number in (6, 7):
        original = bids / f"sub-{number - 5:02d}" / "anat" / f"sub-{number - 5:02d}_T1w.nii.gz"
        shutil.copy(original, bids / f"sub-{number:02d}" / "anat" / f"sub-{number:02d}_T1w.nii.gz")
    splits = build(bids, tmp_path / "set")
    images = [image.tobytes() for name in splits for image in splits[name]["image"]]
    assert len(images) == len(set(images)) == 8 * 4
    reasons = [row["reason"] for row in left_out(tmp_path / "set") if row["kind"] == "unusable"]
    assert len(reasons) == 2 and all("has the very images of" in reason for reason in reasons)


def test_ids_in_several_folders_are_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Of two sites, or with more to the id than BIDS has: people who count as one are said to."""
    for number in range(4):
        for part, place in enumerate(("siteA", "siteB")):
            save(distinct(10 * number + part), tmp_path / "sites" / place / f"sub-{number:02d}" / "t1.nii")
        save(distinct(number), tmp_path / "adni" / f"sub-00{number // 2}_S_{number:04d}" / "t1.nii")
        save(distinct(number), tmp_path / "bids" / f"sub-{number:02d}" / "ses-1" / "anat" / "t1.nii")
    options = ("--split", 0.5, 0.5, 0)
    build(tmp_path / "sites", tmp_path / "set", *options)
    assert "4 subjects have scans in several folders, as 00 in siteA/sub-00 and siteB/sub-00" in capsys.readouterr().out
    build(tmp_path / "adni", tmp_path / "set", *options)
    assert "2 subjects have scans in several folders, as 000 in sub-000_S_0000 and" in capsys.readouterr().out
    build(tmp_path / "bids", tmp_path / "set", *options)
    assert "several folders" not in capsys.readouterr().out
    for number in range(4):
        for part, place in enumerate(("siteA", "siteB")):
            save(distinct(10 * number + part), tmp_path / "patterned" / place / f"P{number:03d}" / "v1" / "t1.nii")
    build(tmp_path / "patterned", tmp_path / "set", *options, "--subject_pattern", "(P[0-9]+)")
    assert "4 subjects have scans in several folders, as P000 in siteA/P000 and siteB/P000" in capsys.readouterr().out


def test_scans_of_a_visit_that_nothing_tells_apart_are_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    for number in range(4):
        for sequence in ("FLAIR", "MPRAGE") if number else ("MPRAGE",):
            save(distinct(10 * number + len(sequence)), tmp_path / "scans" / f"sub-{number:02d}" / f"{sequence}.nii")
    options = ("--split", 0.5, 0.5, 0)
    build(tmp_path / "scans", tmp_path / "set", *options)
    said = capsys.readouterr().out
    assert "3 of 4 subjects have several scans of a visit" in said and "sub-01/FLAIR.nii and sub-01/MPRAGE.nii" in said
    build(tmp_path / "scans", tmp_path / "set", *options, "--series", "mprage")
    assert "several scans of a visit" not in capsys.readouterr().out


def test_zeros_around_standardised_intensities_are_air(tmp_path: Path):
    data = np.asarray(volume().dataobj)
    standardised = np.where(data > 0, (data - data[data > 0].mean()) / data[data > 0].std(), 0).astype(np.float32)
    slices = volume_slices(save(nib.Nifti1Image(standardised, AFFINE), tmp_path / "z.nii.gz"), SETTINGS)
    assert (np.stack([slices[0][0, 0], slices[-1][-1, -1]]) == 0).all() and np.median(slices[slices > 0]) > 0.3


def test_ixi_layout(tmp_path: Path):
    lines = ['IXI_ID,"SEX_ID (1=m, 2=f)",AGE']
    for number in range(10):
        save(distinct(number), tmp_path / "IXI-T1" / f"IXI{number + 2:03d}-Guys-0{number}28-T1.nii.gz")
        lines.append(f"{number + 2},{1 + number % 2},{40 + number}.25")
    (tmp_path / "IXI.csv").write_text("\n".join(lines) + "\n")
    options = ("--preset", "ixi", "--table", tmp_path / "IXI.csv", "--keep_subject_ids")
    splits = build(tmp_path / "IXI-T1", tmp_path / "set", *options)
    rows = [row for name in splits for row in splits[name]]
    assert {(row["subject"], row["age"], row["sex"]) for row in rows} == {
        (str(number + 2), 40.25 + number, 1 - number % 2) for number in range(10)
    }


def test_own_names(tmp_path: Path):
    """With a pattern, two files of one patient are two scans; without one, each file is a subject. Links count."""
    for number in range(6):
        for visit in "ab":
            save(distinct(10 * number + ord(visit)), tmp_path / "elsewhere" / f"patient{number}_{visit}.nii.gz")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "linked").symlink_to(tmp_path / "elsewhere")
    splits = build(tmp_path / "scans", tmp_path / "set")
    assert sum(len(set(splits[name]["subject"])) for name in splits) == 12
    splits = build(tmp_path / "scans", tmp_path / "set", "--subject_pattern", r"(patient\d+)_", "--all_scans")
    assert sum(len(set(splits[name]["subject"])) for name in splits) == 6


def test_files_of_one_name_in_folders_of_several_people(tmp_path: Path):
    """They are not one subject, nor is a person of several scans several."""
    for number in range(6):
        for series in ("T1", "T1_2"):
            save(distinct(10 * number + len(series)), tmp_path / "scans" / f"person{number}" / f"{series}.nii.gz")
    with pytest.raises(SystemExit, match=r"person0/T1.nii.gz and person1/T1.nii.gz have one name .* --subject_pattern"):
        build(tmp_path / "scans", tmp_path / "set", "--all_scans")
    splits = build(tmp_path / "scans", tmp_path / "set", "--all_scans", "--subject_pattern", "^([^/]+)/")
    assert sum(len(set(splits[name]["subject"])) for name in splits) == 6


@pytest.mark.parametrize("pattern", [r"(patient\d)?", r"(patient\d)|phantom", r"(?:/|^)((?:patient\d)?)"])
def test_a_subject_pattern_that_may_not_match(tmp_path: Path, pattern: str):
    """A group that takes no part in the match, or an empty one, is no subject's id."""
    for number, name in enumerate(("patient1", "patient2", "patient3", "phantom")):
        save(distinct(number), tmp_path / "scans" / f"{name}.nii.gz")
    options = ("--split", 0.4, 0.3, 0.3, "--keep_subject_ids")
    splits = build(tmp_path / "scans", tmp_path / "set", "--subject_pattern", pattern, *options)
    assert {s for name in splits for s in splits[name]["subject"]} == {"patient1", "patient2", "patient3"}
    assert "phantom.nii.gz has no subject id" in (tmp_path / "set.left_out.csv").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subject_pattern", r"patient\d+"], "one group"),
        (["--subject_pattern", "(patient"], "one group"),
        (["--voxel_size", 1e-9], "--voxel_size"),
        (["--voxel_size", "nan"], "--voxel_size"),
        (["--slices_mm", 0, 1e9], "--slices_mm"),
        (["--percentiles", 0, 500], "--percentiles"),
        (["--num_threads", 0], "--num_threads"),
        (["--downsampling_factor", 0], "--downsampling_factor"),
        (["--percentiles", 50, 20], "--percentiles"),
        (["--license", "mit", "--preset", "ixi"], "--license"),
        (["--z_zero", "vertex"], "--slices_mm"),
        (["--slice_step_mm", 2], "--slices_mm"),
        (["--image_size", 40], "downsampling factor"),
        (["--table", "nowhere.tsv"], "nowhere.tsv"),
    ],
)
def test_impossible_requests(bids: Path, tmp_path: Path, capsys, options: list, message: str):
    with pytest.raises(SystemExit) as refused:
        build(bids, tmp_path / "set", *options)
    assert message in f"{refused.value} {capsys.readouterr().err.splitlines()[-1:]}"  # argparse prints, and exits by 2
    assert not (tmp_path / "set").exists()


def test_folder_without_volumes(tmp_path: Path):
    with pytest.raises(SystemExit, match="no .nii or .nii.gz file"):
        build(tmp_path, tmp_path / "set")


def test_threads_change_nothing(bids: Path, tmp_path: Path):
    for name, threads in (("one", 1), ("four", 4)):
        build(bids, tmp_path / name, "--num_threads", threads, "--salt_file", tmp_path / "salt")
    digests = [json.loads((tmp_path / name / "vq_ihdm.json").read_text())["digest"] for name in ("one", "four")]
    assert digests[0] == digests[1]
