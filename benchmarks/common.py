"""What the benchmarks share: trainings that go on where they were stopped, and how results are written."""

import subprocess
import sys
from pathlib import Path

import torch

from vq_ihdm.hub.record import cpu_name


def train(script: str, output_dir: Path, result: str, *flags: object) -> None:
    """Run a train script, from its last checkpoint on, unless `output_dir` holds its `result` already."""
    if (output_dir / result).exists():
        return
    command = [sys.executable, script, *flags, "--output_dir", output_dir]
    command += ["--report_to", "none", "--resume_from_checkpoint", "latest"]
    code = subprocess.run(list(map(str, command))).returncode
    if code:
        raise SystemExit(code)  # the script has said why


def with_interval(estimate: dict, scale: float = 1) -> str:
    """An estimate of a report with its interval, three digits."""
    low, high = estimate["interval"]
    return f"{estimate['value'] * scale:.3g} [{low * scale:.3g}, {high * scale:.3g}]"


def machine() -> str:
    return f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
