"""Train one of the systems the paper compares with.

    accelerate launch train_baseline.py --model absorbing --config oasis --dataset_name data/oasis \\
        --vqvae runs/vqgan/best --output_dir runs/absorbing

`absorbing` is absorbing diffusion over the codes of the same VQGAN (Bond-Taylor et al., 2022). The section of a
preset is called `baseline_<model>`; `--model <model> --help` lists the flags of one model. Under --output_dir the
script leaves what train_ihdm.py leaves: `checkpoint-<step>/`, `best/`, `pipeline/`, `samples.png`, `config.json`,
`metrics.json` and the trackers' `logs/`.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import DatasetDict
from diffusers import DiffusionPipeline

from vq_ihdm import AbsorbingDiffusionPipeline
from vq_ihdm.baselines.absorbing import AbsorbingDenoiser, AbsorbingDenoiserConfig, draw_mask, reweighted_elbo
from vq_ihdm.data.images import load_slices
from vq_ihdm.errors import run
from vq_ihdm.training.config import add_training_arguments, parse_args
from vq_ihdm.training.outcome import sample_sheet, save_outcome
from vq_ihdm.training.tokens import add_transformer_arguments, draw_views, load_tokens
from vq_ihdm.training.trainer import make_accelerator, train_network

Outcome = tuple[DiffusionPipeline, dict[str, float]] | None  # pipeline and held-out measures; None when interrupted


# ---- absorbing diffusion --------------------------------------------------------------------------------------
def add_absorbing_arguments(parser: argparse.ArgumentParser) -> None:
    add_transformer_arguments(parser)
    parser.add_argument("--num_train_timesteps", type=int, default=256, help="T")
    parser.set_defaults(max_train_steps=75_000, train_batch_size=20)


def train_absorbing(args: argparse.Namespace, accelerator: Accelerator, splits: DatasetDict) -> Outcome:
    vqvae, train_codes, held_out_codes = load_tokens(args, accelerator, splits)
    device, T = accelerator.device, args.num_train_timesteps
    config = AbsorbingDenoiserConfig(
        num_codes=vqvae.config.num_vq_embeddings,
        height=train_codes.shape[-2],
        width=train_codes.shape[-1],
        num_train_timesteps=T,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        dropout=args.dropout,
    )

    def elbo(network: torch.nn.Module, codes: torch.LongTensor) -> torch.Tensor:
        timesteps = torch.randint(1, T + 1, (len(codes),), device=device)
        masked = draw_mask(timesteps, T, torch.rand(codes.shape, device=device))
        logits = network(codes.masked_fill(masked, config.mask_index)).logits
        return reweighted_elbo(logits, codes, masked, timesteps, T)

    def loss(network: torch.nn.Module, indices: torch.LongTensor) -> torch.Tensor:
        return elbo(network, draw_views(train_codes, indices).to(device))

    @torch.no_grad()
    def validate(averaged: AbsorbingDenoiser):
        with torch.random.fork_rng():
            torch.manual_seed(args.seed)  # the same times and masks at every validation
            total = sum(elbo(averaged, codes).item() * len(codes) for codes in held_out_codes.split(64))
        pipeline = AbsorbingDiffusionPipeline(vqvae, averaged)
        return {"reweighted_elbo": total / len(held_out_codes)}, {"samples": sample_sheet(pipeline, args.seed)}

    denoiser = AbsorbingDenoiser(config)
    result = train_network(args, accelerator, "absorbing", denoiser, len(train_codes), loss, validate)
    if result is None:
        return None
    best_folder, metrics = result
    return AbsorbingDiffusionPipeline(vqvae, AbsorbingDenoiser.from_pretrained(best_folder).eval()), metrics


# ---- main -----------------------------------------------------------------------------------------------------
MODELS = {"absorbing": (add_absorbing_arguments, train_absorbing)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    parser.add_argument("--model", choices=MODELS, required=True)
    model = parser.parse_known_args()[0].model
    add_arguments, train = MODELS[model]
    parser.add_argument("--help", "-h", action="help")
    add_training_arguments(parser)
    add_arguments(parser)
    args = parse_args(parser, f"baseline_{model}")
    accelerator = make_accelerator(args)
    set_seed(args.seed, device_specific=True)
    splits = load_slices(args.dataset_name, args.train_data_dir)
    outcome = train(args, accelerator, splits)
    if outcome is not None and accelerator.is_main_process:
        pipeline, metrics = outcome
        save_outcome(pipeline, args, metrics, splits)


if __name__ == "__main__":
    run(main)
