"""DICOM series become the volumes they were, where their folders say whose they are."""

import runpy
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, left_out, run_script
from killing import child, reap
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from volume_helpers import volume

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"


def write_series(folder: Path, image: nib.Nifti1Image, series_number: int = 3) -> None:
    """A head (RAS axes, 2 mm) as axial DICOM images, rows from anterior to posterior, columns from right to left."""
    folder.mkdir(parents=True, exist_ok=True)
    data = np.asarray(image.dataobj)
    study, series, frame = (generate_uid() for _ in range(3))
    x, y, z = image.affine[:3, 3]
    # The first pixel is the rightmost, foremost voxel; DICOM's x points to the left, its y to the back.
    corner = [-(x + 2 * (data.shape[0] - 1)), -(y + 2 * (data.shape[1] - 1))]
    for number in range(data.shape[2]):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MR_IMAGE
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.Modality, dataset.Manufacturer, dataset.PatientID = "MR", "GE", "nobody"
        dataset.SeriesDescription, dataset.SeriesNumber, dataset.InstanceNumber = "MP-RAGE", series_number, number + 1
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [*corner, z + 2 * number]
        dataset.PixelSpacing, dataset.SliceThickness = [2, 2], 2
        pixels = data[::-1, ::-1, number].T.astype("<u2")
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(folder / f"{series_number}_{number:03d}.dcm", enforce_file_format=True)


def convert(folder: Path, output: Path, *options: object) -> None:
    run_script("dataset_scripts/dicom.py", "--input_dir", folder, "--output_dir", output, *options)


def test_series_become_volumes(tmp_path: Path, capsys: pytest.CaptureFixture):
    whole, gap, cut = (tmp_path / "in" / f"002_S_000{n}" / "MP-RAGE" / "2006-04-18" / f"I{n}" for n in range(3))
    for folder in (whole, gap, cut):
        write_series(folder, volume())
    (gap / "3_011.dcm").unlink()
    for path in sorted(cut.iterdir())[:5]:
        path.write_bytes(path.read_bytes()[:700])

    convert(tmp_path / "in", tmp_path / "out")
    (converted,) = (tmp_path / "out").rglob("*.*")
    assert converted == tmp_path / "out" / whole.relative_to(tmp_path / "in") / "MP-RAGE_3.nii.gz"
    image = nib.as_closest_canonical(nib.load(converted))
    np.testing.assert_array_equal(image.dataobj, np.asarray(volume().dataobj).astype(int))
    np.testing.assert_allclose(image.affine, volume().affine, atol=1e-4)
    assert b"nobody" not in image.header.binaryblock
    report = {row["input"]: row["reason"] for row in left_out(tmp_path / "out")}
    assert set(report) == {folder.relative_to(tmp_path / "in").as_posix() for folder in (gap, cut)}
    assert "1 folders converted; 2 inputs left out (2 unusable)" in capsys.readouterr().out

    before = converted.stat().st_mtime_ns
    with pytest.raises(SystemExit, match="002_S_000[12]"):
        convert(tmp_path / "in", tmp_path / "out", "--strict")
    assert converted.stat().st_mtime_ns == before


@pytest.mark.parametrize("half_moved", [False, True])
def test_a_conversion_that_is_killed_goes_on(tmp_path: Path, half_moved: bool):
    """Whenever it is killed; also one that finds a folder of two series of which a killed one moved the first alone."""
    pytest.importorskip("dcm2niix")
    for number in (3, 4):
        write_series(tmp_path / "in" / "I1", volume(), number)
    convert(tmp_path / "in", tmp_path / "whole")
    kills = 0
    while True:
        output = tmp_path / f"out{kills}"
        if half_moved:
            shutil.copytree(tmp_path / "whole", output)
            (output / "I1" / ".converting-0").mkdir()
            (output / "I1" / "MP-RAGE_4.nii.gz").rename(output / "I1" / ".converting-0" / "MP-RAGE_4.nii.gz")
        if not reap(child(lambda output=output: convert(tmp_path / "in", output), killed_before_call=kills + 1)):
            break
        kills += 1
        convert(tmp_path / "in", output)
        assert contents(output) == contents(tmp_path / "whole")
    assert kills > 10


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a folder at any depth; of folders the names."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def test_no_dicom(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(SystemExit, match="no DICOM file"):
        convert(tmp_path, tmp_path / "out")


def test_series_behind_links_are_found_once(tmp_path: Path):
    write_series(tmp_path / "elsewhere" / "t1", volume((8, 8, 4)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "sub-01").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    script = runpy.run_path(str(ROOT / "dataset_scripts/dicom.py"))
    assert script["series_folders"](tmp_path / "in") == [tmp_path / "in" / "sub-01" / "t1"]
