"""What larger slices cost in codes, arithmetic and memory: the table of docs/resolution.md.

    python benchmarks/cost_of_resolution.py

Nothing is computed: operations and the tensors kept for the backward pass are counted on tensors without content. The
losses of stage 1 (LPIPS, discriminator) are left out: windows keep their cost the same at every size.
"""

import argparse
import runpy
from collections.abc import Callable

import torch
from common import ROOT, preset_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vq_ihdm import VQIHDMDenoiser, VQIHDMDenoiserConfig
from vq_ihdm.arguments import HelpFormatter
from vq_ihdm.errors import run
from vq_ihdm.evaluation.report import table
from vq_ihdm.training.config import parse_args
from vq_ihdm.vqgan.model import create_vq_model, downsampling_factor

SIZES = (176, 256, 352)
BYTES_A_PARAMETER = 4 * 5  # float32: weight, gradient, Adam's two moments, moving average
HEADINGS = [
    "preset",
    "size",
    "codes",
    "sampling (GFLOP)",
    "stage 1, step (GFLOP)",
    "stage 1, memory (GB)",
    "stage 2, step (GFLOP)",
    "stage 2, memory (GB)",
]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--config", nargs="+", default=["oasis", "paper"])
    return parser


def main() -> None:
    rows = [row(preset, size) for preset in build_parser().parse_args().config for size in SIZES]
    print("\n".join(table(HEADINGS, rows)))


def row(preset: str, size: int) -> list[str]:
    """Costs an image; memory is that of the parameters in training and of one image's activations."""
    stage_1, stage_2 = preset_flags(preset, "vqgan"), preset_flags(preset, "ihdm", "--vqvae", "unused")
    with torch.device("meta"):
        vq_model = create_vq_model(
            size,
            stage_1.block_out_channels,
            stage_1.layers_per_block,
            stage_1.latent_channels,
            stage_1.vq_embed_dim,
            stage_1.num_vq_embeddings,
            stage_1.norm_num_groups,
        )
        grid = size // downsampling_factor(vq_model)
        denoiser = VQIHDMDenoiser(
            VQIHDMDenoiserConfig(
                num_codes=stage_1.num_vq_embeddings,
                code_dim=stage_1.vq_embed_dim,
                height=grid,
                width=grid,
                hidden_size=stage_2.hidden_size,
                num_hidden_layers=stage_2.num_hidden_layers,
                num_attention_heads=stage_2.num_attention_heads,
                neighbourhood_size=stage_2.neighbourhood_size,
            )
        )
        image, state = torch.empty(1, 1, size, size), torch.empty(1, stage_1.vq_embed_dim, grid, grid)
        sigma = torch.ones(1)

        @torch.no_grad()
        def sample() -> None:
            denoiser(state, sigma)
            vq_model.decode(state, force_not_quantize=True)

        cells = [preset, f"{size}x{size}", f"{grid}x{grid} = {grid**2}", f"{gigaflops(sample):.3g}"]
        for network, loss in (
            (vq_model, lambda: vq_model(image).sample.sum()),
            (denoiser, lambda: denoiser(state, sigma).logits.sum()),
        ):
            parameters = sum(parameter.numel() for parameter in network.parameters()) * BYTES_A_PARAMETER
            step = gigaflops(lambda loss=loss: loss().backward())
            cells += [f"{step:.3g}", f"{parameters / 1e9:.3g} + {kept_for_backward(network, loss) / 1e9:.3g} an image"]
    return cells


def preset_flags(preset: str, section: str, *flags: str) -> argparse.Namespace:
    script = runpy.run_path(str(ROOT / f"train_{section}.py"))
    return parse_args(
        script["build_parser"](), section, ["--config", preset_file(preset), "--output_dir", "unused", *flags]
    )


def gigaflops(compute: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() / 1e9


def kept_for_backward(network: nn.Module, loss: Callable[[], torch.Tensor]) -> int:
    """Bytes of the tensors that a forward pass leaves for the backward pass, parameters not counted."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss()
    return sum(storage.nbytes() for storage in kept.values())


if __name__ == "__main__":
    run(main)
