"""train_vqgan.py on the tiny set: what it leaves, exact resume, learning on, its options."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import refusal
from datasets import load_dataset
from PIL import Image
from states import assert_same_weights, differences, final_state

from vq_ihdm.data.images import SliceTensors
from vq_ihdm.errors import InputError
from vq_ihdm.training.checkpoints import list_checkpoints
from vq_ihdm.training.state import load_state
from vq_ihdm.vqgan.model import load_vq_model

pytestmark = pytest.mark.slow


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


def test_a_run_is_not_a_model_and_says_which_of_it_is(vqgan_run):
    for folder in (vqgan_run, vqgan_run / "checkpoint-8"):
        with pytest.raises(InputError, match=re.escape(f"but {vqgan_run / 'last'} does; name that")):
            load_vq_model(folder)


def test_a_vqgan_that_stopped_goes_on_bit_for_bit(vqgan, vqgan_run):
    """Mid-epoch, with flips, discriminator, restarts of codes and accumulated gradients."""
    folder = vqgan("--max_train_steps", 3)
    vqgan("--resume_from_checkpoint", "latest")
    assert differences(final_state(folder), final_state(vqgan_run)) == []
    assert_same_weights(folder / "last", vqgan_run / "last")


def test_a_patch_discriminator_trains_and_resumes_too(vqgan, tmp_path):
    whole = vqgan("--discriminator", "patch", output_dir=tmp_path / "whole")
    folder = vqgan("--discriminator", "patch", "--max_train_steps", 5)
    vqgan("--discriminator", "patch", "--resume_from_checkpoint", "latest")
    assert differences(final_state(folder), final_state(whole)) == []


def test_the_learning_rate_decays_to_zero_over_the_last_steps(vqgan, vqgan_run):
    folder = vqgan("--lr_decay_steps", 4)
    rates = [final_state(run)["parts"]["scheduler"]["_last_lr"][0] for run in (folder, vqgan_run)]
    assert rates == [0.0, 1e-3]


@pytest.mark.parametrize("flags", [("--lr_decay_steps", 2), ("--lr_scheduler", "cosine")])
def test_the_discriminator_that_begins_later_ends_with_the_generator(vqgan, flags):
    assert final_state(vqgan("--disc_start", 3, *flags))["parts"]["scheduler"]["_last_lr"] == [0.0, 0.0]


def test_the_generator_waits_while_the_discriminator_learns_first(vqgan, tmp_path):
    """It would smooth meanwhile what it had learnt."""
    before, after, enters = (
        final_state(vqgan("--disc_start", 2, "--max_train_steps", steps, output_dir=tmp_path / str(steps)))["parts"]
        for steps in (2, 4, 5)  # of which the conftest's preset has it wait two
    )
    assert differences(before["generator"], after["generator"]) == []
    assert differences(before["discriminator"], after["discriminator"]) != []
    assert differences(after["generator"], enters["generator"]) != []


def test_every_weight_of_the_losses_reaches_the_training(vqgan, vqgan_run, tmp_path):
    def generator(*flags: object) -> dict:  # which does not wait
        folder = vqgan("--disc_warmup_steps", 0, *flags, output_dir=tmp_path / "_".join(map(str, flags)))
        return final_state(folder)["parts"]["generator"]

    as_preset, without_judge = generator(), generator("--disc_weight", 0)
    assert differences(generator("--disc_start", 100), without_judge) == []  # it never enters
    for other in (without_judge, generator("--perceptual_weight", 0), generator("--texture_weight", 1)):
        assert differences(other, as_preset) != []
    many = ("--num_vq_embeddings", 512)  # of which some are dead
    assert differences(generator(*many, "--dead_code_steps", 0), generator(*many)) != []
    norms = load_vq_model(vqgan("--no-l2_normalized_codes") / "last").quantize.embedding.weight.norm(dim=1)
    assert (norms - 1).abs().max() > 1e-2


def test_a_vqgan_learns_on_from_a_model_or_a_pipeline(vqgan, vqgan_run, ihdm_run, tmp_path):
    folders = [
        vqgan(
            "--pretrained_model_name_or_path", place, "--learning_rate", 1e-12, "--num_vq_embeddings", 8,
            "--block_out_channels", *[8] * 7, "--max_train_steps", 2, "--no-l2_normalized_codes",
            output_dir=tmp_path / place.name,
        )
        for place in (vqgan_run / "best", ihdm_run / "pipeline", ihdm_run / "pipeline" / "vqvae")
    ]  # fmt: skip
    for folder in folders:
        settings = json.loads((folder / "config.json").read_text())  # as the model is, not as the flags say
        assert (settings["num_vq_embeddings"], settings["l2_normalized_codes"]) == (32, True)
        # The record goes on where that of the model ends.
        stages = json.loads((folder / "best" / "training.json").read_text())["stages"]
        assert [stage["settings"]["learning_rate"] for stage in stages] == [1e-3, 1e-12]
    before, *after = (load_vq_model(folder / "best").state_dict() for folder in (vqgan_run, *folders))
    for state in after:
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, before[name], atol=1e-6, rtol=0)


def test_slices_must_fit_the_model_that_learns_on_whatever_the_flags_say(vqgan, vqgan_run):
    flags = ("--pretrained_model_name_or_path", vqgan_run / "best", "--block_out_channels", 8)
    assert "34x34, no multiple of the downsampling factor 4" in refusal(vqgan, *flags, "--resolution", 34)


def test_training_the_decoder_alone_keeps_every_code(vqgan, vqgan_run, tmp_path):
    folder = vqgan("--pretrained_model_name_or_path", vqgan_run / "best", "--train_decoder_only")
    before, after = (load_vq_model(place).state_dict() for place in (vqgan_run / "best", folder / "last"))
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_a_discriminator_goes_on_in_another_run(vqgan, vqgan_run, ihdm_run, tmp_path):
    flags = ("--pretrained_model_name_or_path", vqgan_run / "best", "--disc_learning_rate", 1e-12)
    checkpoint = list_checkpoints(vqgan_run)[-1]
    taken, new = (
        vqgan(*flags, *more, "--max_train_steps", 2, "--disc_start", 0, output_dir=tmp_path / name)
        for name, more in (("taken", ("--discriminator_checkpoint", checkpoint)), ("new", ()))
    )
    before, after, other = (final_state(folder)["parts"]["discriminator"] for folder in (vqgan_run, taken, new))
    apart = [max((state[name] - before[name]).abs().max() for name in before) for state in (after, other)]
    assert apart[0] < 1e-6 < apart[1]
    assert "holds no discriminator" in refusal(
        vqgan, "--discriminator_checkpoint", list_checkpoints(ihdm_run)[-1], output_dir=tmp_path / "refused"
    )
    assert "holds no discriminator" in refusal(
        vqgan, "--discriminator_checkpoint", checkpoint, "--disc_channels", 4, output_dir=tmp_path / "refused"
    )
    assert "is no complete checkpoint" in refusal(
        vqgan, "--discriminator_checkpoint", vqgan_run / "best", output_dir=tmp_path / "refused"
    )


def test_slices_read_ahead_are_the_same_slices(vqgan, vqgan_run, monkeypatch):
    """Even where they do not fit into memory, and the workers decode them."""
    monkeypatch.setattr(SliceTensors, "MEMORY", 0)
    folder = vqgan("--dataloader_num_workers", 1, "--max_train_steps", 4)
    first, second = (load_state(run / "checkpoint-4")["parts"]["generator"] for run in (folder, vqgan_run))
    assert differences(first, second) == []


def test_images_of_another_column_and_size(vqgan, template_set, tmp_path):
    renamed = load_dataset(str(template_set)).rename_column("image", "slice_image")
    for name, split in renamed.items():
        split.to_parquet(tmp_path / "set" / f"{name}.parquet")
    flags = ("--dataset_name", tmp_path / "set", "--image_column", "slice_image", "--max_train_steps", 1)
    folder = vqgan(*flags, "--resolution", 40, "--center_crop")
    assert Image.open(folder / "reconstructions.png").size == (8 * 42 - 2, 2 * 42 - 2)
    assert "name that of the images with --image_column" in refusal(vqgan, *flags[:2], output_dir=tmp_path / "other")
    assert "--resolution" in refusal(vqgan, "--center_crop", output_dir=tmp_path / "other")
