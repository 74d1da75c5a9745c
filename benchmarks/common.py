"""What the benchmarks share: flags, trainings that go on where they were stopped, and how results are written."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from vq_ihdm.arguments import positive_int, seed_int
from vq_ihdm.errors import InputError
from vq_ihdm.evaluation import features
from vq_ihdm.evaluation.evaluator import EvaluationSet
from vq_ihdm.evaluation.image_sets import read_data_set
from vq_ihdm.files import read_json, replacing
from vq_ihdm.hub.model_files import weights_digest
from vq_ihdm.hub.record import DATA_FACTS, cpu_name, repository_file
from vq_ihdm.training.state import load_state

# Discrete VQ-IHDM as published: flags of train_ihdm.py on top of a preset's.
AS_PUBLISHED = [
    "--sigma_max", "24", "--delta", "0", "--reveal_probability", "0", "--prior", "slice", "--temperature", "1",
    "--num_inference_steps", "1", "--neighbourhood_size", "1",
]  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]
PACE = (20, 60)  # steps between which the time of a step is taken
TURNS = 2  # in which ours and a peer are timed
# Flags that change no figure.
PLACES = {"work_dir", "output_dir", "trainings", "training_seeds", "ablations", "best_only"}


def add_benchmark_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """The flags both have; what is finished and the results stand in folders of the benchmark's name."""
    add = parser.add_argument
    add("--config", default="oasis", help="preset of the networks' size and optimisation")
    add("--dataset_name", required=True)
    add("--split", help="held-out splits: validation to choose settings by; by default test, to report on")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], default="no")
    add("--num_images", type=positive_int, default=1000, help="to sample from each system")
    add("--seed", type=seed_int, default=0)
    add("--feature_weights", help="Inception weights in a local file")
    add("--work_dir", type=Path, default=f"runs/{name}")
    add("--output_dir", type=Path, default=f"benchmarks/results/{name}")


def preset_file(name: str) -> str:
    """The file of a preset: `parse_args` looks beside the script that runs, which is the benchmark."""
    return name if name.endswith((".yaml", ".yml")) else str(ROOT / "configs" / f"{name}.yaml")


def shared_flags(args: argparse.Namespace) -> list[object]:
    """What every train script of a benchmark is given."""
    names = ("config", "dataset_name", "seed", "mixed_precision")
    return [part for name in names for part in (f"--{name}", getattr(args, name))]


def load_reference(args: argparse.Namespace) -> EvaluationSet:
    """The real images that the systems are measured against."""
    splits = args.split.split("+") if args.split else None
    return EvaluationSet(*read_data_set(args.dataset_name, splits), features.load_networks(args.feature_weights, "cpu"))


def check_settings(args: argparse.Namespace) -> None:
    """Keep the settings in --work_dir, so that no later run adds figures of others to them.

    Names of a set and a tokenizer are not enough: either may have been made anew in its place.

    Raises:
        InputError: the folder is of a run with other settings.
    """
    settings = {name: value for name, value in vars(args).items() if name not in PLACES}
    facts = repository_file(args.dataset_name, DATA_FACTS, "dataset")
    settings["dataset_name's digest"] = read_json(facts).get("digest") if facts else None
    if "vqvae" in settings and Path(args.vqvae).is_dir():
        settings["vqvae's weights"] = weights_digest(Path(args.vqvae))
    file = args.work_dir / "settings.json"
    if file.is_file():
        for name, value in json.loads(file.read_text()).items():
            if settings.get(name) != value:
                raise InputError(
                    f"{args.work_dir} holds a run with --{name} {value}, this one has {settings.get(name)}; name a "
                    "new --work_dir"
                )
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n")


def train(script: str, output_dir: Path, result: str, *flags: object) -> None:
    """Run a train script, from its last checkpoint on, unless `output_dir` holds its `result` already."""
    if (output_dir / result).exists():
        return
    command = [sys.executable, script, *flags, "--output_dir", output_dir]
    command += ["--report_to", "none", "--resume_from_checkpoint", "latest"]
    code = subprocess.run(list(map(str, command))).returncode
    if code:
        raise SystemExit(code)  # the script has said why


def last_metrics(output_dir: Path) -> dict[str, float]:
    """Of a finished training: `step`, `images_seen`, `seconds` since its script began, what it measured."""
    return json.loads((output_dir / "last" / "metrics.json").read_text())


def steps_in_the_time_of(steps: int, ours: list[object], theirs: list[object], work_dir: Path) -> int:
    """How many steps their training makes while ours makes `steps`, what precedes the first one included.

    Short trainings of both in turns tell. Of each the fastest counts: what else the machine does at that moment is not
    theirs.

    Args:
        ours, theirs: a train script and its flags.
    """
    # One step more, so that the pictures of the last validation come after the clock has stopped.
    short = ["--max_train_steps", PACE[1] + 1, "--checkpointing_steps", PACE[0], "--checkpoints_total_limit", PACE[1]]
    paces = {"ours": [], "theirs": []}
    for turn in range(TURNS):
        for name, (script, *flags) in (("ours", ours), ("theirs", theirs)):
            folder = work_dir / f"{name}_{turn}"
            train(script, folder, "last", *flags, *short)
            paces[name].append(start_and_step(folder))
    (our_start, our_step), (their_start, their_step) = (map(min, zip(*pace, strict=True)) for pace in paces.values())
    return max(1, int((our_start + steps * our_step - their_start) / their_step))


def start_and_step(folder: Path) -> tuple[float, float]:
    """Seconds before the first step and seconds a step of a short training."""
    first, last = PACE
    before, after = (load_state(folder / f"checkpoint-{step}")["parts"]["run"]["seconds"] for step in PACE)
    a_step = (after - before) / (last - first)
    return before - first * a_step, a_step


def with_interval(estimate: dict, scale: float = 1) -> str:
    """An estimate of a report with its interval, three digits."""
    low, high = estimate["interval"]
    return f"{estimate['value'] * scale:.3g} [{low * scale:.3g}, {high * scale:.3g}]"


def without_half_samples(figures: dict[str, dict]) -> dict[str, dict]:
    """Figures as results are published: without the values on each half-sample, which only differences need."""
    return {
        name: {part: without_resampled(side) if isinstance(side, dict) else side for part, side in figure.items()}
        for name, figure in figures.items()
    }


def without_resampled(estimate: dict) -> dict:
    """An estimate without its values on each half-sample."""
    return {name: content for name, content in estimate.items() if name != "resampled"}


def machine() -> str:
    return f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
