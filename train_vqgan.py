"""Stage 1: train the VQGAN that turns a slice into code indices.

    accelerate launch train_vqgan.py --config oasis --dataset_name data/oasis --output_dir runs/vqgan

The generator is a diffusers `VQModel` trained by

    L = |x - x^| + w_p LPIPS(x, x^) + w_t L_texture(x, x^) + L_vq (eq. 4) + lambda w_d L_GAN,

where L_texture compares the Gram matrices of LPIPS' features. The discriminator is trained by the hinge loss: on the
features that LPIPS computes anyway (`projected`), or as the PatchGAN of the original on augmented pixels (`patch`).
With --pretrained_model_name_or_path a trained VQModel learns on; with --train_decoder_only its codes stay what they
are, so that a denoiser trained on them stays valid.

Under --output_dir the script leaves `checkpoint-<step>/` to resume from, `best/` (the averaged VQModel with the lowest
held-out L1 + LPIPS), `last/` (that of the last step), both with record and card, `reconstructions.png`, `config.json`
and the trackers' `logs/`.
"""

import argparse
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import nn

from vq_ihdm.arguments import HelpFormatter, non_negative_float, non_negative_int, positive_float, positive_int
from vq_ihdm.data.images import SliceTensors, check_image_size, read_levels
from vq_ihdm.data.slices import mirror_at_random, spread_slices
from vq_ihdm.errors import InputError
from vq_ihdm.errors import run as run_script
from vq_ihdm.hub.model_card import write_model_card
from vq_ihdm.hub.record import data_facts, tokenizer_stages
from vq_ihdm.pictures import reconstruction_sheet
from vq_ihdm.training.config import add_training_arguments, parse_args
from vq_ihdm.training.describe import publish_if_asked, record_kept
from vq_ihdm.training.preparation import clip_gradients, make_accelerator, prepare_network, read_splits
from vq_ihdm.training.run import TrainingRun
from vq_ihdm.training.state import load_state
from vq_ihdm.vqgan.codebook import (
    CodeUsage,
    init_codebook,
    normalize_codebook,
    restart_dead_codes,
    usage_and_perplexity,
)
from vq_ihdm.vqgan.criterion import Criterion
from vq_ihdm.vqgan.discriminator import PatchDiscriminator
from vq_ihdm.vqgan.losses import discriminator_loss
from vq_ihdm.vqgan.model import TrainableVQModel, create_vq_model, downsampling_factor, load_vq_model
from vq_ihdm.vqgan.perceptual import SMALLEST_SIDE, PerceptualLoss
from vq_ihdm.vqgan.projected_discriminator import ProjectedDiscriminator

# Flags that a VQModel's config has by the same names.
ARCHITECTURE = (
    "block_out_channels",
    "layers_per_block",
    "latent_channels",
    "vq_embed_dim",
    "num_vq_embeddings",
    "norm_num_groups",
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_training_arguments(parser)
    add = parser.add_argument
    # the VQModel
    add("--pretrained_model_name_or_path", help="start from this VQModel or pipeline (folder or Hub id)")
    add("--train_decoder_only", action="store_true", help="keep encoder and codebook, and so every code, as they are")
    add("--block_out_channels", type=positive_int, nargs="+", default=[128, 128, 256, 256, 512])
    add("--layers_per_block", type=positive_int, default=2)
    add("--latent_channels", type=positive_int, default=256)
    add("--vq_embed_dim", type=positive_int, default=256, help="dimension D of a code")
    add("--num_vq_embeddings", type=positive_int, default=1024, help="codes K in the codebook")
    add("--norm_num_groups", type=positive_int, default=32)
    add("--l2_normalized_codes", action=argparse.BooleanOptionalAction, default=False)
    add(
        "--dead_code_steps",
        type=non_negative_int,
        default=500,
        help="restart codes unused for so many steps; 0 never does",
    )
    # the losses
    add("--perceptual", choices=["vgg", "alex", "none"], default="vgg", help="trunk of the LPIPS loss")
    add("--perceptual_weights", help="safetensors of the trunk, where torchvision cannot download it")
    add("--perceptual_weight", type=non_negative_float, default=1.0)
    add("--texture_weight", type=non_negative_float, default=0.0, help="of the Gram matrices of LPIPS' features")
    add("--perceptual_crop_size", type=positive_int, help="LPIPS on one random window of each image: cheaper")
    add(
        "--discriminator",
        choices=["projected", "patch"],
        default="projected",
        help="on the features of LPIPS, or a PatchGAN on pixels",
    )
    add(
        "--discriminator_checkpoint",
        help="start with the discriminator of this checkpoint of another run of the script",
    )
    add("--disc_weight", type=non_negative_float, default=0.8)
    add("--disc_learning_rate", type=positive_float, default=5e-4)
    add("--disc_start", type=non_negative_int, default=10_000, help="the discriminator trains from this step on")
    add(
        "--disc_warmup_steps",
        type=non_negative_int,
        default=1_000,
        help="alone: the generator waits, and its loss enters after so many",
    )
    add("--disc_channels", type=positive_int, default=64, help="width of the discriminator")
    add("--num_validation_images", type=positive_int, default=256, help="held-out images of the measure, at most")
    parser.set_defaults(max_train_steps=575_000, train_batch_size=3)
    return parser


def main() -> None:
    args = parse_args(build_parser(), "vqgan")
    accelerator = make_accelerator(args)
    device = accelerator.device
    set_seed(args.seed, device_specific=True)

    # ---- data and networks ------------------------------------------------------------------------------------
    splits = read_splits(args, accelerator)
    size = read_levels(splits["train"], 0).shape
    generator, perceptual, discriminator = make_networks(args, size, device)
    factor = downsampling_factor(generator.vq_model)
    check_image_size(splits["train"], args.dataset_name or args.train_data_dir, factor)
    train_set = SliceTensors(splits["train"])
    held_out = spread_slices(splits["validation"], args.num_validation_images).to(device)

    # ---- optimizers and losses --------------------------------------------------------------------------------
    trained = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    judges = list(discriminator.parameters())
    # One for both: with two, the first's step could change the scale of fp16 under the second's gradients.
    optimizer = torch.optim.Adam(
        [
            {"params": trained, "lr": args.learning_rate, "betas": (0.5, 0.9)},
            {"params": judges, "lr": args.disc_learning_rate, "betas": discriminator.betas},
        ]
    )
    discriminator = accelerator.prepare(discriminator)
    starts = 0, args.disc_start
    generator, optimizer, lr_scheduler, ema = prepare_network(args, accelerator, generator, optimizer, starts)
    unwrapped_g, unwrapped_d = accelerator.unwrap_model(generator), accelerator.unwrap_model(discriminator)
    last_layer, window_size = unwrapped_g.vq_model.decoder.conv_out, args.perceptual_crop_size or max(size)
    weights = args.perceptual_weight, args.texture_weight, args.disc_weight
    criterion = Criterion(unwrapped_d, last_layer, perceptual, window_size, *weights)
    codebook, averaged_codebook = (g.vq_model.quantize.embedding for g in (unwrapped_g, ema.module))
    usage, epoch_usage = (CodeUsage(len(codebook.weight), accelerator) for _ in range(2))

    # ---- training ---------------------------------------------------------------------------------------------
    parts = {"generator": unwrapped_g, "discriminator": unwrapped_d, "ema": ema}
    parts |= {"optimizer": optimizer, "scheduler": lr_scheduler}
    parts |= {"usage": usage, "epoch_usage": epoch_usage}  # of codes: since dead ones were restarted, and this epoch
    run = TrainingRun(args, accelerator, "vqgan", train_set, parts, ema)
    for step in run:
        if step == 0 and args.pretrained_model_name_or_path is None:
            first = train_set.stack(torch.randperm(len(train_set))[:64].tolist()).to(device)
            with torch.no_grad(), accelerator.autocast():
                latents = torch.cat([unwrapped_g.latents(part) for part in first.split(args.train_batch_size)])
                init_codebook(codebook, averaged_codebook, latents, args.l2_normalized_codes)
        adversarial = step >= args.disc_start + args.disc_warmup_steps
        # The discriminator learns first, from a generator that stands: one that went on without its loss would lose the
        # texture it has, and an untrained judge's loss would spoil it.
        waiting = args.disc_start <= step and not adversarial
        codebook_learns = not (args.train_decoder_only or waiting)
        for images in run.batches():
            with accelerator.accumulate(generator, discriminator):
                images = mirror_at_random(images.to(device, non_blocking=True), args.random_flip)
                if waiting:
                    with torch.no_grad(), accelerator.autocast():
                        judged = criterion.judged(images, generator(images)[0])
                    losses = {}
                else:
                    reconstructions, vq_loss, code_indices, latents = generator(images)
                    usage.update(code_indices)
                    epoch_usage.update(code_indices)
                    # Each loss is differentiated once, down to the reconstruction; the adaptive weight mixes the
                    # gradients there, and the mixture goes down the generator in a single backward pass.
                    output = reconstructions.detach().requires_grad_()
                    with accelerator.autocast():
                        gradient, losses, judged = criterion(images, output, adversarial)
                    accelerator.backward((reconstructions * gradient).sum() + vq_loss)
                    losses["vq"] = vq_loss
                if step >= args.disc_start:
                    losses["disc"] = discriminator_loss(discriminator, *judged)
                    accelerator.backward(losses["disc"])
                if accelerator.sync_gradients:
                    clip_gradients(accelerator, optimizer, args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                run.add(**losses)
        lr_scheduler.step()
        ema.update(unwrapped_g)
        if args.l2_normalized_codes and not args.train_decoder_only:
            normalize_codebook(averaged_codebook)  # an average of unit vectors is shorter than one
            if codebook_learns:
                normalize_codebook(codebook)
        codes = {}
        if args.dead_code_steps and codebook_learns and (step + 1) % args.dead_code_steps == 0:
            counts = usage.total()
            codes["restarted_codes"] = restart_dead_codes(codebook, averaged_codebook, optimizer, counts, latents)
            usage.reset()
        if not waiting and (step + 1) % run.steps_per_epoch == 0:
            codes["usage"], codes["perplexity"] = usage_and_perplexity(epoch_usage.total())
            epoch_usage.reset()
        run.log(**codes)
        if run.validation_due:
            with accelerator.autocast():
                run.keep(*validate(ema.module, perceptual, held_out))

    if accelerator.is_main_process:
        earlier = args.pretrained_model_name_or_path
        data = data_facts(args.dataset_name, splits, args.resolution)
        record_kept(args, data, tokenizer_stages(earlier) if earlier else [])
        for kept in (run.best_folder, run.output_dir / "last"):
            write_model_card(kept, name=kept.name)
        publish_if_asked(run.output_dir / "last", args)  # not the smoothest, which L1 and LPIPS prefer


def make_networks(
    args: argparse.Namespace, size: tuple[int, int], device: torch.device
) -> tuple[TrainableVQModel, PerceptualLoss | None, nn.Module]:
    """The generator, new for slices of height and width `size` or trained before; LPIPS; and the discriminator."""
    if args.train_decoder_only and args.pretrained_model_name_or_path is None:
        raise InputError("--train_decoder_only needs --pretrained_model_name_or_path, the model whose codes stay")
    if args.discriminator == "projected" and args.perceptual == "none":
        raise InputError(
            "--discriminator projected judges by the features of --perceptual, which is none; name a trunk, or choose "
            "--discriminator patch"
        )
    if args.discriminator == "patch" and min(size) < PatchDiscriminator.SMALLEST_SIDE:
        raise InputError(
            f"--discriminator patch needs slices of at least {PatchDiscriminator.SMALLEST_SIDE} pixels a side, these "
            f"have {min(size)}; bring them to a larger --resolution"
        )
    if args.discriminator == "patch" and args.disc_channels % 4:
        raise InputError(f"--discriminator patch needs --disc_channels to be a multiple of 4, not {args.disc_channels}")
    if args.texture_weight and args.perceptual == "none":
        raise InputError("--texture_weight needs the features of --perceptual, which is none; name a trunk")
    seen, needed = min(*size, args.perceptual_crop_size or max(size)), SMALLEST_SIDE.get(args.perceptual, 0)
    if seen < needed:
        raise InputError(
            f"--perceptual {args.perceptual} needs at least {needed} pixels a side and would see {seen}; raise "
            "--perceptual_crop_size, or bring slices to a larger --resolution"
        )
    if args.pretrained_model_name_or_path is not None:
        vq_model = load_vq_model(args.pretrained_model_name_or_path)
        # Its own widths count, whatever a preset says, and are recorded; so is whether its codes are normalised.
        for name in ARCHITECTURE:
            setattr(args, name, vq_model.config[name])
        norms = vq_model.quantize.embedding.weight.norm(dim=1)
        args.l2_normalized_codes = bool((norms - 1).abs().max() < 1e-2)
    else:
        vq_model = create_vq_model(sample_size=max(size), **{name: getattr(args, name) for name in ARCHITECTURE})
    generator = TrainableVQModel(vq_model, args.l2_normalized_codes).train()
    if args.train_decoder_only:
        for part in (vq_model.encoder, vq_model.quant_conv, vq_model.quantize):
            part.requires_grad_(False)
    perceptual = None
    if args.perceptual != "none":
        perceptual = PerceptualLoss(args.perceptual, args.perceptual_weights).to(device)
    if args.discriminator == "projected":
        discriminator = ProjectedDiscriminator(perceptual.feature_channels, args.disc_channels)
    else:
        discriminator = PatchDiscriminator(args.disc_channels)
    if args.discriminator_checkpoint is not None:
        parts = load_state(Path(args.discriminator_checkpoint))["parts"]
        try:
            discriminator.load_state_dict(parts["discriminator"])
        except (KeyError, RuntimeError) as error:
            raise InputError(
                f"{args.discriminator_checkpoint} holds no discriminator of this --discriminator, --disc_channels and "
                "--perceptual; name a checkpoint of a train_vqgan.py that had the same"
            ) from error
    return generator, perceptual, discriminator


@torch.no_grad()
def validate(averaged: TrainableVQModel, perceptual: PerceptualLoss | None, held_out: torch.Tensor):
    """Held-out L1 + LPIPS, which decides; code usage and perplexity; some slices above their reconstructions."""
    totals, decoded = {"l1": 0.0, "lpips": 0.0}, []
    counts = torch.zeros(averaged.vq_model.config.num_vq_embeddings, device=held_out.device)
    for images in held_out.split(8):
        reconstructions, _, code_indices, _ = averaged(images)
        decoded.append(reconstructions.clamp(-1, 1))
        counts += torch.bincount(code_indices.flatten(), minlength=len(counts))
        totals["l1"] += (images - decoded[-1]).abs().mean().item() * len(images)
        if perceptual is not None:
            totals["lpips"] += perceptual(images, decoded[-1]).item() * len(images)
    means = {name: total / len(held_out) for name, total in totals.items()}
    usage_share, perplexity = usage_and_perplexity(counts)
    metrics = {"l1+lpips": sum(means.values()), **means, "usage": usage_share, "perplexity": perplexity}
    shown = torch.linspace(0, len(held_out) - 1, min(8, len(held_out))).long()
    return metrics, {}, {"reconstructions": reconstruction_sheet(held_out[shown], torch.cat(decoded)[shown])}


if __name__ == "__main__":
    run_script(main)
