"""generate.py --covariates: the table tells what each image was asked to be."""

import csv
import re

import numpy as np
import pytest
import torch
from conftest import SHARD_FLAGS, refusal
from datasets import load_dataset

from vq_ihdm import VQIHDMPipeline


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


def test_guidance_changes_the_images_and_is_told(generate, asked_folder, tmp_path):
    ask = ("--num_images", 2, "--covariates", "age=75", "--guidance_scale")
    plain, guided = (generate(*ask, scale, pipeline=asked_folder, output_dir=tmp_path / str(scale)) for scale in (1, 5))
    assert (plain / "000000.png").read_bytes() != (guided / "000000.png").read_bytes()
    assert '"guidance_scale": 5' in (guided / "manifest.json").read_text()


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


def test_a_covariate_is_asked_for_once(generate, asked_folder):
    for again in (("age=60", "age=70"), ("sex=F", "sex=population")):
        said = refusal(generate, "--num_images", 2, "--covariates", *again, pipeline=asked_folder)
        assert f"names {again[0].partition('=')[0]} twice" in said


def test_a_model_without_covariates_cannot_be_asked(generate):
    assert "without covariates" in refusal(generate, "--num_images", 1, "--covariates", "age=70")
    assert "no covariates to be guided by" in refusal(generate, "--num_images", 1, "--guidance_scale", 3)
