"""Train one of the systems the paper compares with.

    accelerate launch train_baseline.py --model absorbing --config oasis --dataset_name data/oasis \\
        --vqvae runs/vqgan/best --output_dir runs/absorbing
    accelerate launch train_baseline.py --model wgan --config oasis --dataset_name data/oasis --output_dir runs/wgan

absorbing   diffusion over the codes of the same VQGAN (Bond-Taylor et al., 2022)
ihdm        inverse heat dissipation of pixels (Rissanen et al., 2023)
wgan, alphawgan, vaegan, ccegan
            GANs from latents to pixels (Kwon et al., 2019; Xing et al., 2021)

`--model <model> --help` lists the flags of one model; its section of a preset is called `baseline_<model>`. Under
--output_dir the script leaves `checkpoint-<step>/`, `best/`, `last/`, `pipeline/` (around `best/`), `samples.png`,
`config.json`, `metrics.json` and the trackers' `logs/`.
"""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import DatasetDict
from diffusers import DiffusionPipeline, UNet2DModel
from torch_fidelity.metric_kid import kernel_mmd

from vq_ihdm import AbsorbingDiffusionPipeline, GANPipeline, IHDMPipeline
from vq_ihdm.baselines.absorbing import AbsorbingDenoiser, AbsorbingDenoiserConfig, draw_mask, reweighted_elbo
from vq_ihdm.baselines.alphawgan import AlphaWGAN
from vq_ihdm.baselines.ccegan import CCEGAN
from vq_ihdm.baselines.ihdm import InverseHeatScheduler, create_unet, inverse_heat_loss
from vq_ihdm.baselines.stacks import FACTOR, LatentDecoder
from vq_ihdm.baselines.vaegan import VAEGAN
from vq_ihdm.baselines.wgan import WGAN
from vq_ihdm.data.images import SliceTensors, check_image_size, load_slices
from vq_ihdm.errors import run
from vq_ihdm.training.adversarial import train_adversarial
from vq_ihdm.training.config import add_training_arguments, parse_args, positive
from vq_ihdm.training.outcome import save_outcome
from vq_ihdm.training.pictures import sample_sheet
from vq_ihdm.training.prior import add_prior_arguments, check_prior_arguments, make_prior
from vq_ihdm.training.slices import draw_slices, spread_slices
from vq_ihdm.training.tokens import add_transformer_arguments, draw_views, load_tokens
from vq_ihdm.training.trainer import make_accelerator, train_network

Outcome = tuple[DiffusionPipeline, dict[str, float]]  # pipeline and held-out measures
GANS = {"wgan": WGAN, "alphawgan": AlphaWGAN, "vaegan": VAEGAN, "ccegan": CCEGAN}


# ---- absorbing diffusion --------------------------------------------------------------------------------------
def add_absorbing_arguments(parser: argparse.ArgumentParser) -> None:
    add_transformer_arguments(parser)
    parser.add_argument("--num_train_timesteps", type=positive, default=256, help="T")
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
    best_folder, metrics = train_network(args, accelerator, "absorbing", denoiser, len(train_codes), loss, validate)
    return AbsorbingDiffusionPipeline(vqvae, AbsorbingDenoiser.from_pretrained(best_folder).eval()), metrics


# ---- inverse heat dissipation of pixels -----------------------------------------------------------------------
def add_ihdm_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    # the UNet
    add("--block_out_channels", type=positive, nargs="+", default=[128, 128, 256, 256, 512])
    add("--layers_per_block", type=positive, default=2)
    add("--norm_num_groups", type=positive, default=32)
    # both processes; grey values are in [0, 1]
    add("--num_train_timesteps", type=positive, default=200, help="K, number of sigmas")
    add("--sigma_min", type=float, default=0.5, help="in pixels")
    add("--sigma_max", type=float, default=88.0, help="half the side of an image leaves little but its mean")
    add("--training_noise", type=float, default=0.01)
    add("--delta", type=float, default=0.0125, help="noise of a sampling step")
    add_prior_arguments(parser)
    add("--num_prior_images", type=positive, default=1000, help="training images the prior is fitted on, at most")
    add("--num_validation_images", type=positive, default=256, help="held-out images of the measure, at most")
    parser.set_defaults(max_train_steps=100_000, train_batch_size=16, lr_warmup_steps=5_000, ema_decay=0.9999)
    parser.set_defaults(prior="images")  # the paper's


def train_ihdm(args: argparse.Namespace, accelerator: Accelerator, splits: DatasetDict) -> Outcome:
    check_prior_arguments(args)
    device, K = accelerator.device, args.num_train_timesteps
    source = args.dataset_name or args.train_data_dir
    height, width = check_image_size(splits["train"], source, 2 ** (len(args.block_out_channels) - 1))
    train_set = SliceTensors(splits["train"])
    held_out = spread_slices(splits["validation"], args.num_validation_images) / 2 + 0.5
    scheduler = InverseHeatScheduler(K, args.sigma_min, args.sigma_max, args.training_noise, args.delta)
    prior = make_prior(args, accelerator, spread_slices(splits["train"], args.num_prior_images) / 2 + 0.5)

    def heat_loss(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        timesteps = torch.randint(1, K + 1, (len(images),), device=device)
        return inverse_heat_loss(network, scheduler, images, timesteps, torch.randn_like(images))

    def loss(network: torch.nn.Module, indices: torch.LongTensor) -> torch.Tensor:
        images = draw_slices(train_set, indices.tolist(), args.random_flip)
        return heat_loss(network, images.to(device) / 2 + 0.5)

    @torch.no_grad()
    def validate(averaged: UNet2DModel):
        with torch.random.fork_rng():
            torch.manual_seed(args.seed)  # the same times and noise at every validation
            total = sum(heat_loss(averaged, images.to(device)).item() * len(images) for images in held_out.split(8))
        pipeline = IHDMPipeline(averaged, prior.to(device), scheduler)
        return {"squared_error": total / len(held_out)}, {"samples": sample_sheet(pipeline, args.seed)}

    unet = create_unet(height, width, args.block_out_channels, args.layers_per_block, args.norm_num_groups)
    best_folder, metrics = train_network(args, accelerator, "ihdm", unet, len(train_set), loss, validate)
    return IHDMPipeline(UNet2DModel.from_pretrained(best_folder).eval(), prior, scheduler), metrics


# ---- GANs -----------------------------------------------------------------------------------------------------
def add_gan_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--latent_dim", type=positive, default=1000)
    add("--num_validation_images", type=positive, default=256, help="held-out images of the measure, at most")
    # as released: Adam at a constant rate, no clipping, no moving average
    parser.set_defaults(max_train_steps=200_000, train_batch_size=4, learning_rate=2e-4, lr_warmup_steps=0)
    parser.set_defaults(max_grad_norm=None, ema_decay=0.0)


def add_wgan_arguments(parser: argparse.ArgumentParser) -> None:
    add_gan_arguments(parser)
    parser.add_argument(
        "--released",
        action="store_true",
        help="the released code's 1 critic step to 5 generator steps and penalty on every pixel's gradient, from "
        "which published figures come, instead of 5 to 1 and the whole gradient",
    )


def add_vaegan_arguments(parser: argparse.ArgumentParser) -> None:
    add_gan_arguments(parser)
    parser.set_defaults(learning_rate=1e-4)


def train_gan(args: argparse.Namespace, accelerator: Accelerator, splits: DatasetDict) -> Outcome:
    size = check_image_size(splits["train"], args.dataset_name or args.train_data_dir, FACTOR)
    options = {"released": args.released} if args.model == "wgan" else {}
    game = GANS[args.model](*size, args.latent_dim, **options)
    held_out = spread_slices(splits["validation"], args.num_validation_images) / 2 + 0.5

    def validate(averaged: LatentDecoder):
        """The squared MMD of samples and held-out slices, averaged to 8 x 8 pixels: no GAN has a held-out loss."""
        with torch.random.fork_rng():
            torch.manual_seed(args.seed)
            averaged.estimate_statistics()
        pipeline = GANPipeline(averaged)
        pipeline.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed(args.seed)
        samples = pipeline(len(held_out), seed, output_type="pt").images
        distance = kernel_mmd(*(F.avg_pool2d(images, 8).flatten(1).double().numpy() for images in (samples, held_out)))
        return {"pixel_mmd": float(distance)}, {"samples": sample_sheet(pipeline, args.seed)}

    best_folder, metrics = train_adversarial(args, accelerator, game, SliceTensors(splits["train"]), validate)
    return GANPipeline(LatentDecoder.from_pretrained(best_folder).eval()), metrics


# ---- main -----------------------------------------------------------------------------------------------------
MODELS = {
    "absorbing": (add_absorbing_arguments, train_absorbing),
    "ihdm": (add_ihdm_arguments, train_ihdm),
    "wgan": (add_wgan_arguments, train_gan),
    "alphawgan": (add_gan_arguments, train_gan),
    "vaegan": (add_vaegan_arguments, train_gan),
    "ccegan": (add_gan_arguments, train_gan),
}


def build_parser(model: str | None) -> argparse.ArgumentParser:
    """The flags of one model; the shared ones alone when None."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, required=True)
    add_training_arguments(parser)
    if model is not None:
        add_arguments, _ = MODELS[model]
        add_arguments(parser)
    return parser


def main() -> None:
    model_parser = argparse.ArgumentParser(add_help=False)
    model_parser.add_argument("--model", choices=MODELS)
    model = model_parser.parse_known_args()[0].model
    args = parse_args(build_parser(model), f"baseline_{model}")
    accelerator = make_accelerator(args)
    set_seed(args.seed, device_specific=True)
    splits = load_slices(args.dataset_name, args.train_data_dir)
    _, train = MODELS[model]
    outcome = train(args, accelerator, splits)
    if accelerator.is_main_process:
        pipeline, metrics = outcome
        save_outcome(pipeline, args, metrics, splits)


if __name__ == "__main__":
    run(main)
