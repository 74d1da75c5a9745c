"""The checkpoints in the repository: they load, fit, draw brains, and carry today's code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vq_ihdm import VQIHDMPipeline
from vq_ihdm.hub.checks import failed_checks
from vq_ihdm.hub.model_files import SCANLESS
from vq_ihdm.hub.record import own_record

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
SIZES = {"vq-ihdm-oasis": (176, 176), "vq-ihdm-oasis-fine": (176, 176), "vq-ihdm-ixi": (96, 128)}  # width, height


@pytest.fixture(params=SIZES)
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return CHECKPOINTS / request.param


def test_these_are_all():
    assert {folder.name for folder in CHECKPOINTS.iterdir()} == set(SIZES)


def test_it_draws_eight_brains(checkpoint: Path, tmp_path: Path):
    pipe = VQIHDMPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(num_images=8, generator=torch.Generator().manual_seed(0)).images
    assert [(image.mode, image.size) for image in images] == [("L", SIZES[checkpoint.name])] * 8
    pixels = np.stack([np.asarray(image, float) for image in images])
    assert pixels[:, :10, :10].max() < 20, "air around the head"
    height, width = pixels.shape[1:]
    middle = pixels[:, height // 3 : 2 * height // 3, width // 3 : 2 * width // 3]
    assert middle.mean((1, 2)).min() > 60, "tissue in the middle"
    asymmetry = np.abs(pixels - pixels[..., ::-1]).mean() / pixels.mean()
    assert asymmetry < 0.5, "two hemispheres, much alike"
    differences = [np.abs(a - b).mean() for i, a in enumerate(pixels) for b in pixels[:i]]
    assert min(differences) > 2, "eight different ones"

    pipe.save_pretrained(tmp_path)
    assert own_record(tmp_path) and own_record(checkpoint)  # in float32 they are the same weights
    assert (tmp_path / "evaluation" / "report.json").is_file()
    for file in tmp_path.rglob("*.py"):
        shipped = checkpoint / file.relative_to(tmp_path)
        assert shipped.read_text() == file.read_text(), f"{shipped} is not what save_pretrained writes today"


def test_it_has_at_most_40_mb_and_nothing_in_it_is_a_pickle(checkpoint: Path):
    files = [file for file in checkpoint.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 40e6
    kinds = {file.suffix or file.name for file in files}
    assert kinds <= {".safetensors", ".json", ".png", ".md", ".py", ".gitattributes"}


def test_it_may_be_published(checkpoint: Path):
    assert failed_checks(checkpoint) == {}


def test_no_picture_of_a_scan_is_in_it(checkpoint: Path):
    pictures = {file.relative_to(checkpoint).as_posix() for file in checkpoint.rglob("*.png")}
    assert pictures <= set(SCANLESS)
    assert not (checkpoint / "audit_index.safetensors").exists()
