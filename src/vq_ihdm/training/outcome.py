"""What a training shows and leaves behind: samples of the pipeline, and the pipeline."""

import argparse
import json
from pathlib import Path

import torch
from datasets import DatasetDict
from PIL import Image

from ..files import replacing
from ..hub.describe import describe
from ..hub.publishing import push
from ..pipelines.slice_pipeline import SlicePipeline
from .pictures import contact_sheet


def sample_sheet(pipeline: SlicePipeline, seed: int) -> Image.Image:
    """Eight samples, the same ones for the same weights."""
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(8, generator=torch.Generator().manual_seed(seed), output_type="np").images
    return contact_sheet((images[..., 0] * 255).round().astype("uint8"), columns=4)


def save_outcome(
    pipeline: SlicePipeline,
    args: argparse.Namespace,
    metrics: dict[str, float],
    splits: DatasetDict,
) -> None:
    """Write `pipeline/` with its model card, and `metrics.json`, what is known about its weights."""
    output_dir = Path(args.output_dir)
    with replacing(output_dir / "pipeline") as temporary:
        pipeline.to("cpu").save_pretrained(temporary)
        describe(temporary, pipeline, args, metrics, splits)
    (output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"the pipeline is in {output_dir / 'pipeline'}")
    if args.push_to_hub:
        push(output_dir / "pipeline", args)
