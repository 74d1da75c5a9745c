"""Build a set from 2-D images and a table of them.

    python dataset_scripts/slices.py --input_dir oasis1_axial --preset oasis1 --spacing_mm 1 1 --output_dir data/oasis

The table (`--table`, default INPUT_DIR/slices.csv) needs the columns `file_name` (relative to INPUT_DIR), `subject`
and `slice`; age, sex, diagnosis and cdr are taken where they are, and `scan`, where a subject has several. Images are
grey, 8 or 16 bit, anterior up, all of one size; they are cropped or padded about their centre to `--image_size`.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from datasets import Features, Value
from PIL import Image

from vq_ihdm.arguments import HelpFormatter, length_mm, positive_int
from vq_ihdm.data.building import add_build_arguments, add_people_arguments, build_set, check_build_arguments
from vq_ihdm.data.covariates import column_types, describe_columns, read_covariates, read_table, stratum
from vq_ihdm.data.pixels import crop_or_pad, encode_png, grey_levels
from vq_ihdm.data.rejections import Rejections
from vq_ihdm.data.sources import OASIS1, OWN, with_licence
from vq_ihdm.errors import InputError, naming, run

PRESETS = {"own": OWN, "oasis1": OASIS1}
REMEDY = "export it again or take its row out"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True, help="folder of the images")
    parser.add_argument("--table", type=Path, help="CSV or TSV (default: INPUT_DIR/slices.csv)")
    parser.add_argument("--preset", choices=PRESETS, default="own", help="whose terms go into the card")
    parser.add_argument(
        "--spacing_mm", type=length_mm, nargs=2, required=True, help="pixel size, vertical and horizontal"
    )
    parser.add_argument("--white", type=positive_int, help="the level that is white, such as 4095 where 12 bits of 16 "
        "are used; by default the highest a file can hold")  # fmt: skip
    add_build_arguments(parser)
    add_people_arguments(parser)
    return parser


def image_size(path: Path) -> tuple[int, int]:
    """Width and height, from the header of an image."""
    if not path.is_file():
        raise InputError(f"is no file; {REMEDY}.")
    with Image.open(path) as image:
        return image.size


def read_pixels(path: Path, white: int | None) -> np.ndarray:
    """The grey levels of an image as float32 (H, W) in [0, 1], `white` being 1; the highest of its kind when None.

    Raises:
        InputError: no grey image of 8 or 16 bits; a level above white; or of 16 bits, and so few of them used that the
            scale is another.
    """
    with Image.open(path) as image:
        levels = grey_levels(image)
    white_of_kind = np.iinfo(levels.dtype).max
    highest = white or white_of_kind
    if levels.max() > highest:
        raise InputError(f"has levels up to {levels.max()}, above {highest}; pass a higher --white.")
    if white is None and white_of_kind == 65535 and levels.max() < white_of_kind / 8:
        raise InputError(f"is nearly black, its highest level {levels.max()} of 65535; tell which is white by --white.")
    return levels.astype(np.float32) / np.float32(highest)


def main() -> None:
    args = build_parser().parse_args()
    check_build_arguments(args)

    source = with_licence(PRESETS[args.preset], args.license)
    path = args.table or args.input_dir / "slices.csv"
    table = read_table(path)
    for column in ("file_name", "subject", "slice"):
        if column not in table or table[column].isna().any():
            raise InputError(f"the table {path} lacks {column!r}; every row needs a file_name, subject and slice.")
    if not table["slice"].str.fullmatch(r"\d{1,9}").all():  # within 32 bits
        raise InputError(f"the column 'slice' of {path} holds something else than numbers of slices; correct it.")
    scan = ["scan"] if "scan" in table else []
    for columns, remedy in (
        (["file_name"], "leave one of the rows"),
        (["subject", *scan, "slice"], "tell a subject's scans apart in a column 'scan'"),
    ):
        if (again := table.duplicated(columns)).any():
            values = ", ".join(f"{column} {table[again].iloc[0][column]}" for column in columns)
            raise InputError(f"the table {path} has {values} twice; {remedy}.")
    covariates = read_covariates(table)
    print(describe_columns(path, table, ("file_name", "subject", "slice", *scan)))
    rejections = Rejections(args.strict)

    # Headers only: which images can be opened, and the size most of them have.
    sizes = {}
    for name in table["file_name"]:
        try:
            with naming(name, REMEDY):
                sizes[name] = image_size(args.input_dir / name)
        except InputError as error:
            rejections(name, str(error))
    if not sizes:
        raise InputError(f"no image of {path} can be opened; check --input_dir.")
    (width, height), _ = Counter(sizes.values()).most_common(1)[0]

    if scan:  # numbered: names may tell more
        scans = table["scan"].fillna("").groupby(table["subject"]).transform(lambda names: names.factorize()[0])
    subjects = {}
    for index, name in table["file_name"].items():
        if name not in sizes:
            continue
        if sizes[name] != (width, height):
            rejections(
                name,
                f"{name} has {sizes[name][0]}x{sizes[name][1]} pixels where most images have {width}x{height}; "
                "resample it to that size.",
            )
            continue
        row = {"file_name": name, "slice": int(table["slice"][index]), **covariates.loc[index]}
        if scan:
            row["scan"] = int(scans[index])
        subjects.setdefault(table["subject"][index], []).append(row)

    def rows_of(subject: str):
        for row in sorted(subjects[subject], key=lambda row: row["slice"]):
            row = dict(row)
            name = row.pop("file_name")
            try:
                with naming(name, REMEDY):
                    pixels = read_pixels(args.input_dir / name, args.white)
            except InputError as error:
                rejections(name, str(error))
                continue
            yield {"image": encode_png(crop_or_pad(pixels, args.image_size), args.bit_depth), **row}

    build_set(
        args,
        source=source,
        strata={subject: stratum(rows[0]) for subject, rows in subjects.items()},
        rows_of=rows_of,
        covariates=Features({**{name: Value("int32") for name in scan}, **column_types(covariates)}),
        spacing_mm=args.spacing_mm,
        settings={"source images": f"{width}x{height} pixels, cropped or padded about the centre"},
        rejections=rejections,
    )


if __name__ == "__main__":
    run(main)
