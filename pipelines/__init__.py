"""The systems as diffusers pipelines, one a file."""

import json
import os
from pathlib import Path

from huggingface_hub import hf_hub_download

from .pipeline_absorbing_diffusion import AbsorbingDiffusionPipeline
from .pipeline_vq_ihdm import VQIHDMPipeline
from .slice_pipeline import SlicePipeline

PIPELINES: dict[str, type[SlicePipeline]] = {cls.__name__: cls for cls in (VQIHDMPipeline, AbsorbingDiffusionPipeline)}


def load_pipeline(path: str | os.PathLike, **kwargs) -> SlicePipeline:
    """Load whichever of our pipelines a folder or Hub repository holds; keywords as for `from_pretrained`.

    Raises:
        ValueError: it holds none of them.
    """
    folder = Path(path)
    index = folder / "model_index.json" if folder.is_dir() else Path(hf_hub_download(str(path), "model_index.json"))
    if not index.is_file():
        raise ValueError(f"{path} holds no pipeline: it has no model_index.json")
    name = json.loads(index.read_text())["_class_name"][1]
    if name not in PIPELINES:
        raise ValueError(f"{path} holds a {name}, which is none of {', '.join(PIPELINES)}")
    return PIPELINES[name].from_pretrained(path, **kwargs)


__all__ = ["PIPELINES", "AbsorbingDiffusionPipeline", "SlicePipeline", "VQIHDMPipeline", "load_pipeline"]
