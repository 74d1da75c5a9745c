"""A pipeline's folder: what follows the weights to another folder, and what leaves the machine."""

import filecmp
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download

from ..uploading import HubRepository

PLOTS = ("samples", "anatomy", "distances")
# What lies beside the weights (see `vq_ihdm.hub`) and shows no scan: records, samples of the model, plots.
SCANLESS = ("samples.png", "covariates.png", *(f"evaluation/{name}.png" for name in PLOTS))
COMPANIONS = ("README.md", "training.json", "notes.md", "evaluation/report.json", "evaluation/report.md", *SCANLESS)
AUDIT_INDEX = "audit_index.safetensors"  # shows the training set, if dimly
COMPONENT_FILES = (".json", ".py", ".safetensors")


def carry_over(name_or_path: str, folder: Path) -> None:
    """Copy the companions of a pipeline's weights from where it was loaded, unless the weights have changed."""
    source, companions = Path(name_or_path), (*COMPANIONS, AUDIT_INDEX)
    if not source.is_dir():
        try:
            source = Path(snapshot_download(name_or_path, allow_patterns=[*companions, "*.safetensors"]))
        except (OSError, ValueError):  # no network, or a folder that is gone: the weights alone are saved
            return
    weights = [file.relative_to(folder) for file in folder.rglob("*.safetensors") if file.name != AUDIT_INDEX]
    if source.resolve() == folder.resolve() or not all(
        (source / file).is_file() and filecmp.cmp(source / file, folder / file, shallow=False) for file in weights
    ):
        return
    for name in companions:
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def holds_training_images(folder: Path) -> bool:
    """Whether the prior of the pipeline in `folder` is made of blurred training images."""
    config = folder / "prior" / "config.json"
    return config.is_file() and json.loads(config.read_text())["kind"] != "mixture"


def upload(
    folder: Path, components: Iterable[str], repo_id: str, private: bool, token: str | None, commit_message: str
) -> None:
    """Commit a saved pipeline to the Hub, with those of its companions that show no scan.

    Raises:
        ValueError: the prior is made of training images and no record says that they may be passed on, the evaluation
            beside the weights found that training images were memorised, or the Hub refuses (see `HubRepository`).
    """
    record, report = folder / "training.json", folder / "evaluation" / "report.json"
    may_be_passed_on = record.is_file() and json.loads(record.read_text())["data"]["redistribution"]
    if holds_training_images(folder) and not may_be_passed_on:
        raise ValueError(
            f"the prior in {folder} is made of blurred training images; publish.py --allow_restricted_images publishes "
            "it all the same"
        )
    if report.is_file() and not json.loads(report.read_text()).get("audit", {}).get("passed"):
        raise ValueError(
            f"the memorisation audit in {report} was not passed; publish.py --allow_failed_audit publishes it all the "
            "same"
        )
    code = json.loads((folder / "model_index.json").read_text())["_class_name"][0]
    own = [f"{component}/*{suffix}" for component in components for suffix in COMPONENT_FILES]
    names = {name for name in ("model_index.json", f"{code}.py", *COMPANIONS) if (folder / name).is_file()}
    names |= {file.relative_to(folder).as_posix() for pattern in own for file in folder.glob(pattern)}
    contents = {name: folder / name for name in sorted(names)}
    HubRepository(repo_id, private=private, token=token).commit(contents, commit_message)
