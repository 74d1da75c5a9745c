"""A discriminator on the features of a frozen network (Sauer et al., 2021, "Projected GANs converge faster")."""

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

FINEST = 1  # relu1_2 is left out: it is little more than edges, and costs as much as all the others


class ProjectedDiscriminator(nn.Module):
    """Tells reconstructions from images by the maps that LPIPS has computed anyway.

    Each map is divided by its root mean square, mixed by a fixed random 1x1 projection, which keeps the discriminator
    from resting on few channels, and judged by a head of its own: two spectrally normalised 3x3 convolutions and a 1x1.

    Args:
        feature_channels: of `PerceptualLoss.feature_channels`.
        width: channels after the projection and inside the heads.
    """

    betas = (0.0, 0.99)  # of its Adam, as published

    def __init__(self, feature_channels: list[int], width: int = 64):
        super().__init__()
        for level, channels in enumerate(feature_channels[FINEST:]):
            self.register_buffer(f"projection_{level}", torch.randn(width, channels, 1, 1) / channels**0.5)
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 1, 1),
            )
            for _ in feature_channels[FINEST:]
        )

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """The maps of `PerceptualLoss.features` -> logits, one map (B, 1, h, w) a level."""
        logits = []
        for level, (head, maps) in enumerate(zip(self.heads, features[FINEST:], strict=True)):
            scale = maps.float().square().mean(dim=(1, 2, 3), keepdim=True).add(1e-8).rsqrt()
            projection = self.get_buffer(f"projection_{level}")
            logits.append(head(nn.functional.conv2d(maps * scale.to(maps.dtype), projection.to(maps.dtype))))
        return logits
