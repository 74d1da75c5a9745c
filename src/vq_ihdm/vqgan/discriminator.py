"""PatchGAN discriminator and differentiable augmentation."""

import torch
import torch.nn.functional as F
from torch import nn

NUM_LAYERS = 3  # between the first and the last


class PatchDiscriminator(nn.Module):
    """The 70x70 PatchGAN of Isola et al. (2017) for (B, 1, H, W) images: one map of logits, (B, 1, ~H/8, ~W/8).

    H and W are at least `SMALLEST_SIDE`, which leaves one logit; `base_channels` is a multiple of 4.

    Images and logits stand in lists of one, as those of a discriminator with several levels.

    Group normalisation stands where the original has batch normalisation: MRI batches are small, and a batch
    statistic would differ between processes.
    """

    SMALLEST_SIDE = 24
    betas = (0.5, 0.9)  # of its Adam

    def __init__(self, base_channels: int = 64):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, base_channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = base_channels
        for i in range(1, NUM_LAYERS + 1):
            width = base_channels * min(2**i, 8)
            stride = 2 if i < NUM_LAYERS else 1
            layers += [
                nn.Conv2d(channels, width, 4, stride, 1, bias=False),
                nn.GroupNorm(8, width),
                nn.LeakyReLU(0.2),
            ]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, 1, 1))

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.layers(image) for image in images]


def diff_augment(images: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast, translation and cutout of Zhao et al. (2020), for grey images (B, 1, H, W).

    Every image gets its own draw; gradients flow through. Real and generated images must both pass here, so that
    what the discriminator learns is not leaked into the images.
    """
    batch, _, height, width = images.shape
    device = images.device
    uniform = lambda *shape: torch.rand(*shape, device=device)  # noqa: E731
    images = images + uniform(batch, 1, 1, 1) - 0.5
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * (uniform(batch, 1, 1, 1) + 0.5) + mean

    # Translation by up to an eighth, filled with what the padding holds: zero, as in the original.
    shift_y = ((uniform(batch) * 2 - 1) * (height // 8)).round().long()
    shift_x = ((uniform(batch) * 2 - 1) * (width // 8)).round().long()
    rows = (torch.arange(height, device=device) + shift_y[:, None]).clamp(-1, height) + 1
    columns = (torch.arange(width, device=device) + shift_x[:, None]).clamp(-1, width) + 1
    index = torch.arange(batch, device=device)[:, None, None]
    images = F.pad(images, (1, 1, 1, 1))[index, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)

    # Cutout of a box half as high and wide as the image, its centre anywhere.
    centre_y, centre_x = uniform(batch, 1) * height, uniform(batch, 1) * width
    outside_y = (torch.arange(height, device=device) - centre_y).abs() > height / 4
    outside_x = (torch.arange(width, device=device) - centre_x).abs() > width / 4
    return images * (outside_y[:, None, :, None] | outside_x[:, None, None, :])
