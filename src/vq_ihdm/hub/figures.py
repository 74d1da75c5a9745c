"""What a model card says in numbers: the figures of an evaluation report (`vq_ihdm.evaluation.report`)."""

import math
from typing import Any

from huggingface_hub import EvalResult

from ..evaluation.report import table
from .audit import memorisation_figures

TASK = "unconditional-image-generation"
# The rows of a card, in the report's first feature space: the rest stands in the report itself.
HEADLINES = ("kid", "fid", "precision", "recall", "ms_ssim", "duplicate_rate")

Figure = dict[str, Any]  # an entry of the report's `figures`


def headlines(report: dict[str, Any]) -> list[Figure]:
    """The figures a card shows, as far as they were measured."""
    measured: dict[str, Figure] = {}
    for figure in report["figures"]:
        if figure["generated"] is not None:
            measured.setdefault(figure["name"], figure)
    return [measured[name] for name in HEADLINES if name in measured]


def control_figures(report: dict[str, Any] | None) -> list[Figure]:
    """Whether generated images are what was asked for, and of use: see `vq_ihdm.evaluation.conditioning`."""
    figures = report["figures"] if report else []
    return [figure for figure in figures if figure["group"] == "covariates" and figure["name"] != "group_kid"]


def eval_results(source: str, report: dict[str, Any] | None) -> list[EvalResult]:
    """The figures of a card as the Hub's `model-index` lists them."""
    return [
        EvalResult(
            task_type=TASK,
            dataset_type="image-folder",
            dataset_name=f"{source}, held-out subjects ({'+'.join(held_out_splits(report))})",
            metric_type=figure["name"],
            metric_name=f"{figure['title']} ({figure['features']}, N = {figure['generated']['num_images']})",
            metric_value=round(figure["generated"]["value"], decimals(figure["generated"])),
        )
        for figure in ([*headlines(report), *memorisation_figures(report)] if report else [])
        if figure["generated"] is not None
    ]


def held_out_splits(report: dict[str, Any]) -> list[str]:
    """The splits a report is of, without `train`."""
    return [name for name in report["data"]["splits"] if name != "train"]


def quality(report: dict[str, Any]) -> str:
    """The headline figures in two sentences, each beside what real images score."""
    measured = {figure["name"]: figure for figure in headlines(report)}

    def beside_real(name: str) -> str:
        figure = measured[name]
        floor = f" (real images: {number(figure['floor'])})" if figure["floor"] else ""
        return f"{figure['title']} {number(figure['generated'])}{floor}"

    near = [beside_real(name) for name in ("kid", "fid") if name in measured]
    varied = [beside_real(name) for name in ("recall", "duplicate_rate") if name in measured]
    if measured.get("kid", {}).get("ceiling"):
        near.append(f"with real codes instead of drawn ones KID {number(measured['kid']['ceiling'])}")
    return ". ".join(", ".join(part) for part in (near, varied) if part)


def figure_table(figures: list[Figure]) -> list[str]:
    """The lines of a Markdown table."""
    rows = []
    for figure in figures:
        generated = figure["generated"]
        value = estimate(generated) if generated else f"unavailable: {figure['unavailable']}"
        cells = [figure["title"], figure["features"], value, estimate(figure["ceiling"]), estimate(figure["floor"])]
        rows.append([*cells, str(generated["num_images"]) if generated else ""])
    return table(["measure", "features", "generated", "ceiling", "real images", "N"], rows)


def estimate(content: dict[str, Any] | None) -> str:
    """A value with its 95 % interval; empty when there is none."""
    if content is None:
        return ""
    low, high = (f"{bound:.{decimals(content)}f}" for bound in content["interval"])
    return f"{number(content)} [{low}, {high}]"


def number(content: dict[str, Any]) -> str:
    return f"{content['value']:.{decimals(content)}f}"


def decimals(content: dict[str, Any]) -> int:
    """Decimals that show two digits of the interval's half width, four at most; three without an interval."""
    low, high = content["interval"]
    return min(4, max(0, 1 - math.floor(math.log10((high - low) / 2)))) if high > low else 3
