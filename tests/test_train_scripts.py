"""What holds for both train scripts: no pickles, trackers, interruption, users' mistakes."""

import os
import shutil
import signal
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refusal, run_script
from datasets import load_dataset
from PIL import Image
from states import differences, final_state, tensors_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vq_ihdm.training.checkpoints import list_checkpoints
from vq_ihdm.training.state import load_state

pytestmark = pytest.mark.slow


def images_of(events: Path) -> dict[str, list[int]]:
    """Steps at which pictures were logged, by name."""
    accumulator = EventAccumulator(str(events), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return {name: [event.step for event in accumulator.Images(name)] for name in accumulator.Tags()["images"]}


def test_no_run_pickles(vqgan_run, ihdm_run):
    for run in (vqgan_run, ihdm_run):
        suffixes = {file.suffix for file in run.rglob("*") if file.is_file() and "logs" not in file.parts}
        assert suffixes <= {".json", ".safetensors", ".png", ".md", ".py"}


def test_trackers_get_figures_and_pictures(vqgan_run, ihdm_run):
    for run, name, figures, picture in [
        (vqgan_run, "vqgan", {"train/l1", "train/gan", "train/lambda", "train/perplexity"}, "reconstructions"),
        (ihdm_run, "denoiser", {"train/loss", "train/lr", "validation/cross_entropy"}, "samples"),
    ]:
        assert images_of(run / "logs" / name) == {f"validation/{picture}": [4, 8]}
        accumulator = EventAccumulator(str(run / "logs" / name))
        accumulator.Reload()
        assert figures <= set(accumulator.Tags()["scalars"])
        if name == "vqgan":  # which trains its discriminator from step 2 on, and hears of it two steps later
            steps = {tag: [event.step for event in accumulator.Scalars(f"train/{tag}")] for tag in ("disc", "gan")}
            assert steps == {"disc": [3, 4, 5, 6, 7, 8], "gan": [5, 6, 7, 8]}


@pytest.mark.parametrize("script", ["vqgan", "ihdm"])
def test_gradients_are_clipped(script, request):
    """A first step leaves Adam's mean of the gradients at (1 - beta_1) times them."""
    flags = ("--max_train_steps", 1, "--checkpointing_steps", 1, "--max_grad_norm", 1e-4)
    optimizer = load_state(request.getfixturevalue(script)(*flags) / "checkpoint-1")["parts"]["optimizer"]
    means = [state["exp_avg"] for state in optimizer["state"].values()]
    norm = torch.stack([mean.norm() for mean in means]).norm() / (1 - optimizer["param_groups"][0]["betas"][0])
    assert norm == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("script", ["vqgan", "ihdm"])
def test_sigterm_writes_a_checkpoint_and_says_how_to_go_on(script, request, capsys, tmp_path):
    run, uninterrupted = request.getfixturevalue(script), request.getfixturevalue(f"{script}_run")
    folder = tmp_path / "run"

    def terminate():  # config.json is written when signals are already taken for requests
        while not (folder / "config.json").exists():
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 130  # `&& next_stage` must not start
    (checkpoint,) = list_checkpoints(folder)
    step = int(checkpoint.name.split("-")[1])
    assert step < 8
    said = capsys.readouterr().out
    assert f"interrupted at step {step}: {checkpoint} is saved; go on with --resume_from_checkpoint latest" in said
    assert not (folder / "pipeline").exists()
    run("--resume_from_checkpoint", "latest")
    assert differences(final_state(folder), final_state(uninterrupted)) == []


def test_a_folder_of_images(tiny_preset, template_set, tmp_path):
    """--train_data_dir: a tenth of the subjects is held out, and 16 bits are taken as they are."""
    folder, rows = tmp_path / "images", ["file_name,subject"]
    folder.mkdir()
    for number, row in enumerate(load_dataset(str(template_set))["train"]):
        pixels = np.asarray(row["image"]).astype(np.uint16) * 257 + 5
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{row['subject']}")
    (folder / "metadata.csv").write_text("\n".join(rows))

    def run(script, *arguments):
        run_script(
            script, "--config", tiny_preset, "--train_data_dir", folder, "--report_to", "none",
            "--max_train_steps", 1, *arguments,
        )  # fmt: skip

    run("train_vqgan.py", "--perceptual", "none", "--discriminator", "patch", "--output_dir", tmp_path / "vqgan")
    run("train_ihdm.py", "--vqvae", tmp_path / "vqgan" / "last", "--output_dir", tmp_path / "ihdm")
    assert (tmp_path / "ihdm" / "pipeline" / "model_index.json").exists()


def test_a_diverged_run_stops_and_the_last_checkpoint_stays(ihdm, vqgan, tmp_path):
    for run, name in [(ihdm, "ihdm"), (vqgan, "vqgan")]:
        folder = tmp_path / name
        said = refusal(
            run, "--learning_rate", 1e9, "--checkpointing_steps", 1, "--lr_warmup_steps", 0, output_dir=folder
        )
        assert "last checkpoint is intact" in said and "--learning_rate" in said
        assert all(torch.isfinite(tensor).all() for tensor in tensors_of(final_state(folder)["parts"]))


def test_mistakes_about_the_data(vqgan, ihdm, tmp_path, template_set, tiny_preset):
    def without_data(*arguments):
        run_script("train_vqgan.py", "--config", tiny_preset, "--output_dir", tmp_path / "run", *arguments)

    assert "--dataset_name or --train_data_dir" in refusal(without_data)
    assert "--dataset_name or --train_data_dir" in refusal(vqgan, "--train_data_dir", template_set)
    assert "cannot be read" in refusal(without_data, "--dataset_name", tmp_path / "missing")
    assert "cannot be read" in refusal(without_data, "--train_data_dir", tmp_path / "missing")
    for run in (vqgan, ihdm):
        assert "lower --train_batch_size" in refusal(run, "--train_batch_size", 33)
    assert "downsampling factor 64" in refusal(vqgan, "--block_out_channels", *[8] * 7)


def test_mistakes_about_paths(ihdm, vqgan, vqgan_run, tmp_path):
    assert "holds no VQModel" in refusal(ihdm, "--vqvae", tmp_path / "missing")
    without = ("--perceptual", "none", "--discriminator", "patch", "--texture_weight", 1)
    assert "--texture_weight needs the features of --perceptual" in refusal(vqgan, *without)
    patch = ("--perceptual", "none", "--discriminator", "patch")
    assert "at least 24 pixels a side, these have 16" in refusal(vqgan, *patch, "--resolution", 16)
    assert "--disc_channels to be a multiple of 4, not 6" in refusal(vqgan, *patch, "--disc_channels", 6)
    assert "--discriminator patch" in refusal(vqgan, "--perceptual", "none")
    for trunk, size in [("vgg", 15), ("alex", 30)]:
        said = refusal(vqgan, "--perceptual", trunk, "--perceptual_crop_size", size)
        assert f"needs at least {size + 1} pixels a side" in said and "raise --perceptual_crop_size" in said
    assert "needs --pretrained_model_name_or_path" in refusal(vqgan, "--train_decoder_only")
    assert "cannot be read as safetensors" in refusal(vqgan, "--perceptual_weights", tmp_path / "missing")
    assert "no complete checkpoint" in refusal(vqgan, "--resume_from_checkpoint", tmp_path / "checkpoint-9")
    checkpoint = shutil.copytree(vqgan_run / "checkpoint-8", tmp_path / "elsewhere" / "checkpoint-8")
    said = refusal(vqgan, "--resume_from_checkpoint", checkpoint, "--disc_channels", 16)
    assert "does not fit this configuration (discriminator" in said
    (checkpoint / "state.safetensors").unlink()
    assert "no complete checkpoint" in refusal(vqgan, "--resume_from_checkpoint", checkpoint)
    assert "there is no preset" in refusal(vqgan, "--config", "missing")
    assert not (tmp_path / "run" / "best").exists()


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed_is_refused(vqgan):
    assert "pip install wandb" in refusal(vqgan, "--report_to", "wandb")
