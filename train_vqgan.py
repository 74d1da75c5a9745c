"""Stage 1: train the VQGAN that turns a slice into code indices.

    accelerate launch train_vqgan.py --config oasis --dataset_name data/oasis --output_dir runs/vqgan

The generator is a diffusers `VQModel` trained by

    L = |x - x^| + w_p LPIPS(x, x^) + L_vq (eq. 4) + lambda w_d L_GAN,

the discriminator by the hinge loss under differentiable augmentation. Under --output_dir the script leaves
`checkpoint-<step>/` to resume from, `best/` (the averaged VQModel with the lowest held-out L1 + LPIPS), `vqvae/`
(the averaged VQModel of the last step), `reconstructions.png`, `config.json` and the trackers' `logs/`.
"""

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from diffusers.optimization import get_scheduler
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from vq_ihdm.data.images import SliceTensors, check_image_size, load_slices
from vq_ihdm.errors import run
from vq_ihdm.files import replacing
from vq_ihdm.hub.card import write_card
from vq_ihdm.hub.publishing import push
from vq_ihdm.hub.record import data_facts, stage_record, write_record
from vq_ihdm.training.checkpoints import Checkpointer
from vq_ihdm.training.config import add_training_arguments, parse_args, save_args
from vq_ihdm.training.ema import EMA
from vq_ihdm.training.loop import Interruption, Stopwatch, batch_order, check_finite
from vq_ihdm.training.pictures import log_picture, reconstruction_sheet, save_picture
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
from vq_ihdm.vqgan.model import TrainableVQModel, create_vq_model
from vq_ihdm.vqgan.perceptual import PerceptualLoss


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    add = parser.add_argument
    # the VQModel
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
    add("--perceptual_crop_size", type=int, help="LPIPS on one random window per batch: cheaper")
    add("--disc_weight", type=float, default=0.8)
    add("--disc_start", type=int, default=10_000, help="the discriminator trains from this step on")
    add("--disc_warmup_steps", type=int, default=1_000, help="and its loss enters the generator so much later")
    add("--disc_channels", type=int, default=64)
    add("--dataloader_num_workers", type=int, default=0)
    add("--num_validation_images", type=int, default=256, help="held-out images of the measure, at most")
    parser.set_defaults(max_train_steps=575_000, train_batch_size=3)
    return parser


@torch.no_grad()
def validate(model, perceptual, loader, device) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
    """Held-out L1, LPIPS, code usage and perplexity of `model`; and the first images beside their reconstructions."""
    usage = CodeUsage(model.vq_model.config.num_vq_embeddings, device)
    totals, shown = {"l1": 0.0, "lpips": 0.0}, None
    for images in loader:
        images = images.to(device)
        reconstructions, _, code_indices, _ = model(images)
        reconstructions = reconstructions.clamp(-1, 1)
        usage.update(code_indices)
        totals["l1"] += (images - reconstructions).abs().mean().item() * len(images)
        if perceptual is not None:
            totals["lpips"] += perceptual(images, reconstructions).item() * len(images)
        shown = shown or (images[:8], reconstructions[:8])
    metrics = {name: total / len(loader.dataset) for name, total in totals.items()}
    metrics["usage"], metrics["perplexity"] = usage_and_perplexity(usage.counts)
    return metrics, *shown


def main() -> None:
    args = parse_args(build_parser(), "vqgan")
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=output_dir / "logs",
    )
    set_seed(args.seed, device_specific=True)

    # ---- data -------------------------------------------------------------------------------------------------
    splits = load_slices(args.dataset_name, args.train_data_dir)
    source = args.dataset_name or args.train_data_dir
    height, width = check_image_size(splits["train"], source, 2 ** (len(args.block_out_channels) - 1))
    train_set, held_out = SliceTensors(splits["train"]), SliceTensors(splits["validation"])
    # Spread over the split: its first images are the slices of a few subjects only.
    count = min(args.num_validation_images, len(held_out))
    spread = torch.linspace(0, len(held_out) - 1, count).long().tolist()
    own_generator = torch.Generator()  # starting an iterator draws from it: not from the global random state
    held_out_loader = DataLoader(Subset(held_out, spread), batch_size=8, generator=own_generator)
    about_data = data_facts(args.dataset_name, splits)

    # ---- networks and optimizers ------------------------------------------------------------------------------
    vq_model = create_vq_model(
        sample_size=max(height, width),
        block_out_channels=args.block_out_channels,
        layers_per_block=args.layers_per_block,
        latent_channels=args.latent_channels,
        vq_embed_dim=args.vq_embed_dim,
        num_vq_embeddings=args.num_vq_embeddings,
        norm_num_groups=args.norm_num_groups,
    )
    generator = TrainableVQModel(vq_model, args.l2_normalized_codes)
    discriminator = PatchDiscriminator(args.disc_channels)
    perceptual = None
    if args.perceptual != "none":
        perceptual = PerceptualLoss(args.perceptual, args.perceptual_weights).to(accelerator.device)

    optimizer_g = torch.optim.Adam(generator.parameters(), lr=args.learning_rate, betas=(0.5, 0.9))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=args.learning_rate, betas=(0.5, 0.9))
    schedule = lambda optimizer: get_scheduler(  # noqa: E731
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_steps,
    )
    scheduler_g, scheduler_d = schedule(optimizer_g), schedule(optimizer_d)
    generator.to(accelerator.device)
    ema = EMA(generator, args.ema_decay)
    usage = CodeUsage(args.num_vq_embeddings, accelerator.device)  # since the last restart of dead codes
    epoch_usage = CodeUsage(args.num_vq_embeddings, accelerator.device)
    generator, discriminator, optimizer_g, optimizer_d = accelerator.prepare(
        generator, discriminator, optimizer_g, optimizer_d
    )
    stopwatch = Stopwatch()
    unwrapped_g, unwrapped_d = accelerator.unwrap_model(generator), accelerator.unwrap_model(discriminator)
    ema.module.load_state_dict(unwrapped_g.state_dict())  # by now every process has the first one's weights
    codebook = unwrapped_g.vq_model.quantize.embedding
    last_layer = unwrapped_g.vq_model.decoder.conv_out
    last_input = {}
    last_layer.register_forward_pre_hook(lambda _, inputs: last_input.update(value=inputs[0].detach()))

    # ---- resume -----------------------------------------------------------------------------------------------
    checkpointer = Checkpointer(
        accelerator,
        output_dir,
        {
            "generator": unwrapped_g,
            "discriminator": unwrapped_d,
            "ema": ema,
            "optimizer_g": optimizer_g,
            "optimizer_d": optimizer_d,
            "scheduler_g": scheduler_g,
            "scheduler_d": scheduler_d,
            "usage": usage,
            "epoch_usage": epoch_usage,
            "stopwatch": stopwatch,
        },
        vars(args),
        args.checkpoints_total_limit,
    )
    step = checkpointer.resume(args.resume_from_checkpoint)
    metrics_file = output_dir / "best" / "metrics.json"
    best = json.loads(metrics_file.read_text())["l1+lpips"] if step and metrics_file.is_file() else float("inf")
    interruption = Interruption()
    if accelerator.is_main_process:
        save_args(args, output_dir / "config.json")
        accelerator.init_trackers("vqgan")

    order = batch_order(
        len(train_set),
        args.train_batch_size,
        args.seed,
        start=step * args.gradient_accumulation_steps,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    batches = iter(
        DataLoader(
            train_set,
            batch_sampler=order,
            num_workers=args.dataloader_num_workers,
            generator=own_generator,
        )
    )
    images_per_step = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    steps_per_epoch = max(1, len(train_set) // images_per_step)

    if step == 0:
        # The default init, +-1/K around the origin, would leave all but a few codes without a single neighbour.
        first = torch.randperm(len(train_set))[:64].tolist()
        with torch.no_grad(), accelerator.autocast():
            latents = unwrapped_g.latents(torch.stack([train_set[i] for i in first]).to(accelerator.device))
            codebook.weight.copy_(broadcast(draw_codes(code_vectors(latents), len(codebook.weight))))
            if args.l2_normalized_codes:
                normalize_codebook(codebook)
            ema.module.vq_model.quantize.embedding.weight.copy_(codebook.weight)

    def export(folder: Path, metrics: dict[str, float]) -> None:
        """Write the averaged VQModel and what is known about it."""
        with replacing(folder) as temporary:
            ema.module.vq_model.save_pretrained(temporary)
            record = metrics | {
                "step": step,
                "images_seen": step * images_per_step,
                "seconds": stopwatch.seconds(),
            }
            (temporary / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
            write_record(temporary, about_data, [stage_record(args, record)])
            write_card(temporary, name=folder.name)

    # ---- training ---------------------------------------------------------------------------------------------
    progress = tqdm(
        total=args.max_train_steps, initial=step, desc="VQGAN", disable=not accelerator.is_local_main_process
    )
    while step < args.max_train_steps:
        with accelerator.accumulate(generator, discriminator):
            images = next(batches).to(accelerator.device)
            if args.random_flip:
                flip = torch.rand(len(images), device=images.device) < 0.5
                images = torch.where(flip[:, None, None, None], images.flip(-1), images)
            reconstructions, vq_loss, code_indices, latents = generator(images)
            usage.update(code_indices)
            epoch_usage.update(code_indices)

            # Each loss is differentiated once, down to the reconstruction; the adaptive weight mixes the gradients
            # there, and the mixture goes down the generator in a single backward pass.
            output = reconstructions.detach().requires_grad_()
            losses = {"l1": (images - output).abs().mean(), "vq": vq_loss}
            reconstruction_loss = losses["l1"]
            if perceptual is not None:
                losses["lpips"] = perceptual(images, output, args.perceptual_crop_size)
                reconstruction_loss = reconstruction_loss + args.perceptual_weight * losses["lpips"]
            (gradient,) = torch.autograd.grad(reconstruction_loss, output)
            if step >= args.disc_start + args.disc_warmup_steps:
                unwrapped_d.requires_grad_(False)
                losses["gan"] = hinge_loss_generator(unwrapped_d(diff_augment(output)))
                (adversarial_gradient,) = torch.autograd.grad(losses["gan"], output)
                losses["lambda"] = adaptive_weight(
                    gradient, adversarial_gradient, last_input["value"], last_layer.weight
                )
                gradient = gradient + args.disc_weight * losses["lambda"] * adversarial_gradient
                unwrapped_d.requires_grad_(True)
            accelerator.backward((reconstructions * gradient).sum() + vq_loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(generator.parameters(), args.max_grad_norm)
            optimizer_g.step()
            optimizer_g.zero_grad()

            if step >= args.disc_start:
                logits = discriminator(diff_augment(torch.cat([images, output.detach()])))
                losses["disc"] = hinge_loss_discriminator(*logits.chunk(2))
                accelerator.backward(losses["disc"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(discriminator.parameters(), args.max_grad_norm)
                optimizer_d.step()
                optimizer_d.zero_grad()
        if not accelerator.sync_gradients:
            continue

        scheduler_g.step()
        if step >= args.disc_start:
            scheduler_d.step()
        if args.l2_normalized_codes:
            normalize_codebook(codebook)
        ema.update(unwrapped_g)
        if args.l2_normalized_codes:
            normalize_codebook(ema.module.vq_model.quantize.embedding)  # an average of unit vectors is shorter than one
        step += 1
        if args.dead_code_steps and step % args.dead_code_steps == 0:
            losses["restarted_codes"] = restart_dead_codes(
                codebook,
                ema.module.vq_model.quantize.embedding,
                optimizer_g,
                usage.gathered(accelerator),
                latents.detach(),
            )
            usage.reset()
        if step % steps_per_epoch == 0:
            losses["usage"], losses["perplexity"] = usage_and_perplexity(epoch_usage.gathered(accelerator))
            epoch_usage.reset()

        losses = {name: torch.as_tensor(value).item() for name, value in losses.items()}
        check_finite(losses, step)
        accelerator.log({f"train/{name}": value for name, value in losses.items()}, step=step)
        progress.update()
        progress.set_postfix({name: f"{losses[name]:.3f}" for name in ("l1", "lpips", "gan") if name in losses})

        last = step == args.max_train_steps
        if (step % args.validation_steps == 0 or last) and accelerator.is_main_process:
            with accelerator.autocast():
                metrics, shown, shown_reconstructions = validate(
                    ema.module, perceptual, held_out_loader, accelerator.device
                )
            measure = metrics["l1+lpips"] = metrics["l1"] + metrics["lpips"]
            progress.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
            accelerator.log({f"validation/{name}": value for name, value in metrics.items()}, step=step)
            sheet = reconstruction_sheet(shown, shown_reconstructions)
            save_picture(sheet, output_dir / "reconstructions.png")
            log_picture(accelerator, "validation/reconstructions", sheet, step)
            if measure < best:
                best = measure
                export(output_dir / "best", metrics)
            if last:
                export(output_dir / "vqvae", metrics)
        stop = interruption.agreed(accelerator)
        if step % args.checkpointing_steps == 0 or last or stop:
            folder = checkpointer.save(step)
            if stop and not last:
                progress.close()
                accelerator.print(
                    f"interrupted at step {step}: {folder} is saved; go on with --resume_from_checkpoint latest"
                )
                break
    accelerator.end_training()
    if args.push_to_hub and step == args.max_train_steps and accelerator.is_main_process:
        push(output_dir / "best", args)


if __name__ == "__main__":
    run(main)
