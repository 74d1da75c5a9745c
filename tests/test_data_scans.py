"""Which scan of a subject is taken, in trees as the archives lay them out."""

import errno
import os
import re
import runpy
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, left_out, run_script
from datasets import load_dataset
from volume_helpers import adni_tree, bids_tree, distinct, oasis1_tree, save, volume

from vq_ihdm.data.rejections import Rejections
from vq_ihdm.data.scans import SEGMENTATION, VOLUME_SUFFIXES, find_scans, preference, select_scans, volume_names
from vq_ihdm.errors import InputError

SMALL = ("--image_size", 32, "--voxel_size", 2, "--slices", "middle:2", "--split", 0.5, 0.25, 0.25)


def build(source: Path, output: Path, *options: object) -> list[dict]:
    """The rows of the built set; its subjects keep their ids."""
    run_script(
        "dataset_scripts/nifti.py", "--input_dir", source, "--output_dir", output, "--keep_subject_ids", *SMALL,
        *options,
    )  # fmt: skip
    splits = load_dataset(str(output))
    return [row for name in splits for row in splits[name]]


@pytest.fixture(scope="module")
def adni(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folder and table of `adni_tree`; not to be written to."""
    return adni_tree(tmp_path_factory.mktemp("adni"))


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bids_tree`; not to be written to."""
    return bids_tree(tmp_path_factory.mktemp("bids"))


# The age at the first visit, but at the second where the first is truncated (0) or no single volume (1).
FIRST_USABLE = {f"002_S_{295 + n:04d}": 70.0 + n + 2 * (n < 2) for n in range(6)}


def test_adni_takes_the_first_usable_mprage_of_everybody(adni: tuple[Path, Path], tmp_path: Path, capsys):
    folder, table = adni
    rows = build(folder, tmp_path / "set", "--preset", "adni", "--table", table)
    assert {row["subject"]: row["age"] for row in rows} == FIRST_USABLE
    report = left_out(tmp_path / "set")
    assert len(report) == 6 * 3
    reasons = {word: sum(word in row["reason"] for row in report) for word in ("--series", "mask", "was taken")}
    assert reasons == {"--series": 6, "mask": 6, "was taken": 4}
    assert [row["kind"] for row in report].count("unusable") == 2
    assert not any("delete" in row["reason"] for row in report)
    captured = capsys.readouterr()
    assert "18 inputs left out (2 unusable, 16 not chosen)" in captured.out
    assert "MP-RAGE" not in captured.out + captured.err  # one line in all


def test_adni_without_its_broken_visits_is_strict(adni: tuple[Path, Path], tmp_path: Path):
    """Repeat visits, FLAIRs and masks are no mistakes; a truncated scan is."""
    folder, table = adni
    with pytest.raises(SystemExit, match=r"002_S_0295.*_I1\.nii is truncated|002_S_0295.*_I1\.nii cannot be used"):
        build(folder, tmp_path / "set", "--preset", "adni", "--table", table, "--strict")
    whole = shutil.copytree(folder, tmp_path / "whole")
    for image in ("I1", "I11"):
        next(whole.rglob(f"*_{image}.nii")).unlink()
    rows = build(whole, tmp_path / "set", "--preset", "adni", "--table", table, "--strict")
    assert {row["subject"]: row["age"] for row in rows} == FIRST_USABLE


def test_the_names_that_the_adni_archive_gives_t1_scans():
    series = runpy.run_path(str(ROOT / "dataset_scripts" / "nifti.py"))["PRESETS"]["adni"].series
    t1 = "MP-RAGE", "MPRAGE_SENSE2", "MP RAGE", "MPR__GradWarp__N3__Scaled", "MT1__GradWarp__N3m", "Sag_IR-FSPGR"
    others = "Axial_T2-FLAIR", "Axial_PD_T2_FSE", "Axial_T2_Star", "Resting_State_fMRI", "3-plane_localizer"
    assert all(re.search(series, name, re.IGNORECASE) for name in t1)
    assert not any(re.search(series, name, re.IGNORECASE) for name in others)


def test_a_table_of_image_ids_is_a_choice(adni: tuple[Path, Path], tmp_path: Path):
    """Only listed images are taken, by whatever name they go; here the second visits."""
    folder, table = adni
    lines = table.read_text().splitlines()
    listed = [lines[0], *(line for line in lines[1:] if "m24" in line)]
    (tmp_path / "m24.csv").write_text("\n".join(listed) + "\n")
    rows = build(
        folder, tmp_path / "set", "--preset", "adni", "--series", "", "--table", tmp_path / "m24.csv", "--strict"
    )
    assert {row["age"] for row in rows} == {72.0 + n for n in range(6)}


def test_the_series_may_stand_in_the_table_alone(adni: tuple[Path, Path], tmp_path: Path):
    folder, table = adni
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted(folder.rglob("*.nii")):
        (flat / f"{path.name[5:15]}_{path.stem.rpartition('_')[2]}.nii").symlink_to(path)
    rows = build(flat, tmp_path / "set", "--preset", "adni", "--table", table)
    assert {row["subject"]: row["age"] for row in rows} == FIRST_USABLE
    build(flat, tmp_path / "set", "--preset", "adni", "--table", table, "--series", "FLAIR")
    assert sum("--series" in row["reason"] for row in left_out(tmp_path / "set")) == 6 * 2


def test_bids_takes_the_raw_t1w_of_the_first_session(bids: Path, tmp_path: Path):
    rows = build(bids, tmp_path / "set")
    assert {(row["subject"], row["age"], row["sex"]) for row in rows} == {
        (f"{n:02d}", 60.0 + n, n % 2) for n in range(6)
    }
    report = left_out(tmp_path / "set")
    others = [row["reason"] for row in report if "_T1w." not in row["input"]]
    assert len(others) == 6 * 4 and all("--series" in reason or "mask" in reason for reason in others)
    chosen = {row["reason"].split()[0] for row in report if "_T1w." in row["input"]}
    assert chosen == {f"sub-{n:02d}/ses-M00/anat/sub-{n:02d}_ses-M00_acq-mprage_run-2_T1w.nii.gz" for n in range(6)}
    assert len(report) == 6 * 9
    assert not any("derivatives" in row["input"] or "sourcedata" in row["input"] for row in report)


def test_one_t1w_among_others_leaves_nobody_out_unsaid(tmp_path: Path):
    for number in range(4):
        save(distinct(number), tmp_path / "scans" / f"sub-{number}_t1w.nii.gz")
    save(distinct(4), tmp_path / "scans" / "sub-4_T1w.nii.gz")
    save(distinct(5), tmp_path / "scans" / "sub-5_MPRAGE.nii.gz")
    assert {row["subject"] for row in build(tmp_path / "scans", tmp_path / "set")} == set("01234")
    (passed_over,) = left_out(tmp_path / "set")
    assert passed_over["input"] == "sub-5_MPRAGE.nii.gz" and "--series" in passed_over["reason"]


def test_scans_that_count_as_a_person_each_are_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    for number, name in enumerate(["P1_2019", "P1_2021", "P2_2019", "P3_2019", "P4_2019"]):
        save(distinct(number), tmp_path / "scans" / f"{name}.nii.gz")
    build(tmp_path / "scans", tmp_path / "set")
    assert "5 of 5 scans have no subject id in their paths: each counts as a person" in capsys.readouterr().out
    assert "5 scans that tell none count as a person each" in (tmp_path / "set" / "README.md").read_text()
    build(tmp_path / "scans", tmp_path / "told", "--subject_pattern", "(P[0-9]+)_")
    assert "each counts as a person" not in capsys.readouterr().out


def test_which_names_are_those_of_segmentations():
    for name in (
        "sub-01_mask.nii",
        "mri/brainmask.mgz",
        "mri/aseg.mgz",
        "aparc+aseg.mgz",
        "x_labels.nii",
        "wmparc.mgz",
        "labelsTr/BRATS_001.nii.gz",
        "sub-01_dseg.nii.gz",
        "sub-01_label-GM_probseg.nii.gz",
        "ribbon.mgz",
        "GroundTruth.nii.gz",
    ):
        assert SEGMENTATION.search(name), name
    for name in ("NeuroSeg/P01.nii.gz", "t88_masked_gfc.img", "unmasked.nii", "Massegu/scan.nii"):
        assert not SEGMENTATION.search(name), name


@pytest.mark.parametrize(
    ("series", "image"), [("acq-spgr", "acq-spgr_T1w"), ("T2w", "T2w"), ("RUN-1_", "acq-mprage_run-1_T1w")]
)
def test_bids_entities_choose_the_series(bids: Path, series: str, image: str):
    rejections = Rejections(strict=True)
    scans = select_scans(find_scans(bids, r"sub-([A-Za-z0-9]+)", True, rejections), series, None, rejections)
    assert {(scan.subject, scan.session) for scan in scans} == {
        (f"{n:02d}", s) for n in range(6) for s in ("M00", "M06")
    }
    assert all(scan.name.endswith(f"_{image}.nii.gz") for scan in scans)


def test_derivatives_themselves_can_be_built_from(bids: Path):
    names = volume_names(bids / "derivatives" / "fmriprep")
    assert len(names) == 6 * 2 * 5


def test_oasis1_takes_the_registered_volumes_without_skull(tmp_path: Path):
    folder, table = oasis1_tree(tmp_path / "oasis1")
    rows = build(folder, tmp_path / "set", "--preset", "oasis1", "--table", table)
    assert {row["subject"]: row["age"] for row in rows} == {f"{n:04d}": 61.0 + n for n in range(1, 7)}  # MR1's age
    assert {row["subject"] for row in rows if row["cdr"] is None} == {"0001"}
    report = left_out(tmp_path / "set")
    second = [row for row in report if "was taken" in row["reason"]]
    assert len(report) == 6 * 3 + 4
    assert [row["input"].endswith("OAS1_0002_MR2_mpr_n4_anon_111_t88_masked_gfc.img") for row in second] == [True]
    assert "odbl" in (tmp_path / "set" / "README.md").read_text()


def test_a_series_nobody_has_is_named(bids: Path, tmp_path: Path):
    with pytest.raises(SystemExit, match="flair"):
        build(bids, tmp_path / "set", "--series", "flair")
    with pytest.raises(SystemExit, match="no regular expression"):
        build(bids, tmp_path / "set", "--series", "(T1")
    assert not (tmp_path / "set").exists()


def test_preference(tmp_path: Path):
    """Earliest visit, last run, highest image id, name; numbers by their value."""
    ordered = [
        "s/ses-2/s_run-10_T1w.nii",
        "s/ses-2/s_run-9_T1w.nii",
        "s/ses-2/s_T1w.nii",
        "s/ses-10/s_T1w.nii",
    ], [
        "s/N3/2006-04-18_1/I301/x.nii",
        "s/MP-RAGE/2006-04-18_1/I99/x.nii",
        "s/MP-RAGE/2006-04-19_1/I100/x.nii",
    ], ["2006-02-31/s_MR1.img", "2006-02-31/s_MR2.img", "2006-02-31/s_MR10.img"]  # fmt: skip
    for number, names in enumerate(ordered):
        for name in names:
            (tmp_path / str(number) / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / str(number) / name).touch()
        scans = find_scans(tmp_path / str(number), "(s)", True, Rejections(strict=True))
        assert [scan.name for scan in sorted(scans, key=preference)] == names


def test_an_id_that_is_the_files_name_is_one_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture):
    for number in range(4):
        for year in (2019, 2021):
            save(distinct(10 * number + year % 10), tmp_path / "in" / str(year) / f"P{number}.nii.gz")
    rows = build(tmp_path / "in", tmp_path / "set", "--subject_pattern", "(?P<subject>P[0-9]+)", "--all_scans")
    assert {row["subject"] for row in rows} == {f"P{number}" for number in range(4)}
    assert "no subject id" not in capsys.readouterr().out


def test_links_and_odd_names(tmp_path: Path):
    """No folder is searched twice, hidden and linked files are what they are."""
    save(volume(), tmp_path / "a" / "one.nii")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "z").symlink_to(tmp_path / "a")
    for name in (".hidden.nii", "._one.nii", "notes.txt", "one.json", "pair.hdr"):
        (tmp_path / "a" / name).touch()
    save(volume(), tmp_path / ".git" / "annex" / "two.nii")
    assert volume_names(tmp_path) == ["a/one.nii"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2", ".img", ".mgz", ".mgh"])
def test_what_nibabel_reads_is_built(tmp_path: Path, suffix: str):
    assert suffix in VOLUME_SUFFIXES
    kind = {"m": nib.MGHImage, "i": nib.Nifti1Pair, "n": nib.Nifti1Image}[suffix[1]]
    for number in range(4):
        image = distinct(number)
        save(kind(np.asarray(image.dataobj, np.float32), image.affine), tmp_path / "in" / f"p{number}{suffix}")
    expected = [
        save(
            nib.Nifti1Image(np.asarray(distinct(number).dataobj), distinct(number).affine),
            tmp_path / "nii" / f"p{number}.nii",
        )
        for number in range(4)
    ]
    rows = build(tmp_path / "in", tmp_path / "set")
    assert {row["subject"] for row in rows} == {path.stem for path in expected}
    assert {row["image"].tobytes() for row in rows} == {
        row["image"].tobytes() for row in build(tmp_path / "nii", tmp_path / "expected")
    }


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("open/s1.nii", "shut/s2.nii"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    scandir = os.scandir

    def refusing(place):  # by the system's answer: permissions do not bind root, who may run the tests
        if Path(place).name == "shut":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    rejections = Rejections(strict=False)
    assert [scan.name for scan in find_scans(tmp_path, r"(s\d)", True, rejections)] == ["open/s1.nii"]
    [(name, kind, reason)] = rejections.rows
    assert (name, kind) == ("shut", "unusable") and "cannot be read (Permission denied)" in reason
    with pytest.raises(InputError, match="shut cannot be read"):
        find_scans(tmp_path, r"(s\d)", True, Rejections(strict=True))
