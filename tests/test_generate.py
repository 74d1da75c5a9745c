"""generate.py: the same files however the work is cut up."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import GENERATE_FLAGS, run_script, tiny_vq_ihdm
from PIL import Image

from generate import seed_of_image
from vq_ihdm import GANPipeline
from vq_ihdm.baselines.stacks import LatentDecoder
from vq_ihdm.evaluation.image_sets import read_image_folder


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
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_files(generated):
    images = [f"{i:06d}{suffix}" for i in range(7) for suffix in (".png", ".nii.gz")]
    assert contents(generated).keys() == {*images, "contact_sheet.png", "manifest.json"}
    pixels = read_image_folder(generated)
    assert pixels.shape == (7, 32, 32)
    assert len({image.tobytes() for image in pixels}) == 7


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


def test_contact_sheet_shows_the_images_in_order(generated):
    sheet = np.asarray(Image.open(generated / "contact_sheet.png"))
    assert sheet.shape == (32, 8 * 34 - 2)
    np.testing.assert_array_equal(sheet[:, 34:66], np.asarray(Image.open(generated / "000001.png")))


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
    for name in ("000001.png", "000004.png", "000004.nii.gz", "contact_sheet.png"):
        (folder / name).unlink()
    kept = {name: (folder / name).stat().st_mtime_ns for name in contents(folder) if name != "manifest.json"}
    generate(*GENERATE_FLAGS)
    assert contents(folder) == contents(generated)
    kept.pop("000001.nii.gz")  # one of the two files of an image was missing
    assert all((folder / name).stat().st_mtime_ns == written for name, written in kept.items())


def test_more_images_later_are_those_of_one_go(generate, generated):
    folder = generate(*GENERATE_FLAGS, "--num_images", 4)
    assert len(read_image_folder(folder)) == 4
    generate(*GENERATE_FLAGS)
    assert contents(folder) == contents(generated)
    generate(*GENERATE_FLAGS, "--num_images", 4)  # fewer: nothing to do
    assert json.loads((folder / "manifest.json").read_text())["num_images"] == 7


def test_the_batch_size_matters_to_rounding_at_most(generate, generated):
    folder = generate(*GENERATE_FLAGS, "--batch_size", 5)
    differences = read_image_folder(folder).astype(int) - read_image_folder(generated)
    assert abs(differences).max() <= 1 and (differences != 0).mean() < 0.01


def test_seeds_differ_and_do_not_overlap(generate, generated):
    other = read_image_folder(generate(*GENERATE_FLAGS, "--seed", 1))
    assert not {image.tobytes() for image in other} & {image.tobytes() for image in read_image_folder(generated)}
    seeds = [seed_of_image(seed, i) for seed in (-1, 0, 1, 2, 123456789) for i in range(10_000)]
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
    assert {file.suffix for file in folder.iterdir()} == {".gz", ".json", ".png"}
    assert (folder / "contact_sheet.png").exists() and not (folder / "000000.png").exists()


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
    assert "weights" in refusal(generate, *GENERATE_FLAGS, pipeline=other)
    assert contents(folder) == contents(generated)


def test_mistakes(generate, tmp_path):
    few = ("--num_images", 1)
    assert "no folder and no repository" in refusal(generate, *few, pipeline=tmp_path / "a" / "missing")
    (tmp_path / "empty").mkdir()
    assert "no model_index.json" in refusal(generate, *few, pipeline=tmp_path / "empty")
    assert "--spacing_mm" in refusal(generate, *few, "--format", "nifti")
    assert "positive" in refusal(generate, *few, "--format", "nifti", "--spacing_mm", 1, -1)
    assert "temperature" in refusal(generate, *few, "--temperature", -1)
    assert len(read_image_folder(generate(*few, "--temperature", 1))) == 1
    (tmp_path / "notes.txt").write_text("mine")
    assert "no manifest.json" in refusal(generate, *few, output_dir=tmp_path)
