"""What the pipelines of all systems share: the call's conventions, and a folder that loads anywhere."""

import ast
import filecmp
import inspect
import json
import os
import shutil
import sys
from importlib.util import resolve_name
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from huggingface_hub import HfApi, snapshot_download
from PIL import Image

from ..weights import check_finite, load_component

# What a pipeline's folder holds beside what is needed to load it (see `vq_ihdm.hub`).
COMPANIONS = ("README.md", "training.json", "notes.md", "*.png", "audit_index.safetensors", "evaluation/*")
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
PICKLES = ["*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl"]  # never downloaded


class SlicePipeline(DiffusionPipeline):
    """Base of the pipelines that draw grey slices.

    A subclass declares its components as `COMPONENTS`, by name of the constructor's argument, and draws images from a
    list of generators, one for each image: then an image does not depend on the batch it is drawn in.
    """

    COMPONENTS: dict[str, type] = {}

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple]:
        # diffusers warns of components that are not of the annotated type. Loaded by the code beside the weights they
        # never are: each comes from a file of its own, and the annotation from the pipeline's.
        return dict.fromkeys(cls.COMPONENTS, (inspect.Signature.empty,))

    def register_modules(self, **components: Any) -> None:
        """As `DiffusionPipeline.register_modules`, which every constructor calls, and a check of what was given."""
        super().register_modules(**components)
        self.check_components()

    def check_components(self) -> None:
        """Asked when a pipeline is made, so whenever one is loaded, and when it is saved.

        Raises:
            InputError: a weight is not finite, or the components do not belong together.
        """
        for name, component in self.components.items():
            if isinstance(component, torch.nn.Module):
                check_finite(component, name)

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
            InputError: a component cannot be read, is incomplete or not finite, or does not belong to the others.
            ValueError: `use_safetensors` is False, or no network has the `variant`.
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
        for name, component in cls.COMPONENTS.items():
            if name in given:
                components[name] = given[name]
                continue
            options = {}
            if issubclass(component, torch.nn.Module):
                options = {"torch_dtype": torch_dtype, "variant": variant if name in has_variant else None}
            components[name] = load_component(component, folder / name, **options)
        pipeline = cls(**components)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """As `DiffusionPipeline.save_pretrained`, with the source code of whatever is not part of a library.

        The folder then loads through `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` where this
        package is not installed. It keeps its code when a pipeline loaded that way is saved again; and its card,
        record, pictures and evaluation, as long as its weights are still those they were written for.

        Args:
            push_to_hub: upload the folder too, in one commit; `repo_id`, `private` (True unless given), `token` and
                `commit_message` say how.
        """
        hub = {name: kwargs.pop(name) for name in ("repo_id", "private", "token", "commit_message") if name in kwargs}
        if not kwargs.get("safe_serialization", True):
            raise ValueError("weights are saved as safetensors alone; leave out safe_serialization=False")
        self.check_components()
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        index = json.loads((folder / "model_index.json").read_text())
        index["_class_name"] = _export_code(type(self), folder)
        index.pop("_module", None)
        for name in self.COMPONENTS:
            component = type(getattr(self, name))
            if component.__module__.split(".")[0] not in ("diffusers", "transformers"):
                index[name] = _export_code(component, folder / name)
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        for config in folder.rglob("*.json"):  # where a pipeline was loaded from is nobody's business
            content = json.loads(config.read_text())
            if content.pop("_name_or_path", None) is not None:
                config.write_text(json.dumps(content, indent=2) + "\n")
        if "_name_or_path" in self.config:
            _carry_over(self.config["_name_or_path"], folder)
        if push_to_hub:
            _upload(folder, **{"repo_id": folder.name} | hub)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str = "Upload pipeline",
        private: bool = True,
        token: str | None = None,
        **kwargs,
    ) -> None:
        """Save and upload in one commit. `publish.py` does the same with a card and after checks.

        Args:
            private: visibility of a new repository.
            kwargs: of `save_pretrained`.
        """
        hub = {"repo_id": repo_id, "commit_message": commit_message, "private": private, "token": token}
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, push_to_hub=True, **hub, **kwargs)


def _export_code(cls: type, folder: Path) -> list[str]:
    """Write the module of `cls`, with all it imports relatively, into `folder`; its entry for model_index.json.

    It becomes one file: of a component diffusers fetches from the Hub the file that model_index.json names, no other.
    """
    sources: dict[str, str] = {}

    def add(module: str) -> None:
        source = Path(sys.modules[module].__file__).read_text()
        lines = source.splitlines(keepends=True)
        for node in ast.parse(source).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                add(resolve_name("." * node.level + node.module, module.rpartition(".")[0]))
                lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
        sources.setdefault(module, "".join(lines))

    add(cls.__module__)
    note = f"# Made by `save_pretrained` from {', '.join(sources)}.\n" if len(sources) > 1 else ""
    module = cls.__module__.rpartition(".")[2]
    (folder / f"{module}.py").write_text(note + "\n\n".join(sources.values()))
    return [module, cls.__name__]


def _carry_over(name_or_path: str, folder: Path) -> None:
    """Copy the companions of a pipeline's weights from where it was loaded, unless the weights have changed."""
    source = Path(name_or_path)
    if not source.is_dir():
        source = Path(snapshot_download(name_or_path, allow_patterns=[*COMPANIONS, "*.safetensors"]))
    weights = [file.relative_to(folder) for file in folder.rglob("*.safetensors")]
    if source.resolve() == folder.resolve() or not all(
        (source / file).is_file() and filecmp.cmp(source / file, folder / file, shallow=False) for file in weights
    ):
        return
    for pattern in COMPANIONS:
        for file in source.glob(pattern):
            target = folder / file.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def _upload(folder: Path, repo_id: str, private: bool = True, token: str | None = None, **commit) -> None:
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    api.upload_folder(repo_id=repo_id, folder_path=folder, **commit)
