"""How a user's mistake is told: one sentence with the remedy, a non-zero exit, no traceback."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Input that cannot be used. The message is one sentence: what is wrong, where, and the remedy."""


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; an `InputError` becomes one line on stderr and exit code 1."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
