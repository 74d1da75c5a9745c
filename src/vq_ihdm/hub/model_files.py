"""What lies in a model's folder: by name what is the package's own, what shows scans, and a digest of the weights."""

import hashlib
from pathlib import Path

from safetensors.torch import load_file

from ..errors import InputError
from ..files import read_json

PLOTS = ("samples", "anatomy", "distances")
# What lies beside the weights and shows no scan: records, samples of the model, plots.
SCANLESS = ("samples.png", "covariates.png", *(f"evaluation/{name}.png" for name in PLOTS))
COMPANIONS = ("README.md", "training.json", "notes.md", "evaluation/report.json", "evaluation/report.md", *SCANLESS)
AUDIT_INDEX = "audit_index.safetensors"  # shows the training set, if dimly
# What shows scans, and leaves by publish.py alone, where they may be passed on.
PAIRS = ("beside_real", "nearest", "reconstructions")
SCANS = ("reconstructions.png", *(f"evaluation/{name}.png" for name in PAIRS), AUDIT_INDEX)
COMPONENT_FILES = ("config.json", "scheduler_config.json", "[!.]*.safetensors", "[!.]*.safetensors.index.json")


def system_of(folder: Path) -> str:
    """The class of the pipeline in a folder; without one, that of a tokenizer.

    Raises:
        InputError: there is another network, which is none of them.
    """
    index, config = folder / "model_index.json", folder / "config.json"
    if index.is_file():
        return read_json(index)["_class_name"][1]
    if config.is_file() and read_json(config).get("_class_name") != "VQModel":
        raise InputError(f"{folder} holds a part of a pipeline, which draws nothing alone; name the whole pipeline/")
    return "VQModel"


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


def weight_files(folder: Path) -> dict[str, Path]:
    """Those of `own_files` that hold the weights."""
    files = own_files(folder).items()
    return {name: file for name, file in files if file.suffix == ".safetensors" and name != AUDIT_INDEX}


def weights_digest(folder: Path) -> str:
    """A digest of a model's weights, by which record and report tell that they are of them and not of later ones.

    Of the numbers, not of the files: half precision that is saved again as float32, or in shards, is the same. Configs
    do not enter: another version of a library writes them differently.
    """
    tensors = {}
    for name, file in sorted(weight_files(folder).items()):
        tensors |= {f"{Path(name).parent}/{key}": tensor for key, tensor in load_file(file).items()}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + (tensor.float() if tensor.is_floating_point() else tensor).numpy().tobytes())
    return digest.hexdigest()[:16]


def holds_training_images(folder: Path) -> bool:
    """Whether the prior of the pipeline in `folder` is made of blurred training images."""
    config = folder / "prior" / "config.json"
    return config.is_file() and read_json(config)["kind"] != "mixture"
