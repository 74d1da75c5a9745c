"""How a user's mistake is told: one sentence with the remedy, a non-zero exit, no traceback."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Input that cannot be used. The message is one sentence: what is wrong, where, and the remedy."""


@contextmanager
def naming(what: object, remedy: str) -> Iterator[None]:
    """A boundary around one input, such as a file: whatever goes wrong inside becomes an `InputError` that names it.

    An `InputError` from inside is a sentence without its subject ("is empty; ..."), which `what` becomes. Readers and
    the libraries below them raise everything else, from OSError to KeyError, over a damaged file.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{what} {error}") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{what} cannot be used ({reason}); {remedy}.") from error


def one_line(message: object) -> str:
    """A message as it can be printed: file names may hold line breaks, or bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(message))


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; an `InputError` becomes one line on stderr and exit code 1."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {one_line(error)}")
