"""The paper's Table 1, Table 2 and Figures 2-6: every system on one data set with one budget.

    python benchmarks/table1.py --config demo --dataset_name data/template64 --budget_minutes 2.5 --num_images 256
    python benchmarks/table1.py --config oasis --dataset_name data/oasis --budget_images 100000

Trains the six systems of the paper (VQ-IHDM with our defaults and as published), latent diffusion and pixel-space
inverse heat dissipation, each for the same time or on the same number of images; those that work on tokens spend a part
of it, `TOKENIZER_SHARE`, on the VQGAN they share. Then samples --num_images images a system from one seed and evaluates
them against the held-out subjects. Results go to --output_dir: `README.md` with Table 1, a contact sheet a system
(Figures 2-6), `table2.png` and `results.json`. What is finished is kept in --work_dir: a killed run goes on with the
rest. Of a system that was measured its folder in `systems/` there is enough.
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
    add_benchmark_arguments,
    check_settings,
    last_metrics,
    load_reference,
    machine,
    shared_flags,
    train,
    with_interval,
    without_half_samples,
)
from diffusers import DiffusionPipeline
from PIL import Image

from vq_ihdm import load_pipeline
from vq_ihdm.arguments import HelpFormatter, positive_float, positive_int
from vq_ihdm.errors import run
from vq_ihdm.evaluation.evaluator import evaluate_images
from vq_ihdm.evaluation.pipelines import draw_images, tokenize
from vq_ihdm.evaluation.report import table
from vq_ihdm.files import check_replaceable, replacing
from vq_ihdm.pictures import contact_sheet, save_picture

TITLE = "# The paper's tables and figures on one data set with one budget"


@dataclass(frozen=True)
class System:
    """A row of the table, with FID, KID and Inception Score of the paper's (ADNI).

    Attributes:
        tokens: it works on the codes of the VQGAN.
        trained_as: the system whose pipeline it samples from, where that is not its own.
        table_2_steps: in how many steps its first sample stands in Table 2, one for each entry.
    """

    name: str
    title: str
    published: tuple[float, float, float] | None
    tokens: bool = False
    sampling: dict = field(default_factory=dict)
    trained_as: str | None = None
    table_2_steps: tuple[int, ...] = ()

    @property
    def training(self) -> str:
        return self.trained_as or self.name


SYSTEMS = [
    System(
        "vq_ihdm", "VQ-IHDM, 1 step", None, True, {"num_inference_steps": 1, "temperature": 1.0}, table_2_steps=(1,)
    ),
    System("vq_ihdm_published", "Discrete VQ-IHDM as published, 1 step", (38.57, 0.036, 1.84), tokens=True),
    System(
        "absorbing",
        "Absorbing Diffusion, 256 steps",
        (28.46, 0.025, 1.77),
        True,
        {"num_inference_steps": 256},
        table_2_steps=(10, 50, 100, 200, 256),
    ),
    System("ldm", "Latent Diffusion, 20 steps", None, True, {"num_inference_steps": 20}),
    System("ldm_10", "Latent Diffusion, 10 steps", None, True, {"num_inference_steps": 10}, trained_as="ldm"),
    System("ldm_50", "Latent Diffusion, 50 steps", None, True, {"num_inference_steps": 50}, trained_as="ldm"),
    System("wgan", "WGAN", (212.91, 0.25, 1.42)),
    System("alphawgan", "AlphaWGAN", (146.93, 0.18, 1.66)),
    System("vaegan", "VAEGAN", (281.48, 0.44, 1.01)),
    System("ccegan", "CCE-GAN", (340.94, 0.5, 1.84)),
    System("pixel_ihdm", "IHDM in pixels", None),
]
SCRIPTS = {"vq_ihdm": ["train_ihdm.py"], "vq_ihdm_published": ["train_ihdm.py", *AS_PUBLISHED]}
TOKENIZER_SHARE = 0.6  # of the budget of a system on tokens

# Of Table 1: name in the report, heading, scale.
FIDELITY = [("fid", "FID", 1), ("kid", "KID x 1000", 1e3), ("isc", "ISC", 1)]
OTHERS = [
    ("precision", "precision", 1),
    ("recall", "recall", 1),
    ("density", "density", 1),
    ("coverage", "coverage", 1),
    ("ms_ssim", "MS-SSIM", 1),
    ("duplicate_rate", "duplicates", 1),
    ("nearest_ratio", "NN ratio", 1),
]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_benchmark_arguments(parser, "table1")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--budget_minutes", type=positive_float, help="training time of each system")
    budget.add_argument("--budget_images", type=positive_int, help="images each system sees in training")
    parser.add_argument(
        "--perceptual_weights", help="trunk of the VQGAN's LPIPS loss, where torchvision cannot download it"
    )
    return parser


def main() -> None:
    args = build_parser().parse_args()
    check_replaceable(args.output_dir, "README.md", TITLE)
    check_settings(args)
    reference = load_reference(args)
    amount, unit = budget_of(args)
    print(f"every system trains for {amount:.9g} {unit}", flush=True)
    finished = args.work_dir / "systems"
    missing = [system for system in SYSTEMS if not (finished / system.name).exists()]
    train_all(missing, args)
    tokenized = None
    if any(system.tokens for system in missing):
        tokenized = tokenize(load_pipeline(args.work_dir / "vq_ihdm" / "pipeline"), reference)
    for system in missing:
        pipe = load_pipeline(args.work_dir / system.training / "pipeline")
        pipe.set_progress_bar_config(desc=system.name)
        images, codes, seconds = draw_images(pipe, args.num_images, args.seed, **system.sampling)
        report = evaluate_images(images, reference, tokenized if system.tokens else None, codes)
        row = {**asdict(system), **training_cost(system, args), "parameters": count_parameters(pipe)}
        row |= {"seconds_per_image": seconds, "num_images": len(images), "data": report.about}
        figures = {name: asdict(report.figure(name)) for name, *_ in FIDELITY + OTHERS}
        row |= {"figures": without_half_samples(figures), "audit": report.audit.to_json()}
        with replacing(finished / system.name) as folder:
            folder.mkdir()
            save_picture(contact_sheet(images[:16], columns=8), folder / "contact_sheet.png")
            if system.table_2_steps:
                samples = [draw_images(pipe, 1, args.seed, num_inference_steps=n).images for n in system.table_2_steps]
                save_picture(contact_sheet(np.concatenate(samples), columns=len(samples)), folder / "table_2.png")
            (folder / "row.json").write_text(json.dumps(row, indent=1) + "\n")
        print(f"{system.title}: FID {with_interval(row['figures']['fid']['generated'])}", flush=True)

    rows = [json.loads((finished / system.name / "row.json").read_text()) for system in SYSTEMS]
    with replacing(args.output_dir) as folder:
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        (folder / "README.md").write_text("\n".join(page(rows, args)) + "\n")
        for row in rows:
            shutil.copy(finished / row["name"] / "contact_sheet.png", folder / f"{row['name']}.png")
        save_picture(table_2(finished), folder / "table2.png")
    print(f"the tables are in {args.output_dir / 'README.md'}")


# ---- training -------------------------------------------------------------------------------------------------
def train_all(systems: list[System], args: argparse.Namespace) -> None:
    """What these systems sample from, each into a folder of its name under --work_dir."""
    amount, unit = budget_of(args)
    # The budget alone ends a training, and no schedule of the learning rate depends on where.
    shared = [*shared_flags(args), "--max_train_steps", 10**9, "--lr_scheduler", "constant_with_warmup"]

    def budget(share: float) -> list[object]:
        part = amount * share
        return [f"--max_train_{unit}", part if unit == "minutes" else max(1, round(part))]

    perceptual = ["--perceptual_weights", args.perceptual_weights] if args.perceptual_weights else []
    vqgan = args.work_dir / "vqgan"
    names = {system.training for system in systems}
    if any(system.tokens for system in systems):
        train("train_vqgan.py", vqgan, "last", *shared, *budget(TOKENIZER_SHARE), *perceptual)
        names.add("vq_ihdm")  # by which the ceiling is measured
    for system in SYSTEMS:
        if system.name in names:
            script, *flags = SCRIPTS.get(system.name, ["train_baseline.py", "--model", system.name])
            tokens = ["--vqvae", vqgan / "last"] if system.tokens else []
            share = 1 - TOKENIZER_SHARE if system.tokens else 1
            train(script, args.work_dir / system.name, "pipeline", *shared, *flags, *tokens, *budget(share))


def training_cost(system: System, args: argparse.Namespace) -> dict[str, float]:
    """Seconds and images of a system's training, its tokenizer's included."""
    stages = ["vqgan", system.training] if system.tokens else [system.training]
    metrics = [last_metrics(args.work_dir / stage) for stage in stages]
    return {
        "training_seconds": sum(stage["seconds"] for stage in metrics),
        "training_images": sum(stage["images_seen"] for stage in metrics),
    }


def count_parameters(pipe: DiffusionPipeline) -> int:
    return sum(part.num_parameters() for part in pipe.components.values() if isinstance(part, torch.nn.Module))


def budget_of(args: argparse.Namespace) -> tuple[float, str]:
    """Amount and unit, `minutes` or `images`."""
    return (args.budget_images, "images") if args.budget_minutes is None else (args.budget_minutes, "minutes")


# ---- results --------------------------------------------------------------------------------------------------
def table_2(finished: Path) -> Image.Image:
    """One sample of absorbing diffusion in each of its numbers of steps, all from one seed, and one of ours in one."""
    theirs, ours = (np.asarray(Image.open(finished / name / "table_2.png")) for name in ("absorbing", "vq_ihdm"))
    return Image.fromarray(np.concatenate([theirs, np.full((len(ours), 2), 255, np.uint8), ours], axis=1))


def page(rows: list[dict], args: argparse.Namespace) -> list[str]:
    """The lines of README.md."""
    height, width = rows[0]["data"]["image_size"]
    sides = ", ".join(
        f"{rows[0]['data'][side]['num_images']} slices of {rows[0]['data'][side]['num_subjects']} {name} subjects"
        for side, name in (("training", "training"), ("held_out", "held-out"))
    )
    amount, unit = budget_of(args)
    floor = {"title": "real training images (floor)", "side": "floor", "figures": rows[0]["figures"]}
    ceiling = {"title": "their codes, decoded (ceiling on tokens)", "side": "ceiling", "figures": rows[0]["figures"]}
    measured = [*rows, ceiling, floor]
    steps = ", ".join(str(n) for row in rows if row["name"] == "absorbing" for n in row["table_2_steps"])
    return [
        TITLE,
        "",
        f"Data: {sides}, {height}x{width} pixels. Budget: {amount:.9g} {unit} of training for every system, "
        f"{TOKENIZER_SHARE:.0%} of it for the VQGAN where a system works on tokens. N = {rows[0]['num_images']} images "
        f"a system, seed {args.seed}, against all held-out slices. In brackets 95 % intervals.",
        "",
        f"Command: `python benchmarks/table1.py --config {args.config} --budget_{unit} {amount:.9g} --num_images "
        f"{args.num_images} --seed {args.seed} --mixed_precision {args.mixed_precision} --dataset_name ...`, on "
        f"{machine()}.",
        "",
        "## Table 1",
        "",
        "The last three columns are the paper's: ADNI, a training many times as long, other feature weights.",
        "",
        *table(
            ["system", *(heading for _, heading, _ in FIDELITY), "paper: FID", "KID x 1000", "ISC"],
            [
                [row["title"], *(cell(row, name, scale) for name, _, scale in FIDELITY), *published(row)]
                for row in measured
            ],
        ),
        "",
        *([f"ISC is n/a: {reason}."] if (reason := rows[0]["figures"]["isc"]["unavailable"]) else []),
        "",
        "## Diversity and privacy",
        "",
        "The closer to the floor, the better; duplicates: share of images with another one nearer than scans of two "
        "people are; NN ratio: mean distance to the nearest training image over that to the nearest held-out one.",
        "",
        *table(
            ["system", *(heading for _, heading, _ in OTHERS)],
            [
                [row["title"], *(cell(row, name, scale, interval=False) for name, _, scale in OTHERS)]
                for row in measured
            ],
        ),
        "",
        "## Cost",
        "",
        *table(
            ["system", "parameters (M)", "s / image", "training (min)", "training images"],
            [
                [
                    row["title"],
                    f"{row['parameters'] / 1e6:.1f}",
                    f"{row['seconds_per_image']:.3g}",
                    f"{row['training_seconds'] / 60:.1f}",
                    str(row["training_images"]),
                ]
                for row in rows
            ],
        ),
        "",
        f"## Table 2: absorbing diffusion in {steps} steps, ours in one",
        "",
        "![One sample each](table2.png)",
        "",
        "## Figures 2-6",
        *(line for row in rows for line in ("", f"{row['title']}:", "", f"![{row['title']}]({row['name']}.png)")),
    ]


def cell(row: dict, name: str, scale: float, interval: bool = True) -> str:
    estimate = row["figures"][name][row.get("side", "generated")]
    if estimate is None:
        return "n/a"
    return with_interval(estimate, scale) if interval else f"{estimate['value'] * scale:.3f}"


def published(row: dict) -> list[str]:
    if row.get("published") is None:
        return ["", "", ""]
    fid, kid, isc = row["published"]
    return [f"{fid:.2f}", f"{kid * 1e3:.0f}", f"{isc:.2f}"]


if __name__ == "__main__":
    run(main)
