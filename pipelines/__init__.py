"""The systems as diffusers pipelines, one a file."""

import os
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError

from ..errors import InputError
from ..files import read_json
from .installed_pipeline import HUB_ARGUMENTS
from .pipeline_absorbing_diffusion import AbsorbingDiffusionPipeline
from .pipeline_gan import GANPipeline
from .pipeline_latent_diffusion import LatentDiffusionPipeline
from .pipeline_pixel_ihdm import PixelIHDMPipeline
from .pipeline_vq_ihdm import VQIHDMPipeline
from .slice_pipeline import SlicePipeline

PIPELINES: dict[str, type[SlicePipeline]] = {
    cls.__name__: cls
    for cls in (VQIHDMPipeline, AbsorbingDiffusionPipeline, LatentDiffusionPipeline, PixelIHDMPipeline, GANPipeline)
}


def load_pipeline(path: str | os.PathLike, **kwargs) -> SlicePipeline:
    """Load whichever of our pipelines a folder or Hub repository holds; keywords as for `from_pretrained`.

    Raises:
        InputError: there is no such folder or repository, it holds none of our pipelines, or one that is damaged, or it
            was not downloaded whole.
    """
    index = Path(path) / "model_index.json"
    try:
        if not Path(path).is_dir():
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            index = Path(hf_hub_download(str(path), "model_index.json", **hub))
    except (OSError, ValueError) as error:  # no such repository, no network, or no possible name of one
        raise InputError(f"{path} is no folder and no repository ({str(error).splitlines()[0]})") from error
    if not index.is_file():
        raise InputError(f"{path} holds no pipeline: it has no model_index.json")
    name = read_json(index).get("_class_name")
    name = name[-1] if isinstance(name, list) and name else name  # [module, class] where code travels along
    if not isinstance(name, str):
        raise InputError(f"{index} names no class of a pipeline; save the pipeline again")
    if name not in PIPELINES:
        raise InputError(f"{path} holds a {name}, which is none of {', '.join(PIPELINES)}")
    try:
        return PIPELINES[name].from_pretrained(path, **kwargs)
    except ValueError as error:
        raise InputError(f"{path} cannot be loaded as a {name}: {error}") from error
    except (OSError, HTTPError) as error:  # a network that fails midway, a full disk
        raise InputError(f"{path} was not downloaded whole ({str(error).splitlines()[0]}); try again") from error


__all__ = [
    "PIPELINES",
    "AbsorbingDiffusionPipeline",
    "GANPipeline",
    "LatentDiffusionPipeline",
    "PixelIHDMPipeline",
    "SlicePipeline",
    "VQIHDMPipeline",
    "load_pipeline",
]
