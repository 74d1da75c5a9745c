# Made by `save_pretrained` from vq_ihdm.covariates, vq_ihdm.weights, vq_ihdm.code_indices, vq_ihdm.pipelines.saving, vq_ihdm.pipelines.slice_pipeline, vq_ihdm.pipelines.token_pipeline, vq_ihdm.pipelines.pipeline_vq_ihdm.
"""What a model can be asked for: its covariates with their ranges and categories, and how they become numbers.

A table of covariates is a tensor (N, C) with a column for each: numbers as they are, categories by their index, NaN
where nothing is given. The vocabulary, a list of `Covariate`, travels as plain dicts in the configs of the components.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

MARGIN = 0.1  # how far a number may lie outside of the training range, as a share of that range
LEVEL_FEATURES = 3  # cosines of a level: anatomy does not change linearly along the head
LEVEL_GRID = 1001  # levels a draw is rounded to


@dataclass(frozen=True)
class Covariate:
    """One covariate of the training set.

    Args:
        name: as the column of the set.
        kind: `continuous`, `category`, or `level`: a position in [0, 1] on which the image depends in no linear way.
        low, high: range of the training values, rounded outwards; of a category meaningless.
        mean, std: of the training values of a continuous one.
        categories: names of a category, in the order of their indices.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    categories: Sequence[str] = ()

    @property
    def num_features(self) -> int:
        """Dimensions of `features`."""
        return {"continuous": 1, "level": LEVEL_FEATURES, "category": len(self.categories)}[self.kind]

    def encode(self, value: Any) -> float:
        """A value as a user writes it -> the number in a table; None, not given, becomes NaN.

        Raises:
            ValueError: no number, a category that the training set did not have, or a number outside of its range by
                more than `MARGIN` of that range.
        """
        if value is None:
            return math.nan
        if self.kind == "category":
            name = f"{value:g}" if isinstance(value, (int, float)) else str(value)
            if name not in self.categories:
                raise ValueError(f"{self.name} is one of {', '.join(self.categories)}, not {name}")
            return float(self.categories.index(name))
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{self.name} is a number, not {value!r}") from None
        margin = MARGIN * (self.high - self.low)
        if not self.low - margin <= number <= self.high + margin:
            raise ValueError(
                f"{self.name} was {self.low:g} to {self.high:g} in the training set; {number:g} is outside of that by "
                f"more than {margin:g}"
            )
        return number

    def decode(self, number: float) -> str | float | None:
        """Inverse of `encode`."""
        if math.isnan(number):
            return None
        return self.categories[int(number)] if self.kind == "category" else number

    def features(self, values: torch.Tensor) -> torch.Tensor:
        """(N,) numbers -> (N, num_features): standardised, cosines of a level, or one-hot; NaN stays NaN."""
        if self.kind == "continuous":
            return ((values - self.mean) / self.std)[:, None]
        if self.kind == "level":
            return torch.cos(math.pi * values.clamp(0, 1)[:, None] * _counting(1, LEVEL_FEATURES, values))
        one_hot = (values[:, None] == _counting(0, len(self.categories) - 1, values)).to(values.dtype)
        return torch.where(values.isnan()[:, None], values[:, None], one_hot)

    def nearest_values(self, features: torch.Tensor) -> torch.Tensor:
        """(N, num_features) -> (N,) numbers inside the training range whose features are nearest."""
        if self.kind == "continuous":
            return (features[:, 0] * self.std + self.mean).clamp(self.low, self.high)
        if self.kind == "category":
            return features.argmax(1).to(features.dtype)
        levels = torch.linspace(self.low, self.high, LEVEL_GRID, dtype=features.dtype, device=features.device)
        return levels[torch.cdist(features, self.features(levels)).argmin(1)]


def vocabulary(entries: Sequence[Mapping[str, Any]] | None) -> tuple[Covariate, ...]:
    """The covariates in a component's config; none of an unconditional model."""
    return tuple(Covariate(**{**entry, "categories": tuple(entry["categories"])}) for entry in entries or ())


def encode_covariates(
    known: Sequence[Covariate], given: Mapping[str, Any] | None, num_images: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """What a user asks for as a table (num_images, C), float32.

    Args:
        known: the model's vocabulary.
        given: any subset of it, by name: a value for all images, or a list with one for each; None is not given.

    Raises:
        ValueError: a covariate the model does not know, a list of another length, or see `Covariate.encode`.
    """
    given = given or {}
    names = [covariate.name for covariate in known]
    for name, value in given.items():
        if name not in names:
            knows = f"it knows {', '.join(names)}" if names else "it was trained without covariates"
            raise ValueError(f"this model does not know the covariate {name}; {knows}")
        if isinstance(value, (list, tuple)) and len(value) != num_images:
            raise ValueError(f"{num_images} images need as many values of {name}, not {len(value)}")
    table = torch.full((num_images, len(known)), math.nan)
    for column, covariate in enumerate(known):
        value = given.get(covariate.name)
        values = value if isinstance(value, (list, tuple)) else [value] * num_images
        table[:, column] = torch.tensor([covariate.encode(value) for value in values])
    return table.to(device)


def decode_covariates(known: Sequence[Covariate], table: torch.Tensor) -> dict[str, list]:
    """A table (N, C) as a list of N values for each name, None where nothing is given."""
    return {
        covariate.name: [covariate.decode(number) for number in table[:, column].tolist()]
        for column, covariate in enumerate(known)
    }


def covariate_features(known: Sequence[Covariate], table: torch.Tensor) -> torch.Tensor:
    """A table (N, C) -> the features of all its columns side by side, (N, F), NaN where nothing is given."""
    return torch.cat([covariate.features(table[:, column]) for column, covariate in enumerate(known)], dim=1)


def nearest_covariates(known: Sequence[Covariate], features: torch.Tensor) -> torch.Tensor:
    """Features (N, F) -> the table (N, C) whose features are nearest, column by column."""
    parts = features.split([covariate.num_features for covariate in known], dim=1)
    columns = [covariate.nearest_values(part) for covariate, part in zip(known, parts, strict=True)]
    return torch.stack(columns, dim=1)


def _counting(first: int, last: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(first, last + 1, dtype=like.dtype, device=like.device)


"""What is asked of networks before they draw: complete, finite, made for each other.

The libraries fill a tensor that a file lacks with random numbers and go on, and NaN gives pictures, too.
"""

import os
import re
from typing import Any

import torch
from transformers import PreTrainedModel


def load_component(cls: type, path: str | os.PathLike, **kwargs: Any) -> Any:
    """`cls.from_pretrained`; of a network, from safetensors alone and in evaluation mode.

    Args:
        cls: a scheduler, or a model of diffusers or transformers.
        path: folder or Hub id.
        kwargs: of `from_pretrained`.

    Raises:
        ValueError: there is nothing that can be read, or the weights lack a tensor, have one too many, or one of
            another shape than their config's.
    """
    is_network = issubclass(cls, torch.nn.Module)
    if is_network:
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
    if issubclass(cls, PreTrainedModel):
        kwargs["ignore_mismatched_sizes"] = True  # they are named below; diffusers names them in an error of its own
    try:
        loaded = cls.from_pretrained(path, **kwargs)
    except Exception as error:  # of diffusers, transformers, safetensors, torch or a config's class
        reason = re.split(r"\n|\.\s", str(error).strip() or type(error).__name__)[0]  # its first sentence
        raise ValueError(f"{path} cannot be read as {cls.__name__} ({reason}); save it again") from error
    if not is_network:
        return loaded
    model, info = loaded
    problems = {"lack": info["missing_keys"], "have no place for": info["unexpected_keys"]}
    problems["have another shape of"] = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    for problem, names in problems.items():
        if names:
            raise ValueError(f"the weights of {path} {problem} {sorted(names)[0]}; save them again")
    return model.eval()


def check_finite(model: torch.nn.Module, name: str) -> None:
    """
    Raises:
        ValueError: a parameter or buffer of `model`, called `name` in the message, is NaN or infinite.
    """
    for key, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name}.{key} holds numbers that are not finite")


def check_equal(what: str, **values: Any) -> None:
    """
    Raises:
        ValueError: components, given by name with what each says of `what`, do not belong together.
    """
    if len(set(values.values())) > 1:
        said = ", ".join(f"{name} {value}" for name, value in values.items())
        raise ValueError(f"components of one pipeline have one {what}, not {said}")


"""From slices to code indices and back, for training, evaluation and sampling alike."""

import torch
from diffusers import VQModel


@torch.no_grad()
def encode_images(vqvae: VQModel, images: torch.Tensor) -> torch.LongTensor:
    """(B, 1, H, W) in [-1, 1] -> (B, h, w) code indices."""
    latents = vqvae.encode(images).latents
    batch, _, height, width = latents.shape
    return vqvae.quantize(latents)[2][2].view(batch, height, width)


@torch.no_grad()
def decode_codes(vqvae: VQModel, code_indices: torch.LongTensor, device: torch.device) -> torch.Tensor:
    """(B, h, w) code indices -> (B, 1, H, W), about [-1, 1].

    Args:
        device: where the VQGAN decodes. Under `enable_model_cpu_offload` it comes there no earlier than `decode` is
            called, and its codebook is still elsewhere.
    """
    shape = (*code_indices.shape, vqvae.config.vq_embed_dim)
    embeddings = vqvae.quantize.get_codebook_entry(code_indices.flatten().to(vqvae.device), shape)
    return vqvae.decode(embeddings.to(device), force_not_quantize=True).sample


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


"""What the pipelines of all systems share: the call's conventions, loading and saving."""

import json
import os
from importlib import import_module
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from huggingface_hub import snapshot_download
from PIL import Image


HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
PICKLES = ["*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl"]  # never downloaded


class SlicePipeline(DiffusionPipeline):
    """Base of the pipelines that draw grey slices.

    A subclass declares its components as `COMPONENTS`, the paths of their classes by name of the constructor's
    argument; it does not import them, since each travels in a file of its own. It draws images from a list of
    generators, one for each image: then an image does not depend on the batch it is drawn in.
    """

    COMPONENTS: dict[str, str] = {}

    def register_modules(self, **components: Any) -> None:
        """As `DiffusionPipeline.register_modules`, which every constructor calls, and a check of what was given."""
        super().register_modules(**components)
        self.check_components()

    def check_components(self) -> None:
        """Asked when a pipeline is made, so whenever one is loaded, and when it is saved.

        Raises:
            ValueError: a weight is not finite, or the components do not belong together.
        """
        for name, component in self.components.items():
            if isinstance(component, torch.nn.Module):
                check_finite(component, name)

    @staticmethod
    def how_many(num_images: int | None, batch_size: int | None, chunk_size: int) -> int:
        """The number of images a call asks for, by either name; one where it says nothing.

        Raises:
            ValueError: the two differ, or a number is not positive.
        """
        asked = [count for count in (num_images, batch_size) if count is not None] or [1]
        for count in asked:
            check_count("num_images", count)
        check_count("chunk_size", chunk_size)
        if len(set(asked)) > 1:
            raise ValueError(
                f"batch_size {batch_size} is another word for num_images, which is {num_images}; chunk_size is how "
                "many images are worked on at a time"
            )
        return asked[0]

    @staticmethod
    def image_generators(
        num_images: int, generator: torch.Generator | list[torch.Generator] | None
    ) -> list[torch.Generator]:
        """One generator for each image: as given, or seeded by draws from a single one.

        Raises:
            ValueError: a list of another length.
        """
        if isinstance(generator, list):
            if len(generator) != num_images:
                raise ValueError(f"{num_images} images need as many generators, not {len(generator)}")
            return generator
        device = generator.device if generator is not None else "cpu"
        seeds = torch.randint(2**63 - 1, (num_images,), generator=generator, device=device)
        return [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    @staticmethod
    def to_output(images: torch.Tensor, output_type: str, return_dict: bool) -> ImagePipelineOutput | tuple:
        """(N, 1, H, W) in [-1, 1] as PIL images of mode L, or as `np` (N, H, W, 1) or `pt` (N, 1, H, W) in [0, 1].

        Raises:
            ValueError: an unknown `output_type`.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type is pil, np or pt, not {output_type}")
        images = (images.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            output: Any = images
        else:
            output = images.permute(0, 2, 3, 1).cpu().numpy()
            if output_type == "pil":
                output = [Image.fromarray(pixels) for pixels in (output[..., 0] * 255).round().astype(np.uint8)]
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        torch_dtype: torch.dtype = torch.float32,
        variant: str | None = None,
        use_safetensors: bool = True,
        **kwargs,
    ) -> "SlicePipeline":
        """Load from a folder or a Hub repository with the classes of the installed package.

        The code that travels in the repository is not run, hence no trust flag is needed; and no pickle is read.

        Args:
            torch_dtype: of the networks' weights; `dtype`, its newer name, is understood too.
            variant: of the weights' files, such as `fp16`, for every network that was saved as one.
            use_safetensors: only True.
            kwargs: components to be used instead of the stored ones, by name; and `revision`, `token`, `cache_dir`,
                `local_files_only` and `force_download`, where a repository is downloaded.

        Raises:
            ValueError: a component cannot be read, is incomplete or not finite, or does not belong to the others;
                `use_safetensors` is False, or no network has the `variant`.
            TypeError: another keyword.
        """
        torch_dtype = kwargs.pop("dtype", torch_dtype)
        given = {name: kwargs.pop(name) for name in cls.COMPONENTS if name in kwargs}
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        if kwargs:
            raise TypeError(f"{cls.__name__}.from_pretrained takes no {', '.join(kwargs)}")
        if not use_safetensors:
            raise ValueError("weights are read from safetensors alone; leave out use_safetensors=False")
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), ignore_patterns=PICKLES, **hub))
        has_variant = {name for name in cls.COMPONENTS if any((folder / name).glob(f"*.{variant}*.safetensors"))}
        if variant is not None and not has_variant:
            raise ValueError(f"{pretrained_model_name_or_path} holds no weights of the variant {variant}")
        components = {}
        for name, path in cls.COMPONENTS.items():
            if name in given:
                components[name] = given[name]
                continue
            component, options = component_class(path), {}
            if issubclass(component, torch.nn.Module):
                options = {"torch_dtype": torch_dtype, "variant": variant if name in has_variant else None}
            components[name] = load_component(component, folder / name, **options)
        pipeline = cls(**components)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> "SlicePipeline":
        """A pipeline of this class around the components of another, which stay where and as they are.

        Args:
            kwargs: components to be used instead of the other's, by name.

        Raises:
            ValueError: a component is missing, or a keyword is the name of none.
        """
        components = {name: part for name, part in pipeline.components.items() if name in cls.COMPONENTS} | kwargs
        if components.keys() != cls.COMPONENTS.keys():
            raise ValueError(f"a {cls.__name__} is made of {', '.join(cls.COMPONENTS)}, not {', '.join(components)}")
        made = cls(**components)
        if "_name_or_path" in pipeline.config:
            made.register_to_config(_name_or_path=pipeline.config["_name_or_path"])
        return made

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        private: bool = True,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> None:
        """As `DiffusionPipeline.save_pretrained`, with the source code of whatever is not part of a library.

        The folder then loads through `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` where this
        package is not installed. It keeps its code when a pipeline loaded that way is saved again; and its card,
        record, samples and evaluation, as long as its weights are still those they were written for.

        Args:
            safe_serialization: only True.
            variant: part of the names of the weights' files, such as `fp16`.
            push_to_hub: upload the folder too, in one commit and without any picture of a scan, as the repository
                `repo_id` (by default the folder's name), which is made `private` when it does not exist.

        Raises:
            ValueError: a weight is not finite; `safe_serialization` is False; the prior refuses (see
                `BlurryPrior.save_pretrained`); or, with `push_to_hub`, the pipeline must not leave (see
                `saving.upload`).
        """
        if not safe_serialization:
            raise ValueError("weights are saved as safetensors alone; leave out safe_serialization=False")
        self.check_components()
        super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size)
        folder = Path(save_directory)
        index = json.loads((folder / "model_index.json").read_text())
        index["_class_name"] = export_code(type(self), folder)
        index.pop("_module", None)
        for name in self.COMPONENTS:
            component = type(getattr(self, name))
            if component.__module__.split(".")[0] not in ("diffusers", "transformers"):
                index[name] = export_code(component, folder / name)
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        for config in folder.rglob("*.json"):  # where a pipeline was loaded from is nobody's business
            content = json.loads(config.read_text())
            if content.pop("_name_or_path", None) is not None:
                config.write_text(json.dumps(content, indent=2) + "\n")
        if "_name_or_path" in self.config:
            carry_over(self.config["_name_or_path"], folder)
        if push_to_hub:
            upload(folder, self.COMPONENTS, repo_id or folder.name, private, token, commit_message)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str = "Upload pipeline",
        private: bool = True,
        token: str | None = None,
        **kwargs,
    ) -> None:
        """Save and upload in one commit. `publish.py` does the same with a new card and after all checks.

        Args:
            private: visibility of a new repository.
            kwargs: of `save_pretrained`.
        """
        hub = {"repo_id": repo_id, "commit_message": commit_message, "private": private, "token": token}
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, push_to_hub=True, **hub, **kwargs)


def component_class(path: str) -> type:
    """The class that an entry of `COMPONENTS` names."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def check_count(name: str, value: int) -> None:
    """
    Raises:
        ValueError: an argument, called `name`, is no positive whole number.
    """
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")


"""What the pipelines over VQGAN codes share: from pixels to codes and back."""

from dataclasses import dataclass

import torch
from diffusers import ImagePipelineOutput



@dataclass
class ConditionalOutput(ImagePipelineOutput):
    """`images`, and by name what each of them was asked to be: `covariates`, None where nothing was asked for."""

    covariates: dict[str, list] | None = None


class TokenPipeline(SlicePipeline):
    """Base of the pipelines with a `vqvae`."""

    def encode_images(self, images: torch.Tensor) -> torch.LongTensor:
        """(B, 1, H, W) in [-1, 1] -> (B, h, w) code indices."""
        return encode_images(self.vqvae, images.to(self._execution_device, self.vqvae.dtype))

    def decode_codes(self, code_indices: torch.LongTensor) -> torch.Tensor:
        """(B, h, w) code indices -> (B, 1, H, W), about [-1, 1]."""
        return decode_codes(self.vqvae, code_indices, self._execution_device)

    def callback_inputs(self, names: list[str] | None) -> list[str]:
        """The tensors that a callback asked for, by default all there are.

        Raises:
            ValueError: one does not exist.
        """
        unknown = sorted(set(names or []) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(f"a callback is given {', '.join(self._callback_tensor_inputs)}, not {', '.join(unknown)}")
        return self._callback_tensor_inputs if names is None else names

    def finish(
        self,
        code_indices: torch.LongTensor,
        chunk_size: int,
        output_type: str,
        return_dict: bool,
        covariates: dict[str, list] | None = None,
    ) -> ConditionalOutput | tuple:
        """Decode drawn codes (N, h, w), `chunk_size` images at a time, into the asked output; `latent`: the codes."""
        if output_type == "latent":
            images = code_indices
        else:
            decoded = torch.cat([self.decode_codes(codes).cpu() for codes in code_indices.split(chunk_size)])
            (images,) = self.to_output(decoded, output_type, return_dict=False)
        self.maybe_free_model_hooks()
        return ConditionalOutput(images=images, covariates=covariates) if return_dict else (images,)


"""Discrete VQ-IHDM as a diffusers pipeline."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import ImagePipelineOutput, ModelMixin, SchedulerMixin, VQModel
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel



class VQIHDMPipeline(TokenPipeline):
    """Draws slices: u_T from the blurry prior, codes by the denoiser, pixels by the VQGAN's decoder.

    Args:
        vqvae ([`~diffusers.VQModel`]): the tokenizer of stage 1.
        denoiser ([`VQIHDMDenoiser`]): p(z_0 | u_T, revealed codes).
        prior ([`BlurryPrior`]): where u_T comes from.
        scheduler ([`HeatDissipationScheduler`]): draws and reveals codes.

    Raises:
        ValueError: they do not belong together: of another codebook or grid, or the prior was fitted at another sigma
            than the scheduler's `sigma_max`.
    """

    COMPONENTS = {
        "vqvae": "diffusers.VQModel",
        "denoiser": "vq_ihdm.denoiser.VQIHDMDenoiser",
        "prior": "vq_ihdm.prior.BlurryPrior",
        "scheduler": "vq_ihdm.scheduling_heat_dissipation.HeatDissipationScheduler",
    }
    model_cpu_offload_seq = "denoiser->vqvae"
    _exclude_from_cpu_offload = ["prior"]  # it has buffers, but no parameter by which `accelerate` finds its device
    _callback_tensor_inputs = ["sample", "code_indices"]

    def __init__(
        self,
        vqvae: VQModel,
        denoiser: PreTrainedModel,
        prior: ModelMixin,
        scheduler: SchedulerMixin,
    ):
        super().__init__()
        self.register_modules(vqvae=vqvae, denoiser=denoiser, prior=prior, scheduler=scheduler)

    def check_components(self) -> None:
        super().check_components()
        vqvae, denoiser, prior = self.vqvae.config, self.denoiser.config, self.prior.config
        check_equal("sigma_T", prior=prior.sigma, scheduler=self.scheduler.config.sigma_max)
        check_equal("number of codes", vqvae=vqvae.num_vq_embeddings, denoiser=denoiser.num_codes)
        shapes = {name: (c.code_dim, c.height, c.width) for name, c in (("denoiser", denoiser), ("prior", prior))}
        check_equal("shape of u_T", **shapes)
        if self.prior.known_covariates:  # a slice has none
            # As text: of what the Hub has, each component brings its own code.
            vocabularies = {"denoiser": self.denoiser.known_covariates, "prior": self.prior.known_covariates}
            check_equal("covariates", **{name: str(known) for name, known in vocabularies.items()})

    def embed_codes(self, code_indices: torch.LongTensor) -> torch.Tensor:
        """(B, h, w) code indices -> (B, D, h, w) standardised embeddings e_0."""
        return self.denoiser.embed_codes(code_indices)

    def prepare_latents(self, generators: list[torch.Generator], blurred: torch.Tensor | None = None) -> torch.Tensor:
        """Draw u_T = blur(e_0, sigma_T) + delta * noise, (N, D, h, w): where sampling starts.

        Args:
            generators: one for each image.
            blurred: (N, D, h, w) the blurred embeddings without their noise; from the prior unless given.
        """
        if blurred is None:
            blurred = self.prior.sample(len(generators), generators)
        noise = randn_tensor(blurred.shape, generators, blurred.device)
        return blurred + self.scheduler.config.delta * noise.to(blurred.dtype)

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        num_inference_steps: int = 1,
        temperature: float | None = None,
        top_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        sample: torch.Tensor | None = None,
        covariates: Mapping[str, Any] | None = None,
        guidance_scale: float = 1.0,
        batch_size: int | None = None,
        chunk_size: int = 32,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw `num_images` slices.

        Args:
            num_images, batch_size: how many, by either name; 1 unless given.
            num_inference_steps: network evaluations an image; 1 draws all codes at once.
            temperature, top_p: of the draw of codes; by default what the scheduler's config says. Temperature 0 takes
                the most likely code.
            generator: one, from which a seed is drawn for each image, or a list with one for each image. The same
                seed gives the same images whatever `chunk_size`.
            sample: (num_images, D, h, w) u_T, noise included, to start from instead of `prepare_latents`.
            covariates: what the images are to be, any subset of what the model knows: a value for all images or a list
                with one for each, as in `{"age": 75, "sex": "F"}`. The prior draws the others together with u_T, as in
                the training set.
            guidance_scale: how far the denoiser's logits move from those without covariates to those with them
                (classifier-free guidance); 1, as trained, needs no second evaluation.
            chunk_size: images that are worked on at a time: fewer take less memory.
            output_type: `pil` (mode L), `np` (N, H, W, 1) or `pt` (N, 1, H, W) in [0, 1], or `latent`: code indices
                (N, h, w).
            callback_on_step_end: called as f(pipe, step, timestep, tensors) after each step of each batch; what it
                returns replaces the tensors.
            callback_on_step_end_tensor_inputs: which of `sample` and `code_indices` it is given; both by default.

        Returns:
            `ConditionalOutput` with `images` and their `covariates`, or a tuple of the images alone.

        Raises:
            ValueError: covariates that the model does not know, or outside of what it was trained on.
        """
        num_images = self.how_many(num_images, batch_size, chunk_size)
        generators = self.image_generators(num_images, generator)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        callback_inputs = self.callback_inputs(callback_on_step_end_tensor_inputs)
        starts = range(0, num_images, chunk_size)
        known_covariates = self.denoiser.known_covariates
        table = encode_covariates(known_covariates, covariates, num_images, self._execution_device)
        parts = []
        with self.progress_bar(total=len(starts) * num_inference_steps) as progress:
            for start in starts:
                batch = slice(start, start + chunk_size)
                parts.append(
                    self._draw_codes(
                        generators[batch],
                        sample[batch] if sample is not None else None,
                        table[batch],
                        guidance_scale,
                        temperature,
                        top_p,
                        progress,
                        callback_on_step_end,
                        callback_inputs,
                    )
                )
        code_indices, table = (torch.cat(part) for part in zip(*parts, strict=True))
        told = decode_covariates(known_covariates, table)
        return self.finish(code_indices, chunk_size, output_type, return_dict, told or None)

    def _draw_codes(
        self, generators, sample, covariates, guidance_scale, temperature, top_p, progress, callback, callback_inputs
    ):
        """Codes (B, h, w) of one batch, and its completed table of covariates."""
        device = self._execution_device
        num_images, config = len(generators), self.denoiser.config
        if sample is None:
            blurred, covariates = self.prior.draw(covariates, generators)
            sample = self.prepare_latents(generators, blurred)
            covariates = covariates.to(device)
        sample = sample.to(device, self.denoiser.dtype)
        sigma = torch.full((num_images,), self.prior.sigma, device=device)
        is_open = self.scheduler.open_index
        code_indices = torch.full((num_images, config.height, config.width), is_open, device=device)
        for i, timestep in enumerate(self.scheduler.timesteps):
            known = code_indices != is_open
            logits = self.denoiser(sample, sigma, known=known, covariates=covariates).logits
            if guidance_scale != 1:
                unconditional = self.denoiser(sample, sigma, known=known).logits
                logits = unconditional + guidance_scale * (logits - unconditional)
            sample, code_indices, _ = self.scheduler.step(
                logits,
                timestep,
                sample,
                code_indices,
                self.denoiser.code_embeddings,
                temperature=temperature,
                top_p=top_p,
                generator=generators,
                return_dict=False,
            )
            if callback is not None:
                tensors = {"sample": sample, "code_indices": code_indices}
                replaced = callback(self, i, timestep, {name: tensors[name] for name in callback_inputs})
                sample = replaced.get("sample", sample)
                code_indices = replaced.get("code_indices", code_indices)
            progress.update()
        return code_indices, covariates
