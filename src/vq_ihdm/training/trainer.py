"""The training loop, and its commonest use: one network with one loss."""

import argparse
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm.auto import tqdm

from ..errors import InputError
from ..files import replacing
from .checkpoints import Checkpointer, Stateful
from .config import save_args
from .ema import EMA
from .loop import Interruption, Stopwatch, any_process, batch_order, check_finite
from .pictures import log_picture, save_picture

INTERRUPTED = 130  # the exit code of a program stopped by Ctrl-C: whatever was to follow must not start


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """The accelerator the shared flags ask for.

    Raises:
        InputError: the tracker's package is not installed; `accelerate` would go on without pictures and curves.
    """
    if args.report_to != "none" and find_spec(args.report_to) is None:
        raise InputError(f"--report_to {args.report_to} needs that package: pip install {args.report_to}")
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
) -> tuple[Path, dict[str, float]]:
    """Train `network` with Adam and a moving average of its weights as the shared flags say.

    Args:
        network: has `save_pretrained`.
        loss: of the (wrapped) network on the examples with the given indices.
        num_examples, validate: see `run_training`, whose result is returned.
    """
    network.to(accelerator.device)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=args.learning_rate)
    scheduler = make_scheduler(args, optimizer)
    ema = EMA(network, args.ema_decay)
    network, optimizer = accelerator.prepare(network, optimizer)
    network.train()
    unwrapped = accelerator.unwrap_model(network)
    ema.module.load_state_dict(unwrapped.state_dict())  # by now every process has the first one's weights

    def step_once(step: int, batches: Iterator[list[int]]) -> dict[str, float]:
        for _ in range(args.gradient_accumulation_steps):
            with accelerator.accumulate(network):
                value = loss(network, torch.tensor(next(batches)))
                accelerator.backward(value)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(network.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        scheduler.step()
        ema.update(unwrapped)
        return {"loss": value.item(), "lr": scheduler.get_last_lr()[0]}

    parts = {"network": unwrapped, "ema": ema, "optimizer": optimizer, "scheduler": scheduler}
    batches_per_step = args.gradient_accumulation_steps
    return run_training(args, accelerator, name, num_examples, batches_per_step, step_once, parts, ema, validate)


def make_scheduler(args: argparse.Namespace, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule of the learning rate the shared flags ask for."""
    shape = get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    ).lr_lambdas[0]

    def rate(step: int) -> float:
        left = args.max_train_steps - step
        return shape(step) * (min(1.0, left / args.lr_decay_steps) if args.lr_decay_steps else 1.0)

    return LambdaLR(optimizer, rate)


def run_training(
    args: argparse.Namespace,
    accelerator: Accelerator,
    name: str,
    num_examples: int,
    batches_per_step: int,
    step_once: Callable[[int, Iterator[list[int]]], dict[str, float]],
    parts: dict[str, Stateful],
    ema: EMA,
    validate: Callable[[nn.Module], tuple[dict[str, float], dict[str, Image.Image]]],
) -> tuple[Path, dict[str, float]]:
    """Steps, checkpoints, validation and trackers, up to the budget or an interruption.

    The budget is --max_train_steps or, where they end it earlier, --max_train_images and --max_train_minutes.

    Leaves in --output_dir `checkpoint-<step>/`, `best/` and `last/` (averaged networks with their `metrics.json`),
    the pictures of the last validation, `config.json` and `logs/`.

    Args:
        num_examples: size of the training set.
        batches_per_step: how many batches a step takes from its argument.
        step_once: one step, given how many were done before and the endless batches of example indices; returns what
            is to be logged, losses first.
        parts: everything with a state that a resumed run needs.
        ema: one of them, the average of the network that is validated and kept.
        validate: held-out metrics of the averaged network, the first of which decides which is the best, and
            pictures; both by name.

    Returns:
        the folder of the averaged network with the lowest held-out measure, and its metrics.

    Raises:
        SystemExit: with the code `INTERRUPTED`, when the run was interrupted and its checkpoint is saved.
    """
    output_dir = Path(args.output_dir)
    stopwatch = Stopwatch()
    parts = parts | {"stopwatch": stopwatch}
    checkpointer = Checkpointer(accelerator, output_dir, parts, vars(args), args.checkpoints_total_limit)
    step = checkpointer.resume(args.resume_from_checkpoint)
    best_folder = output_dir / "best"
    metrics_file = best_folder / "metrics.json"
    best = json.loads(metrics_file.read_text()) if step and metrics_file.is_file() else None
    interruption = Interruption()
    if accelerator.is_main_process:
        save_args(args, output_dir / "config.json")
        accelerator.init_trackers(name)

    batches = batch_order(
        num_examples,
        args.train_batch_size,
        args.seed,
        start=step * batches_per_step,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    images_per_step = args.train_batch_size * accelerator.num_processes * batches_per_step

    num_steps = args.max_train_steps
    if args.max_train_images is not None:
        num_steps = min(num_steps, -(-args.max_train_images // images_per_step))

    def finished() -> bool:
        if step >= num_steps or args.max_train_minutes is None:
            return step >= num_steps
        return any_process(stopwatch.seconds() >= 60 * args.max_train_minutes, accelerator)

    progress = tqdm(
        total=num_steps if args.max_train_minutes is None else None,
        initial=step,
        desc=name,
        disable=not accelerator.is_local_main_process,
    )
    last = step > 0 and finished()
    while not last:
        logged = step_once(step, batches)
        step += 1
        check_finite(logged, step)
        accelerator.log({f"train/{key}": value for key, value in logged.items()}, step=step)
        progress.update()
        progress.set_postfix({key: f"{value:.3g}" for key, value in logged.items() if key != "lr"})

        last = finished()
        if (step % args.validation_steps == 0 or last) and accelerator.is_main_process:
            metrics, pictures = validate(ema.module)
            progress.write(f"step {step}: " + ", ".join(f"{key} {figure:.4f}" for key, figure in metrics.items()))
            accelerator.log({f"validation/{key}": figure for key, figure in metrics.items()}, step=step)
            for key, picture in pictures.items():
                save_picture(picture, output_dir / f"{key}.png")
                log_picture(accelerator, f"validation/{key}", picture, step)
            metrics |= {"step": step, "images_seen": step * images_per_step, "seconds": stopwatch.seconds()}
            measure = next(iter(metrics))
            if best is None or metrics[measure] < best[measure]:
                best = metrics
                _keep(ema.module, metrics, best_folder)
            if last:
                _keep(ema.module, metrics, output_dir / "last")
        stop = any_process(interruption.requested, accelerator)
        if step % args.checkpointing_steps == 0 or last or stop:
            folder = checkpointer.save(step)
            if stop and not last:
                progress.close()
                accelerator.end_training()
                accelerator.print(
                    f"interrupted at step {step}: {folder} is saved; go on with --resume_from_checkpoint latest"
                )
                raise SystemExit(INTERRUPTED)
    progress.close()
    accelerator.end_training()
    return best_folder, best


def _keep(network: nn.Module, metrics: dict[str, float], folder: Path) -> None:
    with replacing(folder) as temporary:
        network.save_pretrained(temporary)
        (temporary / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
