"""What stands before the first step: accelerator, schedule of the learning rate, a network ready to be trained."""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator, InitProcessGroupKwargs
from datasets import DatasetDict
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ..data.images import load_slices
from ..errors import InputError
from ..files import hold
from .ema import EMA


class TimedAccelerator(Accelerator):
    """Knows when the script began: reading data, making codes of it and fitting a prior are a training's time, too."""

    def __init__(self, **options):
        self.started = time.monotonic()
        super().__init__(**options)


def make_accelerator(args: argparse.Namespace) -> TimedAccelerator:
    """The accelerator the shared flags ask for, and --output_dir held for this run until the process ends.

    What the flags leave open `accelerate launch` decides: `args.mixed_precision` and
    `args.gradient_accumulation_steps` then hold what is used.

    Raises:
        InputError: the tracker's package is not installed (`accelerate` would go on without pictures and curves);
            the launcher asks for FSDP or DeepSpeed, which split the networks that a checkpoint here holds whole, or
            for torch.compile, which renames their weights; fp16 without a GPU, where `accelerate` would train in
            float32; or another run holds --output_dir.
    """
    if args.report_to != "none" and find_spec(args.report_to) is None:
        raise InputError(f"--report_to {args.report_to} needs that package: pip install {args.report_to}")
    for name in ("FSDP", "DEEPSPEED"):  # so the launcher tells its scripts
        if os.environ.get(f"ACCELERATE_USE_{name}") == "true":
            raise InputError(f"{name} is not supported; launch with --multi_gpu: every network here fits one GPU")
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise InputError("torch.compile is not supported; launch with --dynamo_backend no")
    accelerator = TimedAccelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps or 1,
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=args.logging_dir or Path(args.output_dir) / "logs",
        # One process validates, encodes a set or resizes it while the others wait for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    if args.gradient_accumulation_steps is not None:  # `accelerate` takes the launcher's word over an argument
        accelerator.gradient_accumulation_steps = args.gradient_accumulation_steps
    args.mixed_precision = accelerator.mixed_precision
    if args.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("fp16 needs a GPU; take bf16, which is faster on CPUs with AVX512_BF16 or AMX, or no")
    args.gradient_accumulation_steps = accelerator.gradient_accumulation_steps
    if accelerator.is_main_process:
        hold(args.output_dir)
        if args.lr_scheduler != "constant" and args.lr_warmup_steps >= args.max_train_steps:
            print(f"--lr_warmup_steps {args.lr_warmup_steps}: the learning rate is not reached in --max_train_steps "
                  f"{args.max_train_steps}")  # fmt: skip
    return accelerator


def read_splits(args: argparse.Namespace, accelerator: Accelerator) -> DatasetDict:
    """The data set the shared flags name; the first process reads it, and resizes it, for all.

    Raises:
        InputError: see `load_slices`.
    """
    with accelerator.main_process_first():
        return load_slices(args.dataset_name, args.train_data_dir, args.image_column, args.resolution, args.center_crop)


def make_scheduler(args: argparse.Namespace, optimizer: Optimizer, starts: Sequence[int] = (0,)) -> LRScheduler:
    """The schedule of the learning rate the shared flags ask for.

    Args:
        starts: the step at which each of the optimizer's groups of parameters begins to learn.
    """

    def rate_from(start: int) -> Callable[[int], float]:
        steps = args.max_train_steps - start
        warmup = args.lr_warmup_steps
        by_name = get_scheduler(args.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
        shape = by_name.lr_lambdas[0]  # of which no more is needed

        def rate(step: int) -> float:
            step = max(step - start, 0)
            left = steps - step
            return shape(step) * (min(1.0, left / args.lr_decay_steps) if args.lr_decay_steps else 1.0)

        return rate

    return LambdaLR(optimizer, [rate_from(start) for start in starts])


def prepare_network(
    args: argparse.Namespace,
    accelerator: Accelerator,
    network: nn.Module,
    optimizer: Optimizer,
    starts: Sequence[int] = (0,),
    start_share: float = 0.0,
) -> tuple[nn.Module, Optimizer, LRScheduler, EMA]:
    """A network on its device and wrapped for the processes, with its optimizer, learning rates and moving average.

    Whatever each process made, all of them start from the first one's weights, and so does the average.

    Args:
        optimizer: of this network, and perhaps of others.
        starts: see `make_scheduler`.
        start_share: see `EMA`; of weights that every process has read alike.
    """
    network.to(accelerator.device).train()
    lr_scheduler = make_scheduler(args, optimizer, starts)
    ema = EMA(network, args.ema_decay, start_share)  # of the network as it is: what wraps it may not be copied
    network, optimizer = accelerator.prepare(network, optimizer)
    ema.module.load_state_dict(accelerator.unwrap_model(network).state_dict())
    return network, optimizer, lr_scheduler, ema


def clip_gradients(accelerator: Accelerator, optimizer: Optimizer, max_norm: float | None) -> None:
    """Clip the gradients of each of an optimizer's groups of parameters to a norm of `max_norm`, if any."""
    if max_norm is None:
        return
    accelerator.unscale_gradients(optimizer)
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], max_norm)
