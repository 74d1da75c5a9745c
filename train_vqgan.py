"""Stage 1: train the VQGAN that turns a slice into code indices.

    accelerate launch train_vqgan.py --config oasis --dataset_name data/oasis --output_dir runs/vqgan

The generator is a diffusers `VQModel` trained by

    L = |x - x^| + w_p LPIPS(x, x^) + L_vq (eq. 4) + lambda w_d L_GAN,

the discriminator by the hinge loss: on the features that LPIPS computes anyway (`projected`), or as the PatchGAN of the
original on augmented pixels (`patch`). With --pretrained_model_name_or_path a trained VQModel learns on; with
--train_decoder_only its codes stay what they are, so that a denoiser trained on them stays valid.

Under --output_dir the script leaves `checkpoint-<step>/` to resume from, `best/` (the averaged VQModel with the lowest
held-out L1 + LPIPS), `last/` (that of the last step), both with record and card, `reconstructions.png`, `config.json`
and the trackers' `logs/`.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import broadcast, set_seed

from vq_ihdm.data.images import SliceTensors, check_image_size, load_slices
from vq_ihdm.errors import InputError, run
from vq_ihdm.hub.card import write_card
from vq_ihdm.hub.publishing import push
from vq_ihdm.hub.record import data_facts, stage_record, write_record
from vq_ihdm.training.config import add_training_arguments, parse_args
from vq_ihdm.training.ema import EMA
from vq_ihdm.training.pictures import reconstruction_sheet
from vq_ihdm.training.slices import draw_slices, spread_slices
from vq_ihdm.training.trainer import make_accelerator, make_scheduler, run_training
from vq_ihdm.vqgan.codebook import (
    CodeUsage,
    code_vectors,
    draw_codes,
    normalize_codebook,
    restart_dead_codes,
    usage_and_perplexity,
)
from vq_ihdm.vqgan.discriminator import PatchDiscriminator, diff_augment
from vq_ihdm.vqgan.losses import adaptive_weight, hinge_loss_discriminator, hinge_loss_generator
from vq_ihdm.vqgan.model import TrainableVQModel, create_vq_model, downsampling_factor, load_vq_model
from vq_ihdm.vqgan.perceptual import PerceptualLoss
from vq_ihdm.vqgan.projected_discriminator import ProjectedDiscriminator
from vq_ihdm.vqgan.windows import crop, draw_windows


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    add = parser.add_argument
    # the VQModel
    add("--pretrained_model_name_or_path", help="start from this VQModel or pipeline (folder or Hub id)")
    add("--train_decoder_only", action="store_true", help="keep encoder and codebook, and so every code, as they are")
    add("--block_out_channels", type=int, nargs="+", default=[128, 128, 256, 256, 512])
    add("--layers_per_block", type=int, default=2)
    add("--latent_channels", type=int, default=256)
    add("--vq_embed_dim", type=int, default=256, help="dimension D of a code")
    add("--num_vq_embeddings", type=int, default=1024, help="codes K in the codebook")
    add("--norm_num_groups", type=int, default=32)
    add("--l2_normalized_codes", action=argparse.BooleanOptionalAction, default=False)
    add(
        "--dead_code_steps",
        type=int,
        default=500,
        help="restart codes unused for so many steps; 0 never does",
    )
    # the losses
    add("--perceptual", choices=["vgg", "alex", "none"], default="vgg", help="trunk of the LPIPS loss")
    add("--perceptual_weights", help="safetensors of the trunk, where torchvision cannot download it")
    add("--perceptual_weight", type=float, default=1.0)
    add("--perceptual_crop_size", type=int, help="LPIPS on one random window of each image: cheaper")
    add(
        "--discriminator",
        choices=["projected", "patch"],
        default="projected",
        help="on the features of LPIPS, or a PatchGAN on pixels",
    )
    add("--disc_weight", type=float, default=0.8)
    add("--disc_learning_rate", type=float, default=2e-4)
    add("--disc_start", type=int, default=10_000, help="the discriminator trains from this step on")
    add("--disc_warmup_steps", type=int, default=1_000, help="and its loss enters the generator so much later")
    add("--disc_channels", type=int, default=64, help="width of the discriminator")
    add("--num_validation_images", type=int, default=256, help="held-out images of the measure, at most")
    parser.set_defaults(max_train_steps=575_000, train_batch_size=3)
    return parser


def main() -> None:
    args = parse_args(build_parser(), "vqgan")
    accelerator = make_accelerator(args)
    device = accelerator.device
    set_seed(args.seed, device_specific=True)

    # ---- data -------------------------------------------------------------------------------------------------
    splits = load_slices(args.dataset_name, args.train_data_dir)
    source = args.dataset_name or args.train_data_dir
    height, width = check_image_size(splits["train"], source, 2 ** (len(args.block_out_channels) - 1))
    train_set = SliceTensors(splits["train"])
    held_out = spread_slices(splits["validation"], args.num_validation_images).to(device)

    # ---- networks and optimizers ------------------------------------------------------------------------------
    if args.train_decoder_only and args.pretrained_model_name_or_path is None:
        raise InputError("--train_decoder_only needs --pretrained_model_name_or_path, the model whose codes stay")
    if args.pretrained_model_name_or_path is not None:
        vq_model = load_vq_model(args.pretrained_model_name_or_path)
        check_image_size(splits["train"], source, downsampling_factor(vq_model))
    else:
        vq_model = create_vq_model(
            sample_size=max(height, width),
            block_out_channels=args.block_out_channels,
            layers_per_block=args.layers_per_block,
            latent_channels=args.latent_channels,
            vq_embed_dim=args.vq_embed_dim,
            num_vq_embeddings=args.num_vq_embeddings,
            norm_num_groups=args.norm_num_groups,
        )
    generator = TrainableVQModel(vq_model, args.l2_normalized_codes).train()
    if args.train_decoder_only:
        for part in (vq_model.encoder, vq_model.quant_conv, vq_model.quantize):
            part.requires_grad_(False)
    window_size = args.perceptual_crop_size or max(height, width)
    perceptual = None
    if args.perceptual != "none":
        perceptual = PerceptualLoss(args.perceptual, args.perceptual_weights).to(device)
    if args.discriminator == "projected" and perceptual is None:
        raise InputError(
            "--discriminator projected judges by the features of --perceptual, which is none; name a trunk, or choose "
            "--discriminator patch"
        )
    if args.discriminator == "projected":
        discriminator = ProjectedDiscriminator(perceptual.feature_channels, args.disc_channels)
    else:
        discriminator = PatchDiscriminator(args.disc_channels)

    trained = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    optimizer_g = torch.optim.Adam(trained, lr=args.learning_rate, betas=(0.5, 0.9))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=args.disc_learning_rate, betas=discriminator.betas)
    scheduler_g, scheduler_d = make_scheduler(args, optimizer_g), make_scheduler(args, optimizer_d)
    generator.to(device)
    ema = EMA(generator, args.ema_decay)
    num_codes = vq_model.config.num_vq_embeddings
    usage = CodeUsage(num_codes, device)  # since the last restart of dead codes
    epoch_usage = CodeUsage(num_codes, device)
    generator, discriminator, optimizer_g, optimizer_d = accelerator.prepare(
        generator, discriminator, optimizer_g, optimizer_d
    )
    unwrapped_g, unwrapped_d = accelerator.unwrap_model(generator), accelerator.unwrap_model(discriminator)
    ema.module.load_state_dict(unwrapped_g.state_dict())  # by now every process has the first one's weights
    codebook = unwrapped_g.vq_model.quantize.embedding
    last_layer = unwrapped_g.vq_model.decoder.conv_out
    last_input = {}
    last_layer.register_forward_pre_hook(lambda _, inputs: last_input.update(value=inputs[0].detach()))

    averaged_codebook = ema.module.vq_model.quantize.embedding
    images_per_step = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    steps_per_epoch = max(1, len(train_set) // images_per_step)

    # ---- one step ---------------------------------------------------------------------------------------------
    @torch.no_grad()
    def init_codebook() -> None:
        """The default, +-1/K around the origin, would leave all but a few codes without a single neighbour."""
        first = train_set.stack(torch.randperm(len(train_set))[:64].tolist())
        with accelerator.autocast():
            latents = unwrapped_g.latents(first.to(device))
        codebook.weight.copy_(broadcast(draw_codes(code_vectors(latents), len(codebook.weight))))
        if args.l2_normalized_codes:
            normalize_codebook(codebook)
        averaged_codebook.weight.copy_(codebook.weight)

    def step_once(step: int, batches: Iterator[list[int]]) -> dict[str, float]:
        if step == 0 and args.pretrained_model_name_or_path is None:
            init_codebook()
        for _ in range(args.gradient_accumulation_steps):
            with accelerator.accumulate(generator, discriminator):
                images = draw_slices(train_set, next(batches), args.random_flip).to(device)
                reconstructions, vq_loss, code_indices, latents = generator(images)
                usage.update(code_indices)
                epoch_usage.update(code_indices)

                # Each loss is differentiated once, down to the reconstruction; the adaptive weight mixes the gradients
                # there, and the mixture goes down the generator in a single backward pass.
                output = reconstructions.detach().requires_grad_()
                losses = {"l1": (images - output).abs().mean(), "vq": vq_loss}
                reconstruction_loss = losses["l1"]
                if perceptual is not None:
                    windows = draw_windows(len(images), (height, width), window_size, device)
                    with accelerator.autocast():
                        with torch.no_grad():
                            features = perceptual.features(crop(images, windows))
                        output_features = perceptual.features(crop(output, windows))
                        losses["lpips"] = perceptual.distance(features, output_features)
                    reconstruction_loss = reconstruction_loss + args.perceptual_weight * losses["lpips"]
                (gradient,) = torch.autograd.grad(reconstruction_loss, output, retain_graph=True)

                if step >= args.disc_start:
                    if args.discriminator == "projected":
                        real, fake = features, output_features
                    else:
                        real, fake = [diff_augment(images)], [diff_augment(output)]
                if step >= args.disc_start + args.disc_warmup_steps:
                    with accelerator.autocast():
                        losses["gan"] = hinge_loss_generator(unwrapped_d(fake))
                    (adversarial_gradient,) = torch.autograd.grad(losses["gan"], output)
                    losses["lambda"] = adaptive_weight(
                        gradient, adversarial_gradient, last_input["value"], last_layer.weight
                    )
                    gradient = gradient + args.disc_weight * losses["lambda"] * adversarial_gradient
                accelerator.backward((reconstructions * gradient).sum() + vq_loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trained, args.max_grad_norm)
                optimizer_g.step()
                optimizer_g.zero_grad()

                if step >= args.disc_start:
                    # Both sides in one pass: what wraps a network for several processes allows one a backward pass.
                    both = [torch.cat([r, f.detach()]) for r, f in zip(real, fake, strict=True)]
                    logits = [level.float().chunk(2) for level in discriminator(both)]
                    losses["disc"] = hinge_loss_discriminator(*zip(*logits, strict=True))
                    accelerator.backward(losses["disc"])
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(discriminator.parameters(), args.max_grad_norm)
                    optimizer_d.step()
                    optimizer_d.zero_grad()
        scheduler_g.step()
        if step >= args.disc_start:
            scheduler_d.step()
        if args.l2_normalized_codes and not args.train_decoder_only:
            normalize_codebook(codebook)
        ema.update(unwrapped_g)
        if args.l2_normalized_codes and not args.train_decoder_only:
            normalize_codebook(averaged_codebook)  # an average of unit vectors is shorter than one
        if args.dead_code_steps and not args.train_decoder_only and (step + 1) % args.dead_code_steps == 0:
            losses["restarted_codes"] = restart_dead_codes(
                codebook,
                averaged_codebook,
                optimizer_g,
                usage.gathered(accelerator),
                latents.detach(),
            )
            usage.reset()
        if (step + 1) % steps_per_epoch == 0:
            losses["usage"], losses["perplexity"] = usage_and_perplexity(epoch_usage.gathered(accelerator))
            epoch_usage.reset()

        return {name: torch.as_tensor(value).item() for name, value in losses.items()}

    # ---- validation -------------------------------------------------------------------------------------------
    @torch.no_grad()
    def validate(averaged: TrainableVQModel):
        """Held-out L1 + LPIPS, which decides; code usage and perplexity; some slices above their reconstructions."""
        totals, held_out_usage, decoded = {"l1": 0.0, "lpips": 0.0}, CodeUsage(num_codes, device), []
        for images in held_out.split(8):
            with accelerator.autocast():
                reconstructions, _, code_indices, _ = averaged(images)
            decoded.append(reconstructions.clamp(-1, 1))
            held_out_usage.update(code_indices)
            totals["l1"] += (images - decoded[-1]).abs().mean().item() * len(images)
            if perceptual is not None:
                totals["lpips"] += perceptual(images, decoded[-1]).item() * len(images)
        means = {name: total / len(held_out) for name, total in totals.items()}
        usage_share, perplexity = usage_and_perplexity(held_out_usage.counts)
        metrics = {"l1+lpips": sum(means.values()), **means, "usage": usage_share, "perplexity": perplexity}
        shown = torch.linspace(0, len(held_out) - 1, min(8, len(held_out))).long()
        sheet = reconstruction_sheet(held_out[shown], torch.cat(decoded)[shown])
        return metrics, {"reconstructions": sheet}

    parts = {
        "generator": unwrapped_g,
        "discriminator": unwrapped_d,
        "ema": ema,
        "optimizer_g": optimizer_g,
        "optimizer_d": optimizer_d,
        "scheduler_g": scheduler_g,
        "scheduler_d": scheduler_d,
        "usage": usage,
        "epoch_usage": epoch_usage,
    }
    accumulation = args.gradient_accumulation_steps
    run_training(args, accelerator, "vqgan", len(train_set), accumulation, step_once, parts, ema, validate)
    if not accelerator.is_main_process:
        return
    about_data = data_facts(args.dataset_name, splits)
    for folder in (Path(args.output_dir) / "best", Path(args.output_dir) / "last"):
        metrics = json.loads((folder / "metrics.json").read_text())
        write_record(folder, about_data, [stage_record(args, metrics)])
        write_card(folder, name=folder.name)
    if args.push_to_hub:
        push(Path(args.output_dir) / "best", args)


if __name__ == "__main__":
    run(main)
