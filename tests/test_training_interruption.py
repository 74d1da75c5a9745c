"""Signals, and launchers that end without a word."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from vq_ihdm.training.interruption import Interruption


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_and_a_second_one_an_order(signum):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        interruption = Interruption()
        assert not interruption.requested
        os.kill(os.getpid(), signum)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signum)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


ORPHAN = """
import os, sys, time
ready, begun = os.pipe()
if os.fork():
    os.read(ready, 1)
    os._exit(0)  # the launcher, which ends without a word
sys.path.insert(0, sys.argv[1])
from interruption import PARENT, Interruption
interruption = Interruption()
assert not interruption.requested
os.write(begun, b".")
while os.getppid() == PARENT:
    time.sleep(0.01)
print(interruption.requested)
"""


@pytest.mark.parametrize("launcher", ["ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", None])
def test_a_run_ends_with_its_launcher_but_not_with_its_shell(launcher):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, str(ROOT / "src" / "vq_ihdm" / "training")],
        env=environment | ({launcher: "no"} if launcher else {}),
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(launcher is not None), done.stderr
