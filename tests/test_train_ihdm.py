"""train_ihdm.py on the tiny set: what it leaves, exact resume, learning on, budgets, its options."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import refusal, tiny_vq_model
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load_file
from states import assert_same_weights, differences, final_state

import train_ihdm
from vq_ihdm import VQIHDMPipeline
from vq_ihdm.denoising_loss import denoising_loss
from vq_ihdm.errors import InputError
from vq_ihdm.hub.checks import failed_checks
from vq_ihdm.hub.record import read_record, views_learnt_from
from vq_ihdm.training.checkpoints import list_checkpoints
from vq_ihdm.training.state import load_state

pytestmark = pytest.mark.slow


def test_train_ihdm_leaves_a_pipeline(ihdm_run, vqgan_run):
    pipeline = VQIHDMPipeline.from_pretrained(ihdm_run / "pipeline")
    assert pipeline.scheduler.config.sigma_max == pipeline.prior.sigma == 2
    assert pipeline.prior.config.kind == "mixture"
    assert_same_weights(vqgan_run / "best", ihdm_run / "pipeline" / "vqvae")
    assert_same_weights(ihdm_run / "best", ihdm_run / "pipeline" / "denoiser")
    images = pipeline(2, generator=torch.Generator().manual_seed(0)).images
    assert [image.size for image in images] == [(32, 32)] * 2
    assert Image.open(ihdm_run / "samples.png").mode == "L"
    assert json.loads((ihdm_run / "best" / "metrics.json").read_text())["cross_entropy"] > 0


def test_embeddings_are_standardised_by_the_training_tokens(ihdm_run, template_set):
    """Mean 0 and deviation 1 over the tokens of the training slices, not over the codebook."""
    pipeline = VQIHDMPipeline.from_pretrained(ihdm_run / "pipeline")
    pixels = np.stack([np.asarray(row["image"]) for row in load_dataset(str(template_set))["train"]])
    images = torch.from_numpy(pixels).float()[:, None] / 127.5 - 1
    tokens = pipeline.embed_codes(pipeline.encode_images(torch.cat([images, images.flip(-1)])))
    torch.testing.assert_close(tokens.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_the_denoiser_alone_learns_from_shifted_views(ihdm, ihdm_run, tmp_path):
    ihdm("--shifted_views", 2, output_dir=tmp_path / "run")
    shifted = tmp_path / "run" / "pipeline"
    assert_same_weights(ihdm_run / "pipeline" / "prior", shifted / "prior")
    one, other = (load_file(f / "denoiser" / "model.safetensors") for f in (ihdm_run / "pipeline", shifted))
    assert torch.equal(one["code_embeddings"], other["code_embeddings"])
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert views_learnt_from(read_record(ihdm_run / "pipeline")) == []

    seen = [{"mirrored": True, "shifted_views": 2}]
    assert views_learnt_from(read_record(shifted)) == seen
    for number, (flags, also) in enumerate(
        [([2], []), ([1, "--no-random_flip"], [{"mirrored": False, "shifted_views": 1}])]
    ):
        further = tmp_path / f"further {number}"
        ihdm("--shifted_views", *flags, "--pretrained_model_name_or_path", shifted, output_dir=further)
        assert views_learnt_from(read_record(further / "pipeline")) == seen + also


def test_a_tokenizer_of_other_slices_is_told(ihdm, vqgan_run, tmp_path, capsys):
    ihdm("--max_train_steps", 1, output_dir=tmp_path / "same")
    assert "learnt on another set" not in capsys.readouterr().out
    vqvae = shutil.copytree(vqgan_run / "best", tmp_path / "vqvae")
    file = vqvae / "training.json"
    for name, other, told in (
        ("source", "OASIS-1", "let it learn on"),
        ("digest", "0123456789abcdef", "people who are held out here may have been in its training"),
    ):
        record = json.loads((vqgan_run / "best" / "training.json").read_text())
        for entry in (record["data"], *(stage["data"] for stage in record["stages"])):
            entry[name] = other
        file.write_text(json.dumps(record))
        ihdm("--max_train_steps", 1, "--vqvae", vqvae, output_dir=tmp_path / name)
        said = capsys.readouterr().out
        assert f"{vqvae} learnt on another set ({record['data']['source']}): " in said and told in said


def test_a_denoiser_that_stopped_goes_on_bit_for_bit(ihdm, ihdm_run):
    folder = ihdm("--max_train_steps", 3)
    ihdm("--resume_from_checkpoint", folder / "checkpoint-3")
    assert differences(final_state(folder), final_state(ihdm_run)) == []
    assert_same_weights(folder / "pipeline", ihdm_run / "pipeline")


def test_a_denoiser_learns_on_from_a_denoiser_or_a_pipeline(ihdm, ihdm_run, vqgan_run, tmp_path):
    assert read_record(ihdm_run / "best")["stages"] == read_record(ihdm_run / "pipeline")["stages"]
    for place in (ihdm_run / "best", ihdm_run / "last", ihdm_run / "pipeline"):
        before = load_file(place / ("denoiser" if place.name == "pipeline" else "") / "model.safetensors")
        folder = ihdm(
            "--pretrained_model_name_or_path", place, "--learning_rate", 1e-12, "--hidden_size", 8,
            "--dropout", 0.3, "--max_train_steps", 1, output_dir=tmp_path / place.name,
        )  # fmt: skip
        after = load_file(folder / "best" / "model.safetensors")
        for name, tensor in after.items():
            torch.testing.assert_close(tensor, before[name], atol=1e-6, rtol=0)
        assert json.loads((folder / "config.json").read_text())["hidden_size"] != 8  # as the denoiser is
        assert json.loads((folder / "best" / "config.json").read_text())["dropout"] == 0.3  # as the training is
        *earlier, last = read_record(folder / "pipeline")["stages"]
        assert earlier == read_record(place)["stages"] and last["step"] == 1
    tiny_vq_model().save_pretrained(tmp_path / "other")
    said = refusal(ihdm, "--pretrained_model_name_or_path", ihdm_run / "best", "--vqvae", tmp_path / "other")
    assert "is a denoiser of other codes" in said
    assert "holds no denoiser" in refusal(ihdm, "--pretrained_model_name_or_path", vqgan_run / "best")
    with pytest.raises(InputError, match="draws nothing alone; name the whole pipeline/"):
        failed_checks(ihdm_run / "last")
    flags = ("--pretrained_model_name_or_path", ihdm_run / "best", "--covariates")  # none
    assert "leave --covariates out, or train a new one" in refusal(ihdm, *flags)


def test_what_is_kept_is_the_mean_of_what_was_and_what_is_learnt(ihdm, ihdm_run, tmp_path):
    learning_on = ("--pretrained_model_name_or_path", ihdm_run / "last", "--validation_steps", 4)
    plain = ihdm(*learning_on, output_dir=tmp_path / "plain")
    leaning = ihdm(*learning_on, "--pretrained_share", 0.25, output_dir=tmp_path / "leaning")
    stopped = ihdm(*learning_on, "--pretrained_share", 0.25, "--max_train_steps", 3, output_dir=tmp_path / "stopped")
    ihdm(*learning_on, "--pretrained_share", 0.25, "--resume_from_checkpoint", "latest", output_dir=stopped)
    assert differences(final_state(stopped), final_state(leaning)) == []
    before, learnt, kept = (load_file(run / "last" / "model.safetensors") for run in (ihdm_run, plain, leaning))
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, 0.25 * before[name] + 0.75 * learnt[name], atol=1e-6, rtol=0)
    assert any(not torch.equal(tensor, learnt[name]) for name, tensor in kept.items())
    assert "needs --pretrained_model_name_or_path" in refusal(ihdm, "--pretrained_share", 0.25)


def test_a_denoiser_keeps_the_standardisation_it_learnt_by(ihdm_run, tmp_path):
    """Whatever the statistics of the set it learns on with, and where the codebook has moved a little."""
    pipeline = VQIHDMPipeline.from_pretrained(ihdm_run / "pipeline")
    codebook, embeddings = pipeline.vqvae.quantize.embedding.weight.detach(), pipeline.denoiser.code_embeddings
    torch.testing.assert_close(train_ihdm.restandardised(codebook, embeddings), embeddings, atol=1e-4, rtol=1e-4)
    moved = codebook + 0.2 * codebook.std(0) * torch.randn_like(codebook)
    assert (train_ihdm.restandardised(moved, embeddings) - embeddings).std() < 0.3 * embeddings.std()
    assert train_ihdm.restandardised(codebook[torch.randperm(len(codebook))], embeddings) is None


def test_a_denoiser_in_half_precision_learns_on_in_whole(ihdm_run, tmp_path):
    train_ihdm.load_denoiser(str(ihdm_run / "best")).half().save_pretrained(tmp_path)
    assert train_ihdm.load_denoiser(str(tmp_path)).dtype == torch.float32


def test_flags_reach_what_they_are_about(ihdm, monkeypatch):
    shares = []

    def recorded(denoiser, scheduler, embed_codes, z_0, reveal_probability, covariates=None):
        shares.append((torch.is_grad_enabled(), reveal_probability))
        return denoising_loss(denoiser, scheduler, embed_codes, z_0, reveal_probability, covariates)

    monkeypatch.setattr("vq_ihdm.denoising_loss.denoising_loss", recorded)
    folder = ihdm(
        "--reveal_probability", 0.25, "--temperature", 0.7, "--top_p", 0.8, "--num_inference_steps", 3,
        "--prior_rank", 5, "--max_train_steps", 1,
    )  # fmt: skip
    assert set(shares) == {(True, 0.25), (False, 0.0)}  # held out: the task of one step
    pipeline = VQIHDMPipeline.from_pretrained(folder / "pipeline")
    drawing = pipeline.scheduler.config
    assert (drawing.temperature, drawing.top_p, drawing.num_inference_steps) == (0.7, 0.8, 3)
    assert pipeline.prior.config.rank == 5


def test_a_network_that_reveals_nothing_in_training_samples_in_one_step(ihdm):
    said = refusal(ihdm, "--reveal_probability", 0, "--num_inference_steps", 4)
    assert "trains for one step of sampling only" in said
    assert "hides next to nothing; take 0.5 cells or more" in refusal(ihdm, "--sigma_max", 0.3)


def test_gradient_checkpointing_changes_nothing_but_memory(ihdm, ihdm_run):
    folder = ihdm("--gradient_checkpointing", "--max_train_steps", 4)
    first, second = (load_state(run / "checkpoint-4")["parts"]["network"] for run in (folder, ihdm_run))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=1e-5, rtol=1e-4)


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


def test_a_prior_of_images_is_saved_only_where_told_so(ihdm):
    assert "--allow_training_image_prior" in refusal(ihdm, "--prior", "images")
    folder = ihdm("--prior", "images", "--allow_training_image_prior", "--max_train_steps", 1)
    assert VQIHDMPipeline.from_pretrained(folder / "pipeline").prior.config.kind == "images"


def test_the_paper_s_prior(ihdm):
    folder = ihdm("--prior", "slice", "--sigma_max", 24, "--max_train_steps", 1)
    prior = VQIHDMPipeline.from_pretrained(folder / "pipeline").prior
    assert (prior.config.kind, prior.sigma, prior.config.num_modes) == ("slice", 24, 1)
