"""The model card: written from the files of a model's folder, never from blanks.

What a card says comes from `training.json` (`record.py`), the components' own configs and weights, the report of
`evaluate.py` where `evaluation/report.json` exists, and `samples.png`. `notes.md`, if its authors wrote one, is quoted
as it is. A card can be written again at any time, say after an evaluation.
"""

import math
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open

from .._version import __version__
from ..covariates import vocabulary
from ..data.sources import ADNI, IXI, OASIS1, OWN, TEMPLATE, Source
from ..errors import InputError
from ..evaluation.report import EXPLANATIONS, table
from ..evaluation.report import describe_audit as describe_verdict
from ..files import read_json, replacing
from .audit import audit_failures, memorisation_figures
from .evaluated_data import own_report
from .figures import TASK, control_figures, eval_results, figure_table, headlines, held_out_splits, quality
from .model_files import system_of
from .record import RECORD, own_record, told_digests

SOURCES = {source.name: source for source in (ADNI, IXI, OASIS1, OWN, TEMPLATE)}
UNITS = {"usage": ("share of codes in use", "{:.0%}"), "perplexity": ("perplexity of the codes", "{:.0f}")}
MEASURES = {"l1": "L1 (grey values in [-1, 1])", "lpips": "LPIPS", "cross_entropy": "cross-entropy (nats a code)"}
METHODS = {
    "VQIHDMPipeline": "Discrete VQ-IHDM: blurry code embeddings from a prior, sharp codes in one evaluation or few of "
    "a BERT denoiser, pixels from the decoder of a VQGAN",
    "AbsorbingDiffusionPipeline": "absorbing diffusion over the codes of a VQGAN, a baseline of Discrete VQ-IHDM",
    "LatentDiffusionPipeline": "diffusion over the latents of a VQGAN, a baseline of Discrete VQ-IHDM",
}
PURPOSE = (
    "For research and teaching: to study generative models and their evaluation, to try out image processing without "
    "access to patients' scans. **Not for diagnosis**, nor for any decision about a person, nor as a substitute of "
    "real scans in a clinical study."
)
CITATION = f"""```bibtex
@misc{{discrete_vq_ihdm,
  title = {{Discrete {{VQ-IHDM}}: {{MRI}} Generation with Vector Quantized Inverse Heat Dissipation Model}},
  author = {{{{The authors of Discrete VQ-IHDM}}}},
}}
@software{{vq_ihdm,
  title = {{vq-ihdm: Discrete VQ-IHDM for the Hugging Face ecosystem}},
  author = {{{{The vq-ihdm contributors}}}},
  version = {{{__version__}}},
}}
@inproceedings{{rissanen2023generative,
  title = {{Generative Modelling with Inverse Heat Dissipation}},
  author = {{Rissanen, Severi and Heinonen, Markus and Solin, Arno}},
  booktitle = {{International Conference on Learning Representations}},
  year = {{2023}},
}}
@inproceedings{{esser2021taming,
  title = {{Taming Transformers for High-Resolution Image Synthesis}},
  author = {{Esser, Patrick and Rombach, Robin and Ommer, Bj{{\\"o}}rn}},
  booktitle = {{IEEE/CVF Conference on Computer Vision and Pattern Recognition}},
  year = {{2021}},
}}
```"""
CONTACT = (
    "Questions, and requests to take something down: the *Community* tab of this repository on the Hub. Please name no "
    "patient and attach no scan."
)


def write_model_card(folder: Path, name: str | None = None) -> None:
    """Write `model_card` to `folder/README.md`."""
    card = model_card(folder, name)  # first: a folder that is not there must not be made
    with replacing(folder / "README.md") as temporary:
        card.save(temporary)


def model_card(folder: Path, name: str | None = None) -> ModelCard:
    """The card of a model's folder.

    Args:
        folder: a saved pipeline, or a VQModel, with its `training.json`.
        name: Hub id or folder by which the card's examples load the model; the folder's own name when None.

    Raises:
        InputError: there is no `training.json` of these weights, or one of the files cannot be read.
    """
    system = system_of(folder)
    record = own_record(folder)
    if record is None:
        raise InputError(
            f"{folder} has no {RECORD} of its weights, from which a card is written; train scripts leave one"
        )
    data = record["data"]
    report = own_report(folder, data)
    name = name or folder.resolve().name
    about = ModelCardData(
        license=data["licence"],
        library_name="diffusers",
        pipeline_tag=TASK if system != "VQModel" else None,
        tags=["medical", "mri", "brain", "vq-ihdm", *(["template-derived"] if data["template"] else [])],
        model_name=name.rpartition("/")[2],
        eval_results=eval_results(data["source"], report) or None,
    )
    sections = [
        f"# {system} of axial brain slices ({data['source']})",
        box(system, record, report),
        "![Samples, not selected.](samples.png)" if (folder / "samples.png").is_file() else "",
        f"## Use\n\n{describe_use(system, name, data)}",
        f"## What it can be asked for\n\n{asked}" if (asked := describe_covariates(folder, report)) else "",
        f"## Evaluation\n\n{describe_evaluation(report, system)}",
        f"## Memorisation audit\n\n{describe_audit(report, system)}",
        f"## Data and terms\n\n{describe_data(record)}",
        f"## Training\n\n{describe_training(record, folder)}",
        f"## Limits\n\n{describe_limits(data, system)}",
        f"## Notes\n\n{(folder / 'notes.md').read_text().strip()}" if (folder / "notes.md").is_file() else "",
        f"## Citation\n\n{CITATION}",
        f"## Contact\n\n{CONTACT}",
    ]
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{about.to_yaml()}\n---\n\n{text}\n")


def box(system: str, record: dict[str, Any], report: dict[str, Any] | None) -> str:
    """What someone must know who reads no further: what it is, how good beside real images, what it is not for."""
    data, train = record["data"], record["data"]["splits"]["train"]
    size = " of {}x{} pixels (height x width)".format(*data["image_size"]) if "image_size" in data else ""
    who = "synthetic anatomies" if data["template"] else "people"
    people = f"{train['subjects']} {who}" if "subjects" in train else f"an unknown number of {who}"
    learnt = f"it saw {train['slices']:,} slices of {people} ({data['source']})"
    if system == "VQModel":
        measures = ", ".join(held_out(name, value) for name, value in record["stages"][-1]["held_out"].items())
        lines = [
            f"**What**: a VQGAN, which turns an axial brain slice{size} into a grid of codes and back; {learnt}.",
            f"**How good**: on held-out slices {measures or 'nothing was measured'}.",
            "**How varied, how private**: it draws nothing by itself; see the pipeline that uses it.",
        ]
    else:
        method = METHODS.get(system, f"{system}, a baseline of Discrete VQ-IHDM")
        if report is None or "audit" not in report:
            verdict = "not done yet"
        else:
            verdict = "failed" if audit_failures(report) else "passed"
        lines = [
            f"**What**: draws synthetic 2-D axial brain slices{size} by {method}; {learnt}.",
            f"**How good**: {quality(report) if report else 'not evaluated yet'}.",
            f"**How private**: memorisation audit {verdict}. No audit proves that nothing about a person leaks.",
        ]
    return "\n".join(
        f"> {line}  "
        for line in [
            *lines,
            "**For** research and teaching, under the terms of the data below.",
            "**Not for** diagnosis, any decision about a person, or in place of real scans in a clinical study.",
        ]
    )


def describe_use(system: str, name: str, data: dict[str, Any]) -> str:
    purpose = PURPOSE
    if data["template"]:
        purpose += " It was trained on deformations of one anatomical template, not on people: a demonstration."
    if system == "VQModel":
        code = f'from diffusers import VQModel\n\nvqvae = VQModel.from_pretrained("{name}")'
        return f"{purpose}\n\n```python\n{code}\n```"
    return f"""{purpose}

```python
import torch
from vq_ihdm import {system}

pipe = {system}.from_pretrained("{name}")
images = pipe(num_images=8, generator=torch.Generator().manual_seed(0)).images  # PIL, mode L
```

On a GPU `pipe.to("cuda")` is all that changes. Without the package, by the code that lies in this repository (read it
first: `trust_remote_code` runs it):

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True)
images = pipe(num_images=8).images
```"""


def describe_covariates(folder: Path, report: dict[str, Any] | None) -> str:
    """Ranges and categories of what the model knows, a picture, and whether it obeys; empty where it knows nothing."""
    config = folder / "denoiser" / "config.json"
    known = vocabulary(read_json(config).get("covariates") if config.is_file() else None)
    if not known:
        return ""
    lines = ["Any or all of these; what is not asked for is drawn as in the training population.", ""]
    for covariate in known:
        of = ", ".join(covariate.categories) if covariate.categories else f"{covariate.low:g} to {covariate.high:g}"
        lines.append(f"- `{covariate.name}`: {of}")
    if (folder / "covariates.png").is_file():
        names = ", then ".join(covariate.name for covariate in known)
        lines += ["", f"![One seed asked for {names}: a row each.](covariates.png)"]
    if figures := control_figures(report):
        lines += [
            "",
            "A probe trained on real training subjects looks for what was asked in generated images and in real ones "
            "of held-out subjects; and probes trained on generated images are tested on these subjects (errors of "
            "numbers in their own units, accuracies of categories balanced over them).",
            "",
            *figure_table(figures),
        ]
    return "\n".join(lines)


def describe_evaluation(report: dict[str, Any] | None, system: str) -> str:
    if report is None and system == "VQModel":
        return "The held-out reconstruction error stands under Training."
    if report is None:
        return "**Not evaluated yet.** Nothing is known about the quality of its samples beyond the picture above."
    generated, real = report["generated"], report["held_out"]
    setting = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in generated.items() if key != "num_images")
    lines = [
        f"{generated['num_images']} generated images ({setting}) against {real['num_images']} images of "
        f"{real['num_subjects']} held-out subjects ({describe_split(report)}). In brackets 95 % intervals; beside them "
        "the same measure of real training images in place of generated ones, and as ceiling of those images decoded "
        "from their codes: what a perfect second stage would reach.",
        "",
        *figure_table(headlines(report)),
        "",
        "All figures with their explanations, and plots: [evaluation/report.md](evaluation/report.md).",
    ]
    return "\n".join(lines)


def describe_split(report: dict[str, Any]) -> str:
    name = "+".join(held_out_splits(report))
    return f"the split {name}" + (", which chose the best network" if "validation" in name else "")


def describe_audit(report: dict[str, Any] | None, system: str) -> str:
    if report is None and system == "VQModel":
        return "A tokenizer draws no images; audit the pipeline that uses it."
    if report is None:
        return "**Not done yet**: whether samples resemble single training subjects is unknown."
    failures = audit_failures(report)
    verdict = describe_verdict(report["audit"]) if "audit" in report else [f"**Failed.** {' '.join(failures)}"]
    explanation = f"{EXPLANATIONS['memorisation']} No audit proves that a model gives nothing about a person away."
    details = ["<details><summary>Figures</summary>", "", *figure_table(memorisation_figures(report)), "", explanation]
    return "\n".join([*verdict, "", *details, "", "</details>"])


def describe_data(record: dict[str, Any]) -> str:
    data = record["data"]
    source: Source = SOURCES.get(data["source"], OWN)
    rows = [[split, count.get("subjects", "unknown"), count["slices"]] for split, count in data["splits"].items()]
    apart = (
        "no subject, as the set names them, is in two splits"
        if is_built(data)
        else "whether subjects are in two is not known"
    )
    code = "The code in this repository is under Apache-2.0; the weights are passed on under the terms of the data."
    if not data["redistribution"]:
        code += " **The images of the data set must not be redistributed, and none is part of this repository.**"
    return "\n".join(
        [
            f"{source.description} The networks saw the training split alone; {apart}.{describe_earlier(record)}",
            "",
            *table(["split", "subjects", "slices"], [map(str, row) for row in rows]),
            "",
            f"**Preprocessing.** {describe_preprocessing(record)}",
            "",
            describe_terms(record),
            "",
            code,
        ]
    )


def is_built(data: dict[str, Any]) -> bool:
    """Whether dataset_scripts/ built the set: then its facts are known, and it was split by subject."""
    return "image_size" in data


def describe_earlier(record: dict[str, Any]) -> str:
    """What earlier trainings learnt from, where it is not what the split above is of."""
    data, sentences = record["data"], []
    earlier = [stage["data"] for stage in record["stages"] if "data" in stage]
    if others := sorted({entry["source"] for entry in earlier} - {data["source"]}):
        sentences.append(f" Earlier trainings learnt from other data: {', '.join(others)}.")
    same_source = [entry for entry in [data, *earlier] if entry["source"] == data["source"]]
    if len(told_digests(*same_source)) > 1:
        sentences.append(
            f" An earlier training learnt from another selection of {data['source']}: where that was split otherwise, "
            "people held out here may have been seen."
        )
    return "".join(sentences)


def describe_terms(record: dict[str, Any]) -> str:
    """The terms of everything that was learnt from, once each."""
    learnt = [stage["data"] for stage in record["stages"] if "data" in stage] or [record["data"]]
    terms = []
    for data in learnt:
        source: Source = SOURCES.get(data["source"], OWN)
        own_licence = f"Published by its owner under {data['licence']}."  # given to the builder, see `with_licence`
        terms.append(source.terms if data["licence"] == source.licence else own_licence)
    return " ".join(dict.fromkeys(terms))


def describe_preprocessing(record: dict[str, Any]) -> str:
    data, text = record["data"], "Grey levels are scaled to [-1, 1]."
    mirroring = sorted({f"`{stage['script']}`" for stage in record["stages"] if stage["settings"].get("random_flip")})
    if mirroring:
        text += f" {' and '.join(mirroring)} mirrored slices left and right at random."
    if is_built(data):
        (height, width), (vertical, horizontal) = data["image_size"], data["spacing_mm"]
        text = (
            f"{height}x{width} pixels (height x width) of {vertical:g}x{horizontal:g} mm, {data['bit_depth']} bit, "
            f"anterior up. {text}"
        )
    made = "; ".join(f"{name}: {value}" for name, value in data.get("preparation", {}).items())
    return f"{text} The set was built with {made}." if made else text


def describe_training(record: dict[str, Any], folder: Path) -> str:
    rows, settings = [], []
    for stage in record["stages"]:
        hardware = stage["hardware"]
        where = (
            f"{hardware['device']}, {hardware['cores']} cores, {hardware['processes']} x {hardware['threads']} threads"
        )
        measures = ", ".join(held_out(name, value) for name, value in stage["held_out"].items())
        seen = f"{stage['images_seen']:,}"
        rows.append([f"`{stage['script']}`", f"{stage['step']:,}", seen, duration(stage["seconds"]), where, measures])
        chosen = ", ".join(f"`{name}` {value}" for name, value in stage["settings"].items())
        for change in stage.get("changed_on_resume", []):
            chosen += f"; up to step {change['from_step']:,} `{change['setting']}` was {change['before']}"
        settings.append(f"`{stage['script']}` (torch {hardware['torch']}): {chosen}")
    headings = ["stage", "step of the weights", "images seen", "time", "on (processes x threads)", "held out"]
    texts = ["\n".join(table(headings, rows))]
    compute = duration(sum(s["seconds"] for s in record["stages"]))
    texts.append(f"Compute: {compute} of these runs, to the weights that were kept; energy was not measured.")
    parts = [f"- `{part.name}`: {count_parameters(part)}" for part in sorted(folder.iterdir()) if any(weights(part))]
    texts.append("\n".join(parts) if parts else f"- {count_parameters(folder)}")
    prior = folder / "prior" / "config.json"
    if prior.is_file():
        config = read_json(prior)
        texts.append(
            f"Blurry prior: kind `{config['kind']}` at sigma {config['sigma']:g} in cells of its grid, "
            f"{config['num_modes']} cosine modes, rank {config['rank']}, {config['num_components']} components, "
            f"{config['variance_kept']:.1%} of the variance of the training states."
        )
    details = "\n\n".join([*settings, f"Version {record['version']} of vq-ihdm."])
    texts.append(f"<details><summary>Settings</summary>\n\n{details}\n\n</details>")
    return "\n\n".join(texts)


def describe_limits(data: dict[str, Any], system: str) -> str:
    limits = [
        "Slices are drawn one by one: several do not make up a volume of one person."
        if system != "VQModel"
        else "Fine structures are lost in the codes.",
        "Intensities carry no physical unit, and nothing has been labelled or checked by a radiologist.",
    ]
    if data["template"]:
        limits.append(
            "One anatomy underlies all training images: neither their variety nor any figure here says anything about "
            "people."
        )
    else:
        people = data["splits"]["train"].get("subjects", "an unknown number of")
        limits.append(
            f"It knows {people} subjects of one collection; other scanners, protocols, ages and diseases are not "
            "represented, and the biases of that collection are its own."
        )
        limits.append("Whatever a rare finding in a sample looks like, it is not evidence of a disease.")
    return "\n".join(f"- {limit}" for limit in limits)


def held_out(name: str, value: float) -> str:
    if name in UNITS:
        label, unit = UNITS[name]
        return f"{label} {unit.format(value)}"
    return f"{MEASURES.get(name, name)} {value:.4g}"


def duration(seconds: float) -> str:
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def weights(folder: Path) -> list[Path]:
    return list(folder.glob("*.safetensors")) if folder.is_dir() else []


def count_parameters(folder: Path) -> str:
    count = 0
    for file in weights(folder):
        with safe_open(file, "pt") as tensors:
            count += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    return f"{count:,} weights"
