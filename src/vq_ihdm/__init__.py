"""Discrete VQ-IHDM: one-step synthesis of 2-D brain MRI by inverse heat dissipation over VQGAN codes."""

from transformers import AutoConfig, AutoModel

from ._version import __version__
from .denoiser import VQIHDMDenoiser, VQIHDMDenoiserConfig
from .pipelines import (
    AbsorbingDiffusionPipeline,
    GANPipeline,
    LatentDiffusionPipeline,
    PixelIHDMPipeline,
    VQIHDMPipeline,
    load_pipeline,
)
from .prior import BlurryPrior
from .scheduling_heat_dissipation import HeatDissipationScheduler

# `transformers.AutoModel.from_pretrained(repo, subfolder="denoiser")` then finds the class.
AutoConfig.register(VQIHDMDenoiserConfig.model_type, VQIHDMDenoiserConfig)
AutoModel.register(VQIHDMDenoiserConfig, VQIHDMDenoiser)

__all__ = [
    "AbsorbingDiffusionPipeline",
    "BlurryPrior",
    "GANPipeline",
    "HeatDissipationScheduler",
    "LatentDiffusionPipeline",
    "PixelIHDMPipeline",
    "VQIHDMDenoiser",
    "VQIHDMDenoiserConfig",
    "VQIHDMPipeline",
    "__version__",
    "load_pipeline",
]
