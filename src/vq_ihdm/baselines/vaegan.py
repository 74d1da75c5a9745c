"""VAEGAN (Larsen et al., 2016), with the networks and losses of Kwon et al. (2019)."""

import torch
import torch.nn.functional as F
from torch import nn

from .stacks import CHANNELS, FACTOR, LatentDecoder, downsampling_stack, full_grid_encoder
from .updates import Update


class VAEGAN(nn.Module):
    """Encoder of a Gaussian, generator and discriminator.

    At 176 x 176 40,421,008 + 63,564,736 + 2,818,241 parameters.

    Args:
        height, width: of the slices, multiples of 16.
        latent_dim: size of a latent.
    """

    def __init__(self, height: int, width: int, latent_dim: int = 1000):
        super().__init__()
        self.encoder = GaussianEncoder(height, width, latent_dim)
        self.decoder = LatentDecoder(height, width, latent_dim)
        self.discriminator = full_grid_encoder(height, width, 1)  # logits: the sigmoid is part of the loss

    def updates(self) -> list[Update]:
        return [
            Update("discriminator", [self.discriminator], self.discriminator_update),
            Update("generator", [self.decoder], self.generator_update),
            Update("encoder", [self.encoder], self.encoder_update),
        ]

    def discriminator_update(self, images: torch.Tensor) -> torch.Tensor:
        reconstructions = self.decoder(sample_gaussian(*self.encoder(images)))
        samples = self.decoder(self.decoder.draw_latents(len(images)))
        return discriminator_loss(*map(self.discriminator, (images, reconstructions, samples)))

    def generator_update(self, images: torch.Tensor) -> torch.Tensor:
        reconstructions = self.decoder(sample_gaussian(*self.encoder(images)))
        samples = self.decoder(self.decoder.draw_latents(len(images)))
        return generator_loss(images, reconstructions, *map(self.discriminator, (images, reconstructions, samples)))

    def encoder_update(self, images: torch.Tensor) -> torch.Tensor:
        mean, log_variance = self.encoder(images)
        reconstructions = self.decoder(sample_gaussian(mean, log_variance))
        return encoder_loss(images, reconstructions, mean, log_variance)


class GaussianEncoder(nn.Module):
    """(B, 1, H, W) -> mean and log variance of the latent, each (B, latent_dim).

    Flattened, the 11 x 11 grid of a 176 x 176 slice would be 61,952 wide and the two heads 254 million weights; the
    grid is therefore averaged to the 4 x 4 cells it has in the original, which bounds them at 34 million whatever the
    size of the image.
    """

    def __init__(self, height: int, width: int, latent_dim: int):
        super().__init__()
        grid = (min(4, height // FACTOR), min(4, width // FACTOR))
        self.features = nn.Sequential(downsampling_stack(), nn.AdaptiveAvgPool2d(grid), nn.Flatten())
        self.mean, self.log_variance = (
            nn.Sequential(
                nn.Linear(CHANNELS[-1] * grid[0] * grid[1], 2048),
                nn.BatchNorm1d(2048),
                nn.ReLU(),
                nn.Linear(2048, latent_dim),
            )
            for _ in range(2)
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(images)
        return self.mean(features), self.log_variance(features)


def sample_gaussian(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    return mean + (log_variance / 2).exp() * torch.randn_like(mean)


def discriminator_loss(
    real_logits: torch.Tensor, reconstruction_logits: torch.Tensor, sample_logits: torch.Tensor
) -> torch.Tensor:
    """BCE(D(x), 1) + BCE(D(G(E(x))), 0) + BCE(D(G(z)), 0), D being the sigmoid of the logits."""
    fake = F.softplus(reconstruction_logits).mean() + F.softplus(sample_logits).mean()
    return F.softplus(-real_logits).mean() + fake


def generator_loss(images: torch.Tensor, reconstructions: torch.Tensor, *logits: torch.Tensor) -> torch.Tensor:
    """20 (G(E(x)) - x)^2 minus the discriminator's loss, of whose logits it is."""
    return 20 * F.mse_loss(reconstructions, images) - discriminator_loss(*logits)


def encoder_loss(
    images: torch.Tensor, reconstructions: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor
) -> torch.Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), a mean over batch and dimensions, + 10 (G(E(x)) - x)^2."""
    kl = (mean**2 + log_variance.exp() - 1 - log_variance).mean() / 2
    return kl + 10 * F.mse_loss(reconstructions, images)
