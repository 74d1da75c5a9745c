"""Train one of the systems the paper compares with.

    accelerate launch train_baseline.py --model absorbing --config oasis --dataset_name data/oasis \\
        --vqvae runs/vqgan/last --output_dir runs/absorbing
    accelerate launch train_baseline.py --model wgan --config oasis --dataset_name data/oasis --output_dir runs/wgan

absorbing   diffusion over the codes of the same VQGAN (Bond-Taylor et al., 2022)
ldm         latent diffusion on the embeddings of these codes (Rombach et al., 2022)
pixel_ihdm  inverse heat dissipation of pixels (Rissanen et al., 2023)
wgan, alphawgan, vaegan, ccegan
            GANs from latents to pixels (Kwon et al., 2019; Xing et al., 2021)

`--model <model> --help` lists the flags of one model; its section of a preset is called `baseline_<model>`. Under
--output_dir the script leaves `checkpoint-<step>/`, `best/`, `last/`, `pipeline/` (around `best/`), `samples.png`,
`config.json` and the trackers' `logs/`.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast, set_seed
from datasets import DatasetDict
from diffusers import DiffusionPipeline, UNet2DModel
from torch import nn
from torch_fidelity.metric_kid import kernel_mmd

from vq_ihdm import AbsorbingDiffusionPipeline, GANPipeline, LatentDiffusionPipeline, PixelIHDMPipeline
from vq_ihdm.arguments import HelpFormatter, non_negative_float, positive_float, positive_int, share_below_one
from vq_ihdm.baselines.absorbing import AbsorbingDenoiser, AbsorbingDenoiserConfig, absorbing_loss
from vq_ihdm.baselines.alphawgan import AlphaWGAN
from vq_ihdm.baselines.ccegan import CCEGAN
from vq_ihdm.baselines.latent_diffusion import (
    code_latents,
    create_latent_unet,
    pad,
    sampling_scheduler,
    training_scheduler,
    unit_scaling,
    velocity_loss,
)
from vq_ihdm.baselines.pixel_ihdm import InverseHeatScheduler, create_unet, inverse_heat_loss
from vq_ihdm.baselines.stacks import FACTOR, LatentDecoder
from vq_ihdm.baselines.vaegan import VAEGAN
from vq_ihdm.baselines.wgan import WGAN
from vq_ihdm.data.conditioning import covariate_table, describe_vocabulary, find_vocabulary, slice_subjects, withhold
from vq_ihdm.data.images import SliceTensors, check_image_size
from vq_ihdm.data.slices import mirror_at_random, spread_indices, spread_slices
from vq_ihdm.data.tokens import draw_views, load_tokens
from vq_ihdm.errors import InputError
from vq_ihdm.errors import run as run_script
from vq_ihdm.fit_prior import fit_prior
from vq_ihdm.pictures import sample_sheet
from vq_ihdm.training.config import (
    add_covariate_arguments,
    add_prior_arguments,
    add_training_arguments,
    add_transformer_arguments,
    check_prior_arguments,
    parse_args,
)
from vq_ihdm.training.describe import save_trained_pipeline, tell_other_set
from vq_ihdm.training.ema import EMA
from vq_ihdm.training.held_out import held_out_mean
from vq_ihdm.training.preparation import (
    TimedAccelerator,
    clip_gradients,
    make_accelerator,
    make_scheduler,
    prepare_network,
    read_splits,
)
from vq_ihdm.training.randomness import seeded
from vq_ihdm.training.run import TrainingRun
from vq_ihdm.weights import load_component

GANS = {"wgan": WGAN, "alphawgan": AlphaWGAN, "vaegan": VAEGAN, "ccegan": CCEGAN}


# ---- the two training loops -----------------------------------------------------------------------------------
def train_network(
    args: argparse.Namespace,
    accelerator: TimedAccelerator,
    network: nn.Module,
    examples: SliceTensors | range,
    loss: Callable[[nn.Module, torch.Tensor | list[int]], torch.Tensor],
    validate: Callable[[nn.Module], tuple[dict[str, float], dict]],
) -> TrainingRun:
    """One network, one loss.

    Args:
        examples, loss: of the (wrapped) network on a batch of `TrainingRun.batches`.
        validate: held-out measures and pictures of the averaged network, for `TrainingRun.keep`.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate)
    network, optimizer, lr_scheduler, ema = prepare_network(args, accelerator, network, optimizer)
    unwrapped = accelerator.unwrap_model(network)
    parts = {"network": unwrapped, "ema": ema, "optimizer": optimizer, "scheduler": lr_scheduler}
    run = TrainingRun(args, accelerator, args.model, examples, parts, ema)
    for _ in run:
        for batch in run.batches():
            with accelerator.accumulate(network):
                value = loss(network, batch)
                accelerator.backward(value)
                run.add(loss=value)
                if accelerator.sync_gradients:
                    clip_gradients(accelerator, optimizer, args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        lr_scheduler.step()
        ema.update(unwrapped)
        run.log(lr=lr_scheduler.get_last_lr()[0])
        if run.validation_due:
            run.keep(*validate(ema.module))
    return run


def train_adversarial(
    args: argparse.Namespace,
    accelerator: TimedAccelerator,
    gan: nn.Module,
    train_set: SliceTensors,
    validate: Callable[[nn.Module], tuple[dict[str, float], dict]],
) -> TrainingRun:
    """Several networks, one of them the `decoder`: in each step every update in its order.

    The networks are not wrapped for several processes, whose wrapper cannot differentiate a gradient penalty: the
    processes start from the same weights and average their gradients.
    """
    device = accelerator.device
    gan.to(device).train()
    broadcast([p.data for p in gan.parameters()])
    # It passes over what has no gradient: each network learns in its own updates alone. fused: these networks have tens
    # of millions of parameters, a tenth of a step on a CPU.
    optimizer = torch.optim.Adam(gan.parameters(), lr=args.learning_rate, fused=True)
    lr_scheduler = make_scheduler(args, optimizer)
    optimizer = accelerator.prepare(optimizer)
    ema = EMA(gan.decoder, args.ema_decay)

    parts = {"networks": gan, "ema": ema, "optimizer": optimizer, "scheduler": lr_scheduler}
    run = TrainingRun(args, accelerator, args.model, train_set, parts, ema)
    for _ in run:
        losses = {}
        for update in gan.updates():
            gan.requires_grad_(False)  # what does not learn now is a constant: no gradient is worked out for it
            for network in update.networks:
                network.requires_grad_(True)
            for _ in range(update.repeats):
                for images in run.batches():
                    images = mirror_at_random(images.to(device, non_blocking=True), args.random_flip)
                    with accelerator.autocast():
                        losses[update.name] = update.loss(images)
                    accelerator.backward(losses[update.name])
                for network in update.networks:
                    for parameter in network.parameters():
                        parameter.grad = accelerator.reduce(parameter.grad, "mean")
                clip_gradients(accelerator, optimizer, args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        lr_scheduler.step()
        ema.update(gan.decoder)
        run.log(**losses)
        if run.validation_due:
            run.keep(*validate(ema.module))
    return run


# ---- absorbing diffusion --------------------------------------------------------------------------------------
def add_absorbing_arguments(parser: argparse.ArgumentParser) -> None:
    add_transformer_arguments(parser)
    add_covariate_arguments(parser)
    parser.add_argument("--num_train_timesteps", type=positive_int, default=256, help="T")
    parser.set_defaults(max_train_steps=75_000, train_batch_size=20)


def train_absorbing(
    args: argparse.Namespace, accelerator: TimedAccelerator, splits: DatasetDict
) -> Callable[[], DiffusionPipeline]:
    source = args.dataset_name or args.train_data_dir
    vqvae, train_codes, held_out_codes = load_tokens(args, splits, accelerator)
    tell_other_set(args, splits, accelerator)
    known_covariates = find_vocabulary(splits["train"], args.covariates, source)
    accelerator.print(describe_vocabulary(known_covariates, splits["train"]))
    args.covariates = [covariate.name for covariate in known_covariates]
    covariates, held_out_covariates = (covariate_table(known_covariates, splits[s]) for s in ("train", "validation"))
    config = AbsorbingDenoiserConfig(
        num_codes=vqvae.config.num_vq_embeddings,
        height=train_codes.shape[-2],
        width=train_codes.shape[-1],
        num_train_timesteps=args.num_train_timesteps,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        dropout=args.dropout,
        neighbourhood_size=args.neighbourhood_size,
        covariates=[asdict(covariate) for covariate in known_covariates],
    )
    device = accelerator.device

    def loss(network: nn.Module, indices: list[int]) -> torch.Tensor:
        told = withhold(covariates[indices], args.covariate_dropout).to(device)
        return absorbing_loss(network, draw_views(train_codes, indices).to(device), config, told)

    def validate(averaged: AbsorbingDenoiser):
        def held_out_loss(z_0: torch.LongTensor, told: torch.Tensor) -> torch.Tensor:
            return absorbing_loss(averaged, z_0, config, told)

        elbo = held_out_mean(held_out_loss, args.seed, held_out_codes, held_out_covariates.to(device))
        pipeline = AbsorbingDiffusionPipeline(vqvae, averaged)
        return {"reweighted_elbo": elbo}, {"samples": sample_sheet(pipeline, args.seed)}

    run = train_network(args, accelerator, AbsorbingDenoiser(config), range(len(train_codes)), loss, validate)
    return lambda: AbsorbingDiffusionPipeline(vqvae, load_component(AbsorbingDenoiser, run.best_folder))


# ---- latent diffusion -----------------------------------------------------------------------------------------
def add_ldm_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--vqvae", required=True, help="the VQModel of stage 1: a folder or a Hub id")
    add("--block_out_channels", type=positive_int, nargs="+", default=[128, 256, 256], help="of the UNet")
    add("--layers_per_block", type=positive_int, default=2)
    add("--norm_num_groups", type=positive_int, default=32)
    add("--dropout", type=share_below_one, default=0.1)
    parser.set_defaults(max_train_steps=75_000, train_batch_size=20)


def train_ldm(
    args: argparse.Namespace, accelerator: TimedAccelerator, splits: DatasetDict
) -> Callable[[], DiffusionPipeline]:
    device = accelerator.device
    vqvae, train_codes, held_out_codes = load_tokens(args, splits, accelerator)
    tell_other_set(args, splits, accelerator)
    vqvae.register_to_config(scaling_factor=unit_scaling(vqvae, train_codes))
    unet = create_latent_unet(
        vqvae.config.vq_embed_dim,
        *train_codes.shape[-2:],
        args.block_out_channels,
        args.layers_per_block,
        args.norm_num_groups,
        args.dropout,
    )
    scheduler = training_scheduler()
    T = scheduler.config.num_train_timesteps

    def latent_loss(network: nn.Module, z_0: torch.LongTensor) -> torch.Tensor:
        latents = pad(code_latents(vqvae, z_0), unet)
        timesteps = torch.randint(T, (len(latents),), device=device)
        return velocity_loss(network, scheduler, latents, timesteps, torch.randn_like(latents))

    def loss(network: nn.Module, indices: list[int]) -> torch.Tensor:
        return latent_loss(network, draw_views(train_codes, indices).to(device))

    def validate(averaged: UNet2DModel):
        error = held_out_mean(partial(latent_loss, averaged), args.seed, held_out_codes)
        pipeline = LatentDiffusionPipeline(vqvae, averaged, sampling_scheduler())
        return {"squared_error": error}, {"samples": sample_sheet(pipeline, args.seed)}

    run = train_network(args, accelerator, unet, range(len(train_codes)), loss, validate)
    return lambda: LatentDiffusionPipeline(vqvae, load_component(UNet2DModel, run.best_folder), sampling_scheduler())


# ---- inverse heat dissipation of pixels -----------------------------------------------------------------------
def add_pixel_ihdm_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    # the UNet
    add("--block_out_channels", type=positive_int, nargs="+", default=[128, 128, 256, 256, 512])
    add("--layers_per_block", type=positive_int, default=2)
    add("--norm_num_groups", type=positive_int, default=32)
    # both processes; grey values are in [0, 1]
    add("--num_train_timesteps", type=positive_int, default=200, help="K, number of sigmas")
    add("--sigma_min", type=positive_float, default=0.5, help="in pixels")
    add("--sigma_max", type=positive_float, default=88.0, help="half the side of an image leaves little but its mean")
    add("--training_noise", type=non_negative_float, default=0.01)
    add("--delta", type=non_negative_float, default=0.0125, help="noise of a sampling step")
    add_prior_arguments(parser)
    add("--num_prior_images", type=positive_int, default=1000, help="training images the prior is fitted on, at most")
    add("--num_validation_images", type=positive_int, default=256, help="held-out images of the measure, at most")
    parser.set_defaults(max_train_steps=100_000, train_batch_size=16, lr_warmup_steps=5_000, ema_decay=0.9999)
    parser.set_defaults(prior="images")  # the paper's


def train_pixel_ihdm(
    args: argparse.Namespace, accelerator: TimedAccelerator, splits: DatasetDict
) -> Callable[[], DiffusionPipeline]:
    check_prior_arguments(args)
    if args.sigma_min > args.sigma_max:
        raise InputError(f"--sigma_min {args.sigma_min} lies above --sigma_max {args.sigma_max}; swap them")
    if len(args.block_out_channels) < 2:
        raise InputError("--block_out_channels needs at least two widths: the UNet attends at its two coarsest sizes")
    device, K = accelerator.device, args.num_train_timesteps
    source = args.dataset_name or args.train_data_dir
    height, width = check_image_size(splits["train"], source, 2 ** (len(args.block_out_channels) - 1))
    train_set = SliceTensors(splits["train"])
    held_out = spread_slices(splits["validation"], args.num_validation_images) / 2 + 0.5
    scheduler = InverseHeatScheduler(K, args.sigma_min, args.sigma_max, args.training_noise, args.delta)
    prior_images = spread_slices(splits["train"], args.num_prior_images) / 2 + 0.5
    prior = fit_prior(
        prior_images,
        args.sigma_max,
        args.prior,
        args.prior_rank,
        args.prior_components,
        args.seed,
        subjects=np.array(slice_subjects(splits["train"]))[spread_indices(len(train_set), args.num_prior_images)],
    )
    prior.allow_saving_images = args.allow_training_image_prior

    def heat_loss(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        timesteps = torch.randint(1, K + 1, (len(images),), device=device)
        return inverse_heat_loss(network, scheduler, images, timesteps, torch.randn_like(images))

    def loss(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        images = mirror_at_random(images, args.random_flip).to(device, non_blocking=True) / 2 + 0.5
        return heat_loss(network, images)

    def validate(averaged: UNet2DModel):
        error = held_out_mean(partial(heat_loss, averaged), args.seed, held_out.to(device), batch_size=8)
        pipeline = PixelIHDMPipeline(averaged, prior.to(device), scheduler)
        return {"squared_error": error}, {"samples": sample_sheet(pipeline, args.seed)}

    unet = create_unet(height, width, args.block_out_channels, args.layers_per_block, args.norm_num_groups)
    run = train_network(args, accelerator, unet, train_set, loss, validate)
    return lambda: PixelIHDMPipeline(load_component(UNet2DModel, run.best_folder), prior, scheduler)


# ---- GANs -----------------------------------------------------------------------------------------------------
def add_gan_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--latent_dim", type=positive_int, default=1000)
    add("--num_validation_images", type=positive_int, default=256, help="held-out images of the measure, at most")
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


def train_gan(
    args: argparse.Namespace, accelerator: TimedAccelerator, splits: DatasetDict
) -> Callable[[], DiffusionPipeline]:
    size = check_image_size(splits["train"], args.dataset_name or args.train_data_dir, FACTOR)
    if args.model == "wgan" and min(size) < WGAN.SMALLEST_SIDE:
        raise InputError(
            f"--model wgan needs slices of at least {WGAN.SMALLEST_SIDE} pixels a side, these have {min(size)}; bring "
            "them to a larger --resolution"
        )
    options = {"released": args.released} if args.model == "wgan" else {}
    gan = GANS[args.model](*size, args.latent_dim, **options)
    if args.train_batch_size == 1 and any(isinstance(layer, nn.BatchNorm1d) for layer in gan.modules()):
        raise InputError(f"--model {args.model} normalises vectors over a batch; give --train_batch_size 2 or more")
    held_out = spread_slices(splits["validation"], args.num_validation_images) / 2 + 0.5
    if len(held_out) < 2:
        raise InputError(
            f"--model {args.model} is judged by how sets of images differ, which one held-out slice does not tell; "
            "raise --num_validation_images, or give the split 'validation' more slices"
        )

    def validate(averaged: LatentDecoder):
        """The squared MMD of samples and held-out slices, averaged to 8 x 8 pixels: no GAN has a held-out loss."""
        with seeded(args.seed, accelerator.device):
            averaged.estimate_statistics()
        pipeline = GANPipeline(averaged)
        pipeline.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed(args.seed)
        samples = pipeline(len(held_out), seed, output_type="pt").images
        distance = kernel_mmd(*(F.avg_pool2d(images, 8).flatten(1).double().numpy() for images in (samples, held_out)))
        return {"pixel_mmd": float(distance)}, {"samples": sample_sheet(pipeline, args.seed)}

    run = train_adversarial(args, accelerator, gan, SliceTensors(splits["train"]), validate)
    return lambda: GANPipeline(load_component(LatentDecoder, run.best_folder))


# ---- main -----------------------------------------------------------------------------------------------------
MODELS = {
    "absorbing": (add_absorbing_arguments, train_absorbing),
    "ldm": (add_ldm_arguments, train_ldm),
    "pixel_ihdm": (add_pixel_ihdm_arguments, train_pixel_ihdm),
    "wgan": (add_wgan_arguments, train_gan),
    "alphawgan": (add_gan_arguments, train_gan),
    "vaegan": (add_vaegan_arguments, train_gan),
    "ccegan": (add_gan_arguments, train_gan),
}


def build_parser(model: str | None) -> argparse.ArgumentParser:
    """The flags of one model; the shared ones alone when None."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
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
    if model is None:
        build_parser(None).parse_args()  # helps, or says that --model is missing
    args = parse_args(build_parser(model), f"baseline_{model}")
    accelerator = make_accelerator(args)
    set_seed(args.seed, device_specific=True)
    splits = read_splits(args, accelerator)
    _, train = MODELS[model]
    best_pipeline = train(args, accelerator, splits)
    if accelerator.is_main_process:
        save_trained_pipeline(best_pipeline(), args, splits)


if __name__ == "__main__":
    run_script(main)
