"""The convolutional stacks that the GANs share: those of Kwon et al. (2019) in two dimensions.

    S: four times [conv 4x4, stride 2; batch norm but in the first; leaky ReLU], 1-64-128-256-512 channels
    U: four times [nearest x2, conv 3x3; batch norm and ReLU but in the last], 512-256-128-64-1 channels, tanh

The originals work on volumes of 64 voxels a side, where S ends on a grid of 4 cells a side; on slices of H x W it ends
on H/16 x W/16, 11 x 11 for 176 x 176. H and W are multiples of 16.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

FACTOR = 16  # between the sizes of an image and of the grid
CHANNELS = (64, 128, 256, 512)


def downsampling_stack() -> nn.Sequential:
    """S: (B, 1, H, W) -> (B, 512, H/16, W/16)."""
    layers: list[nn.Module] = [nn.Conv2d(1, CHANNELS[0], 4, 2, 1), nn.LeakyReLU(0.2)]
    for before, after in zip(CHANNELS, CHANNELS[1:], strict=False):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


def upsampling_stack() -> nn.Sequential:
    """U: (B, 512, H/16, W/16) -> (B, 1, H, W) in [-1, 1]."""
    layers: list[nn.Module] = []
    for before, after in zip(CHANNELS[:0:-1], CHANNELS[-2::-1], strict=True):
        layers += [
            nn.Upsample(scale_factor=2),
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    return nn.Sequential(
        *layers, nn.Upsample(scale_factor=2), nn.Conv2d(CHANNELS[0], 1, 3, padding=1, bias=False), nn.Tanh()
    )


def full_grid_encoder(height: int, width: int, num_outputs: int) -> nn.Sequential:
    """S and a convolution over the whole grid: (B, 1, H, W) -> (B, num_outputs). A critic has one output."""
    grid = (height // FACTOR, width // FACTOR)
    return nn.Sequential(downsampling_stack(), nn.Conv2d(CHANNELS[-1], num_outputs, grid), nn.Flatten())


class LatentDecoder(ModelMixin, ConfigMixin):
    """The generator G: latents (B, latent_dim), standard normal -> slices (B, 1, H, W) in [-1, 1].

    Args:
        height, width: of the slices, multiples of 16.
        latent_dim: size of a latent.
        input_bias: of the layer from the latent to the grid. WGAN and VAEGAN have a linear layer there, AlphaWGAN and
            CCEGAN a transposed convolution of a 1 x 1 grid without bias, which is the same product.
    """

    @register_to_config
    def __init__(self, height: int = 176, width: int = 176, latent_dim: int = 1000, input_bias: bool = True):
        super().__init__()
        grid = (CHANNELS[-1], height // FACTOR, width // FACTOR)
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, grid[0] * grid[1] * grid[2], bias=input_bias),
            nn.Unflatten(1, grid),
            nn.BatchNorm2d(CHANNELS[-1]),
            nn.ReLU(),
            upsampling_stack(),
        )

    def draw_latents(self, num_latents: int) -> torch.Tensor:
        return torch.randn(num_latents, self.config.latent_dim, device=self.device)

    @torch.no_grad()
    def estimate_statistics(self, num_batches: int = 4, batch_size: int = 32) -> None:
        """Take batch normalisation's statistics from samples alone (standing statistics, Brock et al., 2019).

        The running ones of a training mix samples with reconstructions, whose latents have another distribution as
        long as the encoder has not learned the normal one; samples normalised by the mixture can come out black.
        """
        norms = [layer for layer in self.modules() if isinstance(layer, nn.BatchNorm2d)]
        momentum = norms[0].momentum
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        self.train()
        for _ in range(num_batches):
            self(self.draw_latents(batch_size))
        self.eval()
        for norm in norms:
            norm.momentum = momentum

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.layers(latents)
