"""Latent diffusion: loss and latents by hand, a sampler that finds what the network knows, the pipeline's promises."""

import json
import sys

import pytest
import torch
from conftest import CODE_DIM, HEIGHT, NUM_CODES, WIDTH, run_script, tiny_vq_model
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DModel, UniPCMultistepScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput

from vq_ihdm import LatentDiffusionPipeline, load_pipeline
from vq_ihdm.baselines.latent_diffusion import (
    code_latents,
    create_latent_unet,
    pad,
    sampling_scheduler,
    training_scheduler,
    unit_scaling,
    velocity_loss,
)

SEED = torch.Generator().manual_seed(1)
CODES = torch.randint(NUM_CODES, (6, HEIGHT, WIDTH), generator=SEED)


def tiny_unet(height: int = HEIGHT, width: int = WIDTH, channels: tuple[int, ...] = (8, 16)) -> UNet2DModel:
    torch.manual_seed(0)
    return create_latent_unet(CODE_DIM, height, width, channels, 1, norm_num_groups=4, dropout=0.0).eval()


class Oracle(UNet2DModel):
    """The network that knows the only latents there are."""

    def forward(self, sample, timestep):
        a = training_scheduler().alphas_cumprod.to(sample)[timestep].reshape(-1, 1, 1, 1)
        return UNet2DOutput(sample=(a.sqrt() * sample - self.latents) / (1 - a).sqrt())


def pipeline_of(unet: UNet2DModel) -> LatentDiffusionPipeline:
    vqvae = tiny_vq_model()
    vqvae.register_to_config(scaling_factor=unit_scaling(vqvae, CODES))
    pipeline = LatentDiffusionPipeline(vqvae, unet, sampling_scheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: LatentDiffusionPipeline, **arguments) -> torch.Tensor:
    arguments = {"num_images": 5, "num_inference_steps": 4, "output_type": "latent"} | arguments
    return pipeline(generator=torch.Generator().manual_seed(0), **arguments).images


def test_latents_have_unit_variance_and_are_those_of_their_codes():
    vqvae = pipeline_of(tiny_unet()).vqvae
    latents = code_latents(vqvae, CODES)
    assert latents.shape == (6, CODE_DIM, HEIGHT, WIDTH) and latents.std() == pytest.approx(1, abs=1e-5)
    quantised = vqvae.quantize(latents / vqvae.config.scaling_factor)[2][2]
    assert torch.equal(quantised.view_as(CODES), CODES)


def test_latents_are_padded_to_what_the_unet_can_halve():
    latents = torch.randn(2, CODE_DIM, 11, 8, generator=SEED)
    padded = pad(latents, tiny_unet(11, 8, (8, 8, 16)))
    assert padded.shape == (2, CODE_DIM, 12, 8)
    assert torch.equal(padded[:, :, :11], latents) and torch.equal(padded[:, :, 11], latents[:, :, 10])


def test_loss_by_hand():
    """One latent of 1 with noise of 2, half of the variance each: v = (2 - 1) / sqrt(2)."""
    scheduler = training_scheduler()
    scheduler.alphas_cumprod[7] = 0.5
    asked = []

    def network(noisy, timesteps):
        asked.append((noisy.item(), timesteps.item()))
        return UNet2DOutput(sample=torch.full_like(noisy, 0.25))

    one = torch.ones(1, 1, 1, 1)
    loss = velocity_loss(network, scheduler, one, torch.tensor([7]), 2 * one)
    assert asked == [(pytest.approx(3 / 2**0.5), 7)]
    assert loss.item() == pytest.approx((1 / 2**0.5 - 0.25) ** 2)


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
@pytest.mark.parametrize("num_steps", [1, 10, 50])
def test_the_sampler_finds_the_only_codes_there_are(size, num_steps):
    codes = CODES[:1, : size[0], : size[1]]
    oracle = Oracle(**tiny_unet(*size).config)
    pipeline = pipeline_of(oracle)
    oracle.latents = pad(code_latents(pipeline.vqvae, codes), oracle)
    timesteps, noise = torch.tensor([1, 500, 999]), torch.randn(3, *oracle.latents.shape[1:], generator=SEED)
    latents = oracle.latents.expand(3, -1, -1, -1)
    assert velocity_loss(oracle, training_scheduler(), latents, timesteps, noise) < 1e-6
    assert (draw(pipeline, num_images=3, chunk_size=2, num_inference_steps=num_steps) == codes).all()


@pytest.mark.slow
def test_training_finds_both_kinds_of_a_toy_set():
    """All of one code or all of another: the joint distribution is learned, not only that of single codes."""
    unet = tiny_unet(3, 3, (32,)).train()
    pipeline = pipeline_of(unet)
    codebook = pipeline.vqvae.quantize.embedding.weight.detach()
    one, other = torch.cdist(codebook, codebook).fill_diagonal_(torch.inf).amin(1).topk(2).indices.tolist()
    codes = torch.tensor([[[one] * 3] * 3, [[other] * 3] * 3]).repeat(8, 1, 1)
    latents, scheduler = pad(code_latents(pipeline.vqvae, codes), unet), training_scheduler()
    optimizer = torch.optim.Adam(unet.parameters(), lr=3e-3)
    for _ in range(200):
        timesteps = torch.randint(1000, (len(codes),))
        loss = velocity_loss(unet, scheduler, latents, timesteps, torch.randn_like(latents))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unet.eval()
    drawn = draw(pipeline, num_images=32, num_inference_steps=10).flatten(1)
    kinds = [(drawn == code).all(1).sum().item() for code in (one, other)]
    assert min(kinds) > 2 and sum(kinds) > 16, kinds


def test_an_image_does_not_depend_on_its_batch():
    pipeline = pipeline_of(tiny_unet())
    codes = draw(pipeline)
    assert len(codes.flatten(1).unique(dim=0)) == 5
    assert torch.equal(codes, draw(pipeline, chunk_size=2))


@pytest.mark.parametrize(
    ("solver", "options"),
    [(UniPCMultistepScheduler, {}), (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"})],
)
def test_another_solver_is_kept_and_draws_each_image_by_its_own_generator(tmp_path, solver, options):
    pipeline = pipeline_of(tiny_unet())
    usual = draw(pipeline)
    pipeline.scheduler = solver.from_config(pipeline.scheduler.config, **options)
    codes = draw(pipeline)
    assert not torch.equal(codes, usual) and torch.equal(codes, draw(pipeline, chunk_size=2))
    pipeline.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is solver and torch.equal(draw(loaded), codes)


def test_saved_and_loaded_with_and_without_the_package(tmp_path, monkeypatch):
    pipeline = pipeline_of(tiny_unet())
    pipeline.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    assert isinstance(loaded, LatentDiffusionPipeline)
    images = draw(pipeline, output_type="np")
    assert images.shape == (5, 32, 32, 1) and (draw(loaded, output_type="np") == images).all()

    monkeypatch.setitem(sys.modules, "vq_ihdm", None)  # importing it fails from here on
    remote = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert not isinstance(remote, LatentDiffusionPipeline)
    assert (draw(remote, output_type="np") == images).all()


@pytest.mark.slow
def test_command_line_and_exact_resume(template_set, tmp_path):
    tiny_vq_model().save_pretrained(tmp_path / "vqvae")
    flags = [
        "--model", "ldm", "--dataset_name", template_set, "--vqvae", tmp_path / "vqvae",
        "--block_out_channels", 8, 16, "--layers_per_block", 1, "--norm_num_groups", 4,
        "--max_train_steps", 4, "--train_batch_size", 4, "--lr_warmup_steps", 0, "--checkpointing_steps", 2,
        "--validation_steps", 2, "--report_to", "none",
    ]  # fmt: skip
    run_script("train_baseline.py", *flags, "--output_dir", tmp_path / "whole")
    run_script(
        "train_baseline.py", *flags, "--output_dir", tmp_path / "resumed",
        "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-2",
    )  # fmt: skip
    files = ["checkpoint-4/state.safetensors", "pipeline/unet/diffusion_pytorch_model.safetensors", "samples.png"]
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes(), file
    assert 0 < json.loads((tmp_path / "whole" / "best" / "metrics.json").read_text())["squared_error"] < 2
    pipeline = load_pipeline(tmp_path / "whole" / "pipeline")
    assert isinstance(pipeline, LatentDiffusionPipeline) and pipeline.vqvae.config.scaling_factor != 1
    assert pipeline(1, num_inference_steps=2).images[0].size == (32, 32)
