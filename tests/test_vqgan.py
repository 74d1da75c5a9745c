"""The pieces of stage 1: losses, discriminator, codebook, tokenizer, perceptual loss."""

import pytest
import torch
from conftest import CODE_DIM, NUM_CODES, tiny_vq_model
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import alexnet

from vq_ihdm.errors import InputError
from vq_ihdm.vqgan.codebook import (
    CodeUsage,
    code_vectors,
    draw_code_vectors,
    normalize_codebook,
    restart_dead_codes,
    usage_and_perplexity,
)
from vq_ihdm.vqgan.discriminator import PatchDiscriminator, diff_augment
from vq_ihdm.vqgan.losses import adaptive_weight, hinge_loss_discriminator, hinge_loss_generator
from vq_ihdm.vqgan.model import TrainableVQModel, create_vq_model, downsampling_factor, load_vq_model
from vq_ihdm.vqgan.perceptual import PerceptualLoss
from vq_ihdm.vqgan.projected_discriminator import ProjectedDiscriminator
from vq_ihdm.vqgan.windows import crop, draw_windows

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ---- losses -------------------------------------------------------------------------------------------------------


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([[-2.0, 0.0], [1.0, -0.5]])
    # real: 0, 0.5, 2, 0 -> 0.625; fake: 0, 1, 2, 0.5 -> 0.875
    assert hinge_loss_discriminator([real], [fake]).item() == pytest.approx(0.5 * (0.625 + 0.875))
    assert hinge_loss_generator([fake]).item() == pytest.approx(0.375)
    # The levels of a discriminator count alike, whatever their size: 0.75 + 0.5 (0 + 3) and 0.375 - 2.
    real, fake = [real, torch.tensor([1.0])], [fake, torch.tensor([2.0])]
    assert hinge_loss_discriminator(real, fake).item() == pytest.approx(0.75 + 1.5)
    assert hinge_loss_generator(fake).item() == pytest.approx(0.375 - 2)


def decoder_losses(adversarial_scale: float):
    """A tiny decoder's last layer, the losses of eq. 7 through it, and what went in and out."""
    model = tiny_vq_model()
    captured = {}
    model.decoder.conv_out.register_forward_pre_hook(lambda _, inputs: captured.update(value=inputs[0].detach()))
    output = model.decode(torch.randn(2, CODE_DIM, 8, 8), force_not_quantize=True).sample
    target = torch.rand_like(output) * 2 - 1
    reconstruction = (output - target).abs().mean()
    adversarial = adversarial_scale * hinge_loss_generator(PatchDiscriminator(8)([output]))
    return model.decoder.conv_out.weight, output, captured["value"], reconstruction, adversarial


@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_layer(scale):
    kernel, output, last_input, reconstruction, adversarial = decoder_losses(scale)
    gradients = [
        torch.autograd.grad(loss, (kernel, output), retain_graph=True) for loss in (reconstruction, adversarial)
    ]
    expected = gradients[0][0].norm() / gradients[1][0].norm()
    assert 0 < expected < 1  # else the clamp would hide what is tested
    weight = adaptive_weight(gradients[0][1], gradients[1][1], last_input, kernel)
    torch.testing.assert_close(weight, expected, rtol=1e-3, atol=0)


def test_adaptive_weight_is_at_most_one():
    kernel, output, last_input, reconstruction, adversarial = decoder_losses(1e-4)
    gradients = [torch.autograd.grad(loss, output, retain_graph=True)[0] for loss in (reconstruction, adversarial)]
    assert adaptive_weight(*gradients, last_input, kernel) == 1
    assert adaptive_weight(gradients[0], torch.zeros_like(output), last_input, kernel) == 1


# ---- discriminator ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "logits"), [((32, 32), (2, 2)), ((176, 176), (20, 20)), ((48, 64), (4, 6))])
def test_discriminator_judges_patches(size, logits):
    (found,) = PatchDiscriminator(8)([torch.randn(2, 1, *size)])
    assert found.shape == (2, 1, *logits)


def test_discriminator_judges_each_image_alone():
    discriminator, images = PatchDiscriminator(8), torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(discriminator([images])[0][1:2], discriminator([images[1:2]])[0])


def test_projected_discriminator_judges_every_level_but_the_finest(perceptual):
    features = perceptual.features(torch.rand(3, 1, 64, 64) * 2 - 1)
    discriminator = ProjectedDiscriminator(perceptual.feature_channels, 8).eval()
    logits = discriminator(features)
    assert [level.shape for level in logits] == [(3, 1, *maps.shape[2:]) for maps in features[1:]]
    alone = discriminator([maps[1:2] for maps in features])
    for level, one in zip(logits, alone, strict=True):
        torch.testing.assert_close(level[1:2], one)


def test_projected_discriminator_is_blind_to_the_scale_of_features(perceptual):
    """It sees their pattern: a level of large activations counts no more than one of small ones."""
    features = perceptual.features(torch.rand(2, 1, 64, 64) * 2 - 1)
    discriminator = ProjectedDiscriminator(perceptual.feature_channels, 8).eval()
    scaled = [maps * 10**level for level, maps in enumerate(features)]
    for level, same in zip(discriminator(features), discriminator(scaled), strict=True):
        torch.testing.assert_close(level, same, rtol=1e-4, atol=1e-5)


def test_projections_are_fixed_and_saved(perceptual):
    first, second = (ProjectedDiscriminator(perceptual.feature_channels, 8) for _ in range(2))
    assert not any("projection" in name for name, _ in first.named_parameters())
    assert not torch.equal(first.projection_0, second.projection_0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.projection_0, second.projection_0)


def test_projected_discriminator_learns_to_tell_noise_from_smooth_images(perceptual):
    discriminator = ProjectedDiscriminator(perceptual.feature_channels, 8)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2, betas=discriminator.betas)
    noise = perceptual.features(torch.rand(4, 1, 64, 64) * 2 - 1)
    smooth = perceptual.features(torch.linspace(-1, 1, 64).expand(4, 1, 64, 64))
    losses = []
    for _ in range(20):
        losses.append(hinge_loss_discriminator(discriminator(smooth), discriminator(noise)))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 2


# ---- windows ------------------------------------------------------------------------------------------------------


def test_windows_see_every_pixel_equally_often():
    rows, columns = draw_windows(4000, (12, 20), 5, torch.device("cpu"))
    assert rows.shape == columns.shape == (4000, 5)
    for indices, length in ((rows, 12), (columns, 20)):
        share = torch.bincount(indices.flatten(), minlength=length) / len(indices)
        assert (share - 5 / length).abs().max() < 0.04  # five standard deviations


def test_a_window_is_cut_from_its_own_image_and_gradients_find_the_way_back():
    images = torch.rand(3, 1, 12, 20, requires_grad=True)
    rows, columns = windows = draw_windows(3, (12, 20), 5, torch.device("cpu"))
    cut = crop(images, windows)
    for b in range(3):
        assert torch.equal(cut[b, 0], images[b, 0][rows[b]][:, columns[b]])
    cut.sum().backward()
    assert (images.grad.sum(dim=(1, 2, 3)) == 25).all() and images.grad.max() == 1


def test_a_window_no_smaller_than_the_image_is_the_image():
    images = torch.rand(2, 1, 12, 20)
    assert torch.equal(crop(images, draw_windows(2, (12, 20), 20, torch.device("cpu"))), images)


def augmented(images: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)
    return diff_augment(images)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_augmentation_keeps_the_shape_and_is_random(size):
    images = torch.randn(4, 1, *size)
    first, second = diff_augment(images), diff_augment(images)
    assert first.shape == images.shape and not torch.equal(first, second)
    assert torch.equal(augmented(images), augmented(images))


def test_augmentation_is_differentiable():
    """Given its draws it is affine in the images: a finite difference of any size is the derivative."""
    images = torch.randn(3, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(images)
    (gradient,) = torch.autograd.grad((augmented(images) ** 2).sum(), images)
    change = augmented(images + direction) - augmented(images)
    torch.testing.assert_close((gradient * direction).sum(), (2 * augmented(images) * change).sum())
    assert gradient.any()


def test_augmentation_draws_for_each_image():
    same = torch.randn(1, 1, 32, 32).expand(8, -1, -1, -1)
    results = diff_augment(same).flatten(1)
    assert len(torch.unique(results, dim=0)) == 8


def test_augmentation_mixes_no_images():
    images = torch.randn(3, 1, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(augmented(images)[1].sum(), images)
    assert gradient[1].any() and not gradient[0].any() and not gradient[2].any()


# ---- codebook -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 60, 150])
def test_codes_are_drawn_from_the_data(count):
    vectors = 5 * torch.randn(60, 3)
    codes = draw_code_vectors(vectors, count)
    distances = torch.cdist(codes, vectors)
    assert codes.shape == (count, 3) and distances.min(1).values.max() < 0.1
    # Evenly: no vector serves twice before every other has served once; and no two codes coincide.
    served = torch.bincount(distances.argmin(1), minlength=60)
    assert served.max() - served.min() <= 1
    assert len(torch.unique(codes, dim=0)) == count


def test_code_vectors_are_the_latents_of_positions():
    latents = torch.randn(2, 3, 4, 5)
    vectors = code_vectors(latents)
    assert vectors.shape == (40, 3)
    assert torch.equal(vectors[20 + 5 * 3 + 2], latents[1, :, 3, 2])


def test_usage_and_perplexity_by_hand():
    assert usage_and_perplexity(torch.tensor([5.0, 5, 5, 5])) == pytest.approx((1.0, 4.0))
    assert usage_and_perplexity(torch.tensor([7.0, 0, 0, 0])) == pytest.approx((0.25, 1.0))
    share, perplexity = usage_and_perplexity(torch.tensor([2.0, 1, 1, 0]))
    assert (share, perplexity) == pytest.approx((0.75, 2**1.5))


def test_usage_adds_up_over_batches_and_through_a_checkpoint():
    usage = CodeUsage(4)
    usage.update(torch.tensor([[[0, 1], [1, 3]]]))
    usage.update(torch.tensor([3, 3]))
    assert usage.counts.tolist() == [1, 2, 0, 3]
    resumed = CodeUsage(4)
    resumed.load_state_dict(usage.state_dict())
    usage.reset()
    assert resumed.counts.tolist() == [1, 2, 0, 3] and usage.counts.tolist() == [0, 0, 0, 0]


def test_restart_moves_dead_codes_and_forgets_their_statistics():
    codebook, average = nn.Embedding(6, 3), nn.Embedding(6, 3).requires_grad_(False)
    optimizer = torch.optim.Adam(codebook.parameters(), lr=0.1)
    codebook(torch.arange(6)).square().sum().backward()
    optimizer.step()
    moments = optimizer.state[codebook.weight]
    before = [codebook.weight.detach().clone(), average.weight.clone(), *(moments[n].clone() for n in MOMENTS)]
    counts, latents = torch.tensor([3.0, 0, 1, 0, 2, 5]), torch.randn(2, 3, 4, 4) + 50
    assert restart_dead_codes(codebook, average, optimizer, counts, latents) == 2

    dead = counts == 0
    after = [codebook.weight.detach(), average.weight, *(moments[name] for name in MOMENTS)]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[~dead], old[~dead])
    assert torch.cdist(codebook.weight[dead], code_vectors(latents)).min(1).values.max() < 0.1
    assert torch.equal(average.weight[dead], codebook.weight[dead])
    assert not any(moments[name][dead].any() for name in MOMENTS)
    assert all(moments[name][~dead].all() for name in MOMENTS)


def test_restart_leaves_a_living_codebook_alone():
    codebook = nn.Embedding(4, 3)
    before = codebook.weight.detach().clone()
    optimizer = torch.optim.Adam(codebook.parameters())
    assert restart_dead_codes(codebook, nn.Embedding(4, 3), optimizer, torch.ones(4), torch.randn(1, 3, 2, 2)) == 0
    assert torch.equal(codebook.weight, before)


# ---- tokenizer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 3, 5])
def test_downsampling_factor(levels):
    model = create_vq_model(32, [8] * levels, 1, CODE_DIM, CODE_DIM, NUM_CODES, 4)
    factor = downsampling_factor(model)
    assert model.encode(torch.randn(1, 1, 32, 48)).latents.shape == (1, CODE_DIM, 32 // factor, 48 // factor)


def test_latent_channels_may_differ_from_the_dimension_of_a_code():
    model = TrainableVQModel(create_vq_model(32, [8, 8], 1, 16, 4, NUM_CODES, 4), l2_normalized_codes=False)
    reconstructions, _, codes, latents = model(torch.randn(2, 1, 32, 32))
    assert (reconstructions.shape, codes.shape, latents.shape) == ((2, 1, 32, 32), (2, 16, 16), (2, 4, 16, 16))


def test_forward_is_encode_quantise_decode():
    model, images = tiny_vq_model(), torch.randn(2, 1, 32, 32)
    reconstructions, loss, codes, latents = TrainableVQModel(model, l2_normalized_codes=False)(images)
    assert torch.equal(latents, model.encode(images).latents)
    assert torch.equal(codes.flatten(), torch.cdist(code_vectors(latents), model.quantize.embedding.weight).argmin(1))
    torch.testing.assert_close(reconstructions, model.decode(latents).sample)
    error = (latents - model.quantize.embedding(codes).permute(0, 3, 1, 2)).square().mean()
    torch.testing.assert_close(loss, 1.25 * error)


def test_beta_is_on_the_commitment_term_after_a_load_too(tmp_path):
    """Eq. 4: codes follow latents with weight 1, latents follow codes with weight 0.25."""
    tiny_vq_model().save_pretrained(tmp_path)
    for model in (tiny_vq_model(), load_vq_model(tmp_path)):
        latents = torch.randn(2, CODE_DIM, 4, 4, requires_grad=True)
        _, loss, (_, _, codes) = model.quantize(latents)
        on_latents, on_codebook = torch.autograd.grad(loss, (latents, model.quantize.embedding.weight))
        error = code_vectors(latents) - model.quantize.embedding(codes)
        torch.testing.assert_close(code_vectors(on_latents), 0.25 * 2 * error / error.numel())
        expected = torch.zeros_like(on_codebook).index_add_(0, codes, -2 * error / error.numel())
        torch.testing.assert_close(on_codebook, expected)


def test_gradients_reach_encoder_codebook_and_decoder():
    """With the loss of training every parameter is used: `DistributedDataParallel` asks for no less."""
    for l2_normalized_codes in (False, True):
        model = TrainableVQModel(tiny_vq_model(), l2_normalized_codes).train()
        images = torch.randn(2, 1, 32, 32)
        reconstructions, loss, _, _ = model(images)
        ((reconstructions - images).abs().mean() + loss).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_unit_norm_codes_need_no_normalised_latents():
    """What training picks from normalised latents a stock `VQModel` picks from the raw ones."""
    model = tiny_vq_model()
    normalize_codebook(model.quantize.embedding)
    torch.testing.assert_close(model.quantize.embedding.weight.norm(dim=1), torch.ones(NUM_CODES))
    images = torch.randn(4, 1, 32, 32)
    training = TrainableVQModel(model, l2_normalized_codes=True)
    _, _, codes, latents = training(images)
    torch.testing.assert_close(latents.norm(dim=1), torch.ones(4, 8, 8))
    raw = model.encode(images).latents
    assert (raw.norm(dim=1) - 1).abs().mean() > 0.05  # else nothing is tested
    assert torch.equal(model.quantize(raw)[2][2], codes.flatten())
    assert len(codes.unique()) > 3


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="holds no VQModel"):
        load_vq_model(tmp_path / "missing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no VQModel"):
        load_vq_model(tmp_path)


def test_a_loaded_model_is_the_saved_one_in_eval_mode(tmp_path):
    model = tiny_vq_model().train()
    model.save_pretrained(tmp_path)
    loaded = load_vq_model(tmp_path)
    assert not loaded.training
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


# ---- perceptual loss ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def perceptual(trunk):
    return PerceptualLoss("alex", str(trunk))


def test_perceptual_loss_has_the_trunk_of_the_file(perceptual, trunk):
    again = PerceptualLoss("alex", str(trunk))
    first, second = torch.rand(2, 2, 1, 48, 48) * 2 - 1
    assert perceptual(first, second) == again(first, second) > 0
    torch.manual_seed(1)
    net = alexnet(weights=None)
    net.features.load_state_dict({k.removeprefix("features."): v for k, v in load_file(trunk).items()})
    inputs = perceptual.lpips.scaling_layer(first.expand(-1, 3, -1, -1))
    torch.testing.assert_close(perceptual.lpips.net(inputs).relu1, net.features[:2](inputs))


def test_perceptual_loss_is_a_fixed_measure(perceptual):
    first, second = torch.rand(2, 2, 1, 48, 48) * 2 - 1
    perceptual.train()
    assert perceptual(first, first) == 0
    assert perceptual(first, second) == perceptual(first, second)
    assert not any(p.requires_grad for p in perceptual.parameters())


def test_gradients_pass_through_the_perceptual_loss(perceptual):
    images = torch.rand(2, 1, 48, 48)
    reconstructions = torch.rand(2, 1, 48, 48, requires_grad=True)
    (gradient,) = torch.autograd.grad(perceptual(images, reconstructions), reconstructions)
    assert gradient.any() and torch.isfinite(gradient).all()


def test_a_random_window_estimates_the_loss_of_the_whole(perceptual):
    """Stationary noise: every window is like the whole, up to edge effects of the trunk."""
    first, second = torch.rand(2, 1, 1, 160, 160) * 2 - 1
    windows = draw_windows(30, (160, 160), 64, torch.device("cpu"))
    cut = perceptual(crop(first.expand(30, -1, -1, -1), windows), crop(second.expand(30, -1, -1, -1), windows))
    assert cut.item() == pytest.approx(perceptual(first, second).item(), rel=0.1)


def test_a_wrong_trunk_is_refused_in_one_sentence(trunk, tmp_path):
    other_trunk = tmp_path / "vgg.safetensors"
    save_file({f"features.{n}.{kind}": torch.zeros(1) for n in (0, 2, 5) for kind in ("weight", "bias")}, other_trunk)
    with pytest.raises(InputError, match="lacks features"):
        PerceptualLoss("alex", str(other_trunk))
    wrong_shapes = tmp_path / "wrong.safetensors"
    save_file({name: tensor[:1].clone() for name, tensor in load_file(trunk).items()}, wrong_shapes)
    with pytest.raises(InputError, match="is no alex trunk") as error:
        PerceptualLoss("alex", str(wrong_shapes))
    assert "\n" not in str(error.value)
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors")
    for path in (text, tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(InputError, match="cannot be read") as error:
            PerceptualLoss("alex", str(path))
        assert "\n" not in str(error.value)
