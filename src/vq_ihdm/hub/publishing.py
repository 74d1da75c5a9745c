"""Upload a model, a data set or the demonstration page to the Hub: in one commit, after checks."""

import argparse
from collections.abc import Collection
from pathlib import Path

from ..errors import InputError
from ..files import read_json
from ..pipelines.saving import SCANS, holds_training_images, own_files
from ..uploading import HubRepository
from .audit import audit_failures
from .evaluated_data import is_own
from .figures import read_report
from .model_card import model_card
from .record import DATA_FACTS, RECORD, read_record

SPACE_PIPELINE = "checkpoints/vq-ihdm-oasis-fine"  # where app.py looks for its pipeline
COMMIT_MESSAGE = "Publish with vq-ihdm"


def publish(folder: str | Path, repo_id: str, private: bool = True, allow: Collection[str] = ()) -> str:
    """Make a Hub repository hold what a folder holds, in a single commit.

    Whatever fails on the way, the repository shows all of its old state or all of the new one; trying again uploads
    only what is missing. Files that are not in the folder are removed, and stay in the repository's history.

    Args:
        folder: a saved pipeline, a VQModel with its record, or a set built by dataset_scripts/.
        repo_id: `name` or `account/name`; made when missing.
        private: visibility of a new repository.
        allow: failed checks (keys of `failed_checks`) that are to be overruled.

    Returns:
        the repository's address.

    Raises:
        InputError: a check failed, the repository is public where a private one was asked for, or the Hub
            cannot be reached or refuses.
    """
    folder = Path(folder)
    refuse(folder, allow)
    contents: dict[str, Path | bytes] = {**files_of(folder)}
    repository = HubRepository(repo_id, "dataset" if is_data_set(folder) else "model", private)
    if not is_data_set(folder):  # a card whose examples name the model's new place
        contents["README.md"] = str(model_card(folder, repository.repo_id)).encode()
    repository.commit(contents, COMMIT_MESSAGE, mirror=True)
    return repository.url


def push(folder: Path, args: argparse.Namespace) -> None:
    """What --push_to_hub does at the end of a training; `args`: the shared flags of the train scripts."""
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    allow = ["unevaluated"] if args.allow_unevaluated else []
    print(f"published: {publish(folder, name, args.hub_private_repo, allow)}")


def publish_space(root: Path, folder: Path, repo_id: str, private: bool = True, allow: Collection[str] = ()) -> str:
    """As `publish`: the page `app.py` with the pipeline inside, as a Space.

    Args:
        root: of this project's repository, where app.py and space/ lie.
    """
    refuse(folder, allow)
    files = {"app.py": root / "app.py"}
    files |= {name: root / "space" / name for name in ("README.md", "requirements.txt")}
    files |= {f"{SPACE_PIPELINE}/{name}": file for name, file in files_of(folder).items()}
    repository = HubRepository(repo_id, "space", private)
    repository.commit(files, COMMIT_MESSAGE, mirror=True)
    return repository.url


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


def refuse_drawn(folder: Path, allow: Collection[str]) -> None:
    """As `refuse`, for images that the pipeline in `folder` drew: its own pictures and weights stay where they are.

    Raises:
        InputError: a check failed, or images are drawn from blurred training images that must not be passed on.
    """
    refuse(folder, ["restricted_images", *allow])
    data = read_record(folder)["data"]
    if holds_training_images(folder) and not data["redistribution"]:
        raise InputError(
            f"{folder} draws from blurred images of {data['source']}, which must not be passed on, and what it draws "
            "shows them; train with --prior mixture"
        )


def failed_checks(folder: Path) -> dict[str, str]:
    """The checks before publishing that a folder fails: sentences, by the name of the option that overrules them.

    Raises:
        InputError: the folder holds nothing that could be published.
    """
    if is_data_set(folder):
        facts = read_json(folder / DATA_FACTS)
        if facts["redistribution"]:
            return {}
        return {"restricted_images": f"{folder} holds images of {facts['source']}, which must not be passed on"}

    record = read_record(folder)
    if record is None:
        raise InputError(f"{folder} is neither a model with its {RECORD} nor a built data set; name another folder")
    found = {}
    if not record["data"]["redistribution"]:
        restricted = [name for name in SCANS if (folder / name).is_file()]
        if holds_training_images(folder):
            restricted.append("a prior made of blurred training images")
        if restricted:
            source = record["data"]["source"]
            found["restricted_images"] = (
                f"{folder} holds {', '.join(restricted)}, and images of {source} must not be passed on"
            )
    if (folder / "model_index.json").is_file():
        report = read_report(folder)
        if report is None:
            found["unevaluated"] = f"{folder} was not evaluated; run evaluate.py --pipeline {folder}"
        elif not is_own(report, record["data"]):
            found["unevaluated"] = (
                f"{folder}/evaluation/report.json is not known to be of the data that {RECORD} names; run evaluate.py "
                f"--pipeline {folder} with them as --dataset_name"
            )
        if report is not None and (failures := audit_failures(report)):
            found["failed_audit"] = f"the memorisation audit of {folder} failed ({' '.join(failures)})"
    return found


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a model or data set that are to be uploaded, whatever else lies in its folder."""
    if not is_data_set(folder):
        return own_files(folder)
    chosen = [folder / "README.md", folder / DATA_FACTS, *folder.glob("data/*.parquet")]
    return {file.relative_to(folder).as_posix(): file for file in sorted(chosen)}
