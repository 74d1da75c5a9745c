"""Both train scripts by one, two, ... processes, as `torchrun` starts them, at the same batch of all together."""

import argparse
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import numpy as np
from common import ROOT, preset_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_race import ADVERSARIAL

from vq_ihdm.training.config import parse_args

LOSSES = {"vqgan": "vq", "ihdm": "loss"}  # what each script logs at every step


def trainings(args: argparse.Namespace) -> Iterator[tuple[str, int, dict[str, np.ndarray]]]:
    """For each script: what it is called, images a step, and seconds of each step by processes of one thread each.

    The batch is the preset's, as far as all numbers of processes divide it, and is the same for all of them.
    """
    flags = ["--config", preset_file(str(args.config)), "--dataset_name", str(args.dataset_name)]
    trunk = ["--perceptual_weights", args.perceptual_weights] if args.perceptual_weights else []
    special = {"vqgan": [*trunk, *ADVERSARIAL], "ihdm": ["--vqvae", str(args.pipeline), "--no-random_flip"]}
    common = math.lcm(*args.processes)
    for section, more in special.items():
        script = runpy.run_path(str(ROOT / f"train_{section}.py"))
        parsed = parse_args(script["build_parser"](), section, [*flags, *more, "--output_dir", "runs"])
        batch = common * max(1, parsed.train_batch_size // common)
        seconds = {}
        for number in args.processes:
            settings = ["--train_batch_size", str(batch // number), "--gradient_accumulation_steps", "1"]
            settings += [
                "--max_train_steps",
                str(args.steps + 3),
                "--report_to",
                "tensorboard",
                "--tracker_project_name",
                "run",
            ]
            name = "1 process" if number == 1 else f"{number} processes"
            seconds[name] = train(section, number, [*flags, *more, *settings])
        yield f"train_{section}.py, batch {batch}", batch, seconds


def train(section: str, num_processes: int, flags: list[str]) -> np.ndarray:
    """Seconds of each step of a training by the record it keeps, without the first two.

    Raises:
        SystemExit: the training failed, and has said why.
    """
    with TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
        command = [*launcher, str(ROOT / f"train_{section}.py"), *flags, "--output_dir", folder]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, env=environment).returncode
        if code:
            raise SystemExit(code)
        record = EventAccumulator(f"{folder}/logs/run", size_guidance={"scalars": 0}).Reload()
        ended = [event.wall_time for event in record.Scalars(f"train/{LOSSES[section]}")]
    return np.diff(ended)[2:]
