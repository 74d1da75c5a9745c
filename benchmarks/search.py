"""Learning rate and way of sampling of ours and its two peers, chosen on validation by equally many trials.

    python benchmarks/search.py --config oasis --dataset_name data/oasis --vqvae runs/vqgan/last --num_images 256

First a training of --search_steps at each of --learning_rates, judged by the stage-2 KID of the samples in the first of
its `WAYS`; then one of --train_steps at the best rate, judged in each of them. Results go to --output_dir: `README.md`
and `results.json`. What is finished is kept in --work_dir: a killed run goes on with the rest.
"""

import argparse
import json
from dataclasses import asdict

from common import (
    add_benchmark_arguments,
    check_settings,
    load_reference,
    machine,
    shared_flags,
    train,
    with_interval,
    without_resampled,
)
from diffusers import DiffusionPipeline
from one_step_vs_absorbing import TRAININGS, Training

from vq_ihdm import load_pipeline
from vq_ihdm.arguments import HelpFormatter, positive_float, positive_int
from vq_ihdm.data.tokens import encode_split
from vq_ihdm.errors import run
from vq_ihdm.evaluation.image_sets import ImageSet, independent
from vq_ihdm.evaluation.pipelines import decode, draw_images
from vq_ihdm.evaluation.report import table
from vq_ihdm.files import check_replaceable, replacing

TITLE = "# Learning rate and way of sampling, chosen on validation"
# The first judges the learning rates. As many for each system.
WAYS = {
    "default": [
        {"num_inference_steps": steps, "temperature": temperature}
        for steps, temperature in ((1, 1.0), (1, 0.8), (2, 0.8), (4, 0.8), (4, 0.6), (8, 0.8))
    ],
    "absorbing": [
        {"num_inference_steps": 50, "temperature": 1.0},
        *({"num_inference_steps": steps, "temperature": 0.8} for steps in (50, 256)),
        *(
            {"num_inference_steps": steps, "reveal_order": "confidence", "choice_temperature": choice_temperature}
            for steps, choice_temperature in ((8, 4.5), (16, 4.5), (16, 9.0))
        ),
    ],
    "ldm": [{"num_inference_steps": steps} for steps in (20, 5, 10, 35, 50, 100)],
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_benchmark_arguments(parser, "search")
    parser.set_defaults(split="validation")
    add = parser.add_argument
    add("--vqvae", required=True, help="the tokenizer all systems share")
    add("--learning_rates", type=positive_float, nargs="+", default=[2.5e-4, 5e-4, 1e-3])
    add("--search_steps", type=positive_int, default=500, help="of each training at a learning rate that is tried")
    add("--train_steps", type=positive_int, default=1500, help="of the training at the best one")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    check_replaceable(args.output_dir, "README.md", TITLE)
    check_settings(args)
    trials, rows = Trials(args), []
    for training in TRAININGS:
        if training.name in WAYS:
            first, *_ = ways = WAYS[training.name]
            tried = [trials.row(training, rate, args.search_steps, first) for rate in args.learning_rates]
            best = min(tried, key=value)["learning_rate"]
            rows += tried + [trials.row(training, best, args.train_steps, way) for way in ways]
    with replacing(args.output_dir) as folder:
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        (folder / "README.md").write_text("\n".join(page(rows, args)) + "\n")


class Trials:
    """What was measured, kept in --work_dir."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.reference, self.decoded = args, load_reference(args), None

    def row(self, training: Training, rate: float, steps: int, way: dict) -> dict:
        """Train if need be, sample in a way and measure stage-2 KID and time."""
        name = f"{training.name}_{rate:g}_{steps}"
        file = self.args.work_dir / "trials" / f"{name}_{'_'.join(map(str, way.values()))}.json"
        if not file.is_file():
            flags = ["--vqvae", self.args.vqvae, "--max_train_steps", steps, "--learning_rate", rate]
            flags = [*training.flags, *shared_flags(self.args), *flags]
            train(training.script, self.args.work_dir / name, "pipeline", *flags)
            pipe = load_pipeline(self.args.work_dir / name / "pipeline")
            facts = {"system": training.name, "learning_rate": rate, "train_steps": steps, "sampling": way}
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(facts | self.measure(pipe, way)))
        row = json.loads(file.read_text())
        print(" | ".join(cells(row)), flush=True)
        return row

    def measure(self, pipe: DiffusionPipeline, way: dict) -> dict:
        reference = self.reference
        if self.decoded is None:  # all systems share the tokenizer
            codes = encode_split(pipe.vqvae, reference.held_out.split, mirrored=False)[:, 0]
            self.decoded = ImageSet(decode(pipe, codes), reference.held_out.subjects)
        images, _, seconds = draw_images(pipe, self.args.num_images, self.args.seed, **way)
        estimate = reference.fidelity(independent(images), self.decoded)["kid", reference.networks[0].name]
        return {"second_stage_kid": without_resampled(asdict(estimate)), "seconds": seconds}


def value(row: dict) -> float:
    return row["second_stage_kid"]["value"]


def cells(row: dict) -> list[str]:
    """A row under the headings of `page`."""
    way = ", ".join(
        f"{name} {value:g}" if value != "confidence" else "by confidence" for name, value in row["sampling"].items()
    )
    kid = with_interval(row["second_stage_kid"], 1e3)
    return [row["system"], f"{row['learning_rate']:g}", str(row["train_steps"]), way, kid, f"{row['seconds']:.3f}"]


def page(rows: list[dict], args: argparse.Namespace) -> list[str]:
    rates = " ".join(f"{rate:g}" for rate in args.learning_rates)
    best = {
        name: min((r for r in rows if r["system"] == name and r["train_steps"] == args.train_steps), key=value)
        for name in WAYS
    }
    return [
        TITLE,
        "",
        f"Three systems, {len(args.learning_rates)} learning rates and {len(WAYS['default'])} ways of sampling each, "
        f"{args.num_images} images a trial against the decoded codes of the slices of {args.split}; in brackets 95 % "
        "intervals over images and people, the same for all. The presets' schedule (`cosine`) ends with the training. "
        "Seconds are of trials one after another, whatever else the machine did: they compare no speeds.",
        "",
        f"Command: `python benchmarks/search.py --config {args.config} --learning_rates {rates} --search_steps "
        f"{args.search_steps} --train_steps {args.train_steps} --num_images {args.num_images} --seed {args.seed} "
        f"--mixed_precision {args.mixed_precision} --dataset_name ... --vqvae ...`, on {machine()}.",
        "",
        *table(["system", "learning rate", "steps", "sampling", "stage-2 KID x 1000", "s / image"], map(cells, rows)),
        "",
        *(f"- Best of `{name}`: " + ", ".join(cells(row)[1:5]) for name, row in best.items()),
    ]


if __name__ == "__main__":
    run(main)
