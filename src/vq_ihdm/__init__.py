"""Discrete VQ-IHDM: one-step synthesis of 2-D brain MRI by inverse heat dissipation over VQGAN codes."""

from ._version import __version__
from .denoiser import VQIHDMDenoiser, VQIHDMDenoiserConfig
from .pipelines import AbsorbingDiffusionPipeline, GANPipeline, IHDMPipeline, VQIHDMPipeline, load_pipeline
from .prior import BlurryPrior
from .scheduling_heat_dissipation import HeatDissipationScheduler

__all__ = [
    "AbsorbingDiffusionPipeline",
    "BlurryPrior",
    "GANPipeline",
    "HeatDissipationScheduler",
    "IHDMPipeline",
    "VQIHDMDenoiser",
    "VQIHDMDenoiserConfig",
    "VQIHDMPipeline",
    "__version__",
    "load_pipeline",
]
