"""Ctrl-C, SIGTERM and the end of the launcher, which a run answers between two steps."""

import os
import signal

PARENT = os.getppid()
# Both launchers tell their processes so. On SIGTERM `accelerate launch` ends without a word to its process, which would
# train on beside the next start.
LAUNCHED = not {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}.isdisjoint(os.environ)


class Interruption:
    """Turns SIGTERM, Ctrl-C and the death of the launcher into a request that the loop reads between two steps."""

    def __init__(self):
        self.signalled = False
        self.handlers = {signum: signal.signal(signum, self._request) for signum in (signal.SIGTERM, signal.SIGINT)}

    @property
    def requested(self) -> bool:
        return self.signalled or (LAUNCHED and os.getppid() != PARENT)

    def end(self) -> None:
        """Leave signals to whoever took them before: nothing reads requests any more."""
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)

    def _request(self, signum: int, frame: object) -> None:
        if self.signalled:  # asked twice: the user does not want to wait for the checkpoint
            raise KeyboardInterrupt
        self.signalled = True
