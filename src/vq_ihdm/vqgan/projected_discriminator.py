"""A discriminator on the features of a frozen network (after Sauer et al., 2021, "Projected GANs converge faster")."""

import torch
from torch import nn

FINEST = 1  # relu1_2 is left out: it is little more than edges, and costs as much as all the others


class ProjectedDiscriminator(nn.Module):
    """Tells reconstructions from images by the maps that LPIPS has computed anyway.

    Each map is divided by its root mean square, mixed by a 1x1 convolution, and judged by a head of its own: two 3x3
    convolutions and a 1x1. The mixing is learnt and nothing is spectrally normalised, other than as published: fixed
    random mixing hides most of what tells a good reconstruction from a scan (docs/experiments.md), and the adaptive
    weight lambda of the generator takes the scale out of the gradient anyway.

    Args:
        feature_channels: of `PerceptualLoss.feature_channels`.
        width: channels after the mixing and inside the heads.
    """

    betas = (0.0, 0.99)  # of its Adam, as published

    def __init__(self, feature_channels: list[int], width: int = 64):
        super().__init__()
        judged = feature_channels[FINEST:]
        self.projections = nn.ModuleList(nn.Conv2d(channels, width, 1, bias=False) for channels in judged)
        for projection in self.projections:
            nn.init.normal_(projection.weight, std=projection.in_channels**-0.5)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, width, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 1, 1),
            )
            for _ in judged
        )

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """The maps of `PerceptualLoss.features` -> logits, one map (B, 1, h, w) a level."""
        logits = []
        for projection, head, maps in zip(self.projections, self.heads, features[FINEST:], strict=True):
            scale = maps.float().square().mean(dim=(1, 2, 3), keepdim=True).add(1e-8).rsqrt()
            logits.append(head(projection(maps * scale.to(maps.dtype))))
        return logits
