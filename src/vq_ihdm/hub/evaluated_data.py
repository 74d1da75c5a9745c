"""Which weights were evaluated on which data, and whether they are a model's own and those it was trained on.

Against other people its figures are of use, but its audit says nothing: it looks for copies of images that training
never saw.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import read_json
from ..sampling_arguments import SAMPLING, usual_sampling
from .model_files import weights_digest
from .record import data_facts, is_other_set

if TYPE_CHECKING:
    from ..evaluation.image_sets import ImageSet


def evaluated_data(dataset_name: str, *sides: "ImageSet") -> dict[str, Any]:
    """The `data` of a report: source, digest where the set has one, and counts of the splits of the real images, as a
    training's record has them."""
    return of_splits(data_facts(dataset_name, {side.name: side.split for side in sides}))


def of_splits(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("source", "splits", "digest") if name in facts}


def is_of(evaluated: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether the splits of an evaluation, of which `a+b` is two, are of the `data` of a training's record.

    Counts alone would not tell a set that was split otherwise, or whose slices were made otherwise.
    """
    splits, empty = data["splits"], {"slices": 0, "subjects": 0}
    return not is_other_set(evaluated, data) and all(
        counts == {key: sum(splits.get(part, empty).get(key, 0) for part in name.split("+")) for key in empty}
        for name, counts in evaluated["splits"].items()
    )


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report beside a model's weights, or None.

    Raises:
        InputError: the file cannot be read.
    """
    file = folder / "evaluation" / "report.json"
    return read_json(file) if file.is_file() else None


def own_report(folder: Path, data: dict[str, Any]) -> dict[str, Any] | None:
    """The report beside a model's weights, if it is of them, of the `data` of their record and of how they draw.

    Else None, as without a report. One that does not tell its weights or its data is of an earlier version.
    """
    report = read_report(folder)
    if report is None or "data" not in report or not is_of(report["data"], data):
        return None
    if drawn_otherwise(report["generated"], folder):
        return None
    return report if report.get("weights") == weights_digest(folder) else None


def drawn_otherwise(sampling: dict[str, Any], folder: Path) -> dict[str, float]:
    """Those arguments of its call by which the pipeline in a folder draws codes otherwise than unless told so."""
    file = folder / "scheduler" / "scheduler_config.json"
    usual = {"guidance_scale": 1.0} | usual_sampling(read_json(file) if file.is_file() else {})
    return {name: sampling[name] for name in SAMPLING if name in sampling and sampling[name] != usual.get(name)}
