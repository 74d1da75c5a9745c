"""How a user's mistake is told: one sentence with the remedy, a non-zero exit, no traceback."""

import errno
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # the exit code of a program stopped by Ctrl-C: whatever was to follow must not start

# What the system refuses for reasons outside the program.
REMEDIES = {
    errno.ENOSPC: "make room and start the same command again",
    errno.EDQUOT: "make room and start the same command again",
    errno.EFBIG: "write to a place that takes larger files",
    errno.EROFS: "choose a folder that may be written to",
    errno.EACCES: "choose a place that may be read and written by you",
    errno.EPERM: "choose a place that may be read and written by you",
    errno.EEXIST: "choose another folder, or move the file away that has this name",
    errno.ENOTDIR: "choose another folder, or move the file away that has this name",
    errno.EISDIR: "choose another file, or move the folder away that has this name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


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
    """Run a script's `main`; what is not the program's fault becomes one line on stderr.

    The exit code is 1 after an `InputError` and where the system refuses to read or write (a full disk, a read-only
    folder), `INTERRUPTED` after Ctrl-C or SIGTERM. Anything else is a fault of ours and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # unless `main` takes signals itself
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {one_line(error)}")
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        place = f"{one_line(error.filename)}: " if error.filename else ""
        sys.exit(f"error: {place}{error.strerror}; {REMEDIES[error.errno]}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
