"""Build a set of axial slices from a folder of NIfTI volumes.

    python dataset_scripts/nifti.py --input_dir bids --output_dir data/own
    python dataset_scripts/nifti.py --input_dir ADNI --preset adni --table ADNIMERGE.csv --output_dir data/adni
    python dataset_scripts/nifti.py --input_dir IXI-T1 --preset ixi --slices_mm -90 -50 --z_zero vertex \\
        --output_dir data/ixi

Subjects are recognised by BIDS names (`sub-01`), by the preset's ids, by `--subject_pattern`, or else each file is a
subject. Covariates come from `--table` or from INPUT_DIR/participants.tsv. Every volume is resampled to `--voxel_size`
and centred on the head. Finished volumes are kept in OUTPUT_DIR.work until the set is complete: start an interrupted
build again and it goes on.
"""

import argparse
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Features, Value
from tqdm import tqdm

from vq_ihdm.data.building import (
    Rejections,
    add_build_arguments,
    add_people_arguments,
    build_set,
    check_build_arguments,
)
from vq_ihdm.data.cards import ADNI, IXI, OWN, Source, with_licence
from vq_ihdm.data.covariates import CovariateTable, stratum
from vq_ihdm.data.volumes import SliceSettings, prepare_volume
from vq_ihdm.errors import InputError, run


@dataclass(frozen=True)
class Preset:
    """`subject`: where in a path, or in a table, the subject's id stands (the pattern's group)."""

    source: Source
    subject: str
    required: bool = True  # a path without an id is left out; otherwise the file's name is the subject's


PRESETS = {
    "own": Preset(OWN, r"sub-([A-Za-z0-9]+)", required=False),
    "adni": Preset(ADNI, r"(\d{3}_S_\d{4,5})"),  # ADNI/002_S_0295/<series>/<date>/<image id>/*.nii
    "ixi": Preset(IXI, r"IXI0*(\d+)"),  # IXI002-Guys-0828-T1.nii.gz; IXI.xls, saved as CSV, has the bare number
}


@dataclass(frozen=True)
class Scan:
    path: Path
    subject: str
    date: str  # ISO, or empty
    image_id: str  # of the ADNI archive, or empty


def find_scans(folder: Path, preset: Preset, rejections: Rejections) -> list[Scan]:
    """The volumes under `folder`; of a BIDS tree only those whose suffix is T1w. Ordered by subject, then date."""
    names = glob("**/*_T1w.nii*", root_dir=folder, recursive=True) or glob("**/*.nii*", root_dir=folder, recursive=True)
    scans = []
    for name in sorted(name for name in names if name.endswith((".nii", ".nii.gz"))):
        path = folder / name
        found = re.search(preset.subject, name)
        if not found and preset.required:
            rejections(path, f"{path} has no subject id in its path; rename it or pass --subject_pattern.")
            continue
        subject = found[1] if found else path.name.partition(".nii")[0]
        date = re.search(r"\d{4}-\d{2}-\d{2}", name)
        image_id = re.search(r"/(I\d+)/", name)
        scans.append(Scan(path, subject, date[0] if date else "", image_id[1] if image_id else ""))
    if not scans:
        raise InputError(f"no .nii or .nii.gz file was found in {folder}; check --input_dir.")
    return sorted(scans, key=lambda scan: (scan.subject, scan.date))


def groups(pattern: str) -> int:
    """The number of groups of a regular expression; 0 if it is none."""
    try:
        return re.compile(pattern).groups
    except re.error:
        return 0


def middle_slices(text: str) -> int:
    """`middle:40` -> 40."""
    return int(re.fullmatch(r"middle:([1-9]\d*)", text)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True, help="folder of the volumes, searched to any depth")
    parser.add_argument("--preset", choices=PRESETS, default="own", help="naming of the files, and terms of the data")
    parser.add_argument("--subject_pattern", help="regular expression whose group is the subject's id in a path")
    parser.add_argument("--table", type=Path, help="CSV or TSV of covariates (default: participants.tsv, if any)")
    parser.add_argument("--all_scans", action="store_true", help="keep every scan of a subject, not the first alone")
    parser.add_argument("--voxel_size", type=float, default=1.0, help="in mm")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--slices", type=middle_slices, default="middle:40", help="middle:N of the volume")
    choice.add_argument("--slices_mm", type=float, nargs=2, metavar=("LOW", "HIGH"), help="range of z in mm")
    parser.add_argument(
        "--z_zero",
        choices=["affine", "vertex"],
        default="affine",
        help="where the z of --slices_mm is 0: as the file says, or at the top of the head (unregistered scans)",
    )
    parser.add_argument("--slice_step_mm", type=float, help="of --slices_mm (default: --voxel_size)")
    parser.add_argument("--percentiles", type=float, nargs=2, default=[0.5, 99.5], help="intensities made 0 and 1")
    parser.add_argument("--num_threads", type=int, default=1, help="volumes worked on at a time")
    add_build_arguments(parser)
    add_people_arguments(parser)
    args = parser.parse_args()
    check_build_arguments(args)
    if not args.input_dir.is_dir():
        raise InputError(f"{args.input_dir} is no folder; pass the folder of the volumes with --input_dir.")
    if min(args.voxel_size, args.slice_step_mm or args.voxel_size) <= 0:
        raise InputError("--voxel_size and --slice_step_mm are lengths in mm; pass positive numbers.")
    for name, pair in (("--percentiles", args.percentiles), ("--slices_mm", args.slices_mm or [0, 1])):
        if pair[0] >= pair[1]:
            raise InputError(f"{name} takes the lower number first.")

    preset = PRESETS[args.preset]
    source = with_licence(preset.source, args.license)
    if args.subject_pattern:
        preset = Preset(source, args.subject_pattern)
    if groups(preset.subject) != 1:
        raise InputError("--subject_pattern needs one group, in parentheses, around the subject's id.")
    rejections = Rejections(args.strict)
    scans = find_scans(args.input_dir, preset, rejections)

    if not args.all_scans:
        first = {}
        for scan in scans:
            if scan.subject in first:
                rejections.not_chosen(scan.path, "another scan of its subject was taken; --all_scans keeps every one.")
            else:
                first[scan.subject] = scan
        scans = list(first.values())

    path = args.table or args.input_dir / "participants.tsv"
    covariates = Features()
    rows = {scan: {} for scan in scans}
    if args.table or path.exists():
        table = CovariateTable(path, preset.subject)
        covariates = table.features
        rows = {}
        for scan in scans:
            try:
                rows[scan] = table.lookup(scan.subject, scan.date, scan.image_id)
            except InputError as error:
                rejections(scan.path, f"{scan.path} {error}")

    settings = SliceSettings(
        voxel_size=args.voxel_size,
        image_size=args.image_size,
        percentiles=tuple(args.percentiles),
        bit_depth=args.bit_depth,
        middle=None if args.slices_mm else args.slices,
        range_mm=(*args.slices_mm, args.slice_step_mm or args.voxel_size) if args.slices_mm else None,
        z_zero=args.z_zero,
    )
    work = args.output_dir.with_name(args.output_dir.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    prepare = partial(prepare_volume, settings=settings, folder=work)
    volumes = {}
    # Threads, for nearly all the time goes to scipy, zlib and Pillow, which run side by side.
    pool = ThreadPoolExecutor(args.num_threads)
    try:
        results = pool.map(prepare, [scan.path for scan in rows])
        for scan, (key, message) in zip(rows, tqdm(results, "Volumes", len(rows)), strict=True):
            if message:
                rejections(scan.path, message)
            else:
                volumes.setdefault(scan.subject, []).append((key, rows[scan]))
    except KeyboardInterrupt:
        raise InputError("interrupted; start the same command again and it goes on.") from None
    finally:
        pool.shutdown(cancel_futures=True)

    def rows_of(subject: str):
        for number, (key, values) in enumerate(volumes[subject]):
            for row in pq.read_table(work / f"{key}.parquet").to_pylist():
                yield {**row, **values, **({"scan": number} if args.all_scans else {})}

    build_set(
        args,
        source=source,
        strata={subject: stratum(found[0][1]) for subject, found in volumes.items()},
        rows_of=rows_of,
        covariates={**({"scan": Value("int32")} if args.all_scans else {}), **covariates},
        spacing_mm=[args.voxel_size] * 2,
        settings={
            "orientation": "anterior up, the subject's left on the left, centred on the head",
            "voxel size": f"{args.voxel_size:g} mm, linear interpolation",
            "slices": (
                "z from {:g} to {:g} mm, every {:g} mm; ".format(*settings.range_mm)
                + f"zero is that of the {args.z_zero}"
                if settings.range_mm
                else f"the middle {settings.middle}"
            ),
            "intensity window": f"percentiles {args.percentiles[0]:g} and {args.percentiles[1]:g} of a volume",
        },
        rejections=rejections,
    )
    shutil.rmtree(work)


if __name__ == "__main__":
    run(main)
