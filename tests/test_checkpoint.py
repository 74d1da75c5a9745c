"""The checkpoint in the repository: it loads, fits, draws brains, and carries today's code."""

from pathlib import Path

import numpy as np
import torch

from vq_ihdm import VQIHDMPipeline
from vq_ihdm.pipelines.saving import SCANLESS

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "vq-ihdm-oasis"


def test_the_checkpoint_draws_eight_brains_in_one_step(tmp_path):
    pipe = VQIHDMPipeline.from_pretrained(CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(num_images=8, generator=torch.Generator().manual_seed(0)).images
    assert [(image.mode, image.size) for image in images] == [("L", (176, 176))] * 8
    pixels = np.stack([np.asarray(image, float) for image in images])
    assert pixels[:, :10, :10].max() < 20, "air around the head"
    assert pixels[:, 58:118, 58:118].mean((1, 2)).min() > 60, "tissue in the middle"
    asymmetry = np.abs(pixels - pixels[..., ::-1]).mean() / pixels.mean()
    assert asymmetry < 0.5, "two hemispheres, much alike"
    differences = [np.abs(a - b).mean() for i, a in enumerate(pixels) for b in pixels[:i]]
    assert min(differences) > 2, "eight different ones"

    pipe.save_pretrained(tmp_path)
    for file in tmp_path.rglob("*.py"):
        shipped = CHECKPOINT / file.relative_to(tmp_path)
        assert shipped.read_text() == file.read_text(), f"{shipped} is not what save_pretrained writes today"


def test_the_checkpoint_is_at_most_40_mb_and_nothing_in_it_is_a_pickle():
    files = [file for file in CHECKPOINT.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 40e6
    kinds = {file.suffix or file.name for file in files}
    assert kinds <= {".safetensors", ".json", ".png", ".md", ".py", ".gitattributes"}


def test_no_picture_of_a_scan_is_in_it():
    pictures = {file.relative_to(CHECKPOINT).as_posix() for file in CHECKPOINT.rglob("*.png")}
    assert pictures <= set(SCANLESS)
