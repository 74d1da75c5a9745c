"""The steps of our train scripts in turn with the same networks in a bare loop, and with the steps as published.

A train script runs as a user would run it; between two of its steps each contestant takes one of its own, on the same
machine in the same state.
"""

import argparse
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import ROOT, preset_file
from published_steps import AbsorbingStep, TamingStep

from vq_ihdm import HeatDissipationScheduler, VQIHDMPipeline
from vq_ihdm.data.images import load_slices
from vq_ihdm.denoising_loss import denoising_loss
from vq_ihdm.training.config import parse_args
from vq_ihdm.training.run import TrainingRun
from vq_ihdm.vqgan.criterion import Criterion
from vq_ihdm.vqgan.losses import discriminator_loss

Contestants = dict[str, Callable[[], object]]
ADVERSARIAL = ["--disc_start", "0", "--disc_warmup_steps", "0"]  # from the first step on


def races(args: argparse.Namespace) -> Iterator[tuple[str, int, dict[str, np.ndarray]]]:
    """For each setting: what it is called, images a step, and seconds of each contestant's steps, ours first."""
    flags = [
        "--config",
        preset_file(str(args.config)),
        "--dataset_name",
        args.dataset_name,
        "--gradient_accumulation_steps",
        "1",
    ]
    trunk = ["--perceptual_weights", args.perceptual_weights] if args.perceptual_weights else []
    width, height = load_slices(args.dataset_name)["train"][0]["image"].size
    whole = ["--discriminator", "patch", "--perceptual_crop_size", str(max(height, width))]
    for setting, special in (("VQGAN, preset", []), ("VQGAN, PatchGAN and LPIPS of whole images", whole)):
        contestants = lambda script, parsed: vqgan_contestants(script, parsed, (height, width))  # noqa: E731
        yield setting, *race("vqgan", [*flags, *trunk, *ADVERSARIAL, *special], contestants, args.repeats)
    vqvae = ["--vqvae", str(args.pipeline), "--no-random_flip"]
    contestants = lambda script, parsed: denoiser_contestants(script, parsed, args.pipeline)  # noqa: E731
    alone = ["--neighbourhood_size", "1"]  # the transformer as published, without our convolutions
    for setting, special in (("denoiser, preset", []), ("denoiser, attention alone", alone)):
        yield setting, *race("ihdm", [*flags, *vqvae, *special], contestants, args.repeats)


def race(
    section: str, flags: list[str], contestants: Callable[[dict[str, Any], argparse.Namespace], Contestants], steps: int
) -> tuple[int, dict[str, np.ndarray]]:
    """Images a step, and seconds of `steps` steps of `train_<section>.py` and of each contestant, after two others."""
    with TemporaryDirectory() as folder:
        flags = [*flags, "--output_dir", folder, "--max_train_steps", str(steps + 2)]
        script = runpy.run_path(str(ROOT / f"train_{section}.py"))
        parsed = parse_args(script["build_parser"](), section, flags)
        rivals = contestants(script, parsed)
        seconds: dict[str, list[float]] = {name: [] for name in ("train script", *rivals)}
        log, argv, started = TrainingRun.log, sys.argv, [time.perf_counter()]

        def log_and_let_others_step(run: TrainingRun, **values: object) -> None:
            log(run, **values)
            seconds["train script"].append(time.perf_counter() - started[0])
            for name, step in rivals.items():
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
            started[0] = time.perf_counter()

        TrainingRun.log, sys.argv = log_and_let_others_step, [f"train_{section}.py", *flags]
        try:
            script["main"]()
        finally:
            TrainingRun.log, sys.argv = log, argv
    return parsed.train_batch_size, {name: np.array(taken[2:]) for name, taken in seconds.items()}


def vqgan_contestants(script: dict[str, Any], args: argparse.Namespace, size: tuple[int, int]) -> Contestants:
    images = torch.rand(args.train_batch_size, 1, *size) * 2 - 1
    generator, perceptual, discriminator = script["make_networks"](args, size, images.device)
    criterion = Criterion(
        discriminator,
        generator.vq_model.decoder.conv_out,
        perceptual,
        args.perceptual_crop_size or max(size),
        args.perceptual_weight,
        args.texture_weight,
        args.disc_weight,
    )
    groups = [
        {"params": list(generator.parameters()), "lr": args.learning_rate, "betas": (0.5, 0.9)},
        {"params": list(discriminator.parameters()), "lr": args.disc_learning_rate, "betas": discriminator.betas},
    ]
    optimizer = torch.optim.Adam(groups)

    def bare() -> None:
        reconstructions, vq_loss, _, _ = generator(images)
        output = reconstructions.detach().requires_grad_()
        gradient, _, (real, fake) = criterion(images, output, adversarial=True)
        ((reconstructions * gradient).sum() + vq_loss).backward()
        discriminator_loss(discriminator, real, fake).backward()
        for group in groups:
            torch.nn.utils.clip_grad_norm_(group["params"], args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    published = TamingStep(script["make_networks"](args, size, images.device)[0], perceptual, args.disc_channels)
    return {"bare loop": bare, "as published (taming-transformers)": lambda: published(images)}


def denoiser_contestants(script: dict[str, Any], args: argparse.Namespace, folder: Path) -> Contestants:
    pipeline = VQIHDMPipeline.from_pretrained(folder)
    codebook = pipeline.vqvae.quantize.embedding.weight.detach()
    height, width = pipeline.denoiser.config.height, pipeline.denoiser.config.width
    z_0 = torch.randint(len(codebook), (args.train_batch_size, height, width))
    denoiser = script["make_denoiser"](args, codebook, z_0[:, None], []).train()
    scheduler = HeatDissipationScheduler(sigma_max=args.sigma_max, delta=args.delta)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=args.learning_rate)

    def bare() -> None:
        denoising_loss(denoiser, scheduler, denoiser.embed_codes, z_0, args.reveal_probability).backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    transformer = (args.hidden_size, args.num_hidden_layers, args.num_attention_heads, args.dropout)
    published = AbsorbingStep(len(codebook), height * width, *transformer)
    return {"bare loop": bare, "as published (unleashing-transformers)": lambda: published(z_0.flatten(1))}
