"""How fast: sampling, training, start, blur, data and evaluation, each beside a peer and what the machine can do.

    python benchmarks/speed.py --pipeline checkpoints/vq-ihdm-oasis --dataset_name data/oasis --volumes data/ixi

A part that is measured again with --parts takes the place of what --output_dir holds of it. Contestants of a row run
in turn, so that whatever else the machine does meets all of them; the table has medians with quartiles, and ratios to
the first of each group. Results go to --output_dir: `README.md`, `results.json`, and `sampling.png`, images a second
by batch size. Peers of sampling have untrained networks of the same size: weights do not change their speed.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import machine
from diffusers import DDPMPipeline, DDPMScheduler
from matplotlib.figure import Figure
from sampling_peers import absorbing_config, latent_unet, onnx_session, pixel_unet
from scipy.fft import dctn, idctn
from torch.utils.flop_counter import FlopCounterMode
from training_processes import trainings
from training_race import races

from vq_ihdm import AbsorbingDiffusionPipeline, LatentDiffusionPipeline, VQIHDMPipeline
from vq_ihdm.arguments import HelpFormatter, positive_int
from vq_ihdm.baselines.absorbing import AbsorbingDenoiser
from vq_ihdm.baselines.latent_diffusion import sampling_scheduler
from vq_ihdm.data.volumes import SliceSettings, volume_slices
from vq_ihdm.errors import InputError, run
from vq_ihdm.evaluation.report import table
from vq_ihdm.files import check_replaceable, replacing
from vq_ihdm.heat import blur

TITLE = "# Speed"
DDPM_STEPS = 1000  # of diffusers' DDPMPipeline; timed for a few, since each costs the same
DDPM_TIMED = 4
ABSORBING_STEPS = 256
LATENT_STEPS = (20, 50)
LARGEST_BATCH = 32  # of the slow peers: from there on an image costs them the same
BARE_IMPORT = "import torch, diffusers, transformers"  # which load little of what they name
USED_IMPORT = "import torch; from diffusers import DiffusionPipeline, VQModel; from transformers import BertModel"
FIRST_IMAGE = """
from vq_ihdm import VQIHDMPipeline
pipe = VQIHDMPipeline.from_pretrained({folder!r})
pipe.set_progress_bar_config(disable=True)
pipe()
"""
EVALUATION = """
import resource, time
import numpy as np, torch
from vq_ihdm.evaluation.features import Features
from vq_ihdm.evaluation.fidelity import fidelity
n, generator = {n}, torch.Generator().manual_seed(0)
x, y = (Features(torch.randn(n, 2048, generator=generator), None) for _ in range(2))
start = time.perf_counter()
fidelity(x, y, np.arange(n), np.arange(n) // 32)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@dataclass(frozen=True)
class Row:
    """One contestant: how long `items` take, in seconds, with quartiles.

    `flops` of these items and the seconds `at_best` that they take at the machine's rates, where counted.
    """

    part: str
    setting: str
    name: str
    items: float
    unit: str
    seconds: float
    quartiles: tuple[float, float]
    ratio: float
    flops: float | None = None
    at_best: float | None = None
    memory_gb: float | None = None


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--pipeline", type=Path, required=True, help="folder of a VQIHDMPipeline")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--batch_sizes", type=positive_int, nargs="+", default=[1, 8, 32, 128])
    add("--threads", type=positive_int, nargs="+", default=[1, 2])
    add("--repeats", type=positive_int, default=7, help="rounds, of which the median is taken")
    add("--onnx", type=Path, help="what export.py wrote of this pipeline, for a turn of ONNX Runtime in sampling")
    add("--config", default="oasis", help="preset, for the parts training and processes")
    add("--dataset_name", help="the data set, of the pipeline's image size, for these parts")
    add("--perceptual_weights", help="of LPIPS, for these parts, where torchvision cannot download them")
    add("--processes", type=positive_int, nargs="+", default=[1, 2, 4], help="for the part processes")
    add("--steps", type=positive_int, default=30, help="of each training, for the part processes")
    add("--volumes", type=Path, help="folder of NIfTI volumes, for the part data")
    add(
        "--num_features",
        type=positive_int,
        nargs="+",
        default=[1000, 5000, 20000],
        help="images a side, for evaluation",
    )
    add("--output_dir", type=Path, default="benchmarks/results/speed")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    check_replaceable(args.output_dir, "README.md", TITLE)
    if "data" in args.parts and args.volumes is None:
        raise InputError("the part data needs --volumes, a folder of NIfTI volumes; or name the other --parts")
    if {"training", "processes"} & set(args.parts) and args.dataset_name is None:
        raise InputError("the parts training and processes need --dataset_name; or name the other --parts")
    threads = torch.get_num_threads()
    measured = {}
    for part in args.parts:
        measured[part] = {"date": date.today().isoformat(), "repeats": args.repeats, "rows": PARTS[part](args)}
    torch.set_num_threads(threads)
    parts = {part: measured.get(part) or stored(args.output_dir, part) for part in PARTS}
    parts = {part: content for part, content in parts.items() if content is not None}
    with replacing(args.output_dir) as folder:
        folder.mkdir()
        content = {"machine": machine(), "parts": parts}
        (folder / "results.json").write_text(json.dumps(content, indent=1, default=asdict) + "\n")
        if "sampling" in parts:
            plot(parts["sampling"]["rows"]).savefig(folder / "sampling.png", dpi=120)
        (folder / "README.md").write_text("\n".join(page(parts)) + "\n")
    print(f"the tables are in {args.output_dir / 'README.md'}")


def stored(folder: Path, part: str) -> dict | None:
    """A part that was measured before, on this machine."""
    if not (folder / "results.json").is_file():
        return None
    content = json.loads((folder / "results.json").read_text())
    if content["machine"] != machine() or part not in content["parts"]:
        return None
    rows = [Row(**row | {"quartiles": tuple(row["quartiles"])}) for row in content["parts"][part]["rows"]]
    return content["parts"][part] | {"rows": rows}


def race(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of each contestant in each round; in a round each has one turn, and the first round does not count."""
    seconds = {name: [] for name in contestants}
    for _ in range(repeats + 1):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            contestant()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(taken[1:]) for name, taken in seconds.items()}


def rows_of(
    part: str,
    setting: str,
    contestants: dict[str, Callable[[], object]],
    repeats: int,
    items: float,
    unit: str,
    scale: dict[str, float] | None = None,
    **work: float,
) -> list[Row]:
    """The rows of a group.

    `scale`: what a contestant's time is multiplied with, where it did a part of the work; `work`: `flops` and
    `at_best` of all contestants.
    """
    return rows_from(part, setting, race(contestants, repeats), items, unit, scale, **work)


def rows_from(
    part: str,
    setting: str,
    taken: dict[str, np.ndarray],
    items: float,
    unit: str,
    scale: dict[str, float] | None = None,
    **work: float,
) -> list[Row]:
    """As `rows_of`, from seconds by round that were measured before."""
    first = next(iter(taken))
    rows = []
    for name, seconds in taken.items():
        factor = (scale or {}).get(name, 1)
        low, median, high = np.quantile(seconds * factor, (0.25, 0.5, 0.75)).tolist()
        ratio = float(np.median(seconds * factor / taken[first]))  # of the same round
        rows.append(Row(part, setting, name, items, unit, median, (low, high), ratio, **work))
        print(f"{part}, {setting}: {name} {median:.4g} s, {ratio:.3f} of {first}", flush=True)
    return rows


def machine_rates() -> dict[str, float]:
    """FLOP/s that torch reaches here at best, in a matrix product and in a convolution of the decoder's kind."""
    a, image, kernel = torch.randn(1024, 1024), torch.randn(8, 64, 88, 88), torch.randn(64, 64, 3, 3)
    with torch.no_grad():
        taken = race({"matrix": lambda: a @ a, "convolution": lambda: torch.conv2d(image, kernel, padding=1)}, 20)
    flops = {"matrix": 2 * 1024**3, "convolution": 2 * 8 * 64 * 64 * 9 * 88 * 88}
    return {name: flops[name] / float(np.min(taken[name])) for name in flops}


# ---- the parts ------------------------------------------------------------------------------------------------
def sampling(args: argparse.Namespace) -> list[Row]:
    """Our pipeline, its networks alone, which are told no covariates, and peers, by batch size and threads."""
    pipe = VQIHDMPipeline.from_pretrained(args.pipeline)
    half = VQIHDMPipeline.from_pretrained(args.pipeline, torch_dtype=torch.bfloat16)
    config, image_size = pipe.denoiser.config, tuple(pipe.vqvae.config.sample_size for _ in range(2))
    absorbing = AbsorbingDiffusionPipeline(
        vqvae=pipe.vqvae, denoiser=AbsorbingDenoiser(absorbing_config(config)).eval()
    )
    ddpm = DDPMPipeline(pixel_unet(sum(p.numel() for p in pipe.denoiser.parameters()), image_size), DDPMScheduler())
    latent = LatentDiffusionPipeline(pipe.vqvae, latent_unet(config), sampling_scheduler())
    asked = {c.name: c.categories[0] if c.categories else (c.low + c.high) / 2 for c in pipe.denoiser.known_covariates}
    for each in (pipe, half, absorbing, ddpm, latent):
        each.set_progress_bar_config(disable=True)
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        rates = machine_rates()
        onnx = onnx_session(args.onnx, threads) if args.onnx is not None else None
        for batch in args.batch_sizes:
            state = pipe.prepare_latents(pipe.image_generators(batch, torch.Generator().manual_seed(0)))
            sigma = torch.full((batch,), pipe.prior.sigma)

            @torch.no_grad()
            def networks(state=state, sigma=sigma):
                return pipe.decode_codes(pipe.denoiser(state, sigma).logits.argmax(-1))

            with FlopCounterMode(display=False) as counter:
                networks()
            contestants = {
                "networks alone": networks,
                "VQIHDMPipeline, 1 step": lambda batch=batch: pipe(batch, 1, chunk_size=batch),
                "VQIHDMPipeline, 1 step, bfloat16": lambda batch=batch: half(batch, 1, chunk_size=batch),
            }
            if asked:
                contestants["VQIHDMPipeline, 1 step, covariates asked for"] = partial(
                    pipe, batch, 1, covariates=asked, chunk_size=batch
                )
            if onnx is not None:
                uniform = np.random.default_rng(0).random((batch, *state.shape[2:]))
                inputs = {"u_T": state.numpy(), "uniform": uniform}
                if asked:
                    inputs["covariates"] = pipe.denoiser.encode_covariates(asked, batch).numpy()
                contestants["exported, ONNX Runtime"] = partial(onnx.run, None, inputs)
            flops = {"convolution": 0, "matrix": 0}
            for operation, number in counter.get_flop_counts()["Global"].items():
                flops["convolution" if "convolution" in str(operation) else "matrix"] += number
            work = {"flops": sum(flops.values()), "at_best": sum(flops[kind] / rates[kind] for kind in rates)}
            setting, count = f"batch {batch}, threads {threads}", (batch, "images")
            rows += rows_of("sampling", setting, contestants, args.repeats, *count, **work)
            if batch > LARGEST_BATCH:
                continue
            peers = {
                "VQIHDMPipeline, 1 step": contestants["VQIHDMPipeline, 1 step"],
                f"absorbing diffusion, {ABSORBING_STEPS} steps": lambda batch=batch: absorbing(
                    batch, chunk_size=batch, num_inference_steps=ABSORBING_STEPS
                ),
                **{
                    f"latent diffusion, {steps} steps": lambda batch=batch, steps=steps: latent(
                        batch, chunk_size=batch, num_inference_steps=steps
                    )
                    for steps in LATENT_STEPS
                },
                f"DDPMPipeline, {DDPM_STEPS} steps": lambda batch=batch: ddpm(
                    batch, num_inference_steps=DDPM_TIMED, output_type="np"
                ),
            }
            scale = {f"DDPMPipeline, {DDPM_STEPS} steps": DDPM_STEPS / DDPM_TIMED}
            rows += rows_of("peers", setting, peers, min(args.repeats, 3), *count, scale=scale)
    return rows


def training(args: argparse.Namespace) -> list[Row]:
    """Steps of our train scripts, of the same networks in a bare loop, and as published."""
    torch.set_num_threads(max(args.threads))
    return [
        row for setting, batch, taken in races(args) for row in rows_from("training", setting, taken, batch, "images")
    ]


def processes(args: argparse.Namespace) -> list[Row]:
    """Steps of our train scripts by processes; the batch of all together stays the same."""
    return [
        row
        for setting, batch, taken in trainings(args)
        for row in rows_from("processes", setting, taken, batch, "images")
    ]


def start(args: argparse.Namespace) -> list[Row]:
    """From `import` to the first image in a fresh process, beside the import of the libraries and of what is used."""
    programs = {"import torch, diffusers, transformers": BARE_IMPORT}
    programs["import BertModel, VQModel, DiffusionPipeline"] = USED_IMPORT
    programs["import vq_ihdm"] = "import vq_ihdm"
    programs["import, load, first image"] = FIRST_IMAGE.format(folder=str(args.pipeline.resolve()))
    contestants = {name: lambda code=code: python(code) for name, code in programs.items()}
    return rows_of("start", "a fresh process", contestants, args.repeats, 1, "starts")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def blurring(args: argparse.Namespace) -> list[Row]:
    """`heat.blur` against the snippet in the paper, by scipy."""
    torch.set_num_threads(1)
    config = VQIHDMPipeline.from_pretrained(args.pipeline).denoiser.config
    rows = []
    for batch in (32, 1024):
        u = torch.randn(batch, config.code_dim, config.height, config.width)
        contestants = {"heat.blur": lambda u=u: blur(u, 2.0), "scipy": lambda u=u: scipy_blur(u.numpy(), 2.0)}
        np.testing.assert_allclose(contestants["scipy"](), contestants["heat.blur"]().numpy(), atol=1e-4)
        rows += rows_of("blur", f"batch {batch}", contestants, args.repeats, batch, "grids")
    return rows


def scipy_blur(u: np.ndarray, sigma: float) -> np.ndarray:
    """The paper's forward process of (B, D, H, W)."""
    height, width = u.shape[-2:]
    frequencies = (np.pi * np.arange(height)[:, None] / height) ** 2 + (np.pi * np.arange(width) / width) ** 2
    return idctn(dctn(u, axes=(2, 3), norm="ortho") * np.exp(-frequencies * sigma**2 / 2), axes=(2, 3), norm="ortho")


def data(args: argparse.Namespace) -> list[Row]:
    """Volumes to slices, by threads."""
    torch.set_num_threads(1)
    files = sorted(args.volumes.rglob("*.nii.gz"))[:16]
    if not files:
        raise InputError(f"{args.volumes} holds no .nii.gz file; name another folder with --volumes")
    settings = SliceSettings(1.0, (176, 176), (0.5, 99.5), 8, middle=40)

    def build(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda file: volume_slices(file, settings), files))

    contestants = {f"{threads} threads": lambda threads=threads: build(threads) for threads in args.threads}
    return rows_of("data", f"{len(files)} volumes", contestants, min(args.repeats, 3), len(files), "volumes")


def evaluation(args: argparse.Namespace) -> list[Row]:
    """All measures of fidelity with their intervals, on N against N random features of Inception's width."""
    rows = []
    for n in args.num_features:
        seconds, memory = map(float, python(EVALUATION.format(n=n)).split())
        row = Row("evaluation", f"N = {n}", "fidelity", n, "images", seconds, (seconds, seconds), 1.0, memory_gb=memory)
        rows.append(row)
        print(f"evaluation, N = {n}: {seconds:.1f} s, {memory:.2f} GB", flush=True)
    return rows


PARTS = {
    "sampling": sampling,
    "training": training,
    "processes": processes,
    "start": start,
    "blur": blurring,
    "data": data,
    "evaluation": evaluation,
}


# ---- results --------------------------------------------------------------------------------------------------
def page(parts: dict[str, dict]) -> list[str]:
    """The lines of README.md."""
    lines = [
        TITLE,
        "",
        f"Measured on {machine()} by `python benchmarks/speed.py`. Medians of rounds (of slow peers and of data at "
        "most 3) in which the contestants of a group take turns, quartiles in brackets, ratios to the first of the "
        "group; of processes, each of one thread, the steps of a training each. At best: the seconds that the "
        "networks' arithmetic takes at the rates this machine reaches in float32, on as many threads, in a product of "
        "matrices and in a convolution of the decoder's kind; the share is of these in the seconds measured.",
    ]
    for part, content in parts.items():
        lines += ["", f"## {part.capitalize()}", "", f"{content['date']}, {content['repeats']} rounds.", ""]
        headings = ["setting", "contestant", "s", "a second", "ratio", "GFLOP/s", "share of the best", "memory (GB)"]
        for group in dict.fromkeys(row.part for row in content["rows"]):
            rows = [cells(row) for row in content["rows"] if row.part == group]
            used = [i for i in range(len(headings)) if any(row[i] for row in rows)]
            lines += [*table([headings[i] for i in used], [[row[i] for i in used] for row in rows]), ""]
        if part == "sampling":
            lines += [
                f"`DDPMPipeline` was timed for {DDPM_TIMED} of its {DDPM_STEPS} steps, each of which costs the same.",
                "",
                "![Images a second](sampling.png)",
            ]
    return lines


def cells(row: Row) -> list[str]:
    low, high = row.quartiles
    return [
        row.setting,
        row.name,
        f"{row.seconds:.3g} [{low:.3g}, {high:.3g}]",
        f"{row.items / row.seconds:.3g} {row.unit}",
        f"{row.ratio:.3f}",
        f"{row.flops / row.seconds / 1e9:.0f}" if row.flops else "",
        f"{row.at_best / row.seconds:.0%}" if row.at_best else "",
        f"{row.memory_gb:.2f}" if row.memory_gb else "",
    ]


def plot(rows: list[Row]) -> Figure:
    """Images a second by batch size, a panel for each number of threads."""
    shown = {}  # threads -> name -> [(batch, images a second)]
    for row in rows:
        if row.part in ("sampling", "peers"):
            threads = row.setting.rpartition(" ")[2]
            shown.setdefault(threads, {}).setdefault(row.name, {})[row.items] = row.items / row.seconds
    figure = Figure(figsize=(6 * len(shown), 5), layout="constrained")
    for axes, (threads, lines) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for name, points in lines.items():
            axes.plot(list(points), list(points.values()), "o-", label=name)
        axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="images / s", title=f"threads: {threads}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    run(main)
