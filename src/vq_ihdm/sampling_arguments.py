"""The flags by which scripts draw from a pipeline, checked in one way."""

import argparse
import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline

from .arguments import non_negative_float, positive_int, positive_probability
from .errors import InputError

SAMPLING = ("num_inference_steps", "temperature", "top_p", "guidance_scale")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; without them a pipeline keeps to its own defaults."""
    group = parser.add_argument_group("how codes are drawn, by default as the pipeline does")
    group.add_argument("--num_inference_steps", type=positive_int, help="network evaluations an image")
    group.add_argument("--temperature", type=non_negative_float, help="0 takes the most likely code")
    group.add_argument("--top_p", type=positive_probability, help="among the likeliest codes of so much probability")
    group.add_argument(
        "--guidance_scale",
        type=non_negative_float,
        help="above 1 images keep closer to what was asked for, at twice the evaluations; 1 is off, 0 ignores it",
    )


def usual_sampling(config: Mapping[str, Any]) -> dict[str, float]:
    """How a pipeline whose scheduler has this config draws codes unless told otherwise, as far as that says it."""
    return {name: config[name] for name in SAMPLING if name in config}


def sampling_arguments(args: argparse.Namespace, pipeline: DiffusionPipeline | None = None) -> dict[str, Any]:
    """Those that were given, as arguments of the pipeline's call.

    Raises:
        InputError: the pipeline takes no such argument.
    """
    given = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    for name in given:
        if pipeline is not None and name not in inspect.signature(pipeline.__call__).parameters:
            raise InputError(f"a {type(pipeline).__name__} takes no --{name}; leave it out")
    if pipeline is not None and given.get("guidance_scale", 1) != 1 and not pipeline.known_covariates:
        raise InputError("this model knows no covariates to be guided by; leave --guidance_scale out")
    return given
