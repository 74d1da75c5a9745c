"""Evaluation reports and training records as the scripts write them, and what must not be published."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from conftest import HEIGHT, NUM_CODES, WIDTH, tiny_vq_ihdm

from vq_ihdm.evaluation.audit import audit
from vq_ihdm.evaluation.report import Figure, Power, Report
from vq_ihdm.evaluation.resampling import RESAMPLES, Estimate, estimate
from vq_ihdm.fit_prior import fit_prior
from vq_ihdm.hub.evaluated_data import of_splits
from vq_ihdm.hub.model_files import weights_digest
from vq_ihdm.hub.record import read_record, write_record
from vq_ihdm.prior import BlurryPrior
from vq_ihdm.sampling_arguments import usual_sampling

DATA = {
    "source": "OASIS-1",
    "licence": "odbl",
    "redistribution": True,
    "template": False,
    "spacing_mm": [1.0, 1.0],
    "image_size": [32, 32],
    "bit_depth": 8,
    "splits": {"train": {"slices": 80, "subjects": 20}, "validation": {"slices": 16, "subjects": 4}},
}
STAGE = {
    "script": "train_ihdm.py",
    "settings": {"learning_rate": 1e-3, "prior": "mixture"},
    "held_out": {"cross_entropy": 3.21},
    "step": 1000,
    "images_seen": 32000,
    "seconds": 5400.0,
    "hardware": {"device": "a CPU", "cores": 2, "threads": 1, "processes": 1, "torch": "2.14"},
}


def record(folder: Path, **data: object) -> Path:
    """Give a model's folder the record of a training on `DATA`, some of it replaced."""
    write_record(folder, DATA | data, [STAGE])
    return folder


def evaluate(folder: Path, ratio: float = 1.0, copies: float = 0.0) -> Path:
    """Give a model's folder an evaluation on the data of its record with this distance ratio, known to 0.02, and this
    share of copies."""
    scheduler = folder / "scheduler" / "scheduler_config.json"
    usual = usual_sampling(json.loads(scheduler.read_text())) if scheduler.is_file() else {}
    about = {
        "generated": {"num_images": 500, "pipeline": "VQIHDMPipeline", **usual, "seed": 0},
        "data": of_splits(read_record(folder)["data"]),
        "training": {"num_images": 80, "num_subjects": 20},
        "held_out": {"num_images": 16, "num_subjects": 4},
        "image_size": [32, 32],
        "networks": [],
        "weights": weights_digest(folder),
    }
    kid, kid_floor = Estimate(0.0512, (0.048, 0.055), 500), Estimate(0.0012, (0.0008, 0.0016), 500)
    scatter = np.linspace(-0.018, 0.018, RESAMPLES)
    figures = [
        Figure("kid", "inception", kid, floor=kid_floor),
        Figure("isc", "inception", None, unavailable="no 1008-way head"),
        Figure(
            "nearest_ratio", "pixels", estimate(ratio, ratio + scatter, 500), floor=estimate(1, [1.0] * RESAMPLES, 16)
        ),
        Figure(
            "copy_rate",
            "pixels",
            Estimate(copies, (copies, copies), 500, {"verbatim": 0}),
            floor=Estimate(0.0, (0.0, 0.0), 16, {"verbatim": 0}),
        ),
    ]
    report = Report(about, figures, pictures={}, audit=audit(figures, [Power("verbatim", 0.02, 0.95)]))
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "evaluation" / "report.json").write_text(report.to_json())
    return folder


def fitted_prior(kind: str) -> BlurryPrior:
    """A prior that fits `tiny_vq_ihdm`, and may be saved whatever its kind."""
    codes = torch.randint(NUM_CODES, (40, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))
    prior = fit_prior(tiny_vq_ihdm().denoiser.embed_codes(codes), sigma=2.0, kind=kind, rank=6, num_components=2)
    prior.allow_saving_images = True
    return prior


def unevaluated(folder: Path) -> None:
    """Take a model's evaluation away."""
    shutil.rmtree(folder / "evaluation")


def memorising(folder: Path) -> None:
    """Give a model an evaluation that fails the audit."""
    evaluate(folder, ratio=0.5)


def restricted(folder: Path) -> None:
    """Give a model the record of a training, and an evaluation, on images that must not be passed on."""
    evaluate(record(folder, source="ADNI", licence="other", redistribution=False))
