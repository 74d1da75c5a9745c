"""A pipeline's folder: the code beside the weights, what follows them to another folder, what leaves the machine."""

import ast
import filecmp
import json
import shutil
import sys
from collections.abc import Iterable
from importlib.util import resolve_name
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

# What lies beside the weights (see `vq_ihdm.hub`) and shows no scan: records, samples of the model, plots.
SCANLESS = ("samples.png", *(f"evaluation/{name}.png" for name in ("samples", "anatomy", "distances")))
COMPANIONS = ("README.md", "training.json", "notes.md", "evaluation/report.json", "evaluation/report.md", *SCANLESS)
AUDIT_INDEX = "audit_index.safetensors"  # shows the training set, if dimly
COMPONENT_FILES = (".json", ".py", ".safetensors")


def export_code(cls: type, folder: Path) -> list[str]:
    """Write the module of `cls`, with all it imports relatively, into `folder`; its entry for model_index.json.

    It becomes one file: of a component diffusers fetches from the Hub the file that model_index.json names, no other.

    Raises:
        ValueError: one of the modules imports another in a way that does not survive this.
    """
    sources: dict[str, str] = {}
    package = cls.__module__.split(".")[0]

    def add(module: str) -> None:
        source = Path(sys.modules[module].__file__).read_text()
        tree, lines = ast.parse(source), source.splitlines(keepends=True)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                if node.module is None or node not in tree.body or any(alias.asname for alias in node.names):
                    raise ValueError(
                        f"line {node.lineno} of {module}: code that travels with weights imports names from modules of "
                        "its package at the top of a file and without `as`"
                    )
                add(resolve_name("." * node.level + node.module, module.rpartition(".")[0]))
                lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                if package in [name.split(".")[0] for name in names]:
                    raise ValueError(f"line {node.lineno} of {module}: code that travels with weights has no {package}")
        sources.setdefault(module, "".join(lines))

    add(cls.__module__)
    note = f"# Made by `save_pretrained` from {', '.join(sources)}.\n" if len(sources) > 1 else ""
    module = cls.__module__.rpartition(".")[2]
    (folder / f"{module}.py").write_text(note + "\n\n".join(sources.values()))
    return [module, cls.__name__]


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
    folder: Path, components: Iterable[str], repo_id: str, private: bool, token: str | None, commit_message: str | None
) -> None:
    """Commit a saved pipeline to the Hub, with those of its companions that show no scan.

    Raises:
        ValueError: the prior is made of training images and no record says that they may be passed on, or the
            evaluation beside the weights found that training images were memorised.
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
    own = [f"{component}/*{suffix}" for component in components for suffix in COMPONENT_FILES]
    code = json.loads((folder / "model_index.json").read_text())["_class_name"][0]
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=["model_index.json", f"{code}.py", *COMPANIONS, *own],
        commit_message=commit_message,
    )
