"""What a reconstruction is told: each loss's gradient at the pixels, and when the discriminator takes part."""

import pytest
import torch
import torch.nn.functional as F
from conftest import CODE_DIM, tiny_vq_model

from vq_ihdm.vqgan.criterion import Criterion
from vq_ihdm.vqgan.discriminator import PatchDiscriminator, diff_augment
from vq_ihdm.vqgan.losses import adaptive_weight, discriminator_loss, hinge_loss_generator
from vq_ihdm.vqgan.perceptual import PerceptualLoss
from vq_ihdm.vqgan.projected_discriminator import ProjectedDiscriminator

TEXTURE_WEIGHT, DISC_WEIGHT = 0.25, 0.8
METHODS = {"lpips": "distance", "texture": "texture"}
WEIGHTS = {"l1": 1, "lpips": 0.5, "texture": TEXTURE_WEIGHT}


@pytest.fixture(params=["patch", "projected"])
def parts(request, trunk):
    """A criterion of either kind, with slices and their reconstructions, through the last layer it watches."""
    torch.manual_seed(0)
    perceptual, discriminator = None, PatchDiscriminator(8)
    if request.param == "projected":
        perceptual = PerceptualLoss("alex", trunk)
        discriminator = ProjectedDiscriminator(perceptual.feature_channels, 8).eval()
    vqvae = tiny_vq_model()
    criterion = Criterion(discriminator, vqvae.decoder.conv_out, perceptual, 32, 0.5, TEXTURE_WEIGHT, DISC_WEIGHT)
    output = vqvae.decode(torch.randn(2, CODE_DIM, 8, 8), force_not_quantize=True).sample
    return criterion, torch.rand(2, 1, 32, 32) * 2 - 1, output.detach().requires_grad_()


def test_without_the_discriminator_nothing_is_prepared_for_it(parts):
    """Augmenting pixels that nobody judges would be work, and would move the random stream."""
    criterion, images, output = parts
    before = torch.get_rng_state()
    gradient, losses, judged = criterion(images, output, adversarial=False)
    assert judged is None and losses.keys() <= {"l1", "lpips", "texture"}
    if criterion.perceptual is None:
        assert torch.equal(torch.get_rng_state(), before)
    expected = {"l1": (images - output).abs().mean()}
    if criterion.perceptual is not None:  # whose window is the whole image
        features = criterion.perceptual.features(images), criterion.perceptual.features(output)
        expected |= {name: getattr(criterion.perceptual, method)(*features) for name, method in METHODS.items()}
    assert losses == {name: loss.detach() for name, loss in expected.items()}
    total = sum(WEIGHTS[name] * loss for name, loss in expected.items())
    torch.testing.assert_close(gradient, *torch.autograd.grad(total, output))


def test_nothing_that_is_returned_holds_a_graph(parts):
    criterion, images, output = parts
    gradient, losses, (real, fake) = criterion(images, output, adversarial=True)
    assert not any(tensor.requires_grad for tensor in (gradient, *losses.values(), *real, *fake))


def test_what_is_judged_is_the_same_whether_the_generator_learns_or_waits(parts):
    criterion, images, output = parts
    images[:, :, :8] = -1.0
    with torch.no_grad():
        output[:, :, :8] = -1.5
    torch.manual_seed(1)
    _, _, judged = criterion(images, output, adversarial=True)
    torch.manual_seed(1)
    for learning, waiting in zip(judged, criterion.judged(images, output), strict=True):
        assert all(map(torch.equal, learning, waiting))


def test_the_discriminator_learns_nothing_of_the_generator(parts):
    criterion, images, output = parts
    for judged in (criterion(images, output, adversarial=True)[2], criterion.judged(images, output)):
        discriminator_loss(criterion.discriminator, *judged).backward()
        assert all(parameter.grad is not None for parameter in criterion.discriminator.parameters())
        assert output.grad is None


def test_the_adversarial_loss_enters_by_its_weights(parts):
    criterion, images, output = parts
    torch.manual_seed(1)
    alone, _, _ = criterion(images, output, adversarial=False)
    torch.manual_seed(1)
    gradient, losses, (_, fake) = criterion(images, output, adversarial=True)
    torch.testing.assert_close(losses["gan"], hinge_loss_generator(criterion.discriminator(fake)))
    assert 0 < losses["lambda"] <= 1
    torch.manual_seed(1)
    if criterion.perceptual is None:  # the same augmentation, to differentiate once more
        diff_augment(images)
        fake = [diff_augment(output)]
    else:
        fake = criterion.perceptual.features(output)
    (of_gan,) = torch.autograd.grad(hinge_loss_generator(criterion.discriminator(fake)), output)
    torch.testing.assert_close(gradient, alone + DISC_WEIGHT * losses["lambda"] * of_gan)


def test_beyond_an_end_of_the_scale_where_the_scan_ends_too_nothing_is_wrong(parts):
    """As it is shown, air is black however far below the scale it lies; tissue is to come back from there."""
    criterion, images, output = parts
    images[:, :, :8], images[:, :, 8:12] = -1.0, 1.0
    with torch.no_grad():
        output[:, :, :16] = -1.5
        output[:, :, 8:12] = 1.5
    torch.manual_seed(1)
    gradient, losses, _ = criterion(images, output, adversarial=False)
    assert (gradient[:, :, :12] == 0).all() and (gradient[:, :, 12:16] != 0).all()
    torch.manual_seed(1)
    _, as_shown, _ = criterion(images, torch.where(images.abs() >= 1, images, output), adversarial=False)
    assert all(torch.equal(loss, as_shown[name]) for name, loss in losses.items())


def test_air_has_no_part_in_the_adversarial_loss(parts):
    """Neither by a gradient there nor by the weight: both are those of tissue."""
    criterion, images, output = parts
    images[:, :, :8] = -1.0
    torch.manual_seed(1)
    alone, _, _ = criterion(images, output, adversarial=False)
    torch.manual_seed(1)
    gradient, losses, _ = criterion(images, output, adversarial=True)
    assert torch.equal(gradient[:, :, :8], alone[:, :, :8])
    added = ((gradient - alone) / DISC_WEIGHT / losses["lambda"])[:, :, 8:]
    tissue = [F.pad(part, (0, 0, 8, 0)) for part in (alone[:, :, 8:], added)]
    expected = adaptive_weight(*tissue, criterion.last_input, criterion.last_layer.weight)
    torch.testing.assert_close(losses["lambda"], expected, rtol=1e-3, atol=0)
    assert 0 < losses["lambda"] < 1


def test_half_precision_loses_no_gradient(trunk):
    """On its way through the trunk the gradient of a small weight, or of many pixels, falls below float16."""
    torch.manual_seed(0)
    perceptual = PerceptualLoss("alex", trunk)
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    output = (images + 0.1 * torch.randn_like(images)).requires_grad_()
    weight = 2.0**-13
    criterion = Criterion(PatchDiscriminator(8), tiny_vq_model().decoder.conv_out, perceptual, 32, weight, weight, 1)
    (l1,) = torch.autograd.grad((images - output).abs().mean(), output)
    full, _, _ = criterion(images, output, adversarial=False)
    with torch.autocast("cpu", dtype=torch.float16):
        half, _, _ = criterion(images, output, adversarial=False)
    error = (half - full).norm() / (full - l1).norm()
    assert error < 0.1
