"""The training loop of systems that are one network with one loss."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from ..files import replacing
from .checkpoints import Checkpointer
from .config import save_args
from .ema import EMA
from .loop import Interruption, Stopwatch, batch_order, check_finite
from .pictures import log_picture, save_picture


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """The accelerator the shared flags ask for."""
    return Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=Path(args.output_dir) / "logs",
    )


def train_network(
    args: argparse.Namespace,
    accelerator: Accelerator,
    name: str,
    network: nn.Module,
    num_examples: int,
    loss: Callable[[nn.Module, torch.LongTensor], torch.Tensor],
    validate: Callable[[nn.Module], tuple[dict[str, float], dict[str, Image.Image]]],
) -> tuple[Path, dict[str, float]] | None:
    """Train `network` with Adam, moving average, checkpoints, validation and trackers as the shared flags say.

    Args:
        network: has `save_pretrained`.
        num_examples: size of the training set.
        loss: of the (wrapped) network on the examples with the given indices.
        validate: held-out metrics of the averaged network, the first of which decides which is the best, and
            pictures; both by name.

    Returns:
        the folder of the averaged network with the lowest held-out measure and its metrics; None when the run was
        interrupted.
    """
    output_dir = Path(args.output_dir)
    network.to(accelerator.device)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=args.learning_rate)
    scheduler = get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    )
    ema = EMA(network, args.ema_decay)
    network, optimizer = accelerator.prepare(network, optimizer)
    network.train()
    unwrapped = accelerator.unwrap_model(network)
    stopwatch = Stopwatch()
    parts = {"network": unwrapped, "ema": ema, "optimizer": optimizer, "scheduler": scheduler, "stopwatch": stopwatch}
    checkpointer = Checkpointer(accelerator, output_dir, parts, vars(args), args.checkpoints_total_limit)
    step = checkpointer.resume(args.resume_from_checkpoint) if args.resume_from_checkpoint else 0
    best_folder = output_dir / "best"
    metrics_file = best_folder / "metrics.json"
    best = json.loads(metrics_file.read_text()) if step and metrics_file.is_file() else None
    interruption = Interruption()
    if accelerator.is_main_process:
        save_args(args, output_dir / "config.json")
        accelerator.init_trackers(name)

    order = batch_order(
        num_examples,
        args.train_batch_size,
        args.seed,
        start=step * args.gradient_accumulation_steps,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    progress = tqdm(total=args.max_train_steps, initial=step, desc=name, disable=not accelerator.is_local_main_process)
    while step < args.max_train_steps:
        with accelerator.accumulate(network):
            value = loss(network, torch.tensor(next(order)))
            accelerator.backward(value)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue
        scheduler.step()
        ema.update(unwrapped)
        step += 1
        losses = {"loss": value.item()}
        check_finite(losses, step)
        accelerator.log({"train/loss": losses["loss"], "train/lr": scheduler.get_last_lr()[0]}, step=step)
        progress.update()
        progress.set_postfix(loss=f"{losses['loss']:.3f}")

        last = step == args.max_train_steps
        if (step % args.validation_steps == 0 or last) and accelerator.is_main_process:
            metrics, pictures = validate(ema.module)
            progress.write(f"step {step}: " + ", ".join(f"{key} {figure:.4f}" for key, figure in metrics.items()))
            accelerator.log({f"validation/{key}": figure for key, figure in metrics.items()}, step=step)
            for key, picture in pictures.items():
                save_picture(picture, output_dir / f"{key}.png")
                log_picture(accelerator, f"validation/{key}", picture, step)
            measure = next(iter(metrics))
            if best is None or metrics[measure] < best[measure]:
                best = metrics | {"step": step, "seconds": stopwatch.seconds()}
                with replacing(best_folder) as temporary:
                    ema.module.save_pretrained(temporary)
                    (temporary / "metrics.json").write_text(json.dumps(best, indent=2) + "\n")
        stop = interruption.agreed(accelerator)
        if step % args.checkpointing_steps == 0 or last or stop:
            folder = checkpointer.save(step)
            if stop and not last:
                progress.close()
                accelerator.print(
                    f"interrupted at step {step}: {folder} is saved; go on with --resume_from_checkpoint latest"
                )
                accelerator.end_training()
                return None
    progress.close()
    accelerator.end_training()
    return best_folder, best
