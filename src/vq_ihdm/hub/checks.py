"""What must be known of a model, or of a data set, before it leaves this machine."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..data.sources import OWN
from ..errors import InputError
from ..files import read_json
from .audit import audit_failures
from .evaluated_data import drawn_otherwise, own_report, read_report
from .model_files import SCANS, holds_training_images, system_of
from .record import DATA_FACTS, RECORD, own_record


def is_data_set(folder: Path) -> bool:
    return (folder / DATA_FACTS).is_file()


def refuse(folder: Path, allow: Collection[str]) -> None:
    """Stop at the first failed check that is not among `allow`.

    Raises:
        InputError: there is one.
    """
    for option, sentence in failed_checks(folder).items():
        if option not in allow:
            raise InputError(f"{sentence}; --allow_{option} publishes it all the same")


def refuse_drawn(folder: Path, allow: Collection[str], sampling: dict[str, Any]) -> None:
    """As `refuse`, for images that the pipeline in `folder` drew: its own pictures and weights stay where they are.

    Args:
        sampling: what the pipeline was told, beside how many images and which seed.

    Raises:
        InputError: a check failed; images were drawn otherwise than those that were evaluated, which counts as
            `unevaluated`; or they are drawn from blurred training images that must not be passed on.
    """
    refuse(folder, ["restricted_images", *allow])
    otherwise = drawn_otherwise(sampling, folder)
    if otherwise and "unevaluated" not in allow:
        flags = ", ".join(f"--{name} {value:g}" for name, value in otherwise.items())
        raise InputError(
            f"{folder} was evaluated as it draws unless told otherwise, and not with {flags}: leave them out, or "
            "--allow_unevaluated publishes the images all the same"
        )
    data = own_record(folder)["data"]
    if holds_training_images(folder) and not data["redistribution"]:
        raise InputError(
            f"{folder} draws from blurred images of {data['source']}, which must not be passed on, and what it draws "
            "shows them; train with --prior mixture"
        )


def failed_checks(folder: Path, name: str | None = None) -> dict[str, str]:
    """The checks before publishing that a folder fails: sentences, by the name of the option that overrules them.

    Args:
        name: what the sentences call it where the folder is none of the user's; its path when None.

    Raises:
        InputError: the folder holds nothing that could be published.
    """
    name, remedy = name or str(folder), f"run evaluate.py --pipeline {'FOLDER' if name else folder}"
    if is_data_set(folder):
        facts = read_json(folder / DATA_FACTS)
        if not (folder / "README.md").is_file():
            raise InputError(f"{name} has lost its README.md, by which the Hub finds its splits; build the set again")
        if facts["redistribution"]:
            return {}
        remedy = " (if they may, build the set again with --license)" if facts["source"] == OWN.name else ""
        return {"restricted_images": f"{name} holds images of {facts['source']}, which must not be passed on{remedy}"}

    record = own_record(folder)
    if record is None:
        raise InputError(
            f"{name} is neither a model with the {RECORD} of its weights nor a built data set; publish what a train "
            "script or a builder left"
        )
    system_of(folder)  # or a part of a pipeline would leave without an audit
    found = {}
    if not record["data"]["redistribution"]:
        restricted = [scan for scan in SCANS if (folder / scan).is_file()]
        if holds_training_images(folder):
            restricted.append("a prior made of blurred training images")
        if restricted:
            source = record["data"]["source"]
            found["restricted_images"] = (
                f"{name} holds {', '.join(restricted)}, and images of {source} must not be passed on"
            )
    if (folder / "model_index.json").is_file():
        report = read_report(folder)
        if report is None:
            found["unevaluated"] = f"{name} was not evaluated; {remedy}"
        elif own_report(folder, record["data"]) is None:
            found["unevaluated"] = (
                f"evaluation/report.json of {name} is not known to be of its weights, of how it draws unless told "
                f"otherwise and of the data that {RECORD} names; {remedy} with them as --dataset_name"
            )
        if report is not None and (failures := audit_failures(report)):
            found["failed_audit"] = f"the memorisation audit of {name} failed ({' '.join(failures)})"
    return found
