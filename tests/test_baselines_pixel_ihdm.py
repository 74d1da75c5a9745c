"""Inverse heat dissipation of pixels: loss, steps and prior by hand, the pipeline's promises, the command line."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import refusal, run_script
from diffusers import DiffusionPipeline

from vq_ihdm import PixelIHDMPipeline, load_pipeline
from vq_ihdm.baselines.pixel_ihdm import InverseHeatScheduler, create_unet, inverse_heat_loss
from vq_ihdm.data.images import SliceTensors, load_slices
from vq_ihdm.data.slices import mirror_at_random, spread_slices
from vq_ihdm.fit_prior import fit_prior
from vq_ihdm.heat import blur

K = 10


@pytest.fixture
def scheduler() -> InverseHeatScheduler:
    return InverseHeatScheduler(num_train_timesteps=K, sigma_min=0.5, sigma_max=8.0)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def ihdm(scheduler, images) -> PixelIHDMPipeline:
    torch.manual_seed(0)
    prior = fit_prior(images, sigma=8.0, kind="images")
    return PixelIHDMPipeline(create_unet(16, 16, [8, 8, 8], 1, 4).eval(), prior, scheduler)


def draw(pipeline: DiffusionPipeline, **arguments):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(5, generator=torch.Generator().manual_seed(0), output_type="np", **arguments).images


def test_the_last_timestep_is_the_most_blurred(scheduler, images):
    assert scheduler.sigmas[0] == 0 and scheduler.sigmas[1] == 0.5 and scheduler.sigmas[K] == pytest.approx(8.0)
    assert scheduler.timesteps.tolist() == list(range(K, 0, -1))
    timesteps = torch.arange(12).clamp_max(K)
    states = scheduler.blurred(images[:1].expand(12, -1, -1, -1), timesteps)
    assert torch.allclose(states[0], images[0], atol=1e-5)
    assert (states.var((1, 2, 3))[: K + 1].diff() < 0).all()


def test_loss_by_hand(scheduler, images):
    images, noise = images[:2], torch.randn(2, 1, 16, 16)
    timesteps = torch.tensor([1, K])
    perturbed = torch.cat([blur(images[:1], 0.5), blur(images[1:], 8.0)]) + 0.01 * noise
    target = torch.cat([images[:1], blur(images[1:], scheduler.sigmas[K - 1])])

    def perfect(sample, k):
        assert torch.allclose(sample, perturbed, atol=1e-5) and k.tolist() == [1, K]
        return SimpleNamespace(sample=target - sample)

    def lazy(sample, k):
        return SimpleNamespace(sample=torch.zeros_like(sample))

    assert inverse_heat_loss(perfect, scheduler, images, timesteps, noise) < 1e-10
    expected = ((perturbed - target) ** 2).mean()
    assert inverse_heat_loss(lazy, scheduler, images, timesteps, noise).item() == pytest.approx(expected.item(), 1e-4)


def test_step_by_hand(scheduler):
    sample, difference, noise = torch.tensor([0.5]), torch.tensor([0.25]), torch.tensor([2.0])
    assert scheduler.step(difference, 2, sample, noise).item() == pytest.approx(0.75 + 0.0125 * 2)
    assert scheduler.step(difference, 1, sample, noise).item() == 0.75  # no noise on what is shown


def test_a_network_that_knows_the_slice_restores_it(scheduler, images):
    state = scheduler.blurred(images, torch.full((12,), K))
    for k in scheduler.timesteps.tolist():
        less_blurred = scheduler.blurred(images, torch.full((12,), k - 1))
        state = scheduler.step(less_blurred - state, k, state, torch.randn_like(state))
    assert torch.allclose(state, images, atol=1e-5)


def test_the_prior_draws_blurred_training_slices(ihdm, images):
    draws = ihdm.prior.sample(40, torch.Generator().manual_seed(0))
    distance = (draws[:, None] - blur(images, 8.0)).abs().amax((2, 3, 4))
    assert distance.min(1).values.max() < 5e-3  # all but the modes damped to less than a hundredth
    assert len(distance.argmin(1).unique()) > 8


def test_an_image_does_not_depend_on_its_batch(ihdm):
    drawn = draw(ihdm)
    assert drawn.shape == (5, 16, 16, 1) and drawn.std(0).mean() > 1e-3
    assert abs(draw(ihdm, chunk_size=2) - drawn).max() < 1e-4


def test_a_prior_of_training_slices_is_not_saved_unasked(ihdm, tmp_path):
    with pytest.raises(ValueError, match="training subjects"):
        ihdm.save_pretrained(tmp_path)


def test_saved_and_loaded_with_and_without_the_package(ihdm, tmp_path, monkeypatch):
    ihdm.prior.allow_saving_images = True
    ihdm.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    assert type(loaded) is PixelIHDMPipeline
    assert torch.equal(loaded.scheduler.sigmas, ihdm.scheduler.sigmas)
    for (name, saved), again in zip(ihdm.unet.state_dict().items(), loaded.unet.state_dict().values(), strict=True):
        assert torch.equal(saved, again), name
    assert (draw(loaded) == draw(ihdm)).all()

    monkeypatch.setitem(sys.modules, "vq_ihdm", None)  # importing it fails from here on
    remote = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert not isinstance(remote, PixelIHDMPipeline)
    assert (draw(remote) == draw(ihdm)).all()


def test_number_of_parameters_at_176():
    with torch.device("meta"):
        unet = create_unet(176, 176, [128, 128, 256, 256, 512], 2, 32)
    count = sum(p.numel() for p in unet.parameters())
    assert count == 76_690_433
    assert f"{count:,}" in create_unet.__doc__


def test_training_lowers_the_loss(scheduler, images):
    torch.manual_seed(0)
    unet = create_unet(16, 16, [8, 8, 8], 1, 4)
    optimizer = torch.optim.Adam(unet.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        timesteps = torch.randint(1, K + 1, (12,))
        loss = inverse_heat_loss(unet, scheduler, images, timesteps, torch.randn_like(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_slices_are_mirrored_in_half_of_the_draws(template_set):
    splits = load_slices(str(template_set))
    train_set = SliceTensors(splits["train"])
    original = train_set[3]
    drawn = mirror_at_random(train_set.stack([3] * 100), random_flip=True)
    mirrored = [bool((image == original.flip(-1)).all()) for image in drawn]
    assert all(torch.equal(i, original) or m for i, m in zip(drawn, mirrored, strict=True)) and 30 < sum(mirrored) < 70
    assert (mirror_at_random(train_set.stack([3] * 100), random_flip=False) == original).all()
    assert torch.equal(spread_slices(splits["train"], 2), train_set.stack([0, len(train_set) - 1]))


FLAGS = [
    "--model", "pixel_ihdm", "--block_out_channels", 8, 8, 8, "--layers_per_block", 1, "--norm_num_groups", 4,
    "--num_train_timesteps", 4, "--sigma_max", 16, "--max_train_steps", 4, "--train_batch_size", 4,
    "--lr_warmup_steps", 0, "--checkpointing_steps", 2, "--validation_steps", 2, "--report_to", "none",
]  # fmt: skip


def test_command_line_refuses_a_prior_of_training_slices(template_set, tmp_path):
    with pytest.raises(SystemExit) as exit:
        run_script("train_baseline.py", *FLAGS, "--dataset_name", template_set, "--output_dir", tmp_path)
    assert "--allow_training_image_prior" in str(exit.value)


def test_command_line_refuses_a_single_width(template_set, tmp_path):
    flags = [*FLAGS, "--dataset_name", template_set, "--output_dir", tmp_path / "run", "--allow_training_image_prior"]
    assert "needs at least two widths" in refusal(run_script, "train_baseline.py", *flags, "--block_out_channels", 8)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_command_line_and_exact_resume(template_set, tmp_path):
    flags = [*FLAGS, "--dataset_name", template_set, "--allow_training_image_prior"]
    run_script("train_baseline.py", *flags, "--output_dir", tmp_path / "whole")
    run_script(
        "train_baseline.py", *flags, "--output_dir", tmp_path / "resumed",
        "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-2",
    )  # fmt: skip
    for file in ("checkpoint-4/state.safetensors", "samples.png"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes(), file
    assert json.loads((tmp_path / "whole" / "best" / "metrics.json").read_text())["squared_error"] > 0
    pipeline = load_pipeline(tmp_path / "whole" / "pipeline")
    assert pipeline.prior.config.kind == "images"
    assert pipeline(1).images[0].size == (32, 32)


@pytest.mark.slow
def test_what_the_flags_of_the_process_and_the_prior_say_is_in_the_pipeline(template_set, tmp_path):
    flags = [*FLAGS, "--dataset_name", template_set, "--max_train_steps", 1, "--prior", "mixture", "--prior_rank", 4]
    process = {"sigma_min": 1.5, "training_noise": 0.04, "delta": 0.06}
    given = [part for name, value in process.items() for part in (f"--{name}", value)]
    few = ["--num_prior_images", 2]
    run_script("train_baseline.py", *flags, *given, "--output_dir", tmp_path / "given")
    run_script("train_baseline.py", *flags, *given, *few, "--output_dir", tmp_path / "few")
    ranks = []
    for name in ("given", "few"):
        pipeline = load_pipeline(tmp_path / name / "pipeline")
        assert {setting: pipeline.scheduler.config[setting] for setting in process} == process
        ranks.append(pipeline.prior.config.rank)
    assert ranks == [4, 1]  # of two images one direction
