"""Convert DICOM series to the NIfTI volumes that nifti.py builds from, with dcm2niix.

    pip install -e '.[data]'
    python dataset_scripts/dicom.py --input_dir ADNI --output_dir ADNI_nifti
    python dataset_scripts/nifti.py --input_dir ADNI_nifti --preset adni --output_dir data/adni

Folders keep their names below OUTPUT_DIR, for these tell subject, series, date and image id. A series that lacks images
or cannot be read is left out and named, with the reason, in OUTPUT_DIR.left_out.csv. Folders that were converted
before are not converted again: start an interrupted conversion again and it goes on. Convert the same series from one
process at a time.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tqdm import tqdm

from vq_ihdm.arguments import HelpFormatter
from vq_ihdm.data.rejections import Rejections
from vq_ihdm.data.scans import walk
from vq_ihdm.errors import InputError, run

UNFINISHED = ".converting-"  # begins the name of the folder that a series' volumes are made in


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM, by its name or by the mark behind its preamble.

    Not the table of contents of a CD, which says so too.
    """
    if path.name == "DICOMDIR":
        return False
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def series_folders(folder: Path) -> list[Path]:
    """The folders below `folder` that hold DICOM files themselves, in order."""
    found = walk(folder, passed_over=["__macosx"])
    places = [place for place, files in found if any(is_dicom(place / name) for name in files)]
    if not places:
        raise InputError(f"no DICOM file was found in {folder}; check --input_dir.")
    return sorted(places)


def convert(program: str, series: Path, output: Path, name: str) -> str:
    """Convert the DICOM files in one folder to .nii.gz files in `output`, all or none of them.

    At every moment before the last volume is in its place a folder they are made in is there (see `is_converted`).

    Args:
        program: the path of dcm2niix.
        name: of the files, in dcm2niix's pattern.

    Returns:
        why it could not be done; empty when it was.
    """
    output.mkdir(parents=True, exist_ok=True)
    leftovers = list(output.glob(f"{UNFINISHED}*"))  # of conversions that were interrupted
    temporary = Path(tempfile.mkdtemp(dir=output, prefix=UNFINISHED))
    for leftover in leftovers:
        shutil.rmtree(leftover)
    # Compressed, without a sidecar (it repeats what identifies people), this folder alone, no file overwritten.
    options = ["-z", "y", "-b", "n", "-d", "0", "-w", "2", "-f", name, "-o", temporary]
    done = subprocess.run([program, *options, series], capture_output=True, text=True, errors="replace", check=False)
    found = sum(map(int, re.findall(r"Found (\d+) DICOM", done.stdout)))
    converted = sum(map(int, re.findall(r"Convert (\d+) DICOM", done.stdout)))
    reason = ""
    if "Missing images" in done.stdout:
        reason = "lacks images by their numbers; download the series again"
    elif done.returncode or converted < max(found, 1):
        reason = f"cannot be converted ({converted} of {found} files; dcm2niix ends with {done.returncode})"
    else:
        for file in sorted(temporary.iterdir()):
            os.replace(file, output / file.name)
    shutil.rmtree(temporary)
    return reason


def is_converted(output: Path) -> bool:
    """Whether `convert` has put all volumes of a series into `output`."""
    return any(output.glob("*.nii.gz")) and not any(output.glob(f"{UNFINISHED}*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True, help="folder of the series, searched to any depth")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the volumes")
    parser.add_argument(
        "--name",
        default="%d_%s",
        help="pattern of dcm2niix for the files' names, by default description and number of the series; "
        "%%i is the patient's id, for folders that do not tell it",
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first series that cannot be converted")
    args = parser.parse_args()
    try:
        import dcm2niix
    except ImportError:
        raise InputError("dcm2niix is not installed; pip install -e '.[data]'.") from None

    rejections = Rejections(args.strict)
    folders = series_folders(args.input_dir)
    for series in tqdm(folders, "Series"):
        output = args.output_dir / series.relative_to(args.input_dir)
        if is_converted(output):  # by an earlier start
            continue
        reason = convert(dcm2niix.bin, series, output, args.name)
        if reason:
            rejections(series.relative_to(args.input_dir), f"{series} {reason}.")
    converted = len(folders) - len(rejections.rows)
    print(f"{args.output_dir}: {converted} folders converted; {rejections.write(args.output_dir)}")


if __name__ == "__main__":
    run(main)
