"""Command-line flags: their types, which refuse what makes no sense where it is typed, and how help shows them."""

import argparse
import copy
import math
from collections.abc import Callable


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a description, and tells each flag's default unless that is nothing or told in words."""

    def _format_action(self, action: argparse.Action) -> str:
        told, default = action.help or "", action.default
        is_nothing = default is None or default is False or default in (argparse.SUPPRESS, [])
        if action.option_strings and not is_nothing and "by default" not in told:
            action = copy.copy(action)
            shown = "yes" if default is True else " ".join(map(str, default)) if isinstance(default, list) else default
            action.help = f"{told} (default: {shown})".strip()
        return super()._format_action(action)


def _number(kind: type, accepts: Callable[[float], bool], description: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and accepts(number)):
            raise argparse.ArgumentTypeError(f"{text} is no {description}")
        return number

    return parse


positive_int = _number(int, lambda n: n > 0, "positive whole number")
non_negative_int = _number(int, lambda n: n >= 0, "whole number from 0 on")
seed_int = _number(int, lambda n: 0 <= n < 2**32, "whole number from 0 to 2^32 - 1")
# No quantity of ours comes near a thousand million; its square is still a float32.
positive_float = _number(float, lambda n: 0 < n <= 1e9, "positive number up to 1e9")
non_negative_float = _number(float, lambda n: 0 <= n <= 1e9, "number from 0 to 1e9")
probability = _number(float, lambda n: 0 <= n <= 1, "number from 0 to 1")
positive_probability = _number(float, lambda n: 0 < n <= 1, "number above 0 and up to 1")
share_below_one = _number(float, lambda n: 0 <= n < 1, "number from 0 to below 1")
percentage = _number(float, lambda n: 0 <= n <= 100, "number from 0 to 100")
# Lengths of a scan: what lies outside is a slip of the unit, and would ask for no slice or for all the memory.
length_mm = _number(float, lambda n: 0.05 <= n <= 50, "length from 0.05 to 50 mm")
position_mm = _number(float, lambda n: -1000 <= n <= 1000, "position from -1000 to 1000 mm")
