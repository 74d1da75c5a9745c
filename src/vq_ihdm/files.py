"""Files and folders appear under their final name whole or not at all, written by one process at a time.

Who writes is known by locks that the system releases when the process dies, however it dies: process ids, which repeat
in containers, decide nothing. The locks are POSIX record locks: workers forked meanwhile do not inherit them.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import InputError

_held: list[IO] = []  # the locks of `hold`: closing such a file would release it


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary place; what was written there (file or folder) takes `path`'s place.

    The body creates the file, or the folder, at the yielded place, which has `path`'s name. When it raises, nothing of
    it is left and whatever stood at `path` before is untouched. The place lies in `.<name>.partial/` beside `path`:
    what a killed process left there is removed by the next one that writes `path`. Of a link, what it leads to is
    replaced.

    Raises:
        OSError: there is no room; with `path` as its file name.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _staging(path) as staging:
        temporary = staging / path.name
        try:
            yield temporary
            if path.is_dir() and temporary.is_dir():
                # A folder cannot be renamed over a non-empty one: the old one steps aside first.
                os.replace(path, staging / ".old")
            os.replace(temporary, path)
        except Exception as error:
            # Libraries written in Rust, safetensors among them, tell the system's error in their text alone.
            told = re.search(r"\(os error (\d+)\)", str(error))
            number = error.errno if isinstance(error, OSError) else told and int(told[1])
            if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # which no library gives a file name
                raise OSError(number, os.strerror(number), str(path)) from error
            raise


def check_replaceable(folder: str | os.PathLike, mark: str, beginning: str = "") -> None:
    """Refuse a folder whose content `replacing` would remove though this program did not write it.

    Args:
        folder: new, empty, or an earlier output of the program.
        mark, beginning: a file that all its outputs hold, and how this file begins, where others have one of that name.

    Raises:
        InputError: the folder holds something else; or it is the current one, which the caller's shell would lose.
    """
    folder = Path(folder)
    if folder.resolve() == Path.cwd():
        raise InputError(f"{folder} is the current folder, which cannot be replaced; name a new --output_dir")
    is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_new and not ((folder / mark).is_file() and (folder / mark).read_bytes().startswith(beginning.encode())):
        raise InputError(f"{folder} exists and is no earlier output of this program; name a new --output_dir")


def hold(folder: str | os.PathLike) -> None:
    """Make `folder` this process's own until it ends, and clear what killed ones left unfinished in it.

    Raises:
        InputError: another process, which is named, holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock.json").open("a+")
    if not _lock(file):
        file.seek(0)
        holder = json.load(file)
        raise InputError(
            f"{folder} is in use by process {holder['process']} on {holder['host']} ({holder['program']}); wait until "
            "it ends or end it, or choose another --output_dir"
        )
    file.truncate(0)
    json.dump({"process": os.getpid(), "host": socket.gethostname(), "program": Path(sys.argv[0]).name}, file)
    file.flush()
    _held.append(file)
    for leftover in folder.glob(".*.partial"):
        if leftover.is_dir():
            with _staging(folder / leftover.name[1 : -len(".partial")]):
                pass


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object a JSON file holds.

    Raises:
        InputError: the file is no JSON, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:  # of the file, its encoding or its syntax
        raise InputError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """`.<name>.partial/` beside `path`, empty and this process's own; removed at the end."""
    staging = path.with_name(f".{path.name}.partial")
    lock = _lock_inside(staging, path)
    try:
        _undo(staging, path)
        yield staging
    finally:
        _undo(staging, path)
        # Where another process waits, it may have made its own lock in there by now: then the folder is left to it.
        shutil.rmtree(staging, ignore_errors=True)
        lock.close()


def _undo(staging: Path, path: Path) -> None:
    """Back to before the writing of `path`; after it is done nothing is left to undo."""
    if (staging / ".old").exists() and not path.exists():  # killed between the two renames
        os.replace(staging / ".old", path)
    for leftover in staging.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)
        elif leftover.name != ".lock":
            leftover.unlink()


def _lock_inside(staging: Path, path: Path) -> IO:
    while True:
        with suppress(FileNotFoundError):  # whoever had it has just removed it: again
            staging.mkdir(exist_ok=True)
            lock = (staging / ".lock").open("w")
            if not _lock(lock):
                print(f"{path} is being written by another process; waiting for it", file=sys.stderr)
                fcntl.lockf(lock, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(staging / ".lock")):
                return lock


def _lock(file: IO) -> bool:
    """Lock an open file for this process; False where another one has it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows both
        return False
    except OSError:
        pass  # some network file systems have no locks: there nobody can know, and the run must go on
    return True
