"""Ctrl-C and SIGTERM, which a run answers between two steps."""

import signal

INTERRUPTED = 130  # the exit code of a program stopped by Ctrl-C: whatever was to follow must not start


class Interruption:
    """Turns SIGTERM and Ctrl-C into a request that the loop reads between two steps."""

    def __init__(self):
        self.requested = False
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._request)

    def _request(self, signum: int, frame: object) -> None:
        if self.requested:  # asked twice: the user does not want to wait for the checkpoint
            raise KeyboardInterrupt
        self.requested = True
