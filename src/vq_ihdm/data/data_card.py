"""The card of a built set."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import DatasetCard, DatasetCardData

from .sources import Source

if TYPE_CHECKING:
    from datasets import Features


def write_data_card(
    folder: Path, source: Source, features: "Features", facts: Mapping[str, Any], settings: dict, version: str
) -> None:
    """Write `folder/README.md`: YAML the Hub reads, then what the set is, how it was made, its counts and limits.

    Args:
        facts: the content of `vq_ihdm.json`.
        settings: options of the build, shown as they are; must hold no path and no id.
        version: how the names of the parquet files end.
    """
    from datasets import DatasetInfo  # `size_category` is read where `datasets` may not be installed
    from datasets.info import DatasetInfosDict

    counts = facts["splits"]
    files = [{"split": split, "path": f"data/{split}-*-{version}.parquet"} for split in counts]
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

Images are {height}x{width} pixels (height x width) of {vertical:g}x{horizontal:g} mm, {facts["bit_depth"]} bit,
anterior up.
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
