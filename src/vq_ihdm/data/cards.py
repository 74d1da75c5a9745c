"""The card of a built set, and the terms of the collections the builders know."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import DatasetCard, DatasetCardData

from vq_ihdm.errors import InputError

if TYPE_CHECKING:
    from datasets import Features


@dataclass(frozen=True)
class Source:
    """Where images come from. `licence` is an id of the Hub's list; `people`: the subjects are real."""

    name: str
    description: str
    licence: str
    terms: str
    redistribution: bool
    people: bool = True


OWN = Source(
    name="own scans",
    description="Axial slices of T1-weighted brain MRI.",
    licence="other",
    terms="The builder was not told under which terms these scans may be used. Treat them as confidential.",
    redistribution=False,
)
ADNI = Source(
    name="ADNI",
    description="Axial slices of T1-weighted brain MRI from the Alzheimer's Disease Neuroimaging Initiative.",
    licence="other",
    terms="ADNI data use agreement (adni.loni.usc.edu). It forbids passing the images on: this set must not be "
    "published.",
    redistribution=False,
)
IXI = Source(
    name="IXI",
    description="Axial slices of T1-weighted brain MRI of healthy volunteers from the IXI data set.",
    licence="cc-by-sa-3.0",
    terms="IXI data set (brain-development.org/ixi-dataset), Creative Commons BY-SA 3.0: name the source and share "
    "derived sets alike.",
    redistribution=True,
)
OASIS1 = Source(
    name="OASIS-1",
    description="Axial slices of skull-stripped T1-weighted brain MRI from OASIS-1 (cross-sectional).",
    licence="odbl",
    terms="Open Database License 1.0 as published, and the OASIS data use terms (oasis-brains.org): acknowledge "
    "OASIS-1 (Marcus et al., Journal of Cognitive Neuroscience 2007) and do not try to identify anyone.",
    redistribution=True,
)
TEMPLATE = Source(
    name="MNI152 template",
    description="Synthetic axial slices **derived from one anatomical template** (the MNI152 T1, grey-matter and "
    "white-matter maps of nilearn), deformed and recoloured at random. There are no patients in this set: it serves "
    "demonstrations and tests, and no measurement on it says anything about people.",
    licence="other",
    terms="Derived from the ICBM 152 template. Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, "
    "Montreal Neurological Institute, McGill University. Permission to use, copy, modify, and distribute is granted "
    "for any purpose and without fee, provided that this copyright notice appears in all copies; there is no warranty.",
    redistribution=True,
    people=False,
)


def with_licence(source: Source, licence: str | None) -> Source:
    """Own scans that their owner lets others have under `licence`.

    Raises:
        InputError: a licence for a collection that has its own.
    """
    if licence is None:
        return source
    if source is not OWN:
        raise InputError(f"{source.name} comes with its own terms; leave --license out.")
    return replace(OWN, licence=licence, terms=f"Published by the builder under {licence}.", redistribution=True)


def write_card(folder: Path, source: Source, features: "Features", facts: Mapping[str, Any], settings: dict) -> None:
    """Write `folder/README.md`: YAML the Hub reads, then what the set is, how it was made, its counts and limits.

    Args:
        facts: the content of `vq_ihdm.json`.
        settings: options of the build, shown as they are; must hold no path and no id.
    """
    from datasets import DatasetInfo  # the terms above are read where `datasets` may not be installed
    from datasets.info import DatasetInfosDict

    counts = facts["splits"]
    files = [{"split": split, "path": f"data/{split}-*-{facts['digest']}.parquet"} for split in counts]
    data = DatasetCardData(
        pretty_name=f"{source.name}: axial brain slices",
        license=source.licence,
        task_categories=["unconditional-image-generation"],
        size_categories=size_category(sum(count["slices"] for count in counts.values())),
        tags=["medical", "mri", "brain", "vq-ihdm", *([] if source.people else ["synthetic", "template-derived"])],
        configs=[{"config_name": "default", "data_files": files}],
    )
    DatasetInfosDict(default=DatasetInfo(features=features)).to_dataset_card_data(data)
    height, width = facts["image_size"]
    vertical, horizontal = facts["spacing_mm"]
    subjects = (
        "`subject` is a keyed hash of the source's id, or that id where the builder was told to keep it."
        if source.people
        else "`subject` numbers a synthetic anatomy."
    )
    ages = (
        "`age` is in years; one that the source gives as 90+ or the like is that bound. " if "age" in features else ""
    )
    limits = (
        "Slices of one subject are not independent: compare and split by subject. Intensities are scaled per volume "
        "and carry no physical unit. The images are for research, not for diagnosis."
        if source.people
        else "One anatomy underlies every image. Differences between subjects are simulated, none is pathological."
    )
    table = "\n".join(f"| {split} | {count['subjects']} | {count['slices']} |" for split, count in counts.items())
    made = "\n".join(f"- {name}: {value}" for name, value in settings.items())
    text = f"""---
{data.to_yaml()}
---

# {source.name}: axial brain slices

{source.description}

Images are {width}x{height} pixels, {facts["bit_depth"]} bit, {vertical:g}x{horizontal:g} mm a pixel, anterior up.
{subjects} `slice` grows from inferior to superior; `slice_level` is its place between the lowest (0) and
the highest (1) slice of its scan. {ages}No subject is in two splits.

| split | subjects | slices |
|---|---|---|
{table}

## How it was made

{made}

## Licence and terms

{source.terms}{"" if source.redistribution else " **The images must not be redistributed.**"}

## Limits

{limits}
"""
    DatasetCard(text).save(folder / "README.md")


def size_category(count: int) -> str:
    """The Hub's bracket for a number of rows."""
    bounds = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
    return next((name for bound, name in bounds.items() if count < bound), "1M<n<10M")
