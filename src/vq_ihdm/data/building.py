"""Write a `datasets` image set: subjects split and pseudonymised, parquet shards, dataset card.

A built set is a folder that `load_dataset(folder)` reads: `data/{train,validation,test}-*.parquet`, `README.md` (the
card) and `vq_ihdm.json` (what a program must know: voxel size, licence, whether the images may be passed on).

Subjects appear under a keyed hash of their ids. The key, the salt, is a file beside the set, never in it: without it
nobody can try out known ids, and with it the same build gives the same bytes again. The split depends on the ids, the
labels and the seed, not on the salt. What was left out, and why, is listed in another file beside the set. The columns
and files are described in docs/data.md.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value
from tqdm import tqdm

from ..arguments import positive_int, probability, seed_int
from ..errors import InputError
from ..files import check_replaceable, replacing
from .data_card import write_data_card
from .pixels import PIXEL_TYPES
from .rejections import Rejections
from .sources import Source
from .subjects import MIN_HELD_OUT, SPLITS, published_names, split_subjects

SUBJECTS_PER_SHARD = 250


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """The options every builder shares."""
    group = parser.add_argument_group("the built set")
    group.add_argument("--output_dir", type=Path, required=True, help="folder of the set; replaced when complete")
    group.add_argument(
        "--image_size", type=positive_int, nargs="+", default=[176], help="height and width, or one number"
    )
    group.add_argument(
        "--downsampling_factor", type=positive_int, default=16, help="of the VQGAN; must divide the image size"
    )
    group.add_argument("--bit_depth", type=int, choices=PIXEL_TYPES, default=8, help="16 keeps more grey levels")
    group.add_argument(
        "--split", type=probability, nargs=3, default=[0.7, 0.15, 0.15], metavar=("TRAIN", "VAL", "TEST")
    )
    group.add_argument("--seed", type=seed_int, default=0, help="draws the split")
    group.add_argument("--strict", action="store_true", help="stop at the first input that cannot be used")


def add_people_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of builders whose subjects are people."""
    group = parser.add_argument_group("subjects")
    group.add_argument("--license", help="Hub id of the licence, if others may have your own scans (e.g. cc-by-4.0)")
    group.add_argument(
        "--salt_file",
        type=Path,
        help="secret that keys the subjects' pseudonyms, made when missing; keep it, do not publish it "
        "(default: OUTPUT_DIR.salt, beside the set)",
    )
    group.add_argument("--keep_subject_ids", action="store_true", help="keep the source's ids, "
        "or the names of files that count as ids, instead of pseudonyms")  # fmt: skip


def check_build_arguments(args: argparse.Namespace) -> None:
    """Refuse options no set can be built with; `image_size` becomes a (height, width) pair.

    Raises:
        InputError: a size that is no multiple of the downsampling factor, shares that do not add up to one, an output
            folder that holds something else, or a salt inside of it.
    """
    if len(args.image_size) > 2:
        raise InputError("--image_size takes one or two numbers: height and width in pixels.")
    args.image_size = (args.image_size[0], args.image_size[-1])
    factor = args.downsampling_factor
    if any(size % factor for size in args.image_size):
        fitting = "x".join(str(max(round(size / factor), 1) * factor) for size in args.image_size)
        raise InputError(
            f"the image size {args.image_size[0]}x{args.image_size[1]} is no multiple of the downsampling factor "
            f"{factor}; pass a size such as {fitting}."
        )
    if args.split[0] == 0 or abs(sum(args.split) - 1) > 1e-6:
        raise InputError("the three shares of --split must add up to 1 and leave some for training.")
    check_replaceable(args.output_dir, "vq_ihdm.json")
    salt = vars(args).get("salt_file")
    if salt is not None and args.output_dir.resolve() in salt.resolve().parents:
        raise InputError(f"--salt_file {salt} lies in --output_dir, which is replaced; keep it elsewhere.")


def slice_levels(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Where each slice lies between the lowest (0) and the highest (1) slice of its scan; a slice alone is at 0.5."""
    numbers = {}
    for row in rows:
        numbers.setdefault(row.get("scan"), []).append(row["slice"])
    levels = []
    for row in rows:
        low, high = min(numbers[row.get("scan")]), max(numbers[row.get("scan")])
        levels.append((row["slice"] - low) / (high - low) if high > low else 0.5)
    return levels


class SetDigests:
    """`published` takes in all that a set holds; `content` tells sets apart whatever pseudonyms they were given."""

    def __init__(self) -> None:
        self._published, self._contents = hashlib.sha256(), []

    def add(self, row: dict[str, Any], split: str) -> None:
        values = [value for column, value in row.items() if column not in ("image", "subject")]
        content = row["image"] + f"{split} {values}".encode()
        self._contents.append(hashlib.sha256(content).digest())
        self._published.update(content + row["subject"].encode())

    @property
    def published(self) -> str:
        return self._published.hexdigest()[:16]

    @property
    def content(self) -> str:
        return hashlib.sha256(b"".join(sorted(self._contents))).hexdigest()[:16]


def build_set(
    args: argparse.Namespace,
    *,
    source: Source,
    strata: Mapping[str, str],
    rows_of: Callable[[str], Iterable[dict[str, Any]]],
    covariates: Features,
    spacing_mm: Sequence[float],
    settings: Mapping[str, Any],
    rejections: Rejections,
) -> None:
    """Write the set to `args.output_dir`, whole or not at all; memory holds one subject at a time.

    Args:
        args: parsed `add_build_arguments` (and, for people, `add_people_arguments`), checked.
        source: what the data are and under which terms.
        strata: every subject's id and the label its split is balanced by.
        rows_of: rows of one subject: `image` (PNG bytes), `slice` (int) and the covariates.
        covariates: their columns and types.
        spacing_mm: size of a pixel, vertical and horizontal.
        settings: how the images were made, for the card: no paths, no ids.
        rejections: what was left out so far; `rows_of` may add to it.

    Raises:
        InputError: a split to which a share was given received no slice.

    What `rejections` holds in the end is reported beside the set.
    """
    columns = {
        "image": Image(mode=PIXEL_TYPES[args.bit_depth][0]),
        "subject": Value("string"),
        "slice": Value("int32"),
        "slice_level": Value("float32"),
    }
    features = Features({**columns, **covariates})
    published = published_names(args, source, strata)
    split_of = split_subjects(strata, args.split, args.seed)

    counts, digests = {}, SetDigests()
    owners = {}  # of a subject's images, all together

    def published_rows(subject: str) -> list[dict[str, Any]]:
        rows = [{**row, "subject": published[subject]} for row in rows_of(subject)]
        images = hashlib.sha256(b"".join(row["image"] for row in rows)).digest()
        if rows and (owner := owners.setdefault(images, subject)) != subject:
            rejections(subject, f"{subject} has the very images of {owner}; keep one of the two.")
            return []
        rows = [{**row, "slice_level": level} for row, level in zip(rows, slice_levels(rows), strict=True)]
        for row in rows:
            digests.add({column: row[column] for column in features}, split_of[subject])
        return rows

    with (
        replacing(args.output_dir) as folder,
        tqdm(total=len(strata), desc="Writing", unit="subject") as progress,
    ):
        (folder / "data").mkdir(parents=True)
        for split, share in zip(SPLITS, args.split, strict=True):
            # In the order of the published names: the order of the ids would give pseudonyms away.
            members = sorted((s for s in strata if split_of[s] == split), key=published.__getitem__)
            slices = write_shards(folder / "data", split, members, published_rows, features, progress)
            if share and not slices:
                left_out = rejections.write(args.output_dir)
                raise InputError(why_empty(split, len(strata), rejections, left_out))
            if slices:
                counts[split] = {"subjects": len(slices), "slices": slices.total()}
        # `load_dataset` finds its cached copy by the folder's last name and the card, not by the files' content: a
        # digest in their names, which the card gives, keeps sets of the same name and columns apart.
        for path in (folder / "data").iterdir():
            path.rename(path.with_stem(f"{path.stem}-{digests.published}"))
        facts = set_facts(args, source, spacing_mm, settings) | {"splits": counts, "digest": digests.content}
        (folder / "vq_ihdm.json").write_text(json.dumps(facts, indent=2) + "\n")
        choices = {"seed": args.seed, "shares of the splits": args.split, "inputs": str(rejections)}
        write_data_card(folder, source, features, facts, {**settings, **choices}, digests.published)
    tell(counts)
    print(f"{args.output_dir}: complete; {rejections.write(args.output_dir)}")


def set_facts(
    args: argparse.Namespace, source: Source, spacing_mm: Sequence[float], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What a set says of itself in `vq_ihdm.json`, but for what was counted; arguments as of `build_set`."""
    return {
        "spacing_mm": [float(mm) for mm in spacing_mm],
        "image_size": list(args.image_size),
        "bit_depth": args.bit_depth,
        "source": source.name,
        "licence": source.licence,
        "redistribution": source.redistribution,
        "template": not source.people,
        "preparation": {name: str(value) for name, value in settings.items()},
    }


def why_empty(split: str, num_subjects: int, rejections: Rejections, left_out: str) -> str:
    """Why no slice is left for a split, in a sentence; `left_out` is what `rejections` says of itself."""
    if not num_subjects and rejections.rows:
        return f"nothing can be used; for one, {rejections.rows[-1][-1]}"
    return (
        f"no usable slice for the {split} split: {num_subjects} subjects were found and {left_out}; add subjects, or "
        "give that split no share with --split."
    )


def tell(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Print what the splits of a set hold, and where there is too little to evaluate a model by."""
    for split, count in counts.items():
        print(f"{split}: {count['slices']} slices of {count['subjects']} subjects")
    if (held_out := counts.get("test", {}).get("subjects", 0)) < MIN_HELD_OUT:
        print(
            f"a model of this set cannot be evaluated: test has {held_out} subjects, and evaluate.py needs "
            f"{MIN_HELD_OUT}; build it again with more of them, such as --split 0.5 0.15 0.35"
        )


def write_shards(
    folder: Path,
    split: str,
    subjects: Sequence[str],
    rows_of: Callable[[str], list[dict[str, Any]]],
    features: Features,
    progress: tqdm,
) -> Counter:
    """Write a split as `<split>-<number>-of-<count>.parquet`, subject by subject.

    Returns:
        how many slices were written of each subject that has any.
    """
    shards = [subjects[i : i + SUBJECTS_PER_SHARD] for i in range(0, len(subjects), SUBJECTS_PER_SHARD)]
    slices = Counter()
    for number, shard in enumerate(shards):
        path = folder / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
        with pq.ParquetWriter(path, features.arrow_schema) as writer:
            for subject in shard:
                if rows := rows_of(subject):
                    writer.write_table(to_table(rows, features))
                    slices[subject] = len(rows)
                progress.update()
    return slices


def to_table(rows: list[dict[str, Any]], features: Features) -> pa.Table:
    """Rows with PNG bytes and plain values, as an arrow table of `features`."""
    encoded = [features.encode_example({**row, "image": {"bytes": row["image"], "path": None}}) for row in rows]
    return pa.Table.from_pylist(encoded, schema=features.arrow_schema)
