"""Discrete VQ-IHDM in one step against absorbing and latent diffusion in many: same tokens, same time of training.

    python benchmarks/one_step_vs_absorbing.py --config oasis --dataset_name data/oasis --vqvae runs/vqgan/last \\
        --train_steps 4000 --training_seeds 0 1 2 --num_images 1000 --work_dir runs/one_step

Trains ours for --train_steps steps of the preset's batch and each peer for as long as that takes, from the first code
to the last step (short trainings of both in turns tell); the main ones once for each of --training_seeds. Then samples
--num_images images a system from one seed, and evaluates them against the held-out subjects. Results go to
--output_dir: `README.md` with the tables, `results.json`, `quality_against_cost.png`, contact sheets, and
`first_samples.png`: a sample of absorbing diffusion at each number of steps from the same seed (the paper's Table 2)
beside ours. What is finished is kept in --work_dir: a killed run goes on with the rest.
"""

import argparse
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from common import (
    AS_PUBLISHED,
    TURNS,
    add_benchmark_arguments,
    check_settings,
    last_metrics,
    load_reference,
    machine,
    shared_flags,
    steps_in_the_time_of,
    train,
    with_interval,
    without_half_samples,
)
from matplotlib.figure import Figure
from PIL import Image
from verdicts import in_words, interval_over_trainings, mean

from vq_ihdm import VQIHDMPipeline, load_pipeline
from vq_ihdm.arguments import HelpFormatter, positive_int, seed_int
from vq_ihdm.errors import run
from vq_ihdm.evaluation.evaluator import EvaluationSet, evaluate_images
from vq_ihdm.evaluation.pipelines import Drawn, draw_images, tokenize
from vq_ihdm.evaluation.report import table
from vq_ihdm.evaluation.resampling import Estimate, difference
from vq_ihdm.files import check_replaceable, replacing
from vq_ihdm.fit_prior import fit_prior
from vq_ihdm.heat import blur
from vq_ihdm.pictures import contact_sheet, save_picture

TITLE = "# One step of VQ-IHDM against absorbing diffusion"


@dataclass(frozen=True)
class Training:
    """A network: the script's flags on top of the preset's."""

    name: str
    flags: list[str]
    script: str = "train_ihdm.py"


@dataclass(frozen=True, eq=False)
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

    def arguments(self) -> dict:
        """Of the pipeline's call."""
        return {"num_inference_steps": self.num_inference_steps, **self.sampling}

    def key(self, training_seed: int) -> str:
        """Names its files."""
        key = f"{self.label}, {self.num_inference_steps} steps, training {training_seed}"
        return key.replace(" ", "_").replace(":", "").replace(",", "")


FIGURES = (
    "second_stage_kid", "second_stage_fid", "second_stage_recall", "second_stage_density", "second_stage_coverage",
    "known_pairs", "code_usage", "code_perplexity", "kid", "fid", "density", "coverage", "precision", "recall",
    "ms_ssim", "duplicate_rate", "nearest_ratio", "copy_rate",
)  # fmt: skip
HEADINGS = ["system", "steps", "evaluations", "stage-2 KID x 1000", "known pairs", "KID x 1000", "FID", "s / image"]
ABSORBING_STEPS = [1, 10, 50, 100, 200, 256]  # the columns of the paper's Table 2

DEFAULT, ABSORBING, LDM = "default", "absorbing diffusion", "latent diffusion"
COOLER = {label: f"{label}, temperature 0.8" for label in (DEFAULT, ABSORBING)}
MASKGIT = f"{ABSORBING}, most confident first"
OURS = (COOLER[DEFAULT], 1)  # the best one step on validation (`search.py`)
OURS_IN_MORE = (COOLER[DEFAULT], 8)  # the best on validation in however many
# Ours and its peers are trained several times; each training is measured in these ways, the first in all others, too.
# Among them is each system's best on validation.
REPEATED = {
    (DEFAULT, 1),
    OURS,
    OURS_IN_MORE,
    (ABSORBING, 256),
    (COOLER[ABSORBING], 256),
    (MASKGIT, 16),
    (LDM, 10),
}
# Ours in one step, and of each of its peers what was best on validation.
BEST = {OURS, (COOLER[ABSORBING], 256), (LDM, 10)}
NO_COVARIATES = ["--covariates"]  # what is compared is the distribution of all slices; latent diffusion knows none
TRAININGS = [
    Training("default", NO_COVARIATES),
    Training("absorbing", ["--model", "absorbing", *NO_COVARIATES], "train_baseline.py"),
    Training("ldm", ["--model", "ldm"], "train_baseline.py"),
    Training("paper", [*AS_PUBLISHED, *NO_COVARIATES]),
    Training("sigma3", ["--sigma_max", "3", *NO_COVARIATES]),
]

SYSTEMS = [
    System("paper: one blurred slice, sigma 24", "paper", 1),
    *[System(DEFAULT, "default", steps) for steps in (1, 2, 4, 8)],
    *[System(COOLER[DEFAULT], "default", steps, sampling={"temperature": 0.8}) for steps in (1, 2, 4, 8)],
    *[System(ABSORBING, "absorbing", steps) for steps in ABSORBING_STEPS],
    System(COOLER[ABSORBING], "absorbing", 256, sampling={"temperature": 0.8}),
    *[
        System(MASKGIT, "absorbing", steps, sampling={"reveal_order": "confidence", "choice_temperature": 4.5})
        for steps in (8, 16)
    ],
    *[System(LDM, "ldm", steps) for steps in (5, 10, 50)],
]

# Where the loss arises: each part replaced or varied in turn.
ABLATIONS = [
    System("true u_T of held-out slices", "default", 1, prior="truth"),
    System("sigma 24, mixture prior", "paper", 1, prior={"kind": "mixture"}),
    System("sigma 3", "sigma3", 1),
    *[System(f"delta {delta} in sampling", "default", 1, delta=delta) for delta in (0.0, 0.3)],
    *[
        System(
            f"prior: {components} Gaussians of rank {rank}", "default", 1, {"rank": rank, "num_components": components}
        )
        for rank, components in ((16, 4), (32, 1), (128, 8))
    ],
    System("prior: one blurred slice", "default", 1, {"kind": "slice"}),
    System("prior: blurred training images", "default", 1, {"kind": "images"}),
    System("temperature 0", "default", 1, sampling={"temperature": 0.0}),
]

TIMED = 32  # images, one batch

# Whose contact sheets are kept beside the table.
SHOWN = [OURS, (ABSORBING, 256), (COOLER[ABSORBING], 256), (SYSTEMS[0].label, 1)]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_benchmark_arguments(parser, "one_step_vs_absorbing")
    add = parser.add_argument
    add("--vqvae", required=True, help="the tokenizer all systems share")
    add("--train_steps", type=positive_int, default=4000, help="of ours; peers train for as long")
    add(
        "--training_seeds",
        type=seed_int,
        nargs="+",
        default=[0],
        help="of the main systems, at some numbers of steps; the others have the first",
    )
    add("--ablations", action="store_true", help="vary prior, sigma, delta and temperature, too")
    add("--trainings", nargs="+", choices=[t.name for t in TRAININGS], help="only the systems of these networks")
    add("--best_only", action="store_true", help="only ours in one step, and its peers as each was best on validation")
    return parser


def sample(system: System, pipe, tokens: torch.Tensor, held_out_codes: torch.Tensor, args) -> Drawn:
    arguments = system.arguments()
    if isinstance(pipe, VQIHDMPipeline):
        if system.delta is not None:
            pipe.scheduler.register_to_config(delta=system.delta)
        if system.prior == "truth":
            picks = torch.linspace(0, len(held_out_codes) - 1, args.num_images).long()
            sharp = pipe.embed_codes(held_out_codes[picks])
            noise = torch.randn(sharp.shape, generator=torch.Generator().manual_seed(args.seed))
            arguments["sample"] = blur(sharp, pipe.prior.sigma) + pipe.scheduler.config.delta * noise
        elif system.prior is not None:
            pipe.prior = fit_prior(pipe.embed_codes(tokens), pipe.prior.sigma, **system.prior)
    return draw_images(pipe, args.num_images, args.seed, **arguments)


def sampling_seconds(systems: list[System], args: argparse.Namespace) -> dict[System, float]:
    """Seconds an image of each, timed in turns. The fastest counts: what else the machine does then is not theirs."""
    taken = {system: [] for system in systems}
    for _ in range(TURNS):
        for system in systems:
            pipe = load_pipeline(trained(args, system.training, args.training_seeds[0]) / "pipeline")
            pipe.set_progress_bar_config(disable=True)
            taken[system].append(draw_images(pipe, TIMED, args.seed, **system.arguments()).seconds)
    return {system: min(seconds) for system, seconds in taken.items()}


def evaluations(system: System, num_codes: int) -> float:
    """Network evaluations an image. In a random order absorbing diffusion needs one in a step that reveals any code."""
    steps = system.num_inference_steps
    in_random_order = system.training == "absorbing" and "reveal_order" not in system.sampling
    return steps * (1 - (1 - 1 / steps) ** num_codes) if in_random_order else steps


def main() -> None:
    args = build_parser().parse_args()
    check_replaceable(args.output_dir, "README.md", TITLE)
    check_settings(args)
    reference = load_reference(args)
    systems = [*SYSTEMS, *ABLATIONS] if args.ablations else SYSTEMS
    systems = [s for s in systems if args.trainings is None or s.training in args.trainings]
    if args.best_only:
        systems = [s for s in systems if (s.label, s.num_inference_steps) in BEST]
    several = {s for s in systems if (s.label, s.num_inference_steps) in REPEATED}
    seeds = {s: args.training_seeds if s in several else args.training_seeds[:1] for s in systems}
    runs = [(system, seed) for system in systems for seed in seeds[system]]
    commands = [[t.script, *t.flags, *shared_flags(args), "--vqvae", args.vqvae] for t in TRAININGS]
    for training, (script, *flags) in zip(TRAININGS, commands, strict=True):
        chosen = sorted({seed for system, seed in runs if system.training == training.name})
        steps = args.train_steps
        if chosen and script == "train_baseline.py":
            steps = steps_in_the_time_of(steps, commands[0], [script, *flags], args.work_dir / "pace" / training.name)
        for seed in chosen:
            last = ["--seed", seed, "--max_train_steps", steps]
            train(script, trained(args, training.name, seed), "pipeline", *flags, *last)

    finished = {(s, seed): args.work_dir / "systems" / f"{s.key(seed)}.json" for s, seed in runs}
    missing = [run for run in runs if not finished[run].is_file()]
    if missing:
        system, seed = missing[0]
        any_pipe = load_pipeline(trained(args, system.training, seed) / "pipeline")
        tokenized = tokenize(any_pipe, reference)
        tokens = torch.from_numpy(tokenized.training_codes).flatten(0, 1)
        held_out_codes = torch.from_numpy(tokenized.held_out_codes)[:, 0]
    for system, seed in missing:
        pipe = load_pipeline(trained(args, system.training, seed) / "pipeline")
        pipe.set_progress_bar_config(desc=system.key(seed))
        images, codes, _ = sample(system, pipe, tokens, held_out_codes, args)
        report = evaluate_images(images, reference, tokenized, codes)
        figures = {name: asdict(report.figure(name)) for name in FIGURES}
        cost = last_metrics(trained(args, system.training, seed))
        costs = {"evaluations": evaluations(system, codes[0].size)}
        costs |= {"training_steps": cost["step"], "training_seconds": cost["seconds"]}
        row = {**asdict(system), "training_seed": seed, **costs, "figures": figures, "audit": report.audit.to_json()}
        file = finished[system, seed]
        save_picture(contact_sheet(images[:32], 8, margin=0), file.with_suffix(".png"))
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(row))
        print(" | ".join(cells([row])), flush=True)

    seconds = sampling_seconds(systems, args)
    rows = {(s, seed): json.loads(file.read_text()) | {"seconds": seconds[s]} for (s, seed), file in finished.items()}
    with replacing(args.output_dir) as folder:
        folder.mkdir()
        write_results(folder, [[rows[s, seed] for seed in seeds[s]] for s in systems], args, reference)


def trained(args: argparse.Namespace, training: str, seed: int) -> Path:
    return args.work_dir / f"{training}_{seed}"


def write_results(folder: Path, rows: list[list[dict]], args: argparse.Namespace, reference: EvaluationSet) -> None:
    """`rows`: for each system its trainings, in the order of their seeds."""
    published = [row | {"figures": without_half_samples(row["figures"])} for trainings in rows for row in trainings]
    (folder / "results.json").write_text(json.dumps(published, indent=1) + "\n")
    plot(rows).savefig(folder / "quality_against_cost.png", dpi=120)
    sheets = {}
    for system, trainings in ((System(*system_of(t[0])), t) for t in rows):
        key = system.key(trainings[0]["training_seed"])
        sheets[system.label, system.num_inference_steps] = args.work_dir / "systems" / f"{key}.png"
    # The paper's Table 2: one sample of absorbing diffusion at growing numbers of steps from one seed, then ours.
    strip = [*((ABSORBING, steps) for steps in ABSORBING_STEPS), (SYSTEMS[0].label, 1), SHOWN[0]]
    strip = [name for name in strip if name in sheets]
    strip = strip if len(strip) > 1 else []
    height, width = reference.held_out.images.shape[1:]
    if strip:
        first = [np.array(Image.open(sheets[name]))[:height, :width] for name in strip]
        save_picture(contact_sheet(np.stack(first), len(first)), folder / "first_samples.png")
    for name in SHOWN:
        if name in sheets:
            shutil.copy(sheets[name], folder)

    config = json.loads((trained(args, rows[0][0]["training"], args.training_seeds[0]) / "config.json").read_text())
    figures = rows[0][0]["figures"]
    floor, ceiling = (
        f"KID x 1000 {with_interval(figures['kid'][side], 1e3)}, FID {with_interval(figures['fid'][side])}"
        for side in ("floor", "ceiling")
    )
    second_stage, pairs = (figures[name]["ceiling"] for name in ("second_stage_kid", "known_pairs"))
    names = ("config", "train_steps", "mixed_precision", "num_images", "seed")
    flags = " ".join(f"--{name} {getattr(args, name)}" for name in names)
    seeds = " ".join(map(str, args.training_seeds))
    switches = "".join(f" --{name}" for name in ("ablations", "best_only") if getattr(args, name))
    lines = [
        TITLE,
        "",
        f"Same tokenizer, tokens, transformer size ({config['num_hidden_layers']} layers of {config['hidden_size']}), "
        f"batches of {config['train_batch_size']} slices and time of training for every network; {args.num_images} "
        f"images a system from seed {args.seed} against {reference.held_out.num_subjects} held-out subjects "
        f"({args.split or 'test'}). In brackets 95 % intervals over images and people. Means of "
        f"{len(args.training_seeds)} trainings: "
        + ", ".join(f"{t[0]['label']} in {t[0]['num_inference_steps']}" for t in rows if len(t) > 1)
        + ".",
        "",
        "Stage-2 KID: against the decoded codes of the held-out slices. Known pairs: share of adjacent codes that "
        "occur in the training slices. Of real codes (ceiling): stage-2 KID x 1000 "
        f"{with_interval(second_stage, 1e3)}, known pairs {with_interval(pairs)}. Against the scans themselves real "
        f"training images have (floor) {floor}, and decoded codes of theirs (ceiling) {ceiling}.",
        "",
        f"Command: `python benchmarks/one_step_vs_absorbing.py {flags} --training_seeds {seeds}{switches} "
        f"--dataset_name ... --vqvae ...`, on {machine()}.",
        "",
        "Evaluations: a step of absorbing diffusion that reveals no code of an image needs none of the network. "
        f"Seconds: of {TIMED} images in one batch, decoding included, all systems in turns, the fastest of {TURNS}.",
        "",
        "A peer makes the steps that fit into the time of ours, by short trainings of both in turns. Each, with "
        "minutes beside what else the machine did: " + "; ".join(budgets(rows)) + ".",
        "",
        *table(HEADINGS, [[*cells(trainings), f"{trainings[0]['seconds']:.3f}"] for trainings in rows]),
        "",
        *comparison(rows, OURS),
        *comparison(rows, OURS_IN_MORE),
        "![Quality against cost](quality_against_cost.png)",
    ]
    if strip:
        named = ", ".join(f"{label} in {steps}" for label, steps in strip)
        lines += ["", f"The first sample of seed {args.seed}: {named}.", "", "![First samples](first_samples.png)"]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def budgets(rows: list[list[dict]]) -> list[str]:
    """Steps and minutes of each training."""
    trainings = {(row["training"], row["training_seed"]): row for several in rows for row in several}
    return [
        f"{name} ({seed}) {row['training_steps']} steps, {row['training_seconds'] / 60:.1f} minutes"
        for (name, seed), row in sorted(trainings.items())
    ]


def system_of(row: dict) -> list:
    return [row[name] for name in System.__dataclass_fields__]


def estimate_of(trainings: list[dict], name: str) -> Estimate:
    """A figure's mean over trainings."""
    return mean([Estimate(**row["figures"][name]["generated"]) for row in trainings])


def cells(trainings: list[dict]) -> list[str]:
    """A system under `HEADINGS` but the last, its seconds."""
    row = trainings[0]
    estimates = [estimate_of(trainings, name) for name in ("second_stage_kid", "known_pairs", "kid", "fid")]
    return [
        row["label"],
        str(row["num_inference_steps"]),
        f"{row['evaluations']:.0f}",
        *(with_interval(asdict(e), scale) for e, scale in zip(estimates, (1e3, 1, 1e3, 1), strict=True)),
    ]


def comparison(rows: list[list[dict]], chosen: tuple[str, int]) -> list[str]:
    """The lines on ours, sampled as chosen, beside every other system, by differences with intervals of their own."""
    label, steps = chosen
    ours = next((t for t in rows if (t[0]["label"], t[0]["num_inference_steps"]) == chosen), None)
    if ours is None:
        return []
    lines = []
    for trainings in rows:
        if trainings is ours:
            continue
        pairs = list(zip(ours, trainings, strict=False))  # as many as the system has trainings
        apart = [
            difference(*(Estimate(**row["figures"]["second_stage_kid"]["generated"]) for row in pair)) for pair in pairs
        ]
        overall = mean(apart)
        intervals = [overall.interval]
        if len(apart) > 1:
            intervals.append(interval_over_trainings([e.value for e in apart]))
        shown = [f"[{low * 1e3:.3g}, {high * 1e3:.3g}]" for low, high in intervals]
        lines.append(
            [
                f"{trainings[0]['label']}, {trainings[0]['num_inference_steps']} steps",
                f"{overall.value * 1e3:.3g}",
                shown[0],
                shown[1] if shown[1:] else "",
                in_words(intervals, "lower") + " (one training)" * (len(apart) == 1),
                f"{ours[0]['seconds'] / trainings[0]['seconds']:.2f}",
            ]
        )
    return [
        f"## Ours in {steps} {'step' if steps == 1 else 'steps'} beside each of the others",
        "",
        f"Ours: {label}. Difference of stage-2 KID x 1000, ours minus theirs, with its 95 % interval over images and "
        "people, which both share, and over pairs of trainings. The word follows from the intervals: one that contains "
        "zero tells nothing apart. After one training the word is of images and people alone: another training may "
        "turn out otherwise.",
        "",
        *table(["beside", "difference", "images and people", "trainings", "ours is", "time of ours / theirs"], lines),
        "",
    ]


def plot(rows: list[list[dict]]) -> Figure:
    """Quality against network evaluations and against seconds per image."""
    figure = Figure(figsize=(11, 13), layout="constrained")
    measures = [
        ("second_stage_kid", 1e3, "stage-2 KID x 1000"),
        ("known_pairs", 1, "known pairs"),
        ("kid", 1e3, "KID x 1000"),
        ("fid", 1, "FID"),
    ]
    axes = figure.subplots(len(measures), 2, sharex="col")
    series = {DEFAULT: "o-", OURS[0]: "D-", ABSORBING: "s-", COOLER[ABSORBING]: "p-", LDM: "^-", SYSTEMS[0].label: "x"}
    for i, (name, scale, title) in enumerate(measures):
        for j, (cost, unit) in enumerate([("evaluations", "network evaluations"), ("seconds", "s / image")]):
            for label, style in series.items():
                line = [trainings for trainings in rows if trainings[0]["label"] == label]
                values = [estimate_of(trainings, name).value * scale for trainings in line]
                costs = [np.mean([row[cost] for row in trainings]) for trainings in line]
                if line:
                    axes[i, j].plot(costs, values, style, label=label)
            for side, style in (("ceiling", "--"), ("floor", ":")):
                real = rows[0][0]["figures"][name][side]
                if real is not None:
                    axes[i, j].axhline(real["value"] * scale, linestyle=style, color="grey", label=side)
            axes[i, j].set(xscale="log", ylabel=title)
            axes[-1, j].set_xlabel(unit)
    axes[2, 0].legend()
    return figure


if __name__ == "__main__":
    run(main)
