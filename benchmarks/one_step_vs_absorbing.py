"""Discrete VQ-IHDM in one step against absorbing diffusion in many, on the same tokens and with the same budget.

    python benchmarks/one_step_vs_absorbing.py --config oasis --dataset_name data/oasis --vqvae runs/vqgan/best \\
        --train_steps 4000 --num_images 1000 --work_dir runs/one_step

Trains every network below for --train_steps steps of the preset's batch, samples --num_images images a system from one
seed, and evaluates them against the held-out subjects. Results go to --output_dir: `README.md` with the table,
`results.json`, `quality_against_cost.png`, contact sheets, and `first_samples.png`: a sample of absorbing diffusion at
each number of steps from the same seed (the paper's Table 2) beside ours. What is finished is kept in --work_dir: a
killed run goes on with the rest.
"""

import argparse
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from common import add_benchmark_arguments, check_settings, machine, shared_flags, table, train, with_interval
from matplotlib.figure import Figure
from PIL import Image

from vq_ihdm import VQIHDMPipeline, load_pipeline
from vq_ihdm.data.images import load_slices
from vq_ihdm.data.tokens import encode_split
from vq_ihdm.errors import run
from vq_ihdm.evaluation.evaluator import EvaluationSet, evaluate_images
from vq_ihdm.evaluation.features import load_networks
from vq_ihdm.evaluation.image_sets import read_data_set
from vq_ihdm.evaluation.pipelines import draw_images, tokenize
from vq_ihdm.files import replacing
from vq_ihdm.fit_prior import fit_prior
from vq_ihdm.heat import blur
from vq_ihdm.training.config import positive
from vq_ihdm.training.pictures import contact_sheet, save_picture


@dataclass(frozen=True)
class Training:
    """A network: the script's flags on top of the preset's."""

    name: str
    flags: list[str]
    script: str = "train_ihdm.py"


@dataclass(frozen=True)
class System:
    """A way to sample from a network, by default its own.

    `prior` is fitted anew: keywords of `fit_prior`, or `truth`: u_T of held-out slices.
    """

    label: str
    training: str
    num_inference_steps: int
    prior: dict | str | None = None
    sampling: dict = field(default_factory=dict)
    delta: float | None = None

    @property
    def key(self) -> str:
        return f"{self.label}, {self.num_inference_steps} steps".replace(" ", "_").replace(":", "").replace(",", "")


FIGURES = ("kid", "fid", "density", "coverage", "precision", "recall", "ms_ssim", "nearest_ratio", "copy_rate")
HEADINGS = ["system", "steps", "evaluations", "KID x 1000", "FID", "density", "coverage", "NN ratio", "s / image"]
ABSORBING_STEPS = [1, 10, 50, 100, 200, 256]  # the columns of the paper's Table 2

TRAININGS = [
    Training("default", []),
    Training("absorbing", ["--model", "absorbing"], "train_baseline.py"),
    Training(
        "paper",
        ["--sigma_max", "24", "--delta", "0", "--reveal_probability", "0", "--prior", "slice", "--temperature", "1"],
    ),
    Training("sigma3", ["--sigma_max", "3"]),
]

SYSTEMS = [
    System("paper: one blurred slice, sigma 24", "paper", 1),
    *[System("default", "default", steps) for steps in (1, 2, 4, 8)],
    *[System("absorbing diffusion", "absorbing", steps) for steps in ABSORBING_STEPS],
    System("absorbing diffusion, temperature 0.8", "absorbing", 256, sampling={"temperature": 0.8}),
    System("true u_T of held-out slices", "default", 1, prior="truth"),
    System("sigma 24, mixture prior", "paper", 1, prior={"kind": "mixture"}),
    System("sigma 3", "sigma3", 1),
    *[System(f"delta {delta} in sampling", "default", 1, delta=delta) for delta in (0.0, 0.3)],
    *[
        System(
            f"prior: {components} Gaussians of rank {rank}", "default", 1, {"rank": rank, "num_components": components}
        )
        for rank, components in ((16, 8), (128, 1), (128, 32))
    ],
    System("prior: one blurred slice", "default", 1, {"kind": "slice"}),
    System("prior: blurred training images", "default", 1, {"kind": "images"}),
    *[System(f"temperature {t}", "default", 1, sampling={"temperature": t}) for t in (0.0, 0.8)],
]

# Whose contact sheets are kept beside the table.
SHOWN = ["default_1_steps", "absorbing_diffusion_256_steps", SYSTEMS[0].key]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_benchmark_arguments(parser, "one_step_vs_absorbing")
    add = parser.add_argument
    add("--vqvae", required=True, help="the tokenizer all systems share")
    add("--train_steps", type=positive, default=4000, help="of each network")
    add("--trainings", nargs="+", choices=[t.name for t in TRAININGS], help="only the systems of these networks")
    return parser


def sample(system: System, pipe, tokens: torch.Tensor, held_out_codes: torch.Tensor, args) -> tuple[np.ndarray, float]:
    """(N, H, W) uint8 images, and seconds per image."""
    arguments = {"num_inference_steps": system.num_inference_steps, **system.sampling}
    if isinstance(pipe, VQIHDMPipeline):
        if system.delta is not None:
            pipe.scheduler.register_to_config(delta=system.delta)
        if system.prior == "truth":
            picks = torch.linspace(0, len(held_out_codes) - 1, args.num_images).long()
            sharp = pipe.code_embeddings(held_out_codes[picks])
            noise = torch.randn(sharp.shape, generator=torch.Generator().manual_seed(args.seed))
            arguments["sample"] = blur(sharp, pipe.prior.sigma) + pipe.scheduler.config.delta * noise
        elif system.prior is not None:
            pipe.prior = fit_prior(pipe.code_embeddings(tokens), pipe.prior.sigma, **system.prior)
    return draw_images(pipe, args.num_images, args.seed, **arguments)


def evaluations(system: System, num_codes: int) -> float:
    """Network evaluations an image. Absorbing diffusion needs one in a step that reveals any of its codes."""
    steps = system.num_inference_steps
    return steps * (1 - (1 - 1 / steps) ** num_codes) if system.training == "absorbing" else steps


def main() -> None:
    args = build_parser().parse_args()
    check_settings(args)
    reference = EvaluationSet(*read_data_set(args.dataset_name, None), load_networks(args.feature_weights, "cpu"))
    systems = [s for s in SYSTEMS if args.trainings is None or s.training in args.trainings]
    shared = [*shared_flags(args), "--vqvae", args.vqvae, "--max_train_steps", args.train_steps]
    folders = {name: args.work_dir / name / "pipeline" for name in {s.training for s in systems}}
    for training in TRAININGS:
        if training.name in folders:
            train(training.script, args.work_dir / training.name, "pipeline", *training.flags, *shared)

    finished = {system.key: args.work_dir / "systems" / f"{system.key}.json" for system in systems}
    missing = [system for system in systems if not finished[system.key].is_file()]
    if missing:
        any_pipe = load_pipeline(folders[missing[0].training])
        tokenized = tokenize(any_pipe, reference, args.num_images)
        tokens = encode_split(any_pipe.vqvae, load_slices(args.dataset_name)["train"], mirrored=True).flatten(0, 1)
    for system in missing:
        pipe = load_pipeline(folders[system.training])
        pipe.set_progress_bar_config(desc=system.key)
        images, seconds = sample(system, pipe, tokens, tokenized.held_out_codes, args)
        report = evaluate_images(images, reference, tokenized)
        figures = {name: asdict(report.figure(name)) for name in FIGURES}
        num_codes = tokenized.held_out_codes[0].numel()
        costs = {"evaluations": evaluations(system, num_codes), "seconds": seconds}
        row = {**asdict(system), "key": system.key, **costs, "figures": figures}
        save_picture(contact_sheet(images[:32], 8, margin=0), finished[system.key].with_suffix(".png"))
        with replacing(finished[system.key]) as temporary:
            temporary.write_text(json.dumps(row, indent=1))
        print(" | ".join(cells(row)), flush=True)

    rows = [json.loads(finished[system.key].read_text()) for system in systems]
    with replacing(args.output_dir) as folder:
        folder.mkdir()
        write_results(folder, rows, args, reference.held_out.images.shape[1:])


def write_results(folder: Path, rows: list[dict], args: argparse.Namespace, image_size: tuple[int, int]) -> None:
    (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(rows).savefig(folder / "quality_against_cost.png", dpi=120)
    sheets = {row["key"]: args.work_dir / "systems" / f"{row['key']}.png" for row in rows}
    # The paper's Table 2: one sample of absorbing diffusion at growing numbers of steps from one seed, then ours.
    strip = [row["key"] for row in rows if row["label"] == "absorbing diffusion"] + [rows[0]["key"], SHOWN[0]]
    height, width = image_size
    first = [np.array(Image.open(sheets[key]))[:height, :width] for key in strip if key in sheets]
    save_picture(contact_sheet(np.stack(first), len(first)), folder / "first_samples.png")
    for key in SHOWN:
        if key in sheets:
            shutil.copy(sheets[key], folder)

    config = json.loads((args.work_dir / rows[0]["training"] / "config.json").read_text())
    figures = rows[0]["figures"]
    floor, ceiling = (
        f"KID x 1000 {with_interval(figures['kid'][side], 1e3)}, FID {with_interval(figures['fid'][side])}"
        for side in ("floor", "ceiling")
    )
    flags = f"--config {args.config} --train_steps {args.train_steps} --mixed_precision {args.mixed_precision}"
    lines = [
        "# One step of VQ-IHDM against absorbing diffusion",
        "",
        f"Same tokenizer, tokens, transformer size ({config['num_hidden_layers']} layers of {config['hidden_size']}) "
        f"and budget ({args.train_steps} steps of {config['train_batch_size']} slices) for every network; "
        f"{args.num_images} images a system from seed {args.seed} against the held-out subjects. In brackets 95 % "
        "intervals. NN ratio: mean distance to the nearest training image over that to the nearest held-out image.",
        "",
        f"Real training images at the same N (floor): {floor}. Decoded codes of real training images, what a "
        f"perfect second stage would reach (ceiling): {ceiling}.",
        "",
        f"Command: `python benchmarks/one_step_vs_absorbing.py {flags} --num_images {args.num_images} --seed "
        f"{args.seed} --dataset_name ... --vqvae ...`, on {machine()}.",
        "",
        "Evaluations: a step of absorbing diffusion that reveals no code of an image needs none of the network.",
        "",
        *table(HEADINGS, [cells(row) for row in rows]),
        "",
        "![Quality against cost](quality_against_cost.png)",
        "",
        f"The first sample of seed {args.seed}: absorbing diffusion in "
        + ", ".join(map(str, ABSORBING_STEPS))
        + " steps, the "
        "paper's setting in one, ours in one.",
        "",
        "![First samples](first_samples.png)",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def cells(row: dict) -> list[str]:
    """A row under `HEADINGS`."""
    figures = row["figures"]
    return [
        row["label"],
        str(row["num_inference_steps"]),
        f"{row['evaluations']:.0f}",
        with_interval(figures["kid"]["generated"], 1e3),
        with_interval(figures["fid"]["generated"]),
        *(f"{figures[name]['generated']['value']:.3f}" for name in ("density", "coverage", "nearest_ratio")),
        f"{row['seconds']:.3f}",
    ]


def plot(rows: list[dict]) -> Figure:
    """Quality against network evaluations and against seconds per image."""
    figure = Figure(figsize=(11, 13), layout="constrained")
    measures = [("kid", 1e3, "KID x 1000"), ("fid", 1, "FID"), ("density", 1, "density"), ("coverage", 1, "coverage")]
    axes = figure.subplots(len(measures), 2, sharex="col")
    series = {"default": "o-", "absorbing diffusion": "s-", SYSTEMS[0].label: "x"}
    for i, (name, scale, title) in enumerate(measures):
        for j, (cost, unit) in enumerate([("evaluations", "network evaluations"), ("seconds", "s / image")]):
            for label, style in series.items():
                line = [row for row in rows if row["label"] == label]
                values = [row["figures"][name]["generated"]["value"] * scale for row in line]
                axes[i, j].plot([row[cost] for row in line], values, style, label=label)
            for side, style in (("ceiling", "--"), ("floor", ":")):
                level = rows[0]["figures"][name][side]["value"] * scale
                axes[i, j].axhline(level, linestyle=style, color="grey", label=side)
            axes[i, j].set(xscale="log", ylabel=title)
            axes[-1, j].set_xlabel(unit)
    axes[0, 0].legend()
    return figure


if __name__ == "__main__":
    run(main)
