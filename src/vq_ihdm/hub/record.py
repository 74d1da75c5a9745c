"""`training.json`: what is known about how a model came to be, beside its weights.

Schema:

    version: of this package
    data: of the last training: source, licence, redistribution (whether the images may be passed on), template (no
        patients), splits ({name: {slices, subjects}}) and, of a set built by dataset_scripts/, spacing_mm, image_size,
        bit_depth, digest and preparation (how the slices were made of the scans: {option: value}). Licence and
        redistribution are those of all trainings together: `other`, and false, where they differ
    stages: a list, one entry a training run in the order they were done:
        script: the script's name
        data: of this training: source, licence, redistribution and, of a set built by dataset_scripts/, digest
        settings: the effective flags, without paths and names of places
        changed_on_resume: a list of {from_step, setting, before, after}
        held_out: what was measured on the validation split, by name
        step, images_seen, seconds: of the weights that were kept
        hardware: device, cores, threads, processes, torch
    weights: digest of the weights that all this is about (`model_files.weights_digest`)

No path, no user's name and nothing about a single scan enters it.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from .._version import __version__
from ..data.sources import OWN
from ..errors import InputError
from ..files import read_json, replacing
from .model_files import weights_digest

if TYPE_CHECKING:
    from datasets import Dataset

RECORD = "training.json"
DATA_FACTS = "vq_ihdm.json"
# Of the flags whose value is text only these name a method; any other may be a path or an account.
METHODS = ("discriminator", "lr_scheduler", "mixed_precision", "model", "perceptual", "prior")

# What is taken for true of data that no builder of ours prepared.
UNKNOWN = {"source": OWN.name, "licence": OWN.licence, "redistribution": OWN.redistribution, "template": False}
OF_STAGE = ("source", "licence", "redistribution", "digest")  # what each training keeps of its data


def data_facts(
    dataset_name: str | None, splits: "Mapping[str, Dataset]", resolution: int | None = None
) -> dict[str, Any]:
    """The `data` entry of the record.

    Args:
        dataset_name: folder or Hub id. Images that no builder of ours prepared, or a plain folder of images (None),
            count as confidential.
        splits: the loaded set, or some of it.
        resolution: to which the shorter side was brought on loading.
    """
    file = dataset_name and repository_file(dataset_name, DATA_FACTS, "dataset")
    facts = read_json(file) if file else {}
    names = (*UNKNOWN, "spacing_mm", "image_size", "bit_depth", "preparation", "digest")
    counts = {}
    for name, split in splits.items():
        counts[name] = {"slices": len(split)}
        if "subject" in split.column_names:
            counts[name]["subjects"] = len(split.unique("subject"))
    data = UNKNOWN | {name: facts[name] for name in names if name in facts} | {"splits": counts}
    if resolution is not None and "image_size" in data:
        scale = min(data["image_size"]) / resolution
        width, height = splits["train"][0]["image"].size
        data |= {"image_size": [height, width], "spacing_mm": [scale * side for side in data["spacing_mm"]]}
    return data


def stage_record(args: argparse.Namespace, metrics: dict[str, float], data: dict[str, Any]) -> dict[str, Any]:
    """The entry of `stages` for the run of the calling script.

    Args:
        args: the effective configuration.
        data: it learnt from, see `data_facts`.
        metrics: of the weights that are kept: `step`, `images_seen`, `seconds` and the held-out measures.
    """
    settings = {
        name: value
        for name, value in sorted(vars(args).items())
        if name in METHODS or (value is not None and not isinstance(value, str))
    }
    changes = [c for c in settings.pop("changed_on_resume", []) if c["setting"] in settings.keys() | METHODS]
    not_measures = {"step", "images_seen", "seconds", "l1+lpips"}
    if settings.get("perceptual") == "none":
        not_measures.add("lpips")
    state = PartialState()  # of `accelerate`, under which every train script runs
    return {
        "script": Path(sys.argv[0]).name,
        "data": of_stage(data),
        "settings": settings,
        "changed_on_resume": changes,
        "held_out": {name: value for name, value in metrics.items() if name not in not_measures},
        "step": metrics["step"],
        "images_seen": metrics["images_seen"],
        "seconds": metrics["seconds"],
        "hardware": {
            "device": torch.cuda.get_device_name() if state.device.type == "cuda" else cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": state.num_processes,
            "torch": torch.__version__,
        },
    }


def of_stage(data: dict[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in OF_STAGE if name in data}


def told_digests(*entries: dict[str, Any]) -> set[str]:
    """The digests of the sets behind these `data`, as far as they tell one; of one set there is one at most."""
    return {entry["digest"] for entry in entries if "digest" in entry}


def is_other_set(data: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two entries of `data` are known to be of different sets. Nobody knows it of sets of unknown source."""
    return data["source"] != other["source"] or len(told_digests(data, other)) > 1


def under_all_terms(data: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    """`data` under the terms of everything that any of the `stages` learnt from."""
    learnt = [data, *(stage["data"] for stage in stages if "data" in stage)]
    licences = {entry["licence"] for entry in learnt}
    redistribution = all(entry["redistribution"] for entry in learnt)
    return data | {"licence": licences.pop() if len(licences) == 1 else "other", "redistribution": redistribution}


def write_record(folder: Path, data: dict[str, Any], stages: list[dict[str, Any]]) -> None:
    """Write the record of the weights in `folder`."""
    record = {"version": __version__, "data": data, "stages": stages, "weights": weights_digest(folder)}
    with replacing(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def read_record(path_or_id: str | os.PathLike) -> dict[str, Any] | None:
    """The record of a model folder or Hub repository; None where there is none.

    Raises:
        InputError: there is no such folder and no such repository, or the file holds no record.
    """
    file = repository_file(path_or_id, RECORD)
    if file is None:
        return None
    record = read_json(file)
    data = record.get("data")
    if not (
        isinstance(data, dict) and data.keys() >= UNKNOWN.keys() | {"splits"} and isinstance(record.get("stages"), list)
    ):
        raise InputError(f"{file} is no record of a training; take the {RECORD} that was saved with the weights")
    return record


def own_record(folder: Path) -> dict[str, Any] | None:
    """The record beside a model's weights, if it is of them; else, as without a record, None.

    Raises:
        InputError: there is no such folder, or the file holds no record.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name one that holds a model or a built data set")
    record = read_record(folder)
    tells = record is not None and "weights" in record  # earlier versions did not
    return None if tells and record["weights"] != weights_digest(folder) else record


def tokenizer_stages(path_or_id: str | os.PathLike) -> list[dict[str, Any]]:
    """The trainings of a VQModel: a model folder or Hub id, a pipeline that has one, or its folder in a pipeline's."""
    return [stage for stage in recorded_stages(path_or_id) if "num_vq_embeddings" in stage["settings"]]


def denoiser_stages(path_or_id: str | os.PathLike) -> list[dict[str, Any]]:
    """The trainings of a denoiser: a pipeline's folder or Hub id, its folder in a pipeline's, `best/` or `last/`."""
    return [stage for stage in recorded_stages(path_or_id) if "num_vq_embeddings" not in stage["settings"]]


def recorded_stages(path_or_id: str | os.PathLike) -> list[dict[str, Any]]:
    """The trainings in the record of a model, or of the pipeline in whose folder it lies; none without a record."""
    path = Path(path_or_id)
    in_pipeline = (path.parent / "model_index.json").is_file()
    record = read_record(path.parent if in_pipeline else path_or_id)
    return [{"data": of_stage(record["data"])} | stage for stage in record["stages"]] if record else []


def views_learnt_from(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    """For each training of a second stage on shifted views: the arguments that have `data.tokens.encode_shifted` draw
    the same ones again, once each."""
    views = []
    for stage in record["stages"] if record is not None else []:
        settings = stage["settings"]
        if settings.get("shifted_views"):
            drawn = {"mirrored": settings["random_flip"], "shifted_views": settings["shifted_views"]}
            if drawn not in views:
                views.append(drawn)
    return views


def repository_file(path_or_id: str | os.PathLike, name: str, repo_type: str = "model") -> Path | None:
    """A file of a local folder or of a Hub repository, or None when that has no such file.

    Raises:
        InputError: there is no such folder and no such repository.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        return Path(hf_hub_download(str(path_or_id), name, repo_type=repo_type))
    except LocalEntryNotFoundError as error:  # nobody was asked: there may be one
        raise InputError(
            f"the Hub cannot be asked for {name} of {path_or_id}; connect, or name a local folder that has it"
        ) from error
    except EntryNotFoundError:
        return None
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise InputError(f"{path_or_id} is no folder, and no repository that this account can see") from error


def cpu_name() -> str:
    """The processor's model and the vector instructions torch uses on it."""
    cpuinfo = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
