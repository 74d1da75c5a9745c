"""generate.py: the same files however the work is cut up, and each says that it is synthetic."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import GENERATE_FLAGS, SHARD_FLAGS, refusal, tiny_vq_ihdm
from datasets import load_dataset
from generate_helpers import contents, flip
from PIL import Image

from vq_ihdm import GANPipeline
from vq_ihdm.baselines.stacks import LatentDecoder
from vq_ihdm.errors import InputError
from vq_ihdm.evaluation.image_sets import read_image_folder
from vq_ihdm.hub.model_files import weights_digest
from vq_ihdm.synthetic.image_files import read_about
from vq_ihdm.synthetic.manifest import read_manifest
from vq_ihdm.synthetic.provenance import seed_of_image


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
    for suffix in (".png", ".nii.gz"):
        assert read_about(generated / f"000003{suffix}")["spacing_mm"] == [1.5, 2]


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
    assert read_about(folder / "000000.nii.gz")["spacing_mm"] == spacing_mm
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


def test_a_run_that_was_killed_over_its_manifest_goes_on(tmp_path):
    (tmp_path / ".manifest.json.partial").mkdir()
    assert read_manifest(tmp_path, {}) == {}
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="name a new --output_dir"):
        read_manifest(tmp_path, {})


@pytest.mark.parametrize("damaged", ['{"settings": ', "[]"])
def test_a_damaged_manifest_is_named(generate, generated, tmp_path, damaged):
    folder = shutil.copytree(generated, tmp_path / "images")
    (folder / "manifest.json").write_text(damaged)
    assert "manifest.json" in refusal(generate, *GENERATE_FLAGS)
