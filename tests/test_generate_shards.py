"""generate.py --format parquet: shards, their card, and what may be pushed."""

import json
import multiprocessing
import os
import runpy
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, SHARD_FLAGS, refusal, run_script
from datasets import load_dataset
from generate_helpers import contents, flip
from hub_fixtures import evaluate, fitted_prior, record, restricted

from vq_ihdm import load_pipeline
from vq_ihdm.evaluation.image_sets import read_image_folder
from vq_ihdm.hub.checks import refuse_drawn
from vq_ihdm.synthetic.images_card import write_images_card
from vq_ihdm.synthetic.provenance import Provenance, seed_of_image
from vq_ihdm.synthetic.shards import ParquetShards


@pytest.fixture(scope="module")
def described_pipeline(pipeline_folder, tmp_path_factory) -> Path:
    """A pipeline with record and evaluation."""
    return evaluate(record(Path(shutil.copytree(pipeline_folder, tmp_path_factory.mktemp("described") / "model"))))


@pytest.fixture(scope="module")
def shards(described_pipeline, tmp_path_factory) -> Path:
    """What generate.py writes with `SHARD_FLAGS` for ten images; not to be written to."""
    folder = tmp_path_factory.mktemp("shards") / "images"
    run_script("generate.py", "--pipeline", described_pipeline, "--output_dir", folder, *SHARD_FLAGS)
    return folder


def test_shards_hold_the_same_images_as_files_do(generate, shards):
    files = [f"data/train-{number:05d}.parquet" for number in range(3)]
    assert contents(shards).keys() == {*files, "README.md", "manifest.json"}
    rows = load_dataset(str(shards), split="train")
    assert rows["index"] == list(range(10)) and rows["image_seed"] == [seed_of_image(0, i) for i in range(10)]
    assert (np.stack(rows["image"]) == read_image_folder(generate("--num_images", 10, "--batch_size", 2))).all()
    assert json.loads(rows[7]["image"].text["Comment"])["index"] == 7


def test_the_card_says_model_seed_licence_and_audit(shards, described_pipeline):
    card = (shards / "README.md").read_text()
    about = json.loads((shards / "manifest.json").read_text())["settings"]
    assert about["model"] == "VQIHDMPipeline trained on OASIS-1" and about["licence"] == "odbl"
    size = "| height and width of a pixel | 1 x 1 mm |"
    for part in ("license: odbl", "- synthetic", "10 images", about["model"], about["weights"], "**Passed**", size):
        assert part in card
    assert not any(part in card for part in [*described_pipeline.parts[1:-1], *shards.parts[1:-1]])


def test_the_card_of_images_does_not_call_scans_confidential_that_have_a_licence(shards, described_pipeline, tmp_path):
    model = Path(shutil.copytree(described_pipeline, tmp_path / "model"))
    settings = json.loads((shards / "manifest.json").read_text())["settings"]
    provenance = Provenance(**{field.name: settings[field.name] for field in fields(Provenance)})
    for licence, redistribution in (("cc-by-4.0", True), ("other", False)):
        record(model, source="own scans", licence=licence, redistribution=redistribution)
        write_images_card(tmp_path, provenance, model, num_images=10)
        card = (tmp_path / "README.md").read_text()
        assert ("Published by its owner under cc-by-4.0." in card) == redistribution
        assert ("confidential" in card) != redistribution


@pytest.mark.slow
def test_a_set_that_is_killed_again_and_again_equals_one_that_is_not(shards, described_pipeline, tmp_path, monkeypatch):
    folder = tmp_path / "images"
    arguments = ("--pipeline", described_pipeline, "--output_dir", folder, *SHARD_FLAGS)
    # Not forked from this process, whose threads and locks no child may have; from one that has the imports alone.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["generate"])
    monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, arguments)])  # which the children are given
    for changes in range(1, 6):  # of what lies in the folder; the last process may complete the set
        child = context.Process(target=runpy.run_path, args=(str(ROOT / "generate.py"), None, "__main__"))
        child.start()
        seen = names_below(folder)
        while changes and child.is_alive():
            if (now := names_below(folder)) != seen:
                seen, changes = now, changes - 1
        child.kill()
        child.join()
    for _ in range(2):  # to its end; and once more, with a shard that is damaged
        run_script("generate.py", *arguments)
        # One killed right after its shard got its name leaves the empty place where it was written.
        assert {name: data for name, data in contents(folder).items() if ".partial/" not in name} == contents(shards)
        (folder / "data" / "train-00001.parquet").write_bytes(b"PAR1 and no more")


def names_below(folder: Path) -> set[str]:
    """All names in a folder at any depth; `os.walk`, unlike `rglob`, does not mind what vanishes meanwhile."""
    return {f"{top}/{name}" for top, folders, files in os.walk(folder) for name in (*folders, *files)}


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: flip(data[:1000]) + data[1000:]])
def test_a_damaged_shard_is_drawn_again(shards, described_pipeline, tmp_path, damage):
    folder = shutil.copytree(shards, tmp_path / "images")
    file = folder / "data" / "train-00001.parquet"
    file.write_bytes(damage(file.read_bytes()))
    run_script("generate.py", "--pipeline", described_pipeline, "--output_dir", folder, *SHARD_FLAGS)
    assert contents(folder) == contents(shards)


def test_a_shard_is_held_as_long_as_its_content_is_what_was_written(tmp_path):
    provenance, part = Provenance("P", "M", "w", "c", "unknown", "float32", {}, seed=0, spacing_mm=None), range(6)
    shards = ParquetShards(tmp_path, provenance, 6)
    shards.write(part, ((np.full((8, 8), i, np.uint8), {}) for i in part))
    assert shards.holds(part) and not shards.holds(range(7))
    file = tmp_path / "data" / "train-00000.parquet"
    written, data, held = pq.read_table(file), file.read_bytes(), 0
    places = range(4, len(data), 31)
    for place in places:
        file.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        if shards.holds(part):
            held += 1
            assert pq.read_table(file) == written
    assert held < len(places) / 2  # by statistics and other notes that no reader of all images needs


def test_more_images_later_complete_the_last_shard(shards, described_pipeline, tmp_path):
    arguments = ("--pipeline", described_pipeline, "--output_dir", tmp_path / "images", *SHARD_FLAGS)
    run_script("generate.py", *arguments, "--num_images", 5)
    assert len(load_dataset(str(tmp_path / "images"), split="train")) == 5
    run_script("generate.py", *arguments)
    assert contents(tmp_path / "images") == contents(shards)
    assert len(load_dataset(str(tmp_path / "images"), split="train")) == 10


def test_images_of_a_model_without_a_passed_audit_are_not_pushed(generate, described_pipeline, tmp_path):
    few = (*SHARD_FLAGS, "--push_to_hub", "name")
    unevaluated = record(Path(shutil.copytree(described_pipeline, tmp_path / "model")))
    shutil.rmtree(unevaluated / "evaluation")
    assert "--allow_unevaluated" in refusal(generate, *few, pipeline=unevaluated)
    assert "--allow_failed_audit" in refusal(generate, *few, pipeline=evaluate(unevaluated, ratio=0.5))
    assert not any((tmp_path / "images").glob("data/*"))


def test_images_that_were_drawn_otherwise_than_those_evaluated_are_not_pushed(generate, described_pipeline, tmp_path):
    colder = (*SHARD_FLAGS, "--temperature", 0)
    said = refusal(generate, *colder, "--push_to_hub", "name", pipeline=described_pipeline)
    assert "and not with --temperature 0: leave them out, or --allow_unevaluated" in said
    usual = load_pipeline(described_pipeline).scheduler.config.temperature
    refuse_drawn(described_pipeline, [], {"temperature": usual, "guidance_scale": 1.0})
    card = (generate(*colder, pipeline=described_pipeline) / "README.md").read_text()
    assert "These images were drawn otherwise than those that were audited" in card


@pytest.mark.parametrize("kind", ["slice", "images"])
def test_images_drawn_from_blurred_scans_are_not_pushed_where_these_are_restricted(
    generate, described_pipeline, tmp_path, kind
):
    model = Path(shutil.copytree(described_pipeline, tmp_path / "model"))
    restricted(model)
    refuse_drawn(model, [], {})  # of a mixture
    fitted_prior(kind).save_pretrained(model / "prior")
    restricted(model)
    said = refusal(generate, *SHARD_FLAGS, "--push_to_hub", "name", pipeline=model)
    assert "draws from blurred images of ADNI" in said and "--prior mixture" in said
