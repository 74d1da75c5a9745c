"""A pipeline where the package is not installed: loaded by the code beside its weights, and saved with it again."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..checks import check_finite


class StandalonePipeline(DiffusionPipeline):
    """A `DiffusionPipeline` that checks its components, keeps its code when it is saved, and is published privately.

    A subclass declares its components as `COMPONENTS`, the paths of their classes by name of the constructor's
    argument; it does not import them, since each travels in a file of its own.
    """

    COMPONENTS: dict[str, str] = {}

    def register_modules(self, **components: Any) -> None:
        """As `DiffusionPipeline.register_modules`, which every constructor calls, and a check of what was given."""
        super().register_modules(**components)
        self.check_components()

    def check_components(self) -> None:
        """Asked when a pipeline is made, so whenever one is loaded, and when the package saves it.

        Raises:
            ValueError: a weight is not finite, or the components do not belong together.
        """
        for name, component in self.components.items():
            if isinstance(component, torch.nn.Module):
                check_finite(component, name)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Write `model_index.json`, the last step of saving, and the code of whatever is not part of a library."""
        super().save_config(save_directory, push_to_hub, **kwargs)
        folder = Path(save_directory)
        configs = [file for name in self.COMPONENTS for file in (folder / name).glob("*config.json")]
        for config in [folder / self.config_name, *configs]:  # where it was loaded from is nobody's business
            content = json.loads(config.read_text())
            if content.pop("_name_or_path", None) is not None:
                config.write_text(json.dumps(content, indent=2) + "\n")
        index = json.loads((folder / self.config_name).read_text())
        index.pop("_module", None)
        index["_class_name"] = self.save_code(type(self), folder)
        for name in self.COMPONENTS:
            part = getattr(self, name)
            component = type(getattr(part, "_orig_mod", part))  # as torch.compile wraps it
            if component.__module__.split(".")[0] not in ("diffusers", "transformers"):
                index[name] = self.save_code(component, folder / name)
        (folder / self.config_name).write_text(json.dumps(index, indent=2) + "\n")

    def save_code(self, cls: type, folder: Path) -> list[str]:
        """Write the module of `cls` into `folder`, as it came from there; its entry for model_index.json."""
        module = cls.__module__.rpartition(".")[2]
        (folder / f"{module}.py").write_text(Path(sys.modules[cls.__module__].__file__).read_text())
        return [module, cls.__name__]

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """As `DiffusionPipeline.save_pretrained`; a repository that `push_to_hub` makes is private."""
        if push_to_hub:
            self.refuse_training_images()
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **({"private": True} | kwargs))

    def push_to_hub(self, repo_id: str, private: bool = True, **kwargs) -> str:
        """As `DiffusionPipeline.push_to_hub`; a new repository is private."""
        self.refuse_training_images()
        return super().push_to_hub(repo_id, private=private, **kwargs)

    def refuse_training_images(self) -> None:
        """Raise a ValueError for a prior of training images: nothing here says whether they may be passed on."""
        prior = self.components.get("prior")
        if prior is not None and prior.config.kind != "mixture":
            raise ValueError("the prior is made of blurred training images; only publish.py of vq-ihdm can publish it")
