"""What the trainings with a blurry prior share: its flags and its fit."""

import argparse

import torch
from accelerate import Accelerator

from ..errors import InputError
from ..fit_prior import fit_prior
from ..prior import BlurryPrior
from .config import positive


def add_prior_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prior", choices=["mixture", "slice", "images"], default="mixture")
    add("--prior_rank", type=positive, default=128)
    add("--prior_components", type=positive, default=8)
    add("--allow_training_image_prior", action="store_true", help="save a prior of kind 'images' all the same")


def check_prior_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        InputError: the pipeline would hold blurred training slices, and that was not explicitly allowed.
    """
    if args.prior == "images" and not args.allow_training_image_prior:
        raise InputError(
            "--prior images would save blurred scans of the training subjects inside the pipeline; use "
            "--prior mixture, or add --allow_training_image_prior if the data may be passed on"
        )


def make_prior(args: argparse.Namespace, accelerator: Accelerator, sharp: torch.Tensor) -> BlurryPrior:
    """The prior the flags ask for, fitted on the sharp states (N, D, H, W) of the training set at --sigma_max."""
    prior = fit_prior(
        sharp,
        sigma=args.sigma_max,
        kind=args.prior,
        rank=args.prior_rank,
        num_components=args.prior_components,
        seed=args.seed,
    )
    prior.allow_saving_images = args.allow_training_image_prior
    accelerator.print(
        f"prior: {args.prior}, {prior.config.num_modes} modes, rank {prior.config.rank}, "
        f"{prior.config.variance_kept:.1%} of the variance of u_T"
    )
    return prior
