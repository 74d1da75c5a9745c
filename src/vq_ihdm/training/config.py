"""Presets and flags: a YAML file gives the defaults, the command line overrides them."""

import argparse
import json
import os
import sys
from pathlib import Path

import yaml

from ..arguments import non_negative_int, positive_float, positive_int, probability, seed_int, share_below_one
from ..data.images import add_image_arguments
from ..errors import InputError
from ..files import replacing

# Those of diffusers.optimization that need no more than the numbers of steps.
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts")
# Widths of networks, and the flag by which each must be divisible.
DIVISORS = {"hidden_size": "num_attention_heads", "block_out_channels": "norm_num_groups"}


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags all train scripts share; a script gives its own defaults with `parser.set_defaults`."""
    add = parser.add_argument
    add("--dataset_name", help="a set built by dataset_scripts/ (local folder) or one on the Hub")
    add("--train_data_dir", help="instead: a folder of images with a metadata.csv (file_name, subject)")
    add_image_arguments(parser)
    add(
        "--dataloader_num_workers",
        type=non_negative_int,
        default=0,
        help="processes that read slices ahead (codes are at hand)",
    )
    add("--output_dir", required=True)
    add("--seed", type=seed_int, default=0)
    add("--random_flip", action=argparse.BooleanOptionalAction, default=True, help="mirror left and right")
    add("--max_train_steps", type=positive_int)
    add("--max_train_images", type=positive_int, help="end earlier, when so many images were seen")
    add(
        "--max_train_minutes",
        type=positive_float,
        help="end earlier, so long after the script began; a resumed run counts its earlier time",
    )
    add("--train_batch_size", type=positive_int, help="per process")
    add("--gradient_accumulation_steps", type=positive_int, help="by default what `accelerate launch` says, or 1")
    add("--learning_rate", type=positive_float, default=1e-4)
    add("--lr_scheduler", choices=LR_SCHEDULERS, default="constant_with_warmup")
    add("--lr_warmup_steps", type=non_negative_int, default=30_000)
    add(
        "--lr_decay_steps",
        type=non_negative_int,
        default=0,
        help="the last so many steps take the learning rate down to zero",
    )
    add("--max_grad_norm", type=positive_float, default=1.0)
    add("--ema_decay", type=share_below_one, default=0.999)
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="by default what `accelerate launch` says")
    add("--checkpointing_steps", type=positive_int, default=5_000)
    add("--checkpoints_total_limit", type=positive_int, default=2)
    add("--resume_from_checkpoint", help="a checkpoint folder, or 'latest'")
    add("--validation_steps", type=positive_int, default=5_000)
    add(
        "--report_to",
        choices=["tensorboard", "trackio", "wandb", "none"],
        default="tensorboard",
        help="trackio and wandb, which may be elsewhere, get no picture that shows scans",
    )
    add("--tracker_project_name", help="by default the name of what is trained")
    add("--logging_dir", help="by default logs/ in --output_dir")
    add("--push_to_hub", action="store_true", help="publish the result (of stage 1 last/) when it is complete")
    add("--hub_model_id", help="account/name of the repository; by default the name of --output_dir")
    add("--hub_token", help="by default what `hf auth login` or HF_TOKEN say")
    add("--hub_private_repo", action=argparse.BooleanOptionalAction, default=True)
    add("--allow_unevaluated", action="store_true", help="with --push_to_hub: there is no evaluation yet")


def add_transformer_arguments(parser: argparse.ArgumentParser) -> None:
    """The tokenizer and the size of a transformer over its codes; the defaults are the paper's."""
    add = parser.add_argument
    add("--vqvae", required=True, help="the VQModel of stage 1: a folder or a Hub id")
    add("--hidden_size", type=positive_int, default=512)
    add("--num_hidden_layers", type=positive_int, default=24)
    add("--num_attention_heads", type=positive_int, default=8)
    add("--dropout", type=share_below_one, default=0.1)
    add("--neighbourhood_size", type=int, choices=[1, 3, 5], default=1, help="convolutions before attention; 1: none")


def add_covariate_arguments(parser: argparse.ArgumentParser) -> None:
    """What a model can be asked for."""
    add = parser.add_argument
    add("--covariates", nargs="*", help="columns of the set; by default age, sex, ... as far as it has them")
    add(
        "--covariate_dropout",
        type=probability,
        default=0.5,
        help="share of training examples that are shown with some covariates withheld",
    )


def add_prior_arguments(parser: argparse.ArgumentParser) -> None:
    """The blurry prior; `check_prior_arguments` belongs to them."""
    add = parser.add_argument
    add("--prior", choices=["mixture", "slice", "images"], default="mixture")
    add("--prior_rank", type=positive_int, default=128, help="dimensions of a mixture")
    add("--prior_components", type=positive_int, default=8, help="Gaussians of a mixture, at most")
    add(
        "--allow_training_image_prior",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="save a prior of kind 'images' all the same",
    )


def check_prior_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        InputError: the pipeline would hold blurred training slices and that was not explicitly allowed.
    """
    if args.prior == "images" and not args.allow_training_image_prior:
        raise InputError(
            "--prior images would save blurred scans of the training subjects inside the pipeline; use "
            "--prior mixture, or add --allow_training_image_prior if the data may be passed on"
        )


def parse_args(parser: argparse.ArgumentParser, section: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse `argv` with the defaults of `--config`.

    Args:
        parser: the script's own parser, without `--config`, which is added here.
        section: the part of the YAML file that belongs to this script (`vqgan`, `ihdm`, ...). Its keys are the
            script's flags.
        argv: the command line; the process's own when None.

    Raises:
        InputError: the file is missing, is no YAML, or names a flag that does not exist; a width is not divisible by
            the number of heads or groups; or --push_to_hub would publish what nobody has evaluated, which is better
            said before the training than after it.
    """
    parser.add_argument(
        "--config",
        help="a preset's name (a file in configs/) or a YAML file; flags override what it says. Without one the sizes "
        "and steps are the paper's, which are for a GPU",
    )
    argv = sys.argv[1:] if argv is None else argv
    config_parser = argparse.ArgumentParser(add_help=False)  # asks for no other flag: the file may have them
    config_parser.add_argument("--config")
    path = config_parser.parse_known_args(argv)[0].config
    if path is not None:
        flags = {action.dest for action in parser._actions} - {"config", "help"}
        values = _read_section(path, section)
        unknown = sorted(set(values) - flags)
        if unknown:
            raise InputError(f"{path} names {', '.join(unknown)} under '{section}', which is no flag of this script")
        # As if the file's flags stood first on the command line: types and choices are checked, later ones win.
        argv = [token for key, value in values.items() for token in _as_flag(parser, key, value)] + argv
    args = parser.parse_args(argv)
    for width, parts in DIVISORS.items():
        if parts in vars(args):
            _check_divisible(args, width, parts)
    token = vars(args).pop("hub_token")  # or it would stand in config.json, checkpoints and trackers
    if token is not None:
        os.environ["HF_TOKEN"] = token
    if args.push_to_hub and not args.allow_unevaluated:
        raise InputError(
            "--push_to_hub publishes a model before it was evaluated; add --allow_unevaluated, or leave it out and "
            "run evaluate.py and publish.py afterwards"
        )
    return args


def _check_divisible(args: argparse.Namespace, width: str, parts: str) -> None:
    widths, divisor = getattr(args, width), getattr(args, parts)
    for number in widths if isinstance(widths, list) else [widths]:
        if number % divisor:
            raise InputError(f"--{width} {number} is not divisible by --{parts} {divisor}; change one of them")


def _as_flag(parser: argparse.ArgumentParser, key: str, value: object) -> list[str]:
    """A key and its YAML value as the command line has them."""
    if value is None or (value is False and f"--no-{key}" not in parser._option_string_actions):
        return []  # a flag that is off unless it is given
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={value}"]


def _read_section(path: str, section: str) -> dict:
    presets_folder = Path(sys.argv[0]).parent / "configs"  # beside the script, wherever it is called from
    file = Path(path) if Path(path).suffix in (".yaml", ".yml") else presets_folder / f"{path}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in presets_folder.glob("*.yaml")))
        raise InputError(f"there is no preset {file}; the presets are {known}")
    try:
        presets = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(presets, dict) or not isinstance(presets.get(section), dict):
        raise InputError(f"{file} has no section '{section}'; write the flags of this script under it")
    return presets[section]


def save_args(args: argparse.Namespace, path: str | os.PathLike) -> None:
    """Write the effective configuration as JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(vars(args), indent=2, sort_keys=True) + "\n")
