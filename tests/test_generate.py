"""generate.py: the same files however the work is cut up, and each says that it is synthetic."""

import csv
import json
import multiprocessing
import os
import re
import runpy
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import GENERATE_FLAGS, ROOT, SHARD_FLAGS, run_script, tiny_vq_ihdm
from datasets import load_dataset
from hub_fixtures import evaluate, fitted_prior, record, restricted
from PIL import Image

import generate as generate_script
from vq_ihdm import GANPipeline, VQIHDMPipeline, load_pipeline
from vq_ihdm.baselines.stacks import LatentDecoder
from vq_ihdm.errors import InputError
from vq_ihdm.evaluation.image_sets import read_image_folder
from vq_ihdm.hub.checks import refuse_drawn
from vq_ihdm.hub.model_files import weights_digest
from vq_ihdm.synthetic.images_card import write_images_card
from vq_ihdm.synthetic.provenance import Provenance, seed_of_image
from vq_ihdm.synthetic.shards import ParquetShards


@pytest.fixture
def generate(pipeline_folder, tmp_path):
    def run(*arguments, output_dir=tmp_path / "images", pipeline=pipeline_folder) -> Path:
        run_script("generate.py", "--pipeline", pipeline, "--output_dir", output_dir, *arguments)
        return output_dir

    return run


def refusal(generate, *arguments, **keywords) -> str:
    with pytest.raises(SystemExit) as stop:
        generate(*arguments, **keywords)
    assert isinstance(stop.value.code, str) and stop.value.code.startswith("error: ") and "\n" not in stop.value.code
    return stop.value.code


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_files(generated):
    images = [f"{i:06d}{suffix}" for i in range(7) for suffix in (".png", ".nii.gz")]
    assert contents(generated).keys() == {*images, "metadata.csv", "manifest.json"}
    pixels = read_image_folder(generated)
    assert pixels.shape == (7, 32, 32)
    assert len({image.tobytes() for image in pixels}) == 7


def test_the_folder_is_an_imagefolder_of_that_many_images(generated):
    rows = load_dataset("imagefolder", data_dir=str(generated), split="train")
    assert rows["index"] == list(range(7)) and rows["image_seed"] == [seed_of_image(0, i) for i in range(7)]
    assert (np.stack(rows["image"]) == read_image_folder(generated)).all()


def test_every_file_says_that_it_is_synthetic_and_how_it_was_made(generated, pipeline_folder):
    image, volume = Image.open(generated / "000005.png"), nib.load(generated / "000005.nii.gz")
    (extension,) = volume.header.extensions
    about = json.loads(image.text["Comment"])
    assert about == json.loads(extension.get_content())
    assert about["synthetic"] and (about["seed"], about["index"]) == (0, 5)
    assert about["sampling"] == {"num_inference_steps": 2}
    assert about["pipeline"] == about["model"] == "VQIHDMPipeline" and about["licence"] == "unknown"
    assert about["weights"] == weights_digest(pipeline_folder) and len(about["configs"]) == 16
    assert image.text["Description"] == bytes(volume.header["descrip"]).rstrip(b"\0").decode()
    assert "Synthetic" in image.text["Description"]


def test_images_are_the_pipelines(generated):
    pipeline = tiny_vq_ihdm()
    for i in (0, 5):
        generator = [torch.Generator().manual_seed(seed_of_image(0, i))]
        (expected,) = pipeline(1, 2, generator=generator).images
        found = np.asarray(Image.open(generated / f"{i:06d}.png")).astype(int)
        assert abs(found - np.asarray(expected)).max() <= 1


def test_nifti_is_the_same_slice_in_its_place(generated):
    volume = nib.load(generated / "000003.nii.gz")
    pixels = np.asarray(Image.open(generated / "000003.png"))
    assert volume.shape == (32, 32, 1) and volume.get_data_dtype() == np.uint8
    np.testing.assert_allclose(volume.header.get_zooms(), (2, 1.5, 1))  # width, height, thickness
    assert volume.header.get_xyzt_units()[0] == "mm"
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    # The image's upper left corner is anterior, and on the subject's left.
    data, corner = np.asarray(volume.dataobj), nib.affines.apply_affine(volume.affine, [0, 31, 0])
    assert data[0, 31, 0] == pixels[0, 0] and data[31, 0, 0] == pixels[31, 31]
    np.testing.assert_allclose(corner, [-31, 31 * 0.75, 0])


@pytest.mark.parametrize("flags", [(), SHARD_FLAGS])
def test_contact_sheet_shows_the_images_in_order(generate, tmp_path, flags):
    generate(*flags, "--num_images", 9, "--contact_sheet", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 34 - 2, 8 * 34 - 2)
    np.testing.assert_array_equal(sheet[34:, :32], drawn(tmp_path / "images")[8])
    assert (sheet[34:, 34:] == 255).all()
    said = refusal(generate, *flags, "--num_images", 9, "--contact_sheet", tmp_path / "images" / "sheet.png")
    assert "outside --output_dir" in said


def drawn(folder: Path) -> np.ndarray:
    """(N, H, W): the images of a folder of PNG files or of shards."""
    if (folder / "data").is_dir():
        return np.stack(load_dataset(str(folder), split="train")["image"])
    return read_image_folder(folder)


def test_manifest_says_how_and_not_where(generated, pipeline_folder):
    manifest = json.loads((generated / "manifest.json").read_text())
    assert manifest["num_images"] == 7
    settings = manifest["settings"]
    assert (settings["pipeline"], settings["seed"]) == ("VQIHDMPipeline", 0)
    assert settings["sampling"] == {"num_inference_steps": 2}
    assert manifest["versions"]["torch"] in torch.__version__
    text = (generated / "manifest.json").read_text()
    assert not any(part in text for part in [*pipeline_folder.parts[1:], *generated.parts[1:-1]])


def test_restart_writes_what_is_missing_and_the_same(generate, generated, tmp_path):
    folder = shutil.copytree(generated, tmp_path / "images")
    for name in ("000001.png", "000004.png", "000004.nii.gz", "metadata.csv"):
        (folder / name).unlink()
    kept = {name: (folder / name).stat().st_mtime_ns for name in contents(folder) if name != "manifest.json"}
    generate(*GENERATE_FLAGS)
    assert contents(folder) == contents(generated)
    kept.pop("000001.nii.gz")  # one of the two files of an image was missing
    assert all((folder / name).stat().st_mtime_ns == written for name, written in kept.items())


def flip(data: bytes) -> bytes:
    """One byte of the image itself another."""
    middle = len(data) - 200
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"", lambda data: b"no image", flip])
def test_a_damaged_file_is_drawn_again(generate, generated, tmp_path, damage):
    folder = shutil.copytree(generated, tmp_path / "images")
    for name in ("000002.png", "000005.nii.gz"):
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
    generate(*GENERATE_FLAGS)
    assert contents(folder) == contents(generated)


def test_more_images_later_are_those_of_one_go(generate, generated):
    folder = generate(*GENERATE_FLAGS, "--num_images", 4)
    assert len(read_image_folder(folder)) == 4
    generate(*GENERATE_FLAGS)
    assert contents(folder) == contents(generated)
    assert "is to hold 7 images; ask for as many" in refusal(generate, *GENERATE_FLAGS, "--num_images", 4)
    assert json.loads((folder / "manifest.json").read_text())["num_images"] == 7


def test_the_batch_size_matters_to_rounding_at_most(generate, generated):
    folder = generate(*GENERATE_FLAGS, "--batch_size", 5)
    differences = read_image_folder(folder).astype(int) - read_image_folder(generated)
    assert abs(differences).max() <= 1 and (differences != 0).mean() < 0.01


def test_seeds_differ_and_do_not_overlap(generate, generated):
    other = read_image_folder(generate(*GENERATE_FLAGS, "--seed", 1))
    assert not {image.tobytes() for image in other} & {image.tobytes() for image in read_image_folder(generated)}
    seeds = [seed_of_image(seed, i) for seed in (0, 1, 2, 123456789, 2**32 - 1) for i in range(10_000)]
    assert len(set(seeds)) == len(seeds) and min(seeds) >= 0 and max(seeds) < 2**32


def test_sampling_settings_reach_the_pipeline(generate, generated, tmp_path):
    images = read_image_folder(generated)[:2]
    for number, flags in enumerate([("--temperature", 0.2), ("--top_p", 0.3), ("--torch_dtype", "bfloat16")]):
        other = read_image_folder(generate("--num_images", 2, *flags, output_dir=tmp_path / str(number)))
        assert not np.array_equal(other, images)


def test_spacing_comes_from_the_pipelines_record(generate, ihdm_run, template_set):
    """What the builder of the data set wrote down reaches the files of a pipeline trained on it."""
    folder = generate("--num_images", 1, "--format", "nifti", pipeline=ihdm_run / "pipeline")
    spacing_mm = json.loads((template_set / "vq_ihdm.json").read_text())["spacing_mm"]
    np.testing.assert_allclose(nib.load(folder / "000000.nii.gz").header.get_zooms(), [*spacing_mm[::-1], 1])
    assert contents(folder).keys() == {"000000.nii.gz", "metadata.csv", "manifest.json"}
    assert [row["file_name"] for row in csv.DictReader((folder / "metadata.csv").open())] == ["000000.nii.gz"]


def test_a_pipeline_without_steps_or_temperature(generate, tmp_path):
    GANPipeline(LatentDecoder(32, 32, latent_dim=8).eval()).save_pretrained(tmp_path / "gan")
    assert read_image_folder(generate("--num_images", 3, pipeline=tmp_path / "gan")).shape == (3, 32, 32)
    for flag in ("--num_inference_steps", "--temperature", "--top_p"):
        assert f"a GANPipeline takes no {flag}" in refusal(
            generate, "--num_images", 3, flag, 1, pipeline=tmp_path / "gan"
        )


def test_other_settings_are_refused(generate, generated, pipeline_folder, tmp_path):
    folder = shutil.copytree(generated, tmp_path / "images")
    for flags in [("--seed", 1), ("--temperature", 0.5), ("--num_inference_steps", 3), ("--spacing_mm", 1)]:
        said = refusal(generate, *GENERATE_FLAGS, *flags)
        assert "other settings" in said and "--output_dir" in said
    other = shutil.copytree(pipeline_folder, tmp_path / "pipeline")
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"delta": 0.1', '"delta": 0.2'))
    assert "configs" in refusal(generate, *GENERATE_FLAGS, pipeline=other)
    assert contents(folder) == contents(generated)


def test_mistakes(generate, tmp_path):
    few = ("--num_images", 1)
    assert "is written into NIfTI files, not png" in refusal(generate, *few, "--spacing_mm", 1)
    assert "--images_per_shard belongs to --format parquet" in refusal(generate, *few, "--images_per_shard", 10)
    for flag in ("--no-private", "--allow_unevaluated", "--allow_failed_audit"):
        assert "belong to --push_to_hub" in refusal(generate, *few, flag)
    assert "no folder and no repository" in refusal(generate, *few, pipeline=tmp_path / "a" / "missing")
    (tmp_path / "empty").mkdir()
    assert "no model_index.json" in refusal(generate, *few, pipeline=tmp_path / "empty")
    assert "--spacing_mm" in refusal(generate, *few, "--format", "nifti")
    assert "one or two" in refusal(generate, *few, "--format", "nifti", "--spacing_mm", 1, 1, 1)
    assert "parquet" in refusal(generate, *few, "--push_to_hub", "name")
    assert len(read_image_folder(generate(*few, "--temperature", 1))) == 1
    (tmp_path / "notes.txt").write_text("mine")
    assert "no manifest.json" in refusal(generate, *few, output_dir=tmp_path)


@pytest.mark.parametrize("flag", ["--temperature", "--top_p", "--spacing_mm", "--seed", "--num_images", "--batch_size"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_numbers_without_sense(generate, capsys, flag, value):
    with pytest.raises(SystemExit) as stop:
        generate("--num_images", 1, flag, value)
    assert stop.value.code == 2 and f"argument {flag}: {value} is no" in capsys.readouterr().err


# ---- shards ---------------------------------------------------------------------------------------------------
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
    for part in ("license: odbl", "- synthetic", "10 images", about["model"], about["weights"], "**Passed**"):
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


def test_a_run_that_was_killed_over_its_manifest_goes_on(tmp_path):
    (tmp_path / ".manifest.json.partial").mkdir()
    assert generate_script.read_manifest(tmp_path, {}) == {}
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="name a new --output_dir"):
        generate_script.read_manifest(tmp_path, {})


@pytest.mark.parametrize("damaged", ['{"settings": ', "[]"])
def test_a_damaged_manifest_is_named(generate, generated, tmp_path, damaged):
    folder = shutil.copytree(generated, tmp_path / "images")
    (folder / "manifest.json").write_text(damaged)
    assert "manifest.json" in refusal(generate, *GENERATE_FLAGS)


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
    provenance, part = Provenance("P", "M", "w", "c", "unknown", "float32", {}, seed=0), range(6)
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


# ---- covariates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "nifti", "parquet"])
def test_the_table_tells_what_each_image_was_asked_to_be(generate, asked_folder, format):
    spacing = ("--spacing_mm", 1) if format == "nifti" else ()
    ask = ("--covariates", "age=60:80", "sex=F", "--format", format, *spacing)
    folder = generate("--num_images", 5, *ask, pipeline=asked_folder)
    generate("--num_images", 7, *ask, pipeline=asked_folder)  # goes on
    if format == "parquet":
        rows = load_dataset(str(folder), split="train").remove_columns("image").to_list()
    else:
        rows = list(csv.DictReader((folder / "metadata.csv").open()))
    ages = [float(row["age"]) for row in rows]
    assert len(rows) == 7 and len(set(ages)) == 7 and min(ages) >= 60 and max(ages) <= 80
    assert {row["sex"] for row in rows} == {"F"}


def test_the_card_of_images_says_how_one_is_drawn_again(generate, asked_folder):
    """With all that was asked, and without what was told but not asked."""
    flags = (*SHARD_FLAGS, "--covariates", "age=60:80", "--num_inference_steps", 2, "--temperature", 0.7)
    folder = generate(*flags, pipeline=asked_folder)
    (call,) = re.findall(r"^pipe\(.*\)$", (folder / "README.md").read_text(), re.MULTILINE)
    pipe = VQIHDMPipeline.from_pretrained(asked_folder)
    for row in load_dataset(str(folder), split="train").select(range(4)):
        (image,) = eval(call, {"pipe": pipe, "torch": torch, "row": row}).images
        assert abs(np.asarray(image, int) - np.asarray(row["image"], int)).max() <= 1


def test_what_is_not_asked_for_is_drawn_as_in_the_population_and_told(generate, asked_folder):
    folder = generate("--num_images", 8, "--covariates", "age=75", "sex=population", pipeline=asked_folder)
    rows = list(csv.DictReader((folder / "metadata.csv").open()))
    assert {row["age"] for row in rows} == {"75.0"} and {row["sex"] for row in rows} == {"F", "M"}


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        ("age", "name=value"),
        ("weight=70", "it knows age, sex"),
        ("sex=X", "F, M"),
        ("age=60:200", "20 to 80"),
        ("age=70:60", "low:high"),
        ("age=old", "a number"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything_stands(generate, asked_folder, tmp_path, ask, sentence):
    assert sentence in refusal(generate, "--num_images", 2, "--covariates", ask, pipeline=asked_folder)
    assert not (tmp_path / "images").exists()


def test_a_model_without_covariates_cannot_be_asked(generate):
    assert "without covariates" in refusal(generate, "--num_images", 1, "--covariates", "age=70")
