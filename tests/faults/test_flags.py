"""Numbers without sense are refused where they are typed: every int and float flag of every script, found by its type.

What a flag accepts of `ODD_NUMBERS` stands in `SENSIBLE`, with the reason; the rest ends in a sentence that names it.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Iterator

import pytest
from conftest import ROOT

TYPED = re.compile(r"type=(?!Path)|add_\w+_arguments\(")  # other scripts have no numbers among their flags
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("", "dataset_scripts", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if "ArgumentParser(" in path.read_text() and TYPED.search(path.read_text())
)
ODD_NUMBERS = ("nan", "inf", "-1", "0", "1e30")
SENSIBLE = {
    "-1": {"slices_mm"},  # a position below the origin
    "0": {
        "slices_mm",
        "seed",
        "training_seeds",
        "percentiles",  # the darkest voxel
        "split",  # no such split
        "guidance_scale",  # the prior alone hears what is asked
        "lr_warmup_steps",  # these are parts one can do without
        "lr_decay_steps",
        "ema_decay",
        "dropout",
        "covariate_dropout",
        "pretrained_share",
        "shifted_views",
        "dataloader_num_workers",  # the main process reads
        "dead_code_steps",
        "perceptual_weight",
        "texture_weight",
        "disc_weight",
        "disc_start",
        "disc_warmup_steps",
        "delta",
        "training_noise",
        "reveal_probability",
        "temperature",  # the likeliest code
    },
}


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parsers of a script: one, or one a model."""
    for script in SCRIPTS:
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        if script == "train_baseline.py":
            for model in module.MODELS:
                yield f"{script} --model {model}", module.build_parser(model)
        else:
            yield script, module.build_parser()


def is_number(action: argparse.Action) -> bool:
    def parse(text: str) -> object:
        try:
            return action.type(text)
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            return None

    return callable(action.type) and any(isinstance(parse(text), (int, float)) for text in ("1", "0.5", "8"))


def values(action: argparse.Action, text: str) -> list[str]:
    """The flag with `text` for each of its values; a positional argument has no name."""
    count = action.nargs if isinstance(action.nargs, int) else 1
    return [*action.option_strings[:1], *[text] * count]


def command_line(parser: argparse.ArgumentParser, flag: argparse.Action, text: str) -> list[str]:
    """`flag` with a value, and what the parser requires beside it."""
    line = values(flag, text)
    exclusive = [group for group in parser._mutually_exclusive_groups if group.required]
    for group in exclusive:
        if flag not in group._group_actions:
            line += values(group._group_actions[0], "1")
    for action in parser._actions:
        if action.required and action is not flag:
            line += values(action, next(iter(action.choices or ["1"])))
    return line


def accepted(parser: argparse.ArgumentParser, flag: argparse.Action, text: str, capsys: pytest.CaptureFixture) -> bool:
    try:
        parser.parse_args(command_line(parser, flag, text))
    except SystemExit:
        message = capsys.readouterr().err.splitlines()[-1]
        assert f"error: argument {flag.option_strings[0]}: " in message
        assert text in message
        return False
    return True


def test_odd_numbers_are_refused_unless_they_are_sensible(capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    flags, wrong = set(), []
    for script, parser in parsers():
        for flag in filter(is_number, parser._actions):
            flags.add(flag.dest)
            for text in ODD_NUMBERS:
                sensible = flag.dest in SENSIBLE.get(text, ())
                if accepted(parser, flag, text, capsys) != sensible:
                    wrong.append(f"{script} {'refuses' if sensible else 'accepts'} --{flag.dest} {text}")
    assert not wrong
    assert set.union(*SENSIBLE.values()) <= flags  # none that is no more
    assert len(flags) > 40  # they were found
