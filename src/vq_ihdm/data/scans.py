"""Which scans become slices: the volumes in a folder, those of them that are meant, and a subject's best first."""

import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from ..errors import InputError
from .covariates import CovariateTable
from .rejections import Rejections

# What nibabel reads, by the file with the image: of an .img/.hdr pair the .img.
IMAGES = (".nii", ".img", ".mgz", ".mgh", ".mnc", ".brik", ".rec")
VOLUME_SUFFIXES = tuple(image + packed for image in IMAGES for packed in ("", ".gz", ".bz2"))
NOT_RAW = ("derivatives", "sourcedata")  # of a BIDS tree: what was computed from the scans, what they were made from
SEGMENTATION = re.compile(  # but "masked" is an image, and "NeuroSeg" a study
    r"(?<![a-z])((brain|head|skull|tissue|lesion)?mask|(a|d|wm|pve|prob|brain|tissue|lesion)?seg|segmentation|label"
    r"|labels(tr|ts)|(a|wm)?parc|roi|ribbon|ground[-_ ]?truth)s?(?![a-z])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Scan:
    """A volume, and what its path tells; what it does not tell is empty or zero."""

    path: Path
    name: str  # the path below the folder of all volumes
    subject: str
    is_unnamed: bool  # the path tells no subject: the file's name stands for one
    session: str  # BIDS `ses-`
    run: int  # BIDS `run-`
    date: str  # ISO
    image_id: str  # number in the ADNI archive


def walk(
    folder: Path, passed_over: Collection[str] = (), onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from `folder` down, with the names of its files that are not hidden.

    Hidden folders are not searched. Links are followed, but no folder is searched twice: a link may lead to one of its
    own parents.

    Args:
        passed_over: names, in lower case, of further folders that are not searched.
        onerror: called, as by `os.walk`, for each folder that cannot be read; its error has the path as `filename`.
    """
    searched = set()
    for place, folders, files in os.walk(folder, onerror=onerror, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in searched:
            folders.clear()
            continue
        searched.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if name.lower() not in passed_over and not name.startswith("."))
        yield Path(place), [name for name in files if not name.startswith(".")]


def volume_names(folder: Path, onerror: Callable[[OSError], None] | None = None) -> list[str]:
    """Paths of the volumes below `folder`, sorted, but for those in `derivatives` and `sourcedata`; see `walk`."""
    return sorted(
        (place / name).relative_to(folder).as_posix()
        for place, files in walk(folder, NOT_RAW, onerror)
        for name in files
        if name.lower().endswith(VOLUME_SUFFIXES)
    )


def iso_date(name: str) -> str:
    """The first date in a path, such as 2008-03-14; empty where there is none."""
    for text in re.findall(r"\d{4}-\d{2}-\d{2}", name):
        try:
            return date.fromisoformat(text).isoformat()
        except ValueError:  # the 31st of February
            continue
    return ""


def find_scans(folder: Path, subject_pattern: str, required: bool, rejections: Rejections) -> list[Scan]:
    """The volumes below `folder`.

    Args:
        subject_pattern: regular expression whose group is the subject's id in a path.
        required: leave out a path without an id; otherwise the file's name is the subject's.

    Raises:
        InputError: there is no such volume.
    """

    def unreadable(error: OSError) -> None:
        place = Path(error.filename)
        rejections(
            place.relative_to(folder).as_posix(),
            f"the folder {place} cannot be read ({error.strerror}), nor what lies in it; make it readable or move it.",
        )

    names = volume_names(folder, unreadable)
    if not names:
        raise InputError(
            f"no .nii or .nii.gz file, nor another volume that nibabel reads, was found in {folder}; "
            "check --input_dir, or convert DICOM with dataset_scripts/dicom.py first."
        )
    scans = []
    for name in names:
        found = re.search(subject_pattern, name)
        subject = found[1] if found else None  # None or empty also where the group takes no part in the match
        session = re.search(r"ses-([A-Za-z0-9]+)", name)
        run = re.search(r"run-(\d+)", name)
        image_id = re.search(r"[/_]I(\d+)(?=[/.])", "/" + name)
        if required and not subject:
            rejections(name, f"{folder / name} has no subject id in its path; rename it or pass --subject_pattern.")
        else:
            scans.append(
                Scan(
                    path=folder / name,
                    name=name,
                    subject=subject or stem(name),
                    is_unnamed=not subject,
                    session=session[1] if session else "",
                    run=int(run[1]) if run else 0,
                    date=iso_date(name),
                    image_id=image_id[1] if image_id else "",
                )
            )
    if not scans:
        raise InputError(
            f"none of {len(names)} volumes, such as {folder / names[0]}, has a subject id in its path; pass "
            "--subject_pattern."
        )
    return scans


def stem(name: str) -> str:
    """The name of a volume's file without its endings."""
    return re.sub(r"(\.gz|\.bz2)?$", "", Path(name).name).rpartition(".")[0]


def select_scans(scans: list[Scan], series: str, table: CovariateTable | None, rejections: Rejections) -> list[Scan]:
    """Those scans whose path, or whose description, modality or image id in the table, matches `series`.

    Masks and other segmentations never do. A table of image ids is itself a choice: images it does not list are left
    out. A date that the path does not tell is that of the table.

    Raises:
        InputError: no scan matches; or files of different folders have one name, and no other id tells whose they are.
    """
    images = table.images if table else {}
    selected = []
    for scan in scans:
        image = images.get(scan.image_id)
        text = scan.name + "\n" + (image.text if image else "")
        if images and scan.image_id and not image:
            rejections.not_chosen(scan.name, "its image id is not in the table.")
        elif SEGMENTATION.search(text):
            rejections.not_chosen(scan.name, "its path or the table says mask, label or segmentation.")
        elif not re.search(series, text, re.IGNORECASE):
            rejections.not_chosen(scan.name, f"neither its path nor the table says {series!r} (--series).")
        else:
            selected.append(replace(scan, date=scan.date or (image.date if image else "")))
    if not selected:
        raise InputError(
            f"none of {len(scans)} volumes is an image of the series {series!r}; of {scans[-1].path}, for one, "
            f"{rejections.rows[-1][-1]} Pass another --series or --table, or rename what is no segmentation."
        )
    named_by_file = {}
    for scan in selected:
        if scan.is_unnamed:
            other = named_by_file.setdefault(scan.subject, scan)
            if other.path.parent != scan.path.parent:
                raise InputError(
                    f"{other.name} and {scan.name} have one name and no subject id in their paths; tell whose they are "
                    "with --subject_pattern, such as '^([^/]+)/' for the uppermost folder."
                )
    return selected


def preference(scan: Scan) -> tuple:
    """Sorts the scans of a subject, the one to take first.

    The earliest visit; within it the last run, then the highest image id, for a scan is repeated when the first was
    poor, and the ADNI archive numbers a corrected image after the one it was made from; then by name.
    """
    return natural(scan.session or scan.date), -scan.run, -int(scan.image_id or 0), natural(scan.name)


def natural(text: str) -> list[str | int]:
    """Sorts numbers in a text by their value: m6 before m12."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]
