"""Build a set of axial slices from a folder of volumes: NIfTI, or whatever else nibabel reads.

    python dataset_scripts/nifti.py --input_dir bids --output_dir data/own
    python dataset_scripts/nifti.py --input_dir ADNI --preset adni --table idaSearch.csv --output_dir data/adni
    python dataset_scripts/nifti.py --input_dir IXI-T1 --preset ixi --voxel_size 2 --image_size 128 96 \\
        --slices_mm -90 -46 --z_zero vertex --output_dir data/ixi
    python dataset_scripts/nifti.py --input_dir oasis1 --preset oasis1 --table oasis_cross-sectional.csv \\
        --output_dir data/oasis1

Subjects are recognised by BIDS names (`sub-01`), by the preset's ids, by `--subject_pattern`, or else each file is a
subject, which the script then says. Of a subject's scans of the wanted `--series` the first usable one is taken: the
earliest visit, within it the last run or the highest ADNI image id, then by name. Masks, `derivatives` and `sourcedata`
are passed over. What was left out is listed, with the reason, in OUTPUT_DIR.left_out.csv.

Covariates come from `--table` or from INPUT_DIR/participants.tsv. Every volume is resampled to `--voxel_size` and
centred on the head. Finished volumes are kept in OUTPUT_DIR.work until the set is complete: start an interrupted build
again and it goes on.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Features, Value
from tqdm import tqdm

from vq_ihdm.arguments import HelpFormatter, length_mm, percentage, position_mm, positive_int
from vq_ihdm.data.building import add_build_arguments, add_people_arguments, build_set, check_build_arguments
from vq_ihdm.data.covariates import CovariateTable, stratum
from vq_ihdm.data.rejections import Rejections
from vq_ihdm.data.scans import Scan, find_scans, preference, select_scans
from vq_ihdm.data.sources import ADNI, IXI, OASIS1, OWN, Source, with_licence
from vq_ihdm.data.volumes import SliceSettings, prepare_volume
from vq_ihdm.errors import InputError, naming, run
from vq_ihdm.files import hold


@dataclass(frozen=True)
class Preset:
    """`subject`: where in a path, or in a table, the subject's id stands (the pattern's group)."""

    source: Source
    subject: str
    required: bool = True  # a path without an id is left out; otherwise the file's name is the subject's
    series: str = ""
    middle: int = 40


PRESETS = {
    "own": Preset(OWN, r"sub-([A-Za-z0-9]+)", required=False),
    # ADNI/002_S_0295/<series>/<date>/<image id>/*.nii; series are named after the sequence, corrected ones MPR or MT1
    "adni": Preset(ADNI, r"(\d{3}_S_\d{4,5})", series=r"MP[-_ ]?RAGE|MPR|MT1|SPGR"),
    # IXI002-Guys-0828-T1.nii.gz; IXI.xls, saved as CSV, has the bare number
    "ixi": Preset(IXI, r"IXI0*(\d+)", series=r"[-_]T1"),
    # disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.img
    "oasis1": Preset(OASIS1, r"OAS1_(\d{4})", series=r"t88_masked_gfc\.", middle=32),
}


def groups(pattern: str) -> int:
    """The number of groups of a regular expression; -1 if it is none."""
    try:
        return re.compile(pattern).groups
    except re.error:
        return -1


def middle_slices(text: str) -> int:
    """`middle:40`, or `40`, -> 40."""
    found = re.fullmatch(r"(?:middle:)?([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is no middle:N, such as middle:40")
    return int(found[1])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True, help="folder of the volumes, searched to any depth")
    parser.add_argument("--preset", choices=PRESETS, default="own", help="naming of the files, and terms of the data")
    parser.add_argument("--subject_pattern", help="regular expression whose group is the subject's id in a path")
    parser.add_argument(
        "--series",
        help="regular expression for the scans to use, found in upper or lower case in their paths or in the table's "
        "Description, Modality or Image Data ID (default: the preset's T1 scans; in a BIDS tree _T1w)",
    )
    parser.add_argument("--table", type=Path, help="CSV or TSV of covariates (default: participants.tsv, if any)")
    parser.add_argument("--all_scans", action="store_true", help="keep every scan of a subject, not the first alone")
    parser.add_argument("--voxel_size", type=length_mm, default=1.0, help="in mm")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--slices", type=middle_slices, help="middle:N of the volume (default: middle:40; oasis1: 32)")
    choice.add_argument("--slices_mm", type=position_mm, nargs=2, metavar=("LOW", "HIGH"), help="range of z in mm")
    parser.add_argument(
        "--z_zero",
        choices=["affine", "vertex"],
        default="affine",
        help="where the z of --slices_mm is 0: as the file says, or at the top of the head (unregistered scans)",
    )
    parser.add_argument("--slice_step_mm", type=length_mm, help="of --slices_mm (default: --voxel_size)")
    parser.add_argument("--percentiles", type=percentage, nargs=2, default=[0.5, 99.5], help="intensities made 0 and 1")
    parser.add_argument("--skull_strip", action="store_true", help="keep the brain alone (adults' T1; deepbet)")
    parser.add_argument("--bias_correction", action="store_true", help="even out coil shading (N4, of SimpleITK)")
    parser.add_argument("--num_threads", type=positive_int, default=1, help="volumes worked on at a time")
    add_build_arguments(parser)
    add_people_arguments(parser)
    return parser


def checked_preset(args: argparse.Namespace) -> Preset:
    """Refuse options no set can be built with; the preset, with what was given in its place.

    Raises:
        InputError: in a sentence, what is wrong.
    """
    check_build_arguments(args)
    if not args.input_dir.is_dir():
        raise InputError(f"{args.input_dir} is no folder; pass the folder of the volumes with --input_dir.")
    for name, pair in (("--percentiles", args.percentiles), ("--slices_mm", args.slices_mm or [0, 1])):
        if pair[0] >= pair[1]:
            raise InputError(f"{name} takes the lower number first.")
    if not args.slices_mm and (args.z_zero == "vertex" or args.slice_step_mm):
        raise InputError("--z_zero vertex and --slice_step_mm place the slices of --slices_mm; give that too.")
    for flag, package in (("skull_strip", "deepbet"), ("bias_correction", "SimpleITK")):
        if getattr(args, flag) and not find_spec(package):
            raise InputError(f"--{flag} needs {package}; pip install -e '.[data]'.")
    preset = PRESETS[args.preset]
    if groups(args.subject_pattern or preset.subject) != 1:
        raise InputError("--subject_pattern needs one group, in parentheses, around the subject's id.")
    if groups(args.series or "") < 0:
        raise InputError(f"--series {args.series} is no regular expression; a plain word is one.")
    return replace(
        preset,
        source=with_licence(preset.source, args.license),
        subject=args.subject_pattern or preset.subject,
        required=preset.required or bool(args.subject_pattern),
        series=preset.series if args.series is None else args.series,
        middle=args.slices or preset.middle,
    )


def slice_settings(args: argparse.Namespace, middle: int) -> SliceSettings:
    return SliceSettings(
        voxel_size=args.voxel_size,
        image_size=args.image_size,
        percentiles=tuple(args.percentiles),
        bit_depth=args.bit_depth,
        middle=None if args.slices_mm else middle,
        range_mm=(*args.slices_mm, args.slice_step_mm or args.voxel_size) if args.slices_mm else None,
        z_zero=args.z_zero,
        skull_strip=args.skull_strip,
        bias_correction=args.bias_correction,
    )


def in_several_folders(scans: list[Scan], subject_pattern: str) -> dict[str, set[str]]:
    """Subjects whose id stands in several folders, not of one name: of two sites, or with more to it than the id."""
    folders = {}
    for scan in scans:
        found = re.search(subject_pattern, scan.name)
        if found and found[1]:
            before = scan.name[: found.end(1)].count("/")  # folders above the one, or the file, that has the id
            parts = Path(scan.name).parts[:-1]
            folders.setdefault(scan.subject, set()).add("/".join(parts[: before + 1]))
    return {subject: found for subject, found in folders.items() if len(found) > 1}


def taken_of_several(subjects: dict[str, list[Scan]]) -> list[list[Scan]]:
    """The scans of each subject that has several of the visit of which one is taken, that one first."""

    def visit(scan: Scan) -> tuple[str, str]:
        return scan.session, scan.date

    first_visits = [[scan for scan in scans if visit(scan) == visit(scans[0])] for scans in subjects.values()]
    return [scans for scans in first_visits if len(scans) > 1]


def rows_of_scans(scans: list[Scan], table: CovariateTable | None, rejections: Rejections) -> dict[Scan, dict]:
    """The covariates of every scan; of one that the table does not tell apart there are none, and it is left out."""
    rows = {}
    for scan in scans:
        try:
            with naming(scan.path, "correct its row in the table of covariates"):
                looked_up = (scan.subject, scan.date, scan.image_id, scan.session, scan.name)
                rows[scan] = table.lookup(*looked_up) if table else {}
        except InputError as error:
            rejections(scan.name, str(error))
    return rows


def prepare_subject(
    scans: list[Scan], prepare: Callable[[Path], tuple[str, str]], all_scans: bool
) -> list[tuple[Scan, str, str]]:
    """Prepare a subject's scans in their order until one can be used.

    Returns:
        (scan, key, message) as `prepare_volume` gives them, of the scans that were tried.
    """
    tried = []
    for scan in scans:
        key, message = prepare(scan.path)
        tried.append((scan, key, message))
        if key and not all_scans:
            break
    return tried


def prepare_subjects(
    subjects: dict[str, list[Scan]], prepare: Callable, args: argparse.Namespace, rejections: Rejections
) -> dict[str, list[tuple[Scan, str]]]:
    """The usable scans of every subject that has some, each with the key of its slices."""
    usable = {}
    # Threads, for nearly all the time goes to scipy, zlib and Pillow, which run side by side.
    pool = ThreadPoolExecutor(args.num_threads)
    try:
        results = pool.map(partial(prepare_subject, prepare=prepare, all_scans=args.all_scans), subjects.values())
        for subject, tried in zip(subjects, tqdm(results, "Subjects", len(subjects)), strict=True):
            for scan, key, message in tried:
                if key:
                    usable.setdefault(subject, []).append((scan, key))
                else:
                    rejections(scan.name, message)
            for scan in subjects[subject][len(tried) :]:
                rejections.not_chosen(scan.name, f"{tried[-1][0].name} was taken; --all_scans keeps both.")
    except KeyboardInterrupt:
        print("what is finished is kept: start the same command again and it goes on", file=sys.stderr)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return usable


def card_settings(args: argparse.Namespace, settings: SliceSettings, series: str, unnamed: int) -> dict[str, Any]:
    """How the images were made, for the card.

    Args:
        series: empty where it names a subject.
        unnamed: how many scans tell none.
    """
    return {
        "scans": f"series {series!r}, " * bool(series)
        + ("every scan of a subject" if args.all_scans else "one a subject: the earliest visit, the last run of it"),
        **({"subjects": f"{unnamed} scans that tell none count as a person each"} if unnamed else {}),
        "orientation": "anterior up, the subject's left on the left, centred on the head",
        "voxel size": f"{args.voxel_size:g} mm, linear interpolation",
        "slices": (
            "z from {:g} to {:g} mm, every {:g} mm; ".format(*settings.range_mm) + f"zero is that of the {args.z_zero}"
            if settings.range_mm
            else f"the middle {settings.middle}"
        ),
        **({"skull": "stripped (deepbet)"} if args.skull_strip else {}),
        **({"bias field": "corrected (N4)"} if args.bias_correction else {}),
        "intensity window": f"percentiles {args.percentiles[0]:g} and {args.percentiles[1]:g} of a volume",
    }


def main() -> None:
    args = build_parser().parse_args()
    preset = checked_preset(args)
    rejections = Rejections(args.strict)

    scans = find_scans(args.input_dir, preset.subject, preset.required, rejections)
    table_path = args.table or args.input_dir / "participants.tsv"
    table = CovariateTable(table_path, preset.subject) if args.table or table_path.exists() else None
    print(table.about if table else f"neither --table nor {table_path} is there: the set has no covariates")
    series = preset.series
    if not series and any("_T1w." in scan.name for scan in scans):  # a BIDS tree: T1w is meant
        series = r"_T1w\."
    scans = select_scans(scans, series, table, rejections)
    if unnamed := sum(scan.is_unnamed for scan in scans):
        print(
            f"{unnamed} of {len(scans)} scans have no subject id in their paths: each counts as a person of its own. "
            "Where two show the same person, tell whose they are with --subject_pattern."
        )
    if args.preset == "own" and (several := in_several_folders(scans, preset.subject)):
        subject, folders = next(iter(several.items()))
        print(
            f"{len(several)} subjects have scans in several folders, as {subject} in "
            f"{' and '.join(sorted(folders)[:2])}: each counts as one person. If they are different people, tell them "
            "apart with --subject_pattern."
        )
    rows = rows_of_scans(scans, table, rejections)
    subjects = {}
    for scan in sorted(rows, key=lambda scan: (scan.subject, preference(scan))):
        subjects.setdefault(scan.subject, []).append(scan)
    if not series and (several := taken_of_several(subjects)):
        first, second, *_ = several[0]
        print(
            f"{len(several)} of {len(subjects)} subjects have several scans of a visit, and nothing says which are "
            f"alike: {first.name} and {second.name}, for two. Name what is meant with --series, such as 'T1|MPRAGE'."
        )

    settings = slice_settings(args, preset.middle)
    work = args.output_dir.with_name(args.output_dir.name + ".work")
    hold(work)
    volumes = prepare_subjects(subjects, partial(prepare_volume, settings=settings, folder=work), args, rejections)

    keys = [key for found in volumes.values() for _, key in found]
    if cut := sum(pq.read_table(work / f"{key}.parquet", columns=["is_cut"])[0][0].as_py() for key in keys):
        print(
            f"{cut} of {len(keys)} heads reach beyond {'x'.join(map(str, args.image_size))} pixels of "
            f"{args.voxel_size:g} mm and are cut there: give a larger --image_size, or a larger --voxel_size."
        )

    def rows_of(subject: str):
        for number, (scan, key) in enumerate(volumes[subject]):
            for row in pq.read_table(work / f"{key}.parquet", columns=["image", "slice"]).to_pylist():
                yield {**row, **rows[scan], **({"scan": number} if args.all_scans else {})}

    build_set(
        args,
        source=preset.source,
        strata={subject: stratum(rows[found[0][0]]) for subject, found in volumes.items()},
        rows_of=rows_of,
        covariates=Features(
            {**({"scan": Value("int32")} if args.all_scans else {}), **(table.features if table else {})}
        ),
        spacing_mm=[args.voxel_size] * 2,
        settings=card_settings(args, settings, "" if any(s in series for s in subjects) else series, unnamed),
        rejections=rejections,
    )
    shutil.rmtree(work)


if __name__ == "__main__":
    run(main)
