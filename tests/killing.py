"""Child processes that end as a killed or crashed one does: at once, with nothing tidied up."""

import os
import signal
import sys
from collections.abc import Callable
from threading import RLock

from tqdm.auto import tqdm

CALLS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree"}


def child(body: Callable[[], None], killed_before_call: int | None = None) -> int:
    """Run `body` in a forked process.

    Args:
        killed_before_call: SIGKILL before the so many-th time that it asks the system for something about files.

    Returns:
        the process's id; `reap` waits for its end.
    """
    pid = os.fork()
    if pid:
        return pid
    calls = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal calls
        if event in CALLS:
            calls += 1
            if calls == killed_before_call:
                os.kill(os.getpid(), signal.SIGKILL)

    # Bars of forked processes share a lock, and whoever is killed while holding it keeps it for ever.
    tqdm.set_lock(RLock())
    try:
        sys.addaudithook(count)
        body()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def reap(pid: int) -> bool:
    """Wait for a child; whether it was killed."""
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed; see its stderr"
    return os.WIFSIGNALED(status)
