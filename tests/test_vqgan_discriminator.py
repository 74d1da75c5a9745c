"""The PatchGAN, and the augmentation of what it sees."""

import pytest
import torch

from vq_ihdm.vqgan.discriminator import PatchDiscriminator, diff_augment


@pytest.mark.parametrize(("size", "logits"), [((32, 32), (2, 2)), ((176, 176), (20, 20)), ((48, 64), (4, 6))])
def test_discriminator_judges_patches(size, logits):
    (found,) = PatchDiscriminator(8)([torch.randn(2, 1, *size)])
    assert found.shape == (2, 1, *logits)


def test_discriminator_judges_each_image_alone():
    discriminator, images = PatchDiscriminator(8), torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(discriminator([images])[0][1:2], discriminator([images[1:2]])[0])


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
