"""Skull-stripping and bias fields, on heads that were made so that the answer is known."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import run_script
from datasets import load_dataset
from huggingface_hub import DatasetCard
from nilearn.datasets import load_mni152_template
from scipy.ndimage import binary_dilation, binary_fill_holes
from volume_helpers import AFFINE, save, volume

from vq_ihdm.data.preprocessing import correct_bias


def build(image: nib.Nifti1Image, folder: Path, *options: object) -> tuple[np.ndarray, str]:
    """Four slices (4, 96, 96) in [0, 1] of one volume by nifti.py, and the text of the set's card."""
    save(image, folder / "in" / "head.nii")
    run_script(
        "dataset_scripts/nifti.py", "--input_dir", folder / "in", "--output_dir", folder / "set", "--voxel_size", 2,
        "--image_size", 96, "--slices", "middle:4", "--split", 1, 0, 0, *options,
    )  # fmt: skip
    images = load_dataset(str(folder / "set"))["train"]["image"]
    return np.stack([np.asarray(image) for image in images]) / 255, DatasetCard.load(folder / "set" / "README.md").text


def test_a_known_bias_field_is_found(tmp_path: Path):
    head = np.asarray(volume().dataobj)
    inside = head > 0
    x, y, _ = np.indices(head.shape)
    # Tissue of two kinds, in stripes: a field can be told from anatomy when both occur everywhere.
    tissue = inside * np.where((x + y) % 6 < 3, 100.0, 160.0)
    shaded = (tissue * np.exp(0.5 * (x - 16) / 16)).astype(np.float32)
    corrected = correct_bias(shaded, AFFINE)
    assert corrected.dtype == np.float32

    def unevenness(image: np.ndarray) -> float:
        ratio = image[inside] / tissue[inside]
        return ratio.std() / ratio.mean()

    assert unevenness(corrected) < 0.3 * unevenness(shaded)

    slices, card = build(nib.Nifti1Image(shaded, AFFINE), tmp_path / "corrected", "--bias_correction")
    expected, _ = build(nib.Nifti1Image(corrected, AFFINE), tmp_path / "before")
    np.testing.assert_allclose(slices, expected, atol=1 / 255)
    assert "N4" in card


@pytest.mark.slow
def test_the_brain_is_kept_and_the_scalp_is_not(tmp_path: Path):
    template = load_mni152_template(resolution=2)
    brain = binary_fill_holes(template.get_fdata() > 0.1)
    skull = binary_dilation(brain, iterations=3) & ~brain
    scalp = binary_dilation(brain, iterations=6) & ~brain & ~skull
    stripped = (template.get_fdata() * brain).astype(np.float32)
    head = nib.Nifti1Image(stripped + 0.02 * skull + scalp, template.affine)
    slices, card = build(head, tmp_path / "head", "--skull_strip")
    expected, _ = build(nib.Nifti1Image(stripped, template.affine), tmp_path / "brain")
    assert np.abs(slices - expected).mean() < 0.02
    assert "deepbet" in card
