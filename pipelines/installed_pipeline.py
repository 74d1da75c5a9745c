"""What a pipeline does more where the package is installed: of this module nothing travels with the weights."""

import os
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from ..files import read_json
from ..weights import load_component
from .saving import carry_over, upload
from .standalone_pipeline import StandalonePipeline
from .travelling_code import export_code

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
PICKLES = ["*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl"]  # never downloaded


class InstalledPipeline(StandalonePipeline):
    """Loads without running the code that travels, keeps card and records of the same weights, publishes after checks.

    In exported code `StandalonePipeline` takes its place (see `travelling_code.py`).
    """

    loaded_from: Path | None = None  # the folder, for what lies in it beside the weights

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        torch_dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        variant: str | None = None,
        use_safetensors: bool = True,
        **kwargs,
    ) -> "InstalledPipeline":
        """Load from a folder or a Hub repository with the classes of the installed package.

        The code that travels in the repository is not run, hence no trust flag is needed; and no pickle is read.

        Args:
            torch_dtype: of the networks' weights, by default float32; or a type for each component by name, and as
                `default` that of all others. `dtype`, its newer name, is understood too.
            variant: of the weights' files, such as `fp16`, for every network that was saved as one.
            use_safetensors: only True.
            kwargs: components to be used instead of the stored ones, by name; `revision`, `token`, `cache_dir`,
                `local_files_only` and `force_download`, where a repository is downloaded; and `trust_remote_code`,
                which changes nothing.

        Raises:
            ValueError: there is no such folder or repository, or it holds no pipeline; a component cannot be read, is
                incomplete or not finite, or does not belong to the others; `use_safetensors` is False, `torch_dtype`
                names no type or no component, or no network has the `variant`.
            TypeError: another keyword.
        """
        dtypes = cls.dtypes_by_name(kwargs.pop("dtype", torch_dtype))
        given = {name: kwargs.pop(name) for name in cls.COMPONENTS if name in kwargs}
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        kwargs.pop("trust_remote_code", None)
        if kwargs:
            raise TypeError(f"{cls.__name__}.from_pretrained takes no {', '.join(kwargs)}")
        if not use_safetensors:
            raise ValueError("weights are read from safetensors alone; leave out use_safetensors=False")
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            try:
                folder = Path(snapshot_download(str(pretrained_model_name_or_path), ignore_patterns=PICKLES, **hub))
            except (HFValidationError, RepositoryNotFoundError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"{pretrained_model_name_or_path} is no folder and no repository ({reason})"
                ) from error
        folder = folder.resolve()  # a component that is missing must not be looked for on the Hub by a relative path
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{pretrained_model_name_or_path} holds no pipeline: it has no model_index.json")
        has_variant = {name for name in cls.COMPONENTS if any((folder / name).glob(f"*.{variant}*.safetensors"))}
        if variant is not None and not has_variant:
            raise ValueError(f"{pretrained_model_name_or_path} holds no weights of the variant {variant}")
        components, saved = {}, read_json(folder / "model_index.json")
        for name, path in cls.COMPONENTS.items():
            if name in given:
                components[name] = given[name]
                continue
            component, options = component_class(path), {}
            library, class_name = saved.get(name) or (None, None)
            if library == "diffusers" and issubclass(component, SchedulerMixin):  # another solver than the usual one
                component = getattr(diffusers, class_name, component)
            if issubclass(component, torch.nn.Module):
                options = {"torch_dtype": dtypes[name], "variant": variant if name in has_variant else None}
            components[name] = load_component(component, folder / name, **options)
        pipeline = cls(**components)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        pipeline.loaded_from = folder
        return pipeline

    @classmethod
    def dtypes_by_name(cls, torch_dtype: torch.dtype | dict[str, torch.dtype] | None) -> dict[str, torch.dtype]:
        """The type of each component's weights, as `from_pretrained` is told it.

        Raises:
            ValueError: it is told none, or one for a component that there is not.
        """
        given = torch_dtype if isinstance(torch_dtype, dict) else {"default": torch_dtype or torch.float32}
        for name, dtype in given.items():
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"torch_dtype takes types such as torch.float16, not {dtype!r}")
            if name not in (*cls.COMPONENTS, "default"):
                raise ValueError(f"torch_dtype names {name}, which is none of {', '.join(cls.COMPONENTS)}")
        return {name: given.get(name, given.get("default", torch.float32)) for name in cls.COMPONENTS}

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> "InstalledPipeline":
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
        made.loaded_from = getattr(pipeline, "loaded_from", None)
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
        commit_message: str = "Upload pipeline",
    ) -> None:
        """As `DiffusionPipeline.save_pretrained`, with the source code of whatever is not part of a library.

        The folder then loads through `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` where this
        package is not installed. Of a pipeline that was loaded, card, record, samples and evaluation follow, as long as
        its weights are still those they were written for.

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
        if self.loaded_from is not None:
            carry_over(self.loaded_from, folder)
        if push_to_hub:
            upload(folder, repo_id or folder.name, private, token, commit_message)

    def save_code(self, cls: type, folder: Path) -> list[str]:
        """Write the module of `cls`, with all it imports relatively, into `folder`; its entry for model_index.json."""
        return export_code(cls, folder)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str = "Upload pipeline",
        private: bool = True,
        token: str | None = None,
        **kwargs,
    ) -> str:
        """Save and upload in one commit, after the checks of publish.py, where alone they can be overruled.

        Returns:
            the commit's address.

        Args:
            private: visibility of a new repository.
            kwargs: of `save_pretrained`.

        Raises:
            ValueError: as `save_pretrained` with `push_to_hub`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            return upload(Path(folder), repo_id, private, token, commit_message, name="this pipeline")


def component_class(path: str) -> type:
    """The class that an entry of `COMPONENTS` names."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
