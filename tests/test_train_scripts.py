"""train_vqgan.py and train_ihdm.py on the tiny set: resume, interruption, trackers, users' mistakes."""

import json
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
from conftest import run_script
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vq_ihdm import VQIHDMPipeline
from vq_ihdm.data.images import SliceTensors
from vq_ihdm.training.checkpoints import list_checkpoints
from vq_ihdm.training.state import load_state
from vq_ihdm.vqgan.model import load_vq_model


@pytest.fixture
def vqgan(tiny_preset, template_set, trunk, tmp_path):
    """Run train_vqgan.py with the tiny preset and more flags; later flags win."""

    def run(*arguments, output_dir=tmp_path / "run") -> Path:
        run_script(
            "train_vqgan.py", "--config", tiny_preset, "--dataset_name", template_set, "--perceptual_weights", trunk,
            "--output_dir", output_dir, "--report_to", "none", *arguments,
        )  # fmt: skip
        return output_dir

    return run


@pytest.fixture
def ihdm(tiny_preset, template_set, vqgan_run, tmp_path):
    """Run train_ihdm.py with the tiny preset and more flags; later flags win."""

    def run(*arguments, output_dir=tmp_path / "run") -> Path:
        run_script(
            "train_ihdm.py", "--config", tiny_preset, "--dataset_name", template_set, "--vqvae", vqgan_run / "best",
            "--output_dir", output_dir, "--report_to", "none", *arguments,
        )  # fmt: skip
        return output_dir

    return run


def refusal(run, *arguments, **keywords) -> str:
    """The one line by which a script refuses to run."""
    with pytest.raises(SystemExit) as stop:
        run(*arguments, **keywords)
    assert isinstance(stop.value.code, str)  # goes to stderr; the exit code is 1
    assert stop.value.code.startswith("error: ") and "\n" not in stop.value.code
    return stop.value.code


def final_state(folder: Path) -> dict:
    """The last checkpoint, but for what is not of the training: the flags and the clock."""
    state = load_state(list_checkpoints(folder)[-1])
    del state["args"], state["parts"]["run"]["seconds"]
    for metrics in ("best", "last"):
        if state["parts"]["run"][metrics] is not None:
            del state["parts"]["run"][metrics]["seconds"]
    return state


def flatten(node, name: str = "") -> dict:
    if isinstance(node, (dict, list)):
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        return {key: leaf for k, value in pairs for key, leaf in flatten(value, f"{name}/{k}").items()}
    return {name: node}


def assert_same_state(first: Path, second: Path) -> None:
    """Bit for bit: weights, averages, moments, schedules, random states, counts of codes."""
    ours, theirs = flatten(final_state(first)), flatten(final_state(second))
    assert ours.keys() == theirs.keys()
    different = [
        k for k, v in ours.items() if not (torch.equal(v, theirs[k]) if torch.is_tensor(v) else v == theirs[k])
    ]
    assert different == []


def assert_same_weights(first: Path, second: Path) -> None:
    files = [file.relative_to(first) for file in first.rglob("*.safetensors")]
    assert files and files == [file.relative_to(second) for file in second.rglob("*.safetensors")]
    for file in files:
        ours, theirs = load_file(first / file), load_file(second / file)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def images_of(events: Path) -> dict[str, list[int]]:
    """Steps at which pictures were logged, by name."""
    accumulator = EventAccumulator(str(events), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return {name: [event.step for event in accumulator.Images(name)] for name in accumulator.Tags()["images"]}


# ---- what a run leaves --------------------------------------------------------------------------------------------


def test_train_vqgan_leaves_what_it_says(vqgan_run):
    for name in ("best", "last"):
        model = load_vq_model(vqgan_run / name)
        norms = model.quantize.embedding.weight.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))  # the average too is on the sphere
        metrics = json.loads((vqgan_run / name / "metrics.json").read_text())
        assert {"l1", "lpips", "usage", "perplexity", "step", "images_seen", "seconds"} <= metrics.keys()
        assert metrics["images_seen"] == metrics["step"] * 6
        assert all(np.isfinite(value) for value in metrics.values())
    assert json.loads((vqgan_run / "last" / "metrics.json").read_text())["step"] == 8
    sheet = Image.open(vqgan_run / "reconstructions.png")
    assert sheet.mode == "L" and sheet.size == (8 * 34 - 2, 2 * 34 - 2)
    config = json.loads((vqgan_run / "config.json").read_text())
    assert (config["num_vq_embeddings"], config["learning_rate"], config["disc_weight"]) == (32, 1e-3, 0.8)
    assert [folder.name for folder in list_checkpoints(vqgan_run)] == ["checkpoint-4", "checkpoint-8"]


def test_train_ihdm_leaves_a_pipeline(ihdm_run, vqgan_run):
    pipeline = VQIHDMPipeline.from_pretrained(ihdm_run / "pipeline")
    assert pipeline.scheduler.config.sigma_max == pipeline.prior.sigma == 2
    assert pipeline.prior.config.kind == "mixture"
    assert_same_weights(vqgan_run / "best", ihdm_run / "pipeline" / "vqvae")
    assert_same_weights(ihdm_run / "best", ihdm_run / "pipeline" / "denoiser")
    images = pipeline(2, generator=torch.Generator().manual_seed(0)).images
    assert [image.size for image in images] == [(32, 32)] * 2
    assert Image.open(ihdm_run / "samples.png").mode == "L"
    assert json.loads((ihdm_run / "metrics.json").read_text())["cross_entropy"] > 0


def test_no_run_pickles(vqgan_run, ihdm_run):
    for run in (vqgan_run, ihdm_run):
        suffixes = {file.suffix for file in run.rglob("*") if file.is_file() and "logs" not in file.parts}
        assert suffixes <= {".json", ".safetensors", ".png", ".md", ".py"}


def test_embeddings_are_standardised_by_the_training_tokens(ihdm_run, template_set):
    """Mean 0 and deviation 1 over the tokens of the training slices, not over the codebook."""
    pipeline = VQIHDMPipeline.from_pretrained(ihdm_run / "pipeline")
    pixels = np.stack([np.asarray(row["image"]) for row in load_dataset(str(template_set))["train"]])
    images = torch.from_numpy(pixels).float()[:, None] / 127.5 - 1
    tokens = pipeline.embed_codes(pipeline.encode_images(torch.cat([images, images.flip(-1)])))
    torch.testing.assert_close(tokens.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_trackers_get_figures_and_pictures(vqgan_run, ihdm_run):
    for run, name, figures, picture in [
        (vqgan_run, "vqgan", {"train/l1", "train/gan", "train/lambda", "train/perplexity"}, "reconstructions"),
        (ihdm_run, "denoiser", {"train/loss", "train/lr", "validation/cross_entropy"}, "samples"),
    ]:
        assert images_of(run / "logs" / name) == {f"validation/{picture}": [4, 8]}
        accumulator = EventAccumulator(str(run / "logs" / name))
        accumulator.Reload()
        assert figures <= set(accumulator.Tags()["scalars"])


# ---- resume -------------------------------------------------------------------------------------------------------


def test_a_vqgan_that_stopped_goes_on_bit_for_bit(vqgan, vqgan_run):
    """Mid-epoch, with flips, discriminator, restarts of codes and accumulated gradients."""
    folder = vqgan("--max_train_steps", 3)
    vqgan("--resume_from_checkpoint", "latest")
    assert_same_state(folder, vqgan_run)
    assert_same_weights(folder / "last", vqgan_run / "last")


def test_a_patch_discriminator_trains_and_resumes_too(vqgan, tmp_path):
    whole = vqgan("--discriminator", "patch", output_dir=tmp_path / "whole")
    folder = vqgan("--discriminator", "patch", "--max_train_steps", 5)
    vqgan("--discriminator", "patch", "--resume_from_checkpoint", "latest")
    assert_same_state(folder, whole)


def test_the_learning_rate_decays_to_zero_over_the_last_steps(vqgan, vqgan_run):
    folder = vqgan("--lr_decay_steps", 4)
    rates = [final_state(run)["parts"]["scheduler_g"]["_last_lr"] for run in (folder, vqgan_run)]
    assert rates == [[0.0], [1e-3]]


def test_a_vqgan_learns_on_from_a_model_or_a_pipeline(vqgan, vqgan_run, ihdm_run, tmp_path):
    folders = [
        vqgan(
            "--pretrained_model_name_or_path", place, "--learning_rate", 1e-12, "--num_vq_embeddings", 8,
            "--block_out_channels", *[8] * 7, "--max_train_steps", 2, output_dir=tmp_path / place.name,
        )
        for place in (vqgan_run / "best", ihdm_run / "pipeline")
    ]  # fmt: skip
    for folder in folders:  # the record goes on where that of the model ends
        stages = json.loads((folder / "best" / "training.json").read_text())["stages"]
        assert [stage["settings"]["learning_rate"] for stage in stages] == [1e-3, 1e-12]
    before, *after = (load_vq_model(folder / "best").state_dict() for folder in (vqgan_run, *folders))
    for state in after:
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, before[name], atol=1e-6, rtol=0)


def test_slices_must_fit_the_model_that_learns_on_whatever_the_flags_say(vqgan, vqgan_run):
    flags = ("--pretrained_model_name_or_path", vqgan_run / "best", "--block_out_channels", 8)
    assert "34x34, no multiple of the downsampling factor 4" in refusal(vqgan, *flags, "--resolution", 34)


def test_a_denoiser_learns_on_from_a_denoiser_or_a_pipeline(ihdm, ihdm_run, vqgan_run, tmp_path):
    before = load_file(ihdm_run / "best" / "model.safetensors")
    for place in (ihdm_run / "best", ihdm_run / "pipeline"):
        folder = ihdm(
            "--pretrained_model_name_or_path", place, "--learning_rate", 1e-12, "--hidden_size", 8,
            "--max_train_steps", 1, output_dir=tmp_path / place.name,
        )  # fmt: skip
        after = load_file(folder / "best" / "model.safetensors")
        for name, tensor in after.items():
            torch.testing.assert_close(tensor, before[name], atol=1e-6, rtol=0)
    assert "holds no denoiser" in refusal(ihdm, "--pretrained_model_name_or_path", vqgan_run / "best")


def test_gradient_checkpointing_changes_nothing_but_memory(ihdm, ihdm_run):
    folder = ihdm("--gradient_checkpointing", "--max_train_steps", 4)
    first, second = (load_state(run / "checkpoint-4")["parts"]["network"] for run in (folder, ihdm_run))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=1e-5, rtol=1e-4)


def test_training_the_decoder_alone_keeps_every_code(vqgan, vqgan_run, tmp_path):
    folder = vqgan("--pretrained_model_name_or_path", vqgan_run / "best", "--train_decoder_only")
    before, after = (load_vq_model(place).state_dict() for place in (vqgan_run / "best", folder / "last"))
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_a_denoiser_that_stopped_goes_on_bit_for_bit(ihdm, ihdm_run):
    folder = ihdm("--max_train_steps", 3)
    ihdm("--resume_from_checkpoint", folder / "checkpoint-3")
    assert_same_state(folder, ihdm_run)
    assert_same_weights(folder / "pipeline", ihdm_run / "pipeline")


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
    assert_same_state(folder, uninterrupted)


def test_a_complete_run_is_complete(ihdm, ihdm_run, tmp_path):
    """Resumed again it trains no further, and leaves the same pipeline."""
    folder = shutil.copytree(ihdm_run, tmp_path / "run")
    shutil.rmtree(folder / "pipeline")
    ihdm("--resume_from_checkpoint", "latest")
    assert_same_weights(folder / "pipeline", ihdm_run / "pipeline")


@pytest.mark.parametrize("budget, steps", [(("--max_train_images", 20), 4), (("--max_train_minutes", 1e-6), 1)])
def test_a_budget_ends_a_run_as_its_last_step_would(ihdm, budget, steps):
    """Six images a step. The run is complete: resumed it trains no further."""
    folder = ihdm(*budget)
    assert json.loads((folder / "last" / "metrics.json").read_text())["step"] == steps
    assert (folder / "pipeline" / "model_index.json").is_file()
    ihdm(*budget, "--resume_from_checkpoint", "latest")
    assert [checkpoint.name for checkpoint in list_checkpoints(folder)] == [f"checkpoint-{steps}"]


def test_a_second_run_does_not_overwrite_the_first(ihdm, ihdm_run, tmp_path):
    shutil.copytree(ihdm_run, tmp_path / "run")
    assert "checkpoint-8" in refusal(ihdm, "--max_train_steps", 4)


def test_accumulated_gradients_are_those_of_the_larger_batch(ihdm, tmp_path):
    """Without chance in the loss 2 x 1 examples make the step of 2."""
    plain = (
        "--dropout",
        0,
        "--delta",
        0,
        "--reveal_probability",
        0,
        "--covariate_dropout",
        0,
        "--no-random_flip",
        "--max_train_steps",
        4,
    )
    states = [
        final_state(ihdm(*plain, *batch, output_dir=tmp_path / name))["parts"]["network"]
        for name, batch in [
            ("accumulated", ("--train_batch_size", 1, "--gradient_accumulation_steps", 2)),
            ("whole", ("--train_batch_size", 2, "--gradient_accumulation_steps", 1)),
            ("other", ("--train_batch_size", 1, "--gradient_accumulation_steps", 1)),
        ]
    ]
    for name, weight in states[0].items():
        torch.testing.assert_close(weight, states[1][name], atol=2e-5, rtol=1e-4)
    assert any((weight - states[2][name]).abs().max() > 1e-3 for name, weight in states[0].items())


# ---- options ------------------------------------------------------------------------------------------------------


def test_a_prior_of_images_is_saved_only_where_told_so(ihdm):
    assert "--allow_training_image_prior" in refusal(ihdm, "--prior", "images")
    folder = ihdm("--prior", "images", "--allow_training_image_prior", "--max_train_steps", 1)
    assert VQIHDMPipeline.from_pretrained(folder / "pipeline").prior.config.kind == "images"


def test_the_paper_s_prior(ihdm):
    folder = ihdm("--prior", "slice", "--sigma_max", 24, "--max_train_steps", 1)
    prior = VQIHDMPipeline.from_pretrained(folder / "pipeline").prior
    assert (prior.config.kind, prior.sigma, prior.config.num_modes) == ("slice", 24, 1)


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


def test_slices_read_ahead_are_the_same_slices(vqgan, vqgan_run, monkeypatch):
    """Even where they do not fit into memory, and the workers decode them."""
    monkeypatch.setattr(SliceTensors, "MEMORY", 0)
    folder = vqgan("--dataloader_num_workers", 1, "--max_train_steps", 4)
    first, second = (flatten(load_state(run / "checkpoint-4")["parts"]["generator"]) for run in (folder, vqgan_run))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_images_of_another_column_and_size(vqgan, template_set, tmp_path):
    renamed = load_dataset(str(template_set)).rename_column("image", "slice_image")
    for name, split in renamed.items():
        split.to_parquet(tmp_path / "set" / f"{name}.parquet")
    flags = ("--dataset_name", tmp_path / "set", "--image_column", "slice_image", "--max_train_steps", 1)
    folder = vqgan(*flags, "--resolution", 40, "--center_crop")
    assert Image.open(folder / "reconstructions.png").size == (8 * 42 - 2, 2 * 42 - 2)
    assert "name it with --image_column" in refusal(vqgan, *flags[:2], output_dir=tmp_path / "other")
    assert "--resolution" in refusal(vqgan, "--center_crop", output_dir=tmp_path / "other")


# ---- mistakes -----------------------------------------------------------------------------------------------------


def test_a_diverged_run_stops_and_the_last_checkpoint_stays(ihdm, vqgan, tmp_path):
    for run, name in [(ihdm, "ihdm"), (vqgan, "vqgan")]:
        folder = tmp_path / name
        said = refusal(
            run, "--learning_rate", 1e9, "--checkpointing_steps", 1, "--lr_warmup_steps", 0, output_dir=folder
        )
        assert "last checkpoint is intact" in said and "--learning_rate" in said
        weights = flatten(final_state(folder)["parts"])
        assert all(torch.isfinite(tensor).all() for tensor in weights.values() if torch.is_tensor(tensor))


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
    assert "--discriminator patch" in refusal(vqgan, "--perceptual", "none")
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
