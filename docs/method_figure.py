"""Draw docs/method.png: the forward process on a slice and one sampling step, with the shipped checkpoint.

    python docs/method_figure.py

The slice is itself a generated one, so the picture shows nobody's brain.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from vq_ihdm import VQIHDMPipeline
from vq_ihdm.heat import blur


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="checkpoints/vq-ihdm-oasis")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("method.png"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    pipe = VQIHDMPipeline.from_pretrained(args.pipeline)
    pipe.set_progress_bar_config(disable=True)

    image = pipe(1, generator=torch.Generator().manual_seed(args.seed), output_type="pt").images
    code_indices = pipe.encode_images(image * 2 - 1)
    sharp = pipe.embed_codes(code_indices)
    sigma_T = pipe.prior.sigma
    sigmas = [s for s in (0.5, 1.0, 2.0) if s < sigma_T]
    final = pipe.prepare_latents([torch.Generator().manual_seed(args.seed)], blur(sharp, sigma_T))
    forward = [("slice x", image[0, 0] * 2 - 1), ("codes z_0", code_indices[0]), ("embeddings e_0", sharp)]
    forward += [(f"blurred, sigma {sigma:g}", blur(sharp, sigma)) for sigma in sigmas]
    forward += [(f"u_T, sigma {sigma_T:g} + noise", final)]

    generator = torch.Generator().manual_seed(args.seed + 1)
    draw = pipe.prepare_latents([generator])
    drawn = pipe(1, sample=draw, generator=[generator], output_type="latent").images
    sampling = [
        ("u_T: prior + noise", draw),
        ("codes, one evaluation", drawn[0]),
        ("decoded", pipe.decode_codes(drawn)[0, 0]),
    ]

    columns = len(forward)
    figure = Figure(figsize=(1.9 * columns, 4.4), layout="constrained")
    axes = figure.subplots(2, columns)
    order = list(axes[0]) + list(axes[1][::-1])
    for panel, (title, content) in zip(order, forward + sampling, strict=False):
        if content.ndim == 4:  # three of the D dimensions as colours, on one scale for all panels
            panel.imshow((content[0, :3].permute(1, 2, 0) / 5 + 0.5).clamp(0, 1))
        elif content.dtype == torch.long:
            panel.imshow(content, cmap="viridis", vmin=0, vmax=pipe.denoiser.config.num_codes - 1)
        else:
            panel.imshow(content, cmap="gray", vmin=-1, vmax=1)
        panel.set_title(title, fontsize=10)
    for panel in axes.flat:
        panel.axis("off")
    axes[0, 0].text(-0.08, 0.5, "forward  →", transform=axes[0, 0].transAxes, rotation=90, va="center", ha="right")
    axes[1, -1].text(1.08, 0.5, "←  sampling", transform=axes[1, -1].transAxes, rotation=270, va="center", ha="left")
    figure.savefig(args.output, dpi=110)


if __name__ == "__main__":
    main()
