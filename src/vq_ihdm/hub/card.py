"""The model card: written from the files of a model's folder, never from blanks.

What a card says comes from `training.json` (`record.py`), the components' own configs and weights, the report of
`evaluate.py` where `evaluation/report.json` exists, and the pictures that lie in the folder. `notes.md`, if its authors
wrote one, is quoted as it is. A card can be written again at any time, say after an evaluation.
"""

import json
import math
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from ..data.cards import ADNI, IXI, OASIS1, OWN, TEMPLATE
from ..errors import InputError
from ..evaluation.report import EXPLANATIONS, table
from ..evaluation.report import describe_audit as describe_verdict
from ..files import read_json
from .audit import audit_failures, memorisation_figures
from .record import RECORD, read_record

SOURCES = {source.name: source for source in (ADNI, IXI, OASIS1, OWN, TEMPLATE)}
TASK = "unconditional-image-generation"
PICTURES = {
    "samples.png": "Samples, not selected.",
    "reconstructions.png": "Held-out slices above, their reconstructions by the VQGAN below.",
}
UNITS = {"usage": ("share of codes in use", "{:.0%}"), "perplexity": ("perplexity of the codes", "{:.0f}")}
MEASURES = {"l1": "L1 (grey values in [-1, 1])", "lpips": "LPIPS", "cross_entropy": "cross-entropy (nats a code)"}

REFERENCES = """- Discrete VQ-IHDM: MRI Generation with Vector Quantized Inverse Heat Dissipation Model.
- Rissanen, Heinonen and Solin, Generative Modelling with Inverse Heat Dissipation, ICLR 2023.
- Esser, Rombach and Ommer, Taming Transformers for High-Resolution Image Synthesis, CVPR 2021 (VQGAN).
- Devlin, Chang, Lee and Toutanova, BERT, NAACL 2019 (the denoiser's network).
- Chang, Zhang, Jiang, Liu and Freeman, MaskGIT, CVPR 2022 (the schedule by which codes are revealed).
- Bond-Taylor et al., Unleashing Transformers, ECCV 2022 (absorbing diffusion over VQGAN codes).
- Zhang, Isola, Efros, Shechtman and Wang, The Unreasonable Effectiveness of Deep Features as a Perceptual Metric,
  CVPR 2018 (LPIPS).
- von Platen et al., Diffusers: State-of-the-art diffusion models, 2022."""


def write_card(folder: Path, name: str | None = None) -> None:
    """Write `model_card` to `folder/README.md`."""
    model_card(folder, name).save(folder / "README.md")


def model_card(folder: Path, name: str | None = None) -> ModelCard:
    """The card of a model's folder.

    Args:
        folder: a saved pipeline, or a VQModel, with its `training.json`.
        name: Hub id or folder by which the card's examples load the model; the folder's own name when None.

    Raises:
        InputError: there is no `training.json`.
    """
    index = folder / "model_index.json"
    system = json.loads(index.read_text())["_class_name"][1] if index.is_file() else "VQModel"
    record, report = read_record(folder), read_report(folder)
    if record is None:
        raise InputError(f"{folder} has no {RECORD}, from which a card is written; the train scripts leave one")
    data = record["data"]
    name = name or folder.resolve().name
    source = SOURCES.get(data["source"], OWN)
    about = ModelCardData(
        license=data["licence"],
        library_name="diffusers",
        pipeline_tag=TASK if system != "VQModel" else None,
        tags=["medical", "mri", "brain", "vq-ihdm", *(["template-derived"] if data["template"] else [])],
        model_name=name.rpartition("/")[2],
        eval_results=eval_results(data, report) or None,
    )
    sections = [
        f"# {system} of axial brain slices ({data['source']})",
        describe_system(system, folder),
        *(f"![{caption}]({file})\n\n{caption}" for file, caption in PICTURES.items() if (folder / file).is_file()),
        describe_use(system, name, data),
        f"## Data and terms\n\n{describe_data(data, source)}",
        f"## Training\n\n{describe_training(record, folder)}",
        f"## Evaluation\n\n{describe_evaluation(report, system)}",
        f"## Memorisation audit\n\n{describe_audit(report, system)}",
        f"## Limits\n\n{describe_limits(data, system)}",
        f"## Notes\n\n{(folder / 'notes.md').read_text().strip()}" if (folder / "notes.md").is_file() else "",
        f"## Citation\n\n{REFERENCES}",
    ]
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{about.to_yaml()}\n---\n\n{text}\n")


def read_report(folder: Path) -> dict[str, Any] | None:
    file = folder / "evaluation" / "report.json"
    return read_json(file) if file.is_file() else None


def eval_results(data: dict[str, Any], report: dict[str, Any] | None) -> list[EvalResult]:
    """The figures of a report as the Hub's `model-index` lists them."""
    return [
        EvalResult(
            task_type=TASK,
            dataset_type="image-folder",
            dataset_name=f"{data['source']}, held-out subjects",
            metric_type=figure["name"],
            metric_name=f"{figure['title']} ({figure['features']}, N = {figure['generated']['num_images']})",
            metric_value=figure["generated"]["value"],
        )
        for figure in (report["figures"] if report else [])
        if figure["generated"] is not None
    ]


def describe_system(system: str, folder: Path) -> str:
    if system == "VQModel":
        return (
            "A VQGAN: the tokenizer of stage 1 of Discrete VQ-IHDM, which turns a slice into a grid of code indices "
            f"and back. {count_parameters(folder)}"
        )
    text = {
        "VQIHDMPipeline": (
            "Draws synthetic 2-D axial slices of the brain by Discrete VQ-IHDM: blurry code embeddings from a "
            "prior, sharp codes by one evaluation of a BERT denoiser (several are possible), pixels by the decoder of "
            "a VQGAN."
        ),
        "AbsorbingDiffusionPipeline": (
            "Draws synthetic 2-D axial slices of the brain by absorbing diffusion over the codes of a VQGAN "
            "(Bond-Taylor et al., 2022): a baseline of Discrete VQ-IHDM."
        ),
    }.get(system, f"Draws synthetic 2-D axial slices of the brain: a baseline of Discrete VQ-IHDM ({system}).")
    parts = [f"- `{part.name}`: {count_parameters(part)}" for part in sorted(folder.iterdir()) if any(weights(part))]
    return "\n".join([text, "", *parts])


def describe_use(system: str, name: str, data: dict[str, Any]) -> str:
    purpose = (
        "For research and teaching: to study generative models and their evaluation, to try out image processing "
        "without access to patients' scans. **Not for diagnosis**, nor for any decision about a person, nor as a "
        "substitute of real scans in a clinical study."
    )
    if data["template"]:
        purpose += " It was trained on deformations of one anatomical template, not on people: a demonstration."
    if system == "VQModel":
        code = f'from diffusers import VQModel\n\nvqvae = VQModel.from_pretrained("{name}")'
        return f"## Use\n\n{purpose}\n\n```python\n{code}\n```"
    return f"""## Use

{purpose}

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


def describe_data(data: dict[str, Any], source) -> str:
    lines = ["| split | subjects | slices |", "|---|---|---|"]
    for split, count in data["splits"].items():
        lines.append(f"| {split} | {count.get('subjects', 'unknown')} | {count['slices']} |")
    text = source.description
    if "image_size" in data:
        (height, width), (vertical, horizontal) = data["image_size"], data["spacing_mm"]
        text += f" {width}x{height} pixels of {horizontal:g}x{vertical:g} mm, {data['bit_depth']} bit."
    used = "The networks saw the training split alone; no subject is in two splits."
    code = "The code in this repository is under Apache-2.0; the weights are passed on under the terms of the data."
    if not data["redistribution"]:
        code += " **The images of the data set must not be redistributed, and none is part of this repository.**"
    own_licence = f"Published by its owner under {data['licence']}."  # given to the builder, see `with_licence`
    terms = source.terms if data["licence"] == source.licence else own_licence
    return "\n".join([f"{text} {used}", "", *lines, "", terms, "", code])


def describe_training(record: dict[str, Any], folder: Path) -> str:
    texts = []
    for stage in record["stages"]:
        hardware = stage["hardware"]
        measures = ", ".join(held_out(name, value) for name, value in stage["held_out"].items())
        settings = ", ".join(f"`{name}` {value}" for name, value in stage["settings"].items())
        for change in stage.get("changed_on_resume", []):
            settings += f"; up to step {change['from_step']:,} `{change['setting']}` was {change['before']}"
        texts.append(
            f"**`{stage['script']}`**: the weights of step {stage['step']:,} ({stage['images_seen']:,} images seen) "
            f"after {duration(stage['seconds'])} on {hardware['device']} (cores: {hardware['cores']}, processes: "
            f"{hardware['processes']}, threads of each: {hardware['threads']}; torch {hardware['torch']}). "
            f"Held out (validation split): {measures}.\n\n"
            f"<details><summary>Settings</summary>\n\n{settings}\n\n</details>"
        )
    prior = folder / "prior" / "config.json"
    if prior.is_file():
        config = json.loads(prior.read_text())
        texts.append(
            f"**Blurry prior**: kind `{config['kind']}` at sigma {config['sigma']:g} in cells of its grid, "
            f"{config['num_modes']} cosine modes, rank {config['rank']}, {config['num_components']} components, "
            f"{config['variance_kept']:.1%} of the variance of the training states."
        )
    texts.append(f"Version {record['version']} of vq-ihdm. Energy was not measured.")
    return "\n\n".join(texts)


def describe_evaluation(report: dict[str, Any] | None, system: str) -> str:
    if report is None and system == "VQModel":
        return "The held-out reconstruction error stands under Training."
    if report is None:
        return "**Not evaluated yet.** Nothing is known about the quality of its samples beyond the pictures above."
    generated, held_out_side = report["generated"], report["held_out"]
    setting = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in generated.items() if key != "num_images")
    lines = [
        f"{generated['num_images']} generated images ({setting}) against {held_out_side['num_images']} images of "
        f"{held_out_side['num_subjects']} held-out subjects. In brackets 95 % intervals; the floor is the same measure "
        "of real training images against real held-out ones, the ceiling that of their reconstructions by the VQGAN. "
        "All figures, explanations and pictures: [evaluation/report.md](evaluation/report.md).",
        "",
        *figure_table([f for f in report["figures"] if f["group"] not in ("memorisation", "second stage")]),
    ]
    second_stage = [figure for figure in report["figures"] if figure["group"] == "second stage"]
    if second_stage:
        lines += ["", "### Second stage", "", EXPLANATIONS["second stage"], "", *figure_table(second_stage)]
    return "\n".join(lines)


def describe_audit(report: dict[str, Any] | None, system: str) -> str:
    if report is None and system == "VQModel":
        return "A tokenizer draws no images; audit the pipeline that uses it."
    if report is None:
        return "**Not done yet**: whether samples resemble single training subjects is unknown."
    failures = audit_failures(report)
    verdict = describe_verdict(report["audit"]) if "audit" in report else [f"**Failed.** {' '.join(failures)}"]
    explanation = f"{EXPLANATIONS['memorisation']} No audit proves that a model gives nothing about a person away."
    return "\n".join([*verdict, "", *figure_table(memorisation_figures(report)), "", explanation])


def describe_limits(data: dict[str, Any], system: str) -> str:
    limits = [
        "Slices are drawn one by one: several do not make up a volume of one person."
        if system != "VQModel"
        else "Fine structures are lost in the codes: compare the reconstructions above.",
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


def figure_table(figures: list[dict[str, Any]]) -> list[str]:
    rows = []
    for figure in figures:
        generated = figure["generated"]
        value = estimate(generated) if generated else f"unavailable: {figure['unavailable']}"
        cells = [figure["title"], figure["features"], value, estimate(figure["ceiling"]), estimate(figure["floor"])]
        rows.append([*cells, str(generated["num_images"]) if generated else ""])
    return table(["measure", "features", "generated", "ceiling", "floor", "N"], rows)


def estimate(content: dict[str, Any] | None) -> str:
    """A value with its 95 % interval; empty when there is none."""
    if content is None:
        return ""
    low, high = content["interval"]
    return f"{content['value']:.4g} [{low:.3g}, {high:.3g}]"


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
