"""Presets and flags: a YAML file gives the defaults, the command line overrides them."""

import argparse
import json
import os
from pathlib import Path

import yaml

from ..errors import InputError
from ..files import replacing

PRESETS = Path("configs")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags all train scripts share; a script gives its own defaults with `parser.set_defaults`."""
    add = parser.add_argument
    add("--dataset_name", help="a set built by dataset_scripts/ (local folder) or one on the Hub")
    add("--train_data_dir", help="instead: a folder of images with a metadata.csv (file_name, subject)")
    add("--output_dir", required=True)
    add("--seed", type=int, default=0)
    add("--random_flip", action=argparse.BooleanOptionalAction, default=True, help="mirror left and right")
    add("--max_train_steps", type=int)
    add("--train_batch_size", type=int, help="per process")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--learning_rate", type=float, default=1e-4)
    add("--lr_scheduler", default="constant_with_warmup", help="a name of diffusers.optimization")
    add("--lr_warmup_steps", type=int, default=30_000)
    add("--max_grad_norm", type=float, default=1.0)
    add("--ema_decay", type=float, default=0.999)
    add("--mixed_precision", choices=["no", "fp16", "bf16"], default="no")
    add("--checkpointing_steps", type=int, default=5_000)
    add("--checkpoints_total_limit", type=int, default=2)
    add("--resume_from_checkpoint", help="a checkpoint folder, or 'latest'")
    add("--validation_steps", type=int, default=5_000)
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
    path = parser.parse_known_args(argv)[0].config
    if path is not None:
        flags = {action.dest for action in parser._actions} - {"config", "help"}
        values = _read_section(path, section)
        unknown = sorted(set(values) - flags)
        if unknown:
            raise InputError(f"{path} names {', '.join(unknown)} under '{section}', which is no flag of this script")
        # Strings make argparse apply each flag's own type to what the file says, as it does for the command line.
        typed = {action.dest: action.type for action in parser._actions}
        parser.set_defaults(
            **{key: str(value) if typed[key] and value is not None and not isinstance(value, list) else value
               for key, value in values.items()}
        )  # fmt: skip
    args = parser.parse_args(argv)
    if args.push_to_hub and not args.allow_unevaluated:
        raise InputError(
            "--push_to_hub publishes a model before it was evaluated; add --allow_unevaluated, or leave it out and "
            "run evaluate.py and publish.py afterwards"
        )
    return args


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
