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

from ..weights import check_finite, load_component
from .saving import carry_over, export_code, upload

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
