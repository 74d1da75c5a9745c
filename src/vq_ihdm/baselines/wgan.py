"""WGAN-GP (Gulrajani et al., 2017), with the networks of Kwon et al. (2019)."""

import torch
from torch import nn

from .stacks import CHANNELS, LatentDecoder, downsampling_stack
from .updates import Update


class WGAN(nn.Module):
    """Generator and critic: at 176 x 176 63,564,736 + 2,764,481 parameters.

    Args:
        height, width: of the slices, multiples of 16, at least `SMALLEST_SIDE`.
        latent_dim: size of a latent.
        released: train as the code released by Kwon et al. does, from which published figures of this baseline come:
            one critic step and then five generator steps, not the reverse, and a `gradient_penalty` that asks for
            norm 1 at every pixel, not of the whole gradient.
    """

    PENALTY_WEIGHT = 10.0  # lambda
    SMALLEST_SIDE = 32  # leaves the critic one cell

    def __init__(self, height: int, width: int, latent_dim: int = 1000, released: bool = False):
        super().__init__()
        self.released = released
        self.decoder = LatentDecoder(height, width, latent_dim)
        self.critic = nn.Sequential(
            downsampling_stack(), nn.Conv2d(CHANNELS[-1], 1, 4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def updates(self) -> list[Update]:
        critic_steps, generator_steps = (1, 5) if self.released else (5, 1)
        return [
            Update("critic", [self.critic], self.critic_update, critic_steps),
            Update("generator", [self.decoder], self.generator_update, generator_steps),
        ]

    def critic_update(self, images: torch.Tensor) -> torch.Tensor:
        samples = self.decoder(self.decoder.draw_latents(len(images)))
        penalty = gradient_penalty(self.critic, images, samples, per_pixel=self.released)
        return critic_loss(self.critic(images), self.critic(samples)) + self.PENALTY_WEIGHT * penalty

    def generator_update(self, images: torch.Tensor) -> torch.Tensor:
        samples = self.decoder(self.decoder.draw_latents(len(images)))
        return generator_loss(self.critic(samples))


def critic_loss(real_scores: torch.Tensor, fake_scores: torch.Tensor) -> torch.Tensor:
    """E[D(G(z))] - E[D(x)]: minus the estimate of the Wasserstein distance."""
    return fake_scores.mean() - real_scores.mean()


def generator_loss(fake_scores: torch.Tensor) -> torch.Tensor:
    """-E[D(G(z))]."""
    return -fake_scores.mean()


def gradient_penalty(
    critic: nn.Module, real: torch.Tensor, fake: torch.Tensor, per_pixel: bool = False
) -> torch.Tensor:
    """E[(|grad D(x)| - 1)^2] at points x drawn uniformly between real and generated ones.

    Args:
        critic: (B, ...) -> (B, 1).
        real, fake: (B, ...).
        per_pixel: take the norm along the channel axis alone, at every pixel, instead of the whole gradient's.
    """
    share = torch.rand(len(real), *(1 for _ in real.shape[1:]), device=real.device)
    between = (share * real + (1 - share) * fake).detach().float().requires_grad_()
    with torch.autocast(between.device.type, enabled=False):  # half precision would lose small gradients
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norm = gradient.norm(dim=1) if per_pixel else gradient.flatten(1).norm(dim=1)
    return ((norm - 1) ** 2).mean()
