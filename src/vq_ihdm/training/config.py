"""Presets and flags: a YAML file gives the defaults, the command line overrides them."""

import argparse
import json
import os
import sys
from pathlib import Path

import yaml

from ..errors import InputError
from ..files import replacing

PRESETS = Path("configs")
# Those of diffusers.optimization that need no more than the numbers of steps.
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


def positive(text: str) -> int:
    """The type of a flag that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no positive number")
    return number


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags all train scripts share; a script gives its own defaults with `parser.set_defaults`."""
    add = parser.add_argument
    add("--dataset_name", help="a set built by dataset_scripts/ (local folder) or one on the Hub")
    add("--train_data_dir", help="instead: a folder of images with a metadata.csv (file_name, subject)")
    add("--output_dir", required=True)
    add("--seed", type=int, default=0)
    add("--random_flip", action=argparse.BooleanOptionalAction, default=True, help="mirror left and right")
    add("--max_train_steps", type=positive)
    add("--max_train_images", type=positive, help="end earlier, when so many images were seen")
    add("--max_train_minutes", type=float, help="end earlier, after so long; a resumed run counts its earlier time")
    add("--train_batch_size", type=positive, help="per process")
    add("--gradient_accumulation_steps", type=positive, default=1)
    add("--learning_rate", type=float, default=1e-4)
    add("--lr_scheduler", choices=LR_SCHEDULERS, default="constant_with_warmup")
    add("--lr_warmup_steps", type=int, default=30_000)
    add("--lr_decay_steps", type=int, default=0, help="the last so many steps take the learning rate down to zero")
    add("--max_grad_norm", type=float, default=1.0)
    add("--ema_decay", type=float, default=0.999)
    add("--mixed_precision", choices=["no", "fp16", "bf16"], default="no")
    add("--checkpointing_steps", type=positive, default=5_000)
    add("--checkpoints_total_limit", type=positive, default=2)
    add("--resume_from_checkpoint", help="a checkpoint folder, or 'latest'")
    add("--validation_steps", type=positive, default=5_000)
    add("--report_to", choices=["tensorboard", "trackio", "wandb", "none"], default="tensorboard")
    add("--push_to_hub", action="store_true", help="publish the result when it is complete")
    add("--hub_model_id", help="account/name of the repository; by default the name of --output_dir")
    add("--hub_private_repo", action=argparse.BooleanOptionalAction, default=True)
    add("--allow_unevaluated", action="store_true", help="with --push_to_hub: there is no evaluation yet")


def parse_args(parser: argparse.ArgumentParser, section: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse `argv` with the defaults of `--config`.

    Args:
        parser: the script's own parser, without `--config`, which is added here.
        section: the part of the YAML file that belongs to this script (`vqgan`, `ihdm`, ...). Its keys are the
            script's flags.
        argv: the command line; the process's own when None.

    Raises:
        InputError: the file is missing, is no YAML, or names a flag that does not exist; or --push_to_hub would
            publish what nobody has evaluated, which is better said before the training than after it.
    """
    parser.add_argument(
        "--config", help=f"a preset's name (a file of {PRESETS}/) or a YAML file; flags override what it says"
    )
    argv = sys.argv[1:] if argv is None else argv
    path = parser.parse_known_args(argv)[0].config
    if path is not None:
        flags = {action.dest for action in parser._actions} - {"config", "help"}
        values = _read_section(path, section)
        unknown = sorted(set(values) - flags)
        if unknown:
            raise InputError(f"{path} names {', '.join(unknown)} under '{section}', which is no flag of this script")
        # As if the file's flags stood first on the command line: types and choices are checked, later ones win.
        argv = [token for key, value in values.items() for token in _as_flag(key, value)] + argv
    args = parser.parse_args(argv)
    if args.push_to_hub and not args.allow_unevaluated:
        raise InputError(
            "--push_to_hub publishes a model before it was evaluated; add --allow_unevaluated, or leave it out and "
            "run evaluate.py and publish.py afterwards"
        )
    return args


def _as_flag(key: str, value: object) -> list[str]:
    """A key and its YAML value as the command line has them."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={value}"]


def _read_section(path: str, section: str) -> dict:
    file = Path(path) if Path(path).suffix in (".yaml", ".yml") else PRESETS / f"{path}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise InputError(f"there is no preset {file}; the presets are {known}")
    try:
        presets = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{file} is no valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(presets, dict) or not isinstance(presets.get(section), dict):
        raise InputError(f"{file} has no section '{section}'; write the flags of this script under it")
    return presets[section]


def save_args(args: argparse.Namespace, path: str | os.PathLike) -> None:
    """Write the effective configuration as JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(vars(args), indent=2, sort_keys=True) + "\n")
