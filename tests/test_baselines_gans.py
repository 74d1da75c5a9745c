"""The GANs: networks, losses and updates by hand, the pipeline's promises, training from the command line."""

import argparse
import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import refusal, run_script
from diffusers import DiffusionPipeline
from scipy.optimize import linear_sum_assignment
from torch import nn

import train_baseline
from vq_ihdm import GANPipeline, load_pipeline
from vq_ihdm.baselines import alphawgan, ccegan, vaegan, wgan
from vq_ihdm.baselines.alphawgan import AlphaWGAN
from vq_ihdm.baselines.ccegan import CCEGAN, sinkhorn_cost
from vq_ihdm.baselines.stacks import LatentDecoder, downsampling_stack, full_grid_encoder
from vq_ihdm.baselines.vaegan import VAEGAN, GaussianEncoder
from vq_ihdm.baselines.wgan import WGAN, gradient_penalty
from vq_ihdm.data.images import SliceTensors, load_slices
from vq_ihdm.training.config import add_training_arguments, parse_args
from vq_ihdm.training.preparation import make_accelerator

GANS = {"wgan": WGAN, "alphawgan": AlphaWGAN, "vaegan": VAEGAN, "ccegan": CCEGAN}


# ---- networks -------------------------------------------------------------------------------------------------
def test_shapes_and_ranges_of_the_stacks():
    images = torch.rand(2, 1, 32, 48) * 2 - 1
    assert downsampling_stack()(images).shape == (2, 512, 2, 3)
    assert full_grid_encoder(32, 48, 7)(images).shape == (2, 7)
    mean, log_variance = GaussianEncoder(32, 48, 7)(images)
    assert mean.shape == log_variance.shape == (2, 7)
    drawn = LatentDecoder(32, 48, latent_dim=7)(100 * torch.randn(2, 7))
    assert drawn.shape == (2, 1, 32, 48)
    assert -1 <= drawn.min() < drawn.max() <= 1


@pytest.mark.slow
def test_samples_are_normalised_as_samples_not_as_reconstructions():
    """Running statistics of latents ten times as large made samples black; the standing ones restore them."""
    torch.manual_seed(0)
    decoder = LatentDecoder(32, 32, latent_dim=7)
    for _ in range(50):
        decoder(10 * decoder.draw_latents(8))
    latents = decoder.draw_latents(256)
    with torch.no_grad():
        wanted = decoder.train()(latents)  # normalised by themselves
        spoiled = decoder.eval()(latents)
        decoder.estimate_statistics()
        restored = decoder(latents)
    assert not decoder.training
    assert (restored - wanted).abs().mean() < 0.2 * (spoiled - wanted).abs().mean()
    assert {layer.momentum for layer in decoder.modules() if isinstance(layer, nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("wgan", {"decoder": 63_564_736, "critic": 2_764_481}),
        (
            "alphawgan",
            {"encoder": 64_709_288, "decoder": 63_502_784, "critic": 2_818_241, "code_critic": 20_901_889},
        ),
        ("vaegan", {"encoder": 40_421_008, "decoder": 63_564_736, "discriminator": 2_818_241}),
        ("ccegan", {"encoder": 64_709_288, "decoder": 63_502_784, "critic": 2_818_241}),
    ],
)
def test_number_of_parameters_at_176(name, expected):
    with torch.device("meta"):
        gan = GANS[name](176, 176)
    counts = {part: sum(p.numel() for p in network.parameters()) for part, network in gan.named_children()}
    assert counts == expected
    documented = " + ".join(f"{count:,}" for count in expected.values())
    assert documented in " ".join(GANS[name].__doc__.split())


# ---- losses ---------------------------------------------------------------------------------------------------
REAL, RECONSTRUCTED, SAMPLED = (torch.tensor(scores)[:, None] for scores in ([1.0, 3.0], [0.5, -0.5], [-1.0, -3.0]))
IMAGES, RECONSTRUCTIONS = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 0.0]])  # L1 0.75, MSE 0.625


def test_wgan_losses_by_hand():
    assert wgan.critic_loss(REAL, SAMPLED).item() == -2 - 2
    assert wgan.generator_loss(SAMPLED).item() == 2


def test_gradient_penalty_of_a_linear_critic_by_hand():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    critic[1].weight.data = torch.tensor([[1.0, 2.0, 2.0, 4.0]])  # its gradient everywhere; norm 5
    real, fake = torch.randn(2, 3, 1, 2, 2).unbind()
    assert gradient_penalty(critic, real, fake).item() == pytest.approx((5 - 1) ** 2)
    per_pixel = gradient_penalty(critic, real, fake, per_pixel=True)
    assert per_pixel.item() == pytest.approx((0 + 1 + 1 + 9) / 4)
    per_pixel.backward()
    assert critic[1].weight.grad.abs().sum() > 0


def test_gradient_penalty_looks_between_real_and_fake():
    seen = []

    class Square(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return x.square().sum(1, keepdim=True) / 2  # its gradient at x is x

    real, fake = torch.zeros(1000, 1), torch.ones(1000, 1)
    penalty = gradient_penalty(Square(), real, fake)
    assert 0 <= seen[0].min() < 0.01 and 0.99 < seen[0].max() <= 1
    assert penalty.item() == pytest.approx(1 / 3, abs=0.03)  # E[(u - 1)^2] of a uniform u


def test_alphawgan_losses_by_hand():
    codes = torch.tensor([[4.0], [0.0]])
    loss = alphawgan.encoder_generator_loss(IMAGES, RECONSTRUCTIONS, codes, RECONSTRUCTED, SAMPLED)
    assert loss.item() == 10 * 0.75 - 2 - 0 - (-2)
    assert alphawgan.critic_loss(REAL, RECONSTRUCTED, SAMPLED).item() == -2 * 2 + 0 - 2


def test_vaegan_losses_by_hand():
    bce = F.binary_cross_entropy
    zeros, ones = torch.zeros(2, 1), torch.ones(2, 1)
    expected = bce(REAL.sigmoid(), ones) + bce(RECONSTRUCTED.sigmoid(), zeros) + bce(SAMPLED.sigmoid(), zeros)
    logits = (REAL, RECONSTRUCTED, SAMPLED)
    assert vaegan.discriminator_loss(*logits).item() == pytest.approx(expected.item())
    generator = vaegan.generator_loss(IMAGES, RECONSTRUCTIONS, *logits)
    assert generator.item() == pytest.approx(20 * 0.625 - expected.item())

    mean, log_variance = torch.randn(2, 3, 5).unbind()
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    encoder = vaegan.encoder_loss(IMAGES, RECONSTRUCTIONS, mean, log_variance)
    assert encoder.item() == pytest.approx(kl.item() + 10 * 0.625, rel=1e-5)


def test_ccegan_loss_by_hand():
    codes = torch.tensor([[1.0]]), torch.tensor([[3.0]])
    latents = torch.tensor([[0.0]]), torch.tensor([[1.0]])
    loss = ccegan.generator_loss(IMAGES, RECONSTRUCTIONS, RECONSTRUCTED, SAMPLED, codes, latents)
    assert loss.item() == 100 * 0.75 - 0 - (-2) + 50 * 4 + 50 * 1


def test_sinkhorn_cost_tends_to_that_of_the_best_assignment():
    torch.manual_seed(0)
    x, y = torch.randn(2, 12, 3).unbind()
    cost = torch.cdist(x, y) ** 2
    rows, columns = linear_sum_assignment(cost.numpy())
    best = cost[rows, columns].mean().item()
    costs = [sinkhorn_cost(x, y, epsilon, 5000, 0).item() for epsilon in (3.0, 0.3, 0.03)]
    assert costs[-1] == pytest.approx(best, rel=0.01)
    assert costs[0] > costs[1] > costs[2]


def test_sinkhorn_cost_draws_each_point_to_its_partner():
    y = torch.cartesian_prod(torch.arange(3.0), torch.arange(4.0))
    partner = torch.randperm(12)
    x = (y[partner] + 0.1 * torch.randn(12, 2)).requires_grad_()
    sinkhorn_cost(x, y, epsilon=0.01).backward()
    assert torch.allclose(x.grad, 2 * (x.detach() - y[partner]) / 12, atol=1e-5)


def test_sinkhorn_cost_of_strong_regularisation_is_the_mean_of_all_pairs():
    x, y = torch.randn(4, 2), torch.randn(6, 2)
    assert sinkhorn_cost(x, y, 1e5).item() == pytest.approx((torch.cdist(x, y) ** 2).mean().item(), rel=1e-3)


# ---- updates ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", GANS)
def test_a_step_lowers_the_loss_of_each_update(name):
    torch.manual_seed(0)
    gan = GANS[name](32, 32, latent_dim=8)
    images = torch.rand(4, 1, 32, 32) * 2 - 1
    for update in gan.updates():

        def loss(update=update):
            torch.manual_seed(1)  # the same latents and mixtures
            return update.loss(images)

        gan.zero_grad()
        before = loss()
        before.backward()
        parameters = [p for network in update.networks for p in network.parameters()]
        squares = sum(p.grad.square().sum() for p in parameters)
        assert squares > 0
        with torch.no_grad():
            for p in parameters:
                p -= 0.01 / squares * p.grad  # as long as the loss falls by 0.01 where it is straight
        assert 0.001 < before - loss() < 0.1, update.name


def test_released_wgan_is_the_other_way_round():
    assert [update.repeats for update in WGAN(32, 32, 8).updates()] == [5, 1]
    assert [update.repeats for update in WGAN(32, 32, 8, released=True).updates()] == [1, 5]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # of the network that never learns
def test_only_the_networks_of_an_update_learn(template_set, tmp_path):
    class CriticAlone(WGAN):
        def updates(self):
            return super().updates()[:1]

    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    parser.set_defaults(model="wgan", ema_decay=0.0, max_grad_norm=None, lr_warmup_steps=0, report_to="none")
    args = parse_args(parser, "", ["--output_dir", str(tmp_path)])
    args.max_train_steps, args.train_batch_size = 1, 4
    gan = CriticAlone(32, 32, 8)
    before = {name: p.clone() for name, p in gan.named_parameters()}
    train_set = SliceTensors(load_slices(str(template_set))["train"])
    train_baseline.train_adversarial(
        args, make_accelerator(args), gan, train_set, lambda decoder: ({"nothing": 0.0}, {})
    )
    for name, p in gan.named_parameters():
        if name.endswith("weight"):  # the penalised critic of differences has a bias that nothing moves
            assert torch.equal(p, before[name]) == name.startswith("decoder"), name


# ---- pipeline -------------------------------------------------------------------------------------------------
def draw(pipeline: DiffusionPipeline, **arguments):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(5, generator=torch.Generator().manual_seed(0), output_type="np", **arguments).images


@pytest.fixture
def gan() -> GANPipeline:
    torch.manual_seed(0)
    decoder = LatentDecoder(32, 48, latent_dim=8)
    decoder(decoder.draw_latents(64))  # statistics of the batch norm other than their initial ones
    return GANPipeline(decoder.eval())


def test_an_image_does_not_depend_on_its_batch(gan):
    images = draw(gan)
    assert images.shape == (5, 32, 48, 1) and images.std(0).mean() > 1e-3
    assert abs(draw(gan, chunk_size=2) - images).max() < 1e-5


def test_saved_and_loaded_with_and_without_the_package(gan, tmp_path, monkeypatch):
    gan.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    assert type(loaded) is GANPipeline
    for (name, saved), again in zip(
        gan.decoder.state_dict().items(), loaded.decoder.state_dict().values(), strict=True
    ):
        assert torch.equal(saved, again), name
    assert (draw(loaded) == draw(gan)).all()

    monkeypatch.setitem(sys.modules, "vq_ihdm", None)  # importing it fails from here on
    remote = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert not isinstance(remote, GANPipeline)
    assert (draw(remote) == draw(gan)).all()


# ---- command line ---------------------------------------------------------------------------------------------
def flags(name, template_set, steps):
    return [
        "--model", name, "--dataset_name", template_set, "--latent_dim", 8, "--max_train_steps", steps,
        "--train_batch_size", 4, "--checkpointing_steps", 1, "--validation_steps", 2, "--num_validation_images", 8,
        "--report_to", "none",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", GANS)
def test_command_line(name, template_set, tmp_path):
    run_script("train_baseline.py", *flags(name, template_set, 1), "--output_dir", tmp_path)
    metrics = json.loads((tmp_path / "best" / "metrics.json").read_text())
    assert math.isfinite(metrics["pixel_mmd"])
    batches = {"wgan": 6, "alphawgan": 3, "vaegan": 3, "ccegan": 5}[name]
    assert (metrics["step"], metrics["images_seen"]) == (1, 4 * batches)
    assert load_pipeline(tmp_path / "pipeline")(1).images[0].size == (32, 32)


@pytest.mark.slow
def test_command_line_of_the_released_wgan(template_set, tmp_path):
    run_script("train_baseline.py", *flags("wgan", template_set, 1), "--released", "--output_dir", tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["released"]
    metrics = json.loads((tmp_path / "best" / "metrics.json").read_text())
    assert metrics["images_seen"] == 4 * 6  # one step of the critic to five of the generator


@pytest.mark.parametrize("name", ["alphawgan", "vaegan"])
def test_vectors_cannot_be_normalised_over_a_single_image(name, template_set, tmp_path):
    arguments = [*flags(name, template_set, 1), "--train_batch_size", 1, "--output_dir", tmp_path / "run"]
    assert "--train_batch_size 2 or more" in refusal(run_script, "train_baseline.py", *arguments)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--num_validation_images", 1), "one held-out slice does not tell"),
        (("--resolution", 16), "at least 32 pixels a side, these have 16"),
    ],
)
def test_what_a_gan_cannot_learn_from(given, said, template_set, tmp_path):
    arguments = [*flags("wgan", template_set, 1), *given, "--output_dir", tmp_path / "run"]
    assert said in refusal(run_script, "train_baseline.py", *arguments)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_exact_resume(template_set, tmp_path):
    run_script("train_baseline.py", *flags("ccegan", template_set, 2), "--output_dir", tmp_path / "whole")
    run_script(
        "train_baseline.py", *flags("ccegan", template_set, 2), "--output_dir", tmp_path / "resumed",
        "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-1",
    )  # fmt: skip
    for file in ("checkpoint-2/state.safetensors", "samples.png"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes(), file
