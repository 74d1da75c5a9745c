"""One-step sampling as two ONNX graphs, for ONNX Runtime without this package.

    prior.onnx      uniform (B,), normal (B, R), noise (B, D, h, w)         ->  u_T (B, D, h, w), covariates (B, C)
    sampler.onnx    u_T (B, D, h, w), uniform (B, h, w), covariates (B, C)  ->  images (B, H, W), uint8

Graphs draw no random numbers of their own: `uniform` is uniform in [0, 1) and of float64, `normal` and `noise` are
standard normal and of float32. The batch size B is free. `covariates`, which a model without them does not have, is
what the prior draws together with u_T, nothing asked for: float32, a column for each entry of `covariates` in the
prior's config, numbers as they are, categories by their index.
"""

import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from .code_indices import decode_batch
from .code_sampling import code_probabilities, draw_codes
from .errors import InputError
from .files import check_replaceable, replacing
from .pipelines import VQIHDMPipeline


class BlurryStart(nn.Module):
    """u_T and covariates as functions of random numbers: a draw from the prior, and the noise delta on u_T."""

    def __init__(self, pipeline: VQIHDMPipeline):
        super().__init__()
        self.prior, self.delta = pipeline.prior, pipeline.scheduler.config.delta

    def forward(self, uniform: torch.Tensor, normal: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
        blurred, covariates = self.prior(uniform, normal)
        u_T = blurred + self.delta * noise
        return (u_T, covariates) if self.prior.known_covariates else (u_T,)


class OneStepSampler(nn.Module):
    """Slices as a function of u_T, covariates and one uniform number a position, from which its code is drawn."""

    def __init__(self, pipeline: VQIHDMPipeline, temperature: float, top_p: float):
        super().__init__()
        self.denoiser, self.vqvae, self.sigma = pipeline.denoiser, pipeline.vqvae, pipeline.prior.sigma
        self.temperature, self.top_p = temperature, top_p

    def forward(self, u_T: torch.Tensor, uniform: torch.Tensor, covariates: torch.Tensor | None = None) -> torch.Tensor:
        logits = self.denoiser(u_T, u_T.new_full(u_T.shape[:1], self.sigma), covariates=covariates).logits
        code_indices = draw_codes(code_probabilities(logits, self.temperature, self.top_p), uniform)
        images = decode_batch(self.vqvae, code_indices, u_T.device)[:, 0]
        return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def export_onnx(
    pipeline: VQIHDMPipeline, folder: str | Path, temperature: float | None = None, top_p: float | None = None
) -> None:
    """Write `prior.onnx` and `sampler.onnx` into `folder`.

    Given the random numbers that the pipeline draws in one step, asked for nothing, the images are the pipeline's but
    for rounding, to one grey level.

    Args:
        pipeline: in float32, on the CPU.
        temperature, top_p: of the draw of codes, part of the graph; by default what the scheduler's config says.

    Raises:
        InputError: the packages that write ONNX are not installed, or `folder` holds something other than an export.
    """
    check_replaceable(folder, "sampler.onnx")
    if find_spec("onnxscript") is None:
        raise InputError("the export needs further packages: pip install -e '.[onnx]'")
    config, prior, two = pipeline.denoiser.config, pipeline.prior, 2  # a batch of one would be taken for a constant
    temperature = pipeline.scheduler.config.temperature if temperature is None else temperature
    top_p = pipeline.scheduler.config.top_p if top_p is None else top_p
    u_T = torch.zeros(two, config.code_dim, config.height, config.width)
    uniform = torch.zeros(two, config.height, config.width, dtype=torch.float64)
    normal = torch.zeros(two, prior.config.factor_rank)
    known = prior.known_covariates
    table = {"covariates": torch.zeros(two, len(known))} if known else {}
    graphs = {
        "prior": (
            BlurryStart(pipeline),
            {"uniform": uniform[:, 0, 0], "normal": normal, "noise": u_T},
            ["u_T", *table],
        ),
        "sampler": (
            OneStepSampler(pipeline, temperature, top_p),
            {"u_T": u_T, "uniform": uniform, **table},
            ["images"],
        ),
    }
    with replacing(folder) as temporary:
        temporary.mkdir()
        for name, (graph, inputs, outputs) in graphs.items():
            with warnings.catch_warnings():  # of an axis named twice
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    graph.eval(),
                    tuple(inputs.values()),
                    temporary / f"{name}.onnx",
                    input_names=list(inputs),
                    output_names=outputs,
                    dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in inputs),
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                )
