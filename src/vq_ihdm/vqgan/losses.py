"""The losses of a VQGAN (Esser et al., 2021)."""

import torch
import torch.nn.functional as F
from torch import nn


def hinge_loss_discriminator(real: list[torch.Tensor], fake: list[torch.Tensor]) -> torch.Tensor:
    """0.5 E[max(0, 1 - D(x))] + 0.5 E[max(0, 1 + D(x^))], summed over the maps of logits a discriminator returns."""
    return sum(0.5 * (F.relu(1 - r).mean() + F.relu(1 + f).mean()) for r, f in zip(real, fake, strict=True))


def discriminator_loss(discriminator: nn.Module, real: list[torch.Tensor], fake: list[torch.Tensor]) -> torch.Tensor:
    """`hinge_loss_discriminator` of what a discriminator says of images and of reconstructions.

    Both sides go down in one pass: what wraps a network for several processes allows one a backward pass.

    Args:
        real, fake: what `Criterion` says is judged, the first axis the batch.
    """
    both = [torch.cat([r, f]) for r, f in zip(real, fake, strict=True)]
    logits = [level.float().chunk(2) for level in discriminator(both)]
    return hinge_loss_discriminator(*zip(*logits, strict=True))


def hinge_loss_generator(fake: list[torch.Tensor]) -> torch.Tensor:
    """-E[D(x^)], summed over the maps of logits."""
    return sum(-logits.mean() for logits in fake)


def adaptive_weight(
    reconstruction_grad: torch.Tensor,
    adversarial_grad: torch.Tensor,
    last_input: torch.Tensor,
    kernel: torch.Tensor,
) -> torch.Tensor:
    """lambda = |grad_L of the reconstruction loss| / |grad_L of the adversarial loss| (VQGAN, eq. 7), at most 1.

    grad_L is the gradient with respect to the weights of the decoder's last layer, a convolution of stride 1.
    It is worked out here, in float32, from the gradients at the layer's output, so that neither loss has to be
    differentiated twice and half precision cannot underflow. Unclamped, the weight explodes whenever the
    discriminator saturates, which is how a GAN term wrecks good reconstructions.

    Args:
        reconstruction_grad, adversarial_grad: gradients of both losses at the output, (B, 1, H, W).
        last_input: (B, C, H, W) what went into the last layer.
        kernel: its weights, (1, C, k, k).
    """

    def norm(output_grad: torch.Tensor) -> torch.Tensor:
        with torch.autocast(kernel.device.type, enabled=False):
            return torch.nn.grad.conv2d_weight(
                last_input.float(), kernel.shape, output_grad.float(), padding=kernel.shape[-1] // 2
            ).norm()

    return (norm(reconstruction_grad) / (norm(adversarial_grad) + 1e-6)).clamp(max=1.0)
