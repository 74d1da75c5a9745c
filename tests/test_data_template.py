"""The synthetic subjects look like axial brain slices, differ, and are told apart from patients."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script
from datasets import load_dataset
from huggingface_hub import DatasetCard

from vq_ihdm.data.template import MIN_SIZE, smooth_field, template_subject


@pytest.fixture(scope="module")
def subjects() -> np.ndarray:
    """(subjects, slices, H, W)"""
    return np.stack([template_subject(number, num_slices=4, image_size=(64, 64)) for number in range(12)])


def test_same_arguments_same_subject(subjects: np.ndarray):
    assert np.array_equal(template_subject(3, num_slices=4, image_size=(64, 64)), subjects[3])
    assert not np.array_equal(template_subject(3, num_slices=4, image_size=(64, 64), seed=1), subjects[3])


def test_range_and_frame(subjects: np.ndarray):
    assert subjects.dtype == np.float32
    assert subjects.min() == 0
    assert 0.7 < subjects.max() <= 1
    assert 0.25 < (subjects > 0.05).mean() < 0.7  # a brain on black
    border = np.concatenate([subjects[..., 0, :], subjects[..., -1, :], subjects[..., 0], subjects[..., -1]], -1)
    assert (border > 0.1).mean() < 0.01


def test_brains_stand_upright(subjects: np.ndarray):
    """Longer from front to back than from side to side, left and right alike, and narrower in front than behind."""
    brain = subjects > 0.05
    assert (brain.any(3).sum(2) > brain.any(2).sum(2)).all()
    mirrored = np.corrcoef(subjects.ravel(), subjects[..., ::-1].ravel())[0, 1]
    assert mirrored > np.corrcoef(subjects.ravel(), subjects[..., ::-1, :].ravel())[0, 1] + 0.05
    lower = brain[:, 0]
    assert lower[:, :26].any(1).sum(1).mean() < lower[:, 38:].any(1).sum(1).mean()


def test_ventricles_vary_in_size(subjects: np.ndarray):
    """Dark pixels in the middle of the slices through the ventricles: some have several times more."""
    middle = subjects[:, 1:3, 22:42, 22:42]
    dark = (middle < 0.4 * np.median(middle, (1, 2, 3), keepdims=True)).mean((1, 2, 3))
    assert dark.max() > 2.5 * dark.min() > 0  # position and contrast alone give a factor of 2


def test_contrast_and_shape_vary(subjects: np.ndarray):
    brain = subjects > 0.05
    white = np.array([np.percentile(s[b], 90) for s, b in zip(subjects, brain, strict=True)])
    area = brain.mean((1, 2, 3))
    assert white.std() > 0.03
    assert area.std() / area.mean() > 0.03


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [(32, 32), (48, 64)])
def test_size_changes_pixels_not_anatomy(image_size: tuple[int, int]):
    small = template_subject(5, num_slices=3, image_size=image_size)
    large = template_subject(5, num_slices=3, image_size=(2 * image_size[0], 2 * image_size[1]))
    assert small.shape == (3, *image_size)
    blocks = large.reshape(3, image_size[0], 2, image_size[1], 2).mean((2, 4))
    assert np.corrcoef(small.ravel(), blocks.ravel())[0, 1] > 0.95


def test_smooth_fields_are_smooth():
    axes = [np.linspace(-80, 80, 41)] * 3
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_field(axes, 80.0, rng) for _ in range(20)])
    assert 0.5 < fields.std() < 1.5
    # A cosine of wavelength w mm rises by at most 2 pi / w a mm and axis.
    assert np.abs(np.gradient(fields, 4.0, axis=1)).max() < 2 * np.pi / 80 * np.abs(fields).max()


def test_card_says_template(template_set: Path):
    card = DatasetCard.load(template_set / "README.md")
    assert "template-derived" in card.data.tags
    assert "derived from one anatomical template" in card.text
    facts = json.loads((template_set / "vq_ihdm.json").read_text())
    assert facts["template"] is True
    assert facts["spacing_mm"] == [5.5, 5.5]
    assert not template_set.with_name(template_set.name + ".salt").exists()  # nobody to protect
    assert set(load_dataset(str(template_set))["train"]["slice"]) == {0, 1, 2, 3}


def test_too_small_a_size_is_refused(tmp_path: Path):
    options = ("--image_size", MIN_SIZE - 1, "--downsampling_factor", 1, "--output_dir", tmp_path / "set")
    with pytest.raises(SystemExit, match="--image_size"):
        run_script("dataset_scripts/template.py", *options)
    assert template_subject(0, num_slices=1, image_size=(MIN_SIZE, MIN_SIZE)).max() > 0
