"""Stage 2: train the denoiser on code indices, fit the blurry prior, and write a complete pipeline.

    accelerate launch train_ihdm.py --config oasis --dataset_name data/oasis --vqvae runs/vqgan/best \\
        --output_dir runs/ihdm

The loss is the cross-entropy of the true codes at every position given the blurred embeddings,

    L = -log p(z_0 | u_t),  u_t = blur(e_0, sigma_t) + delta * noise.

In half of the examples a random part of the codes is revealed, and only the others count: what sampling in several
steps needs. Under --output_dir the script leaves `checkpoint-<step>/` to resume from, `best/` (the averaged denoiser
with the lowest held-out cross-entropy), `pipeline/` (the `VQIHDMPipeline` around it, with its model card),
`samples.png`, `config.json` and the trackers' `logs/`.
"""

import argparse

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed

from vq_ihdm import HeatDissipationScheduler, VQIHDMDenoiser, VQIHDMDenoiserConfig, VQIHDMPipeline
from vq_ihdm.data.images import load_slices
from vq_ihdm.errors import run
from vq_ihdm.training.config import add_training_arguments, parse_args
from vq_ihdm.training.outcome import save_outcome
from vq_ihdm.training.pictures import sample_sheet
from vq_ihdm.training.prior import add_prior_arguments, check_prior_arguments, make_prior
from vq_ihdm.training.tokens import add_transformer_arguments, draw_views, load_tokens
from vq_ihdm.training.trainer import make_accelerator, train_network


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    add_transformer_arguments(parser)
    add = parser.add_argument
    # the forward process
    add("--num_train_timesteps", type=int, default=200, help="T, number of sigmas")
    add("--sigma_min", type=float, default=0.5, help="in cells of the code grid")
    add("--sigma_max", type=float, default=24.0)
    add("--delta", type=float, default=0.0, help="noise on u_t, in standard deviations of the embeddings")
    add("--train_sigmas", choices=["final", "all"], default="final", help="train at sigma_max alone or at all T")
    add("--reveal_probability", type=float, default=0.5, help="share of examples with some codes revealed")
    # the prior and what sampling does unless told otherwise
    add_prior_arguments(parser)
    add("--temperature", type=float, default=1.0)
    add("--top_p", type=float, default=1.0)
    add("--reveal_order", choices=["random", "confidence", "halton"], default="random")
    parser.set_defaults(max_train_steps=75_000, train_batch_size=20)
    return parser


def main() -> None:
    args = parse_args(build_parser(), "ihdm")
    check_prior_arguments(args)
    accelerator = make_accelerator(args)
    device = accelerator.device
    set_seed(args.seed, device_specific=True)
    splits = load_slices(args.dataset_name, args.train_data_dir)
    vqvae, train_codes, held_out_codes = load_tokens(args, accelerator, splits)

    # ---- denoiser, scheduler, prior ---------------------------------------------------------------------------
    num_codes, code_dim = vqvae.quantize.embedding.weight.shape
    denoiser = VQIHDMDenoiser(
        VQIHDMDenoiserConfig(
            num_codes=num_codes,
            code_dim=code_dim,
            height=train_codes.shape[-2],
            width=train_codes.shape[-1],
            hidden_size=args.hidden_size,
            num_hidden_layers=args.num_hidden_layers,
            num_attention_heads=args.num_attention_heads,
            dropout=args.dropout,
        )
    )
    # Embeddings are standardised with the statistics of the training tokens, not of the codebook: codes that are
    # used often count as often, and delta means the same for every VQGAN.
    codebook = vqvae.quantize.embedding.weight.detach().cpu()
    tokens = codebook[train_codes.flatten()]
    denoiser.code_embeddings.copy_((codebook - tokens.mean(0)) / tokens.std(0).clamp_min(1e-6))
    scheduler = HeatDissipationScheduler(
        num_train_timesteps=args.num_train_timesteps,
        sigma_min=args.sigma_min,
        sigma_max=args.sigma_max,
        delta=args.delta,
        temperature=args.temperature,
        top_p=args.top_p,
        reveal_order=args.reveal_order,
    )
    prior = make_prior(args, accelerator, denoiser.embed_codes(train_codes.flatten(0, 1)))

    # ---- loss -------------------------------------------------------------------------------------------------
    T, num_positions = args.num_train_timesteps, train_codes[0, 0].numel()
    embed_codes = denoiser.to(device).embed_codes  # of the network itself: `accelerate` hands the loss a wrapped one

    def cross_entropy(network: torch.nn.Module, codes: torch.LongTensor, timesteps, reveal: float) -> torch.Tensor:
        """Mean over the open positions of (B, h, w) codes; in a share `reveal` of the examples some are revealed."""
        batch = len(codes)
        sharp = embed_codes(codes)
        sample = scheduler.add_noise(sharp, torch.randn_like(sharp), timesteps)
        # Uniform in the schedule's time, so that every stage of a run of many steps is seen equally often.
        share_open = torch.sin(torch.pi / 2 * torch.rand(batch, device=device))
        share_open = torch.where(torch.rand(batch, device=device) < reveal, share_open, 1.0)
        num_open = (share_open * num_positions).ceil().clamp_min(1)
        rank = torch.rand(batch, num_positions, device=device).argsort(1).argsort(1)
        known = (rank >= num_open[:, None]).view_as(codes)
        sample = torch.where(known[:, None], sharp, sample)
        logits = network(sample, scheduler.sigmas.to(device)[timesteps], known=known).logits
        return F.cross_entropy(logits[~known].float(), codes[~known])

    def loss(network: torch.nn.Module, indices: torch.LongTensor) -> torch.Tensor:
        codes = draw_views(train_codes, indices).to(device)
        first = T if args.train_sigmas == "final" else 1
        timesteps = torch.randint(first, T + 1, (len(codes),), device=device)
        return cross_entropy(network, codes, timesteps, args.reveal_probability)

    # ---- validation -------------------------------------------------------------------------------------------
    @torch.no_grad()
    def validate(averaged: VQIHDMDenoiser):
        """Held-out cross-entropy with no code revealed, the one-step task; and eight samples."""
        with torch.random.fork_rng():
            torch.manual_seed(args.seed)
            total = 0.0
            for codes in held_out_codes.split(64):
                final = torch.full((len(codes),), T, device=device)
                total += cross_entropy(averaged, codes, final, reveal=0).item() * len(codes)
        metrics = {"cross_entropy": total / len(held_out_codes)}
        pipeline = VQIHDMPipeline(vqvae, averaged, prior.to(device), scheduler)
        return metrics, {"samples": sample_sheet(pipeline, args.seed)}

    best_folder, metrics = train_network(args, accelerator, "denoiser", denoiser, len(train_codes), loss, validate)
    if not accelerator.is_main_process:
        return
    best = VQIHDMDenoiser.from_pretrained(best_folder).eval()
    pipeline = VQIHDMPipeline(vqvae, best, prior, scheduler)
    save_outcome(pipeline, args, metrics, splits)


if __name__ == "__main__":
    run(main)
