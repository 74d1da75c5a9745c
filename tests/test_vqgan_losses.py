"""The losses of stage 1, by hand."""

import pytest
import torch
from conftest import CODE_DIM, tiny_vq_model

from vq_ihdm.vqgan.discriminator import PatchDiscriminator
from vq_ihdm.vqgan.losses import (
    adaptive_weight,
    discriminator_loss,
    hinge_loss_discriminator,
    hinge_loss_generator,
)


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([[-2.0, 0.0], [1.0, -0.5]])
    # real: 0, 0.5, 2, 0 -> 0.625; fake: 0, 1, 2, 0.5 -> 0.875
    assert hinge_loss_discriminator([real], [fake]).item() == pytest.approx(0.5 * (0.625 + 0.875))
    assert hinge_loss_generator([fake]).item() == pytest.approx(0.375)
    # The levels of a discriminator count alike, whatever their size: 0.75 + 0.5 (0 + 3) and 0.375 - 2.
    real, fake = [real, torch.tensor([1.0])], [fake, torch.tensor([2.0])]
    assert hinge_loss_discriminator(real, fake).item() == pytest.approx(0.75 + 1.5)
    assert hinge_loss_generator(fake).item() == pytest.approx(0.375 - 2)


def test_one_pass_judges_both_sides_as_two_would():
    discriminator = PatchDiscriminator(8)
    real, fake = [torch.randn(3, 1, 32, 32)], [torch.randn(3, 1, 32, 32)]
    expected = hinge_loss_discriminator(discriminator(real), discriminator(fake))
    torch.testing.assert_close(discriminator_loss(discriminator, real, fake), expected)


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
