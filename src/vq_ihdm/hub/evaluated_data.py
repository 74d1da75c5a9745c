"""Which weights were evaluated on which data, and whether they are a model's own and those it was trained on.

Against other people its figures are of use, but its audit says nothing: it looks for copies of images that training
never saw.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import read_json
from .model_files import weights_digest
from .record import data_facts

if TYPE_CHECKING:
    from ..evaluation.image_sets import ImageSet


def evaluated_data(dataset_name: str, *sides: "ImageSet") -> dict[str, Any]:
    """The `data` of a report: source, and counts of the splits of the real images, as a training's record has them."""
    return of_splits(data_facts(dataset_name, {side.name: side.split for side in sides}))


def of_splits(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("source", "splits")}


def is_of(evaluated: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether the splits of an evaluation, of which `a+b` is two, are of the `data` of a training's record."""
    splits, empty = data["splits"], {"slices": 0, "subjects": 0}
    return evaluated["source"] == data["source"] and all(
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
    """The report beside a model's weights, if it is of them and of the `data` of their record.

    Else None, as without a report. One that does not tell its weights or its data is of an earlier version.
    """
    report = read_report(folder)
    if report is None or "data" not in report or not is_of(report["data"], data):
        return None
    return report if report.get("weights") == weights_digest(folder) else None
