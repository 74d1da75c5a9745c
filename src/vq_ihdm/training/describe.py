"""The last step of a train script: what was kept gets its record, a pipeline its pictures and its card, too."""

import argparse
import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import DatasetDict

from ..files import replacing
from ..hub.audit_index import write_audit_index
from ..hub.model_card import write_model_card
from ..hub.publishing import publish
from ..hub.record import (
    data_facts,
    denoiser_stages,
    is_other_set,
    own_record,
    stage_record,
    tokenizer_stages,
    under_all_terms,
    write_record,
)
from ..pictures import save_sheets
from ..pipelines.slice_pipeline import SlicePipeline
from ..pipelines.token_pipeline import TokenPipeline


def tell_other_set(args: argparse.Namespace, splits: DatasetDict, accelerator: Accelerator) -> None:
    """Say so where the tokenizer of a second stage is known to have learnt on another set than this one."""
    data, learnt_on = data_facts(args.dataset_name, splits), [stage["data"] for stage in tokenizer_stages(args.vqvae)]
    if not learnt_on or not all(is_other_set(data, other) for other in learnt_on):
        return
    sources = list(dict.fromkeys(other["source"] for other in learnt_on))
    if data["source"] in sources:  # made anew, and perhaps split otherwise
        remedy = "people who are held out here may have been in its training, which no audit sees; train it again"
    else:
        remedy = "if it blurs these slices, so will the second stage; let it learn on"
        remedy += " with train_vqgan.py --pretrained_model_name_or_path"
    accelerator.print(f"{args.vqvae} learnt on another set ({' and '.join(sources)}): {remedy}")


def save_trained_pipeline(pipeline: SlicePipeline, args: argparse.Namespace, splits: DatasetDict) -> None:
    """Save `pipeline/` around the network in `best/`, described, and publish it if asked for.

    No picture of a scan is among what describes it. The index of `audit_index.py` holds small copies of the training
    slices: it is left out where the images must not be passed on.

    Args:
        args: the effective configuration; the records of its `vqvae`, where the system has one, and of the denoiser it
            started from are taken over.
    """
    output_dir = Path(args.output_dir)
    stages = []
    if isinstance(pipeline, TokenPipeline):
        learnt_on = vars(args).get("pretrained_model_name_or_path")  # of train_ihdm.py alone
        stages = tokenizer_stages(args.vqvae) + (denoiser_stages(learnt_on) if learnt_on else [])
    record_kept(args, data_facts(args.dataset_name, splits, args.resolution), stages)
    with replacing(output_dir / "pipeline") as temporary:
        pipeline.to("cpu").save_pretrained(temporary)
        save_sheets(pipeline, args.seed, temporary)
        record = own_record(output_dir / "best")
        if record["data"]["redistribution"]:
            write_audit_index(temporary, splits)
        write_record(temporary, record["data"], record["stages"])
        write_model_card(temporary, name="pipeline")
    print(f"the pipeline is in {output_dir / 'pipeline'}")
    publish_if_asked(output_dir / "pipeline", args)


def record_kept(args: argparse.Namespace, data: dict[str, Any], earlier: list[dict[str, Any]]) -> None:
    """Give both kept networks, `best/` and `last/`, their record: another training may start from either.

    Args:
        data: of this training (`data_facts`).
        earlier: the trainings before this one.
    """
    for kept in (Path(args.output_dir) / "best", Path(args.output_dir) / "last"):
        stages = [*earlier, stage_record(args, json.loads((kept / "metrics.json").read_text()), data)]
        write_record(kept, under_all_terms(data, stages), stages)


def publish_if_asked(folder: Path, args: argparse.Namespace) -> None:
    """What --push_to_hub does, which nothing but --allow_unevaluated allows (see `config.parse_args`)."""
    if args.push_to_hub:
        name = args.hub_model_id or Path(args.output_dir).resolve().name
        print(f"published: {publish(folder, name, args.hub_private_repo, allow=['unevaluated'])}")
