"""What a training leaves behind: the pipeline, with all that is known about it."""

import argparse
import json
from pathlib import Path

from datasets import DatasetDict

from ..files import replacing
from ..hub.describe import describe
from ..hub.publishing import push
from ..pipelines.slice_pipeline import SlicePipeline


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
