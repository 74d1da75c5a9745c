"""The last step of a train script: a saved pipeline gets its record, its pictures and its card."""

import argparse
import json
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ..files import replacing
from ..hub.audit_index import write_audit_index
from ..hub.model_card import write_model_card
from ..hub.publishing import push
from ..hub.record import data_facts, denoiser_stages, stage_record, tokenizer_stages, under_all_terms, write_record
from ..pictures import save_sheets
from ..pipelines.slice_pipeline import SlicePipeline
from ..pipelines.token_pipeline import TokenPipeline


def save_trained_pipeline(
    pipeline: SlicePipeline,
    args: argparse.Namespace,
    metrics: dict[str, float],
    splits: DatasetDict,
) -> None:
    """The end of a train script: `pipeline/` with its record and card, `metrics.json`, and on the Hub if asked for.

    Both kept networks get their record too: another training may start from either.
    """
    output_dir = Path(args.output_dir)
    for kept in (output_dir / "best", output_dir / "last"):
        write_record(kept, *record_of(pipeline, args, json.loads((kept / "metrics.json").read_text()), splits))
    with replacing(output_dir / "pipeline") as temporary:
        pipeline.to("cpu").save_pretrained(temporary)
        describe(temporary, pipeline, args, metrics, splits)
    with replacing(output_dir / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"the pipeline is in {output_dir / 'pipeline'}")
    if args.push_to_hub:
        push(output_dir / "pipeline", args)


def describe(
    folder: Path,
    pipeline: SlicePipeline,
    args: argparse.Namespace,
    metrics: dict[str, float],
    splits: DatasetDict,
) -> None:
    """Add to a saved pipeline's folder its record, its card, samples, and the index of `audit_index.py`.

    No picture of a scan is among them. The index holds small copies of the training slices: it is left out where the
    images must not be passed on.

    Args:
        args, metrics, splits: see `record_of`.
    """
    data, stages = record_of(pipeline, args, metrics, splits)
    save_sheets(pipeline, args.seed, folder)
    if data["redistribution"]:
        write_audit_index(folder, splits)
    write_record(folder, data, stages)
    write_model_card(folder, name="pipeline")


def record_of(
    pipeline: SlicePipeline, args: argparse.Namespace, metrics: dict[str, float], splits: DatasetDict
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The `data` and `stages` of the record of weights that a train script kept.

    Args:
        args: the effective configuration; the records of its `vqvae`, where the system has one, and of the denoiser it
            started from are taken over.
        metrics: `step`, `seconds` and held-out measures of these weights.
        splits: the data set.
    """
    data = data_facts(args.dataset_name, splits, args.resolution)
    stages = [stage_record(args, metrics, data)]
    if isinstance(pipeline, TokenPipeline):
        earlier = vars(args).get("pretrained_model_name_or_path")  # of train_ihdm.py alone
        stages = tokenizer_stages(args.vqvae) + (denoiser_stages(earlier) if earlier else []) + stages
    return under_all_terms(data, stages), stages
