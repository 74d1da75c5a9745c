"""Evaluation reports and training records as the scripts write them, for the tests of publishing."""

import json
from pathlib import Path

from vq_ihdm.hub.record import write_record

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


def estimate(value: float, low: float, high: float, num_images: int = 500) -> dict:
    return {"value": value, "interval": [low, high], "num_images": num_images, "details": {}}


def figure(name: str, group: str, generated: dict | None, floor: dict | None, **more: object) -> dict:
    entry = {"name": name, "group": group, "title": name.upper(), "better": "lower", "features": "inception"}
    return entry | {"generated": generated, "ceiling": None, "floor": floor, "unavailable": None} | more


def evaluate(folder: Path, ratio: float = 1.0) -> Path:
    """Give a model's folder an evaluation in which memorisation is measured by `ratio`, known to 0.02."""
    report = {
        "schema_version": 1,
        "generated": {"num_images": 500, "class": "VQIHDMPipeline", "num_inference_steps": 1, "seed": 0},
        "training": {"num_images": 80, "num_subjects": 20},
        "held_out": {"num_images": 16, "num_subjects": 4},
        "figures": [
            figure("kid", "fidelity", estimate(0.0512, 0.048, 0.055), estimate(0.0012, 0.0008, 0.0016)),
            figure("isc", "fidelity", None, None, unavailable="no 1008-way head"),
            figure(
                "nearest_ratio", "memorisation", estimate(ratio, ratio - 0.02, ratio + 0.02),
                estimate(1.0, 0.97, 1.03), features="pixels",
            ),
        ],
    }  # fmt: skip
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "evaluation" / "report.json").write_text(json.dumps(report))
    return folder
