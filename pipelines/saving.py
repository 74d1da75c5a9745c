"""A pipeline's folder: what follows the weights to another folder, and what leaves the machine."""

import filecmp
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download

from ..files import read_json
from ..uploading import HubRepository

PLOTS = ("samples", "anatomy", "distances")
# What lies beside the weights (see `vq_ihdm.hub`) and shows no scan: records, samples of the model, plots.
SCANLESS = ("samples.png", "covariates.png", *(f"evaluation/{name}.png" for name in PLOTS))
COMPANIONS = ("README.md", "training.json", "notes.md", "evaluation/report.json", "evaluation/report.md", *SCANLESS)
AUDIT_INDEX = "audit_index.safetensors"  # shows the training set, if dimly
# What shows scans, and leaves by publish.py alone, where they may be passed on.
PAIRS = ("beside_real", "nearest", "reconstructions")
SCANS = ("reconstructions.png", *(f"evaluation/{name}.png" for name in PAIRS), AUDIT_INDEX)
COMPONENT_FILES = ("config.json", "scheduler_config.json", "[!.]*.safetensors", "[!.]*.safetensors.index.json")


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


def own_files(folder: Path) -> dict[str, Path]:
    """What this package writes into the folder of a pipeline or VQModel, by name; nothing else in it may leave."""
    index = folder / "model_index.json"
    entries = read_json(index) if index.is_file() else {}
    modules = {name: entry[0] for name, entry in entries.items() if isinstance(entry, list)}
    code = [f"{module}.py" if name == "_class_name" else f"{name}/{module}.py" for name, module in modules.items()]
    parts = [f"{name}/" for name in modules if name != "_class_name"] or [""]  # a VQModel is one part
    weights = [f"{part}{pattern}" for part in parts for pattern in COMPONENT_FILES]
    patterns = [index.name, *COMPANIONS, *SCANS, *code, *weights]
    return {file.relative_to(folder).as_posix(): file for pattern in patterns for file in folder.glob(pattern)}


def holds_training_images(folder: Path) -> bool:
    """Whether the prior of the pipeline in `folder` is made of blurred training images."""
    config = folder / "prior" / "config.json"
    return config.is_file() and read_json(config)["kind"] != "mixture"


def upload(folder: Path, repo_id: str, private: bool, token: str | None, commit_message: str) -> None:
    """Commit a saved pipeline to the Hub, with those of its companions that show no scan.

    Raises:
        ValueError: a file cannot be read; the prior is made of training images and no record says that they may be
            passed on; the evaluation beside the weights found that training images were memorised; or the Hub refuses
            (see `HubRepository`).
    """
    record, report = folder / "training.json", folder / "evaluation" / "report.json"
    may_be_passed_on = record.is_file() and read_json(record)["data"]["redistribution"]
    if holds_training_images(folder) and not may_be_passed_on:
        raise ValueError(
            f"the prior in {folder} is made of blurred training images; publish.py --allow_restricted_images publishes "
            "it all the same"
        )
    if report.is_file() and not read_json(report).get("audit", {}).get("passed"):
        raise ValueError(
            f"the memorisation audit in {report} was not passed; publish.py --allow_failed_audit publishes it all the "
            "same"
        )
    contents = {name: file for name, file in own_files(folder).items() if name not in SCANS}
    HubRepository(repo_id, private=private, token=token).commit(contents, commit_message)
