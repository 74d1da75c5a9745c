"""Discrete VQ-IHDM: one-step synthesis of 2-D brain MRI by inverse heat dissipation over VQGAN codes."""

from ._version import __version__

__all__ = ["__version__"]
