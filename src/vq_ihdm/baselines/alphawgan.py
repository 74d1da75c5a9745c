"""AlphaWGAN-GP (Kwon et al., "Generation of 3D brain MRI using auto-encoding GANs", 2019)."""

import torch
import torch.nn.functional as F
from torch import nn

from . import wgan
from .stacks import LatentDecoder, full_grid_encoder
from .updates import Update
from .wgan import gradient_penalty


class AutoEncodingWGAN(nn.Module):
    """Encoder E, generator G and a critic D of slices, reconstructions and samples: what CCE-GAN has too.

    Args:
        height, width: of the slices, multiples of 16.
        latent_dim: size of a latent.
    """

    PENALTY_WEIGHT = 10.0  # lambda

    def __init__(self, height: int, width: int, latent_dim: int = 1000):
        super().__init__()
        self.encoder = full_grid_encoder(height, width, latent_dim)
        self.decoder = LatentDecoder(height, width, latent_dim, input_bias=False)
        self.critic = full_grid_encoder(height, width, 1)

    def critic_update(self, images: torch.Tensor) -> torch.Tensor:
        reconstructions = self.decoder(self.encoder(images))
        samples = self.decoder(self.decoder.draw_latents(len(images)))
        penalty = gradient_penalty(self.critic, images, reconstructions)
        penalty = penalty + gradient_penalty(self.critic, images, samples)
        scores = self.critic(images), self.critic(reconstructions), self.critic(samples)
        return critic_loss(*scores) + self.PENALTY_WEIGHT * penalty


class AlphaWGAN(AutoEncodingWGAN):
    """An auto-encoding WGAN with a code critic CD, which tells codes E(x) from latents z.

    At 176 x 176 encoder, generator, critic and code critic have 64,709,288 + 63,502,784 + 2,818,241 + 20,901,889
    parameters. (The released code works out the code critic's term of the encoder's loss but leaves it out, and lets
    Adam step the generator twice on one gradient; here the encoder gets the paper's loss, and one step.)
    """

    def __init__(self, height: int, width: int, latent_dim: int = 1000):
        super().__init__(height, width, latent_dim)
        self.code_critic = nn.Sequential(
            nn.Linear(latent_dim, 4096),
            nn.BatchNorm1d(4096),
            nn.LeakyReLU(0.2),
            nn.Linear(4096, 4096),
            nn.BatchNorm1d(4096),
            nn.LeakyReLU(0.2),
            nn.Linear(4096, 1),
        )

    def updates(self) -> list[Update]:
        return [
            Update("encoder_generator", [self.encoder, self.decoder], self.encoder_generator_update),
            Update("critic", [self.critic], self.critic_update),
            Update("code_critic", [self.code_critic], self.code_critic_update),
        ]

    def encoder_generator_update(self, images: torch.Tensor) -> torch.Tensor:
        codes = self.encoder(images)
        reconstructions = self.decoder(codes)
        samples = self.decoder(self.decoder.draw_latents(len(images)))
        scores = self.code_critic(codes), self.critic(reconstructions), self.critic(samples)
        return encoder_generator_loss(images, reconstructions, *scores)

    def code_critic_update(self, images: torch.Tensor) -> torch.Tensor:
        codes, latents = self.encoder(images), self.decoder.draw_latents(len(images))
        penalty = gradient_penalty(self.code_critic, latents, codes)
        return wgan.critic_loss(self.code_critic(latents), self.code_critic(codes)) + self.PENALTY_WEIGHT * penalty


def encoder_generator_loss(
    images: torch.Tensor,
    reconstructions: torch.Tensor,
    code_scores: torch.Tensor,
    reconstruction_scores: torch.Tensor,
    sample_scores: torch.Tensor,
) -> torch.Tensor:
    """10 |G(E(x)) - x| - CD(E(x)) - D(G(E(x))) - D(G(z)), each a mean."""
    adversarial = code_scores.mean() + reconstruction_scores.mean() + sample_scores.mean()
    return 10 * F.l1_loss(reconstructions, images) - adversarial


def critic_loss(
    real_scores: torch.Tensor, reconstruction_scores: torch.Tensor, sample_scores: torch.Tensor
) -> torch.Tensor:
    """-2 D(x) + D(G(E(x))) + D(G(z)), each a mean."""
    return -2 * real_scores.mean() + reconstruction_scores.mean() + sample_scores.mean()
