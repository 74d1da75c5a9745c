"""Synthetic volumes for the tests: a head nobody has, and trees of scans as archives lay them out."""

from pathlib import Path

import nibabel as nib
import numpy as np

AFFINE = np.array([[2.0, 0, 0, -31], [0, 2, 0, -35], [0, 0, 2, -23], [0, 0, 0, 1]])


def head(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """An ellipsoid about the origin, in mm; bright in front, dim on the left, brighter towards the top."""
    inside = (x / 20) ** 2 + (y / 26) ** 2 + (z / 40) ** 2 < 1
    return inside * (400 + 8 * (y > 8) * y - 150 * (x < -8) + 2 * z)


def volume(shape: tuple[int, ...] = (32, 36, 24), affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    """`head` sampled on a grid; the default covers z from -23 to 23 mm."""
    voxels = np.indices(shape).reshape(3, -1).T
    world = nib.affines.apply_affine(affine, voxels).T
    return nib.Nifti1Image(head(*world).reshape(shape).astype(np.float32), affine)


def save(image: nib.Nifti1Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def distinct(number: int) -> nib.Nifti1Image:
    """A volume that differs from those of other numbers."""
    affine = AFFINE.copy()
    affine[0, 0] += number / 50
    return volume(affine=affine)


ADNI_HEADER = (
    '"Image Data ID","Subject","Group","Sex","Age","Visit","Modality","Description","Type","Acq Date","Format",'
    '"Downloaded"'
)


def adni_tree(folder: Path, num_subjects: int = 6) -> tuple[Path, Path]:
    """A download of the ADNI archive and its CSV. Of each subject two MP-RAGE visits, a FLAIR and a mask.

    The first visit of subject 0 is truncated, that of subject 1 a series of volumes. Subject s has image ids from 10 s
    on: 0 FLAIR of the first visit, 1 MP-RAGE of the first visit, 2 its mask, 3 MP-RAGE of the second visit.

    Returns:
        the folder and the table.
    """
    lines = [ADNI_HEADER]
    for number in range(num_subjects):
        subject = f"002_S_{295 + number:04d}"
        for image, (series, day, visit) in enumerate(
            [
                ("Axial_T2-FLAIR", "2006-04-18", "sc"),
                ("MP-RAGE", "2006-04-18", "sc"),
                ("MP-RAGE_Brain_Mask", "2006-04-18", "sc"),
                ("MP-RAGE", "2008-05-02", "m24"),
            ]
        ):
            image_id = f"I{10 * number + image}"
            name = f"ADNI_{subject}_MR_{series}_Br_{day.replace('-', '')}_S13407_{image_id}.nii"
            path = folder / "ADNI" / subject / series / f"{day}_08_20_30.0" / image_id / name
            scan = distinct(10 * number + image)
            if image == 2:
                scan = nib.Nifti1Image((np.asarray(scan.dataobj) > 0).astype(np.uint8), scan.affine)
            if image == 1 and number == 1:
                scan = nib.Nifti1Image(np.stack([scan.dataobj] * 2, 3), scan.affine)
            save(scan, path)
            if image == 1 and number == 0:
                path.write_bytes(path.read_bytes()[:500])
            age = 70 + number + (visit == "m24") * 2
            date = f"{int(day[5:7])}/{day[8:]}/{day[:4]}"
            row = (image_id, subject, "CN", "F", age, visit, "MRI", series.replace("_", " "), "Original", date)
            lines.append(",".join(f'"{value}"' for value in (*row, "NiFTI", "5/01/2024")))
    table = folder / "idaSearch.csv"
    table.write_text("\n".join(lines) + "\n")
    return folder / "ADNI", table


def bids_tree(folder: Path, num_subjects: int = 6) -> Path:
    """A BIDS data set: raw sessions with runs, acquisitions, a T2w and a mask, and the same under other folders."""
    lines = ["participant_id\tsession_id\tage\tsex"]
    for number in range(num_subjects):
        for place in ("", "derivatives/fmriprep/", "sourcedata/"):
            for session in ("M00", "M06"):
                anat = folder / f"{place}sub-{number:02d}" / f"ses-{session}" / "anat"
                for image, entities in enumerate(
                    ("acq-mprage_run-1_T1w", "acq-mprage_run-2_T1w", "acq-spgr_T1w", "T2w", "desc-brain_mask")
                ):
                    scan = distinct(20 * number + 10 * (session == "M06") + image)
                    save(scan, anat / f"sub-{number:02d}_ses-{session}_{entities}.nii.gz")
        for session, age in (("M00", 60), ("M06", 60.5)):
            lines.append(f"sub-{number:02d}\tses-{session}\t{age + number}\t{'FM'[number % 2]}")
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    return folder


def oasis1_tree(folder: Path, num_subjects: int = 6) -> tuple[Path, Path]:
    """Two discs of OASIS-1 and its table: 16-bit big-endian Analyze volumes of (X, Y, Z, 1) voxels.

    Of each session there are a raw scan, the registered one, the same without skull and its segmentation. Subject 1
    has a second, reliability session; subject 0 was not rated.

    Returns:
        the folder and the table.
    """
    lines = ["ID,M/F,Hand,Age,Educ,SES,MMSE,CDR,eTIV,nWBV,ASF,Delay"]
    for number in range(1, num_subjects + 1):
        for session in (1, 2) if number == 2 else (1,):
            name = f"OAS1_{number:04d}_MR{session}"
            for image, (place, suffix) in enumerate(
                [
                    ("RAW", "mpr-1_anon"),
                    ("PROCESSED/MPRAGE/T88_111", "mpr_n4_anon_111_t88_gfc"),
                    ("PROCESSED/MPRAGE/T88_111", "mpr_n4_anon_111_t88_masked_gfc"),
                    ("FSL_SEG", "mpr_n4_anon_111_t88_masked_gfc_fseg"),
                ]
            ):
                voxels = np.asarray(distinct(10 * number + session + image).dataobj)[..., None].astype(np.int16)
                header = nib.AnalyzeHeader(endianness=">")
                header.set_data_dtype(">i2")
                scan = nib.AnalyzeImage(voxels, np.diag([-2.0, 2, 2, 1]), header)
                save(scan, folder / f"disc{number % 2 + 1}" / name / place / f"{name}_{suffix}.img")
            rating = "" if number == 1 else "0.5"
            lines.append(f"{name},{'FM'[number % 2]},R,{60 + number + session},3,2,28,{rating},1300,0.7,1.2,N/A")
    (folder / "oasis_cross-sectional.csv").write_text("\n".join(lines) + "\n")
    return folder, folder / "oasis_cross-sectional.csv"
