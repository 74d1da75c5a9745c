"""What an evaluation found: `report.json` for programs, `report.md` for people.

Schema of `report.json`:

    schema_version: 2
    generated: what was evaluated: num_images and, of a pipeline, its class, num_inference_steps, temperature, seed,
        seconds_per_image
    weights: digest of the pipeline's (`vq_ihdm.hub.model_files.weights_digest`)
    data: source of the real images, and splits: {slices, subjects} by name, both as in `training.json`
    trained_on: the same of the pipeline's training, where it was on other data
    training, held_out: {num_images, num_subjects} of the real sides
    image_size: [height, width]
    networks: [{name, weights}], the feature networks with a fingerprint of their weights; the first one is primary
    resamples: how many half-samples stand behind each interval
    audit: the verdict on memorisation, `passed`: true or false, with its `failures` in sentences; the one-sided
        `tests` it rests on (name, features, p_value; `leak` is of nearest_ratio) and their `level`, `margin` and
        `by_chance`; `power`: how often copies of a share `planted` are `caught`
    figures: a flat list, one entry a figure and feature network:
        name: a key of `KINDS`, such as "kid"; group, title, better ("lower", "higher", "floor" or "ceiling": the
            closer to it, the better) come from there
        features: the network's name, "pixels", "decoded pixels", "codes", "lag 1" (between codes), "u_T",
            "grey levels", or of the group "covariates" the covariate or its group
        generated: {value, interval: [low, high], num_images, details}, or null with `unavailable` telling why
        ceiling: the same measure of real codes, or images decoded from them, or null: what a perfect stage 2 would
            reach
        floor: the same measure of real images at the same N, or null
        unavailable: null or the reason

An entry of a model card's `model-index` is {type: name, value: generated.value, name: f"{title} ({features}, N =
{generated.num_images})"}; a row of a benchmark table picks its figures by (name, features).
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm.auto import tqdm

from .resampling import RESAMPLES, Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure  # cards of drawn images read reports, and draw none


class Kind(NamedTuple):
    group: str
    title: str
    better: str


KINDS = {
    "kid": Kind("fidelity", "KID", "lower"),
    "fid": Kind("fidelity", "FID", "lower"),
    "fid_infinity": Kind("fidelity", "FID extrapolated to infinite N", "lower"),
    "isc": Kind("fidelity", "Inception Score", "higher"),
    "precision": Kind("fidelity", "Precision", "higher"),
    "recall": Kind("fidelity", "Recall", "higher"),
    "density": Kind("fidelity", "Density", "higher"),
    "coverage": Kind("fidelity", "Coverage", "higher"),
    "second_stage_kid": Kind("second stage", "KID against decoded codes", "lower"),
    "second_stage_fid": Kind("second stage", "FID against decoded codes", "lower"),
    "second_stage_recall": Kind("second stage", "Recall of decoded codes", "higher"),
    "second_stage_density": Kind("second stage", "Density among decoded codes", "higher"),
    "second_stage_coverage": Kind("second stage", "Coverage of decoded codes", "higher"),
    "code_usage": Kind("second stage", "Code usage, distance to held-out", "lower"),
    "code_perplexity": Kind("second stage", "Perplexity of codes", "ceiling"),
    "known_pairs": Kind("second stage", "Pairs of codes known from training", "ceiling"),
    "rkid": Kind("reconstruction", "rKID", "lower"),
    "rfid": Kind("reconstruction", "rFID", "lower"),
    "control_error": Kind("covariates", "Control, error of a probe", "lower"),
    "control_accuracy": Kind("covariates", "Control, accuracy of a probe", "higher"),
    "synthetic_error": Kind("covariates", "Trained on synthetic images, error", "lower"),
    "synthetic_accuracy": Kind("covariates", "Trained on synthetic images, accuracy", "higher"),
    "decoded_synthetic_error": Kind("covariates", "Trained on synthetic images, error on decoded scans", "lower"),
    "decoded_synthetic_accuracy": Kind(
        "covariates", "Trained on synthetic images, accuracy on decoded scans", "higher"
    ),
    "augmented_error": Kind("covariates", "Trained on real and synthetic images, error", "lower"),
    "augmented_accuracy": Kind("covariates", "Trained on real and synthetic images, accuracy", "higher"),
    "guess_error": Kind("covariates", "A guess without an image, error", "floor"),
    "guess_accuracy": Kind("covariates", "A guess without an image, accuracy", "floor"),
    "group_kid": Kind("covariates", "KID within a group", "lower"),
    "ms_ssim": Kind("diversity", "MS-SSIM between pairs", "floor"),
    "ms_ssim_same_level": Kind("diversity", "MS-SSIM between pairs of one slice level", "floor"),
    "duplicate_rate": Kind("diversity", "Duplicate rate", "floor"),
    "nearest_ratio": Kind("memorisation", "Distance to training / to held-out", "floor"),
    "training_share": Kind("memorisation", "Share nearest to a training subject", "floor"),
    "copy_rate": Kind("memorisation", "Copy rate", "floor"),
    "wasserstein_brain_area": Kind("anatomy", "Brain area, Wasserstein distance", "lower"),
    "wasserstein_csf_share": Kind("anatomy", "CSF share, Wasserstein distance", "lower"),
    "wasserstein_ventricle_share": Kind("anatomy", "Ventricle share, Wasserstein distance", "lower"),
    "wasserstein_asymmetry": Kind("anatomy", "Left-right asymmetry, Wasserstein distance", "lower"),
}

EXPLANATIONS = {
    "fidelity": (
        "Each set against all held-out images. KID first: it has no bias by N, while FID falls as N grows; by the "
        "number of held-out people it has one, the same for every system and for the floor. Precision, recall: k = 3; "
        "density, coverage: k = 5; the nearest neighbours of a scan are slices of the same person, which keeps these "
        "four below 1 even for real images."
    ),
    "second stage": (
        "Against the decoded codes of all held-out images, so that the tokenizer's error stands on both sides, and on "
        "the codes themselves. The ceiling has decoded codes, and codes, of training images in place of generated "
        "ones, as they are, while a model that learnt from mirrored slices, too, draws both. Usage: half of the sum of "
        "absolute differences between the shares of codes. Known pairs: share of pairs of codes so many cells apart "
        "that the training images hold somewhere; their ceiling is of held-out images. Far below it codes do not fit "
        "together, above it there is less variety than among people."
    ),
    "reconstruction": "Held-out images through the VQGAN and back, against themselves; the floor is of other people.",
    "covariates": (
        "Asked for the covariates of training images. Control: a linear probe on frozen features, trained on real "
        "training images, says what a generated image shows; error and accuracy are against what was asked, the floor "
        "is the same probe on held-out people. Synthetic, augmented: a probe trained on the generated images, alone or "
        "with the real ones, tested on held-out people; the floor is the probe trained on real images alone. Decoded "
        "scans: tested on held-out people whose images went through the tokenizer, which bears its mark as generated "
        "images do: to be compared with the ceiling, which is asked the same. The ceiling has decoded training images "
        "in place of generated ones, and for control decoded images of held-out people. A guess says the median of the "
        "training images, or always one category: what is no better has not been learnt. Numbers: mean absolute "
        "error; categories: balanced accuracy. Intervals are over those who are tested. Groups: KID of the images "
        "asked for against held-out people of the same group, over pairs of different people."
    ),
    "diversity": (
        "MS-SSIM of pairs of different subjects: above the floor there is less variety than among people. A duplicate "
        "has another image of the set (of a person: of another person) nearer than 99 % of the held-out images have "
        "their nearest training image."
    ),
    "memorisation": (
        "Ratio: mean distance to the nearest training image over that to the nearest held-out image, with equally many "
        "subjects on both sides; 1 without memorisation, less where training images are nearer. Share: how often the "
        "nearest of all subjects is a training subject; by chance as often as their share in all subjects. Copy rate: "
        "share of images that stand so much nearer to a training image (in pixels: or to its mirror image) than to any "
        "held-out one as no held-out image does, by a margin of a fifth. Decoded pixels, codes: against training "
        "images as the tokenizer decodes and encodes them, where its error hides no copy. u_T: draws of the prior "
        "against blurred images. Codes and u_T of real images count with those of their mirror images. The floor has "
        "held-out images in place of generated ones. The verdict rests on one-sided tests of copy rate and ratio. A "
        "single image four times as near to a training image as to any held-out one fails the audit; so does a ratio "
        "far above its floor, for such a system was trained on those who are held out."
    ),
    "anatomy": (
        "Segmentation by grey level, the same for all sets; Wasserstein distance to the held-out distribution, in "
        "units of the measure."
    ),
}


@dataclass(frozen=True)
class Figure:
    """One measure in one feature space; the fields are those of `figures` in `report.json`."""

    name: str
    features: str
    generated: Estimate | None
    ceiling: Estimate | None = None
    floor: Estimate | None = None
    unavailable: str | None = None


class Picture(NamedTuple):
    """A picture that is drawn when the report is saved, and whether images of real people are in it."""

    caption: str
    draw: "Callable[[], MatplotlibFigure]"
    shows_scans: bool = False


@dataclass(frozen=True)
class Test:
    """A one-sided test in a space: how likely so high a `copy_rate`, so low a `nearest_ratio`, or one so high (`leak`),
    is by chance."""

    name: str
    features: str
    p_value: float


@dataclass(frozen=True)
class Power:
    """In which share of trials there is an alarm when the share `planted` of the images are `copies` instead."""

    copies: str
    planted: float
    caught: float


@dataclass(frozen=True)
class Audit:
    """The verdict on memorisation (`vq_ihdm.evaluation.audit`): passed where no sentence speaks against the images.

    Attributes:
        level: of false alarms, for all tests together.
        by_chance, margin: a copy rate, and a distance of the ratio to its floor, that raise no alarm.
    """

    failures: list[str]
    tests: list[Test]
    power: list[Power]
    level: float
    by_chance: float
    margin: float

    def to_json(self) -> dict:
        return {"passed": not self.failures} | asdict(self)


@dataclass(frozen=True)
class Report:
    """Figures, pictures by file name, the audit's verdict, and `about`: the other entries of `report.json`."""

    about: dict
    figures: list[Figure]
    pictures: dict[str, Picture]
    audit: Audit

    def figure(self, name: str, features: str | None = None) -> Figure:
        """The figure of this name in a feature space, by default in the first one it was measured in."""
        return next(f for f in self.figures if f.name == name and features in (None, f.features))

    def to_json(self) -> str:
        figures = [KINDS[figure.name]._asdict() | asdict(figure) for figure in self.figures]
        for figure in figures:
            for side in ("generated", "ceiling", "floor"):
                if figure[side] is not None:
                    del figure[side]["resampled"]
        content = {"schema_version": 2, **self.about, "resamples": RESAMPLES, "audit": self.audit.to_json()}
        return json.dumps(content | {"figures": figures}, indent=2) + "\n"

    def to_markdown(self, pictures: dict[str, Picture]) -> str:
        """`report.md` with some of the pictures."""
        about = self.about
        made = [f"{key.replace('_', ' ')} {value}" for key, value in about["generated"].items() if key != "num_images"]
        generated = f"{about['generated']['num_images']} images" + (f" ({', '.join(made)})" if made else "")
        sides = ", ".join(
            f"{about[side]['num_images']} images of {about[side]['num_subjects']} {name} subjects"
            for side, name in (("training", "training"), ("held_out", "held-out"))
        )
        of = f" ({about['data']['source']}, splits {', '.join(about['data']['splits'])})" if "data" in about else ""
        lines = [
            "# Evaluation",
            "",
            f"Generated: {generated}. Real: {sides}{of}. Image size {about['image_size'][0]}x{about['image_size'][1]}.",
            "",
            *describe_training_data(about),
            "**Floor**: training images against held-out images, that is real against real, at the same N. "
            "**Ceiling**: decoded codes of those training images, what a perfect second stage would reach. "
            f"In brackets 95 % intervals from {RESAMPLES} half-samples of subjects (real side) and of images "
            "(generated side). N is the number of generated images, and in brackets that of the floor where it "
            "differs.",
        ]
        for group, explanation in EXPLANATIONS.items():
            rows = [figure for figure in self.figures if KINDS[figure.name].group == group]
            if rows:
                lines += ["", f"## {group.capitalize()}", ""]
                if group == "memorisation":
                    lines += [*describe_audit(self.audit.to_json()), ""]
                lines += [explanation, ""]
                lines += table(["figure", "features", "generated", "ceiling", "floor", "N"], map(_row, rows))
        lines += ["", "## Pictures"]
        for name, picture in pictures.items():
            lines += ["", f"![{picture.caption}]({name})", "", picture.caption]
        networks = ", ".join(f"{network['name']} ({network['weights']})" for network in about["networks"])
        lines += ["", f"Feature networks, with a fingerprint of their weights: {networks}."]
        return "\n".join(lines) + "\n"

    def save(self, folder: Path, scans: bool) -> None:
        """Write `report.json`, `report.md` and the pictures into a folder; those that show scans only if asked to."""
        folder.mkdir(parents=True, exist_ok=True)
        pictures = {name: picture for name, picture in self.pictures.items() if scans or not picture.shows_scans}
        for name, picture in tqdm(pictures.items(), "pictures", leave=False):
            picture.draw().savefig(folder / name, dpi=110)
        (folder / "report.json").write_text(self.to_json())
        (folder / "report.md").write_text(self.to_markdown(pictures))


def describe_training_data(about: dict) -> list[str]:
    """A warning where the pipeline was trained on other data than the training images of this evaluation."""
    if "trained_on" not in about:
        return []
    train = about["trained_on"]["splits"]["train"]
    people = f" of {train['subjects']} subjects" if "subjects" in train else ""
    images = f"{train['slices']} images{people} ({about['trained_on']['source']})"
    return [
        f"**The pipeline was trained on other data: {images}.** "
        "What is called training below it never saw: no figure of memorisation says anything about it.",
        "",
    ]


def describe_audit(audit: dict) -> list[str]:
    """The verdict and the power of an audit, as `report.json` has it, in Markdown."""
    if audit["passed"]:
        verdict = (
            f"**Passed**: no copy rate significantly above {audit['by_chance']:.1%}, and no ratio of distances "
            f"significantly more than {audit['margin']:g} below that of held-out people."
        )
    else:
        verdict = "**Failed.** " + " ".join(audit["failures"])
    lines = [verdict]
    if audit["power"]:
        caught = {}
        for power in audit["power"]:
            caught.setdefault(power["copies"], []).append(f"{power['caught']:.0%} at {100 * power['planted']:g}%")
        lines += ["", "Had a part of the images been copies of training images, the audit would have noticed:", ""]
        lines += [f"- {copies} copies in {', '.join(shares)} of the images." for copies, shares in caught.items()]
        if "moved" in caught:
            lines.append("- Moved ones stand a few pixels from where they did.")
        if "imperfect" in caught:
            lines.append("- Imperfect ones stand a quarter as far from a training image as from any held-out one.")
        if "decoded" not in caught:
            lines.append("- Copies that went through a tokenizer may hide behind its error unless it is named.")
    return lines


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a Markdown table."""
    first, *others = ["| " + " | ".join(cells) + " |" for cells in [list(headings), *map(list, rows)]]
    return [first, "|" + "---|" * (first.count(" | ") + 1), *others]


def _row(figure: Figure) -> list[str]:
    kind = KINDS[figure.name]
    arrow = {"lower": " ↓", "higher": " ↑", "floor": "", "ceiling": ""}[kind.better]
    measured = [estimate for estimate in (figure.generated, figure.floor) if estimate is not None]
    counts = [str(estimate.num_images) for estimate in measured]
    return [
        kind.title + arrow,
        figure.features,
        _cell(figure.generated) if figure.unavailable is None else f"unavailable: {figure.unavailable}",
        _cell(figure.ceiling),
        _cell(figure.floor),
        counts[0] + (f" ({counts[1]})" if counts[1:] and counts[1] != counts[0] else "") if counts else "",
    ]


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    digits = 2 if abs(estimate.value) >= 10 else 4
    low, high = estimate.interval
    return f"{estimate.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
