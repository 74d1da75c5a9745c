"""On which data a model was evaluated, and whether they are those it was trained on.

Against other people its figures are of use, but its audit says nothing: it looks for copies of images that training
never saw.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import read_report
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


def is_own(report: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether a report tells its data, and they are the `data` of a training's record."""
    return "data" in report and is_of(report["data"], data)


def own_report(folder: Path, data: dict[str, Any]) -> dict[str, Any] | None:
    """The report beside a model's weights, if it is of the `data` of its record; else, as without a report, None."""
    report = read_report(folder)
    return report if report is not None and is_own(report, data) else None
