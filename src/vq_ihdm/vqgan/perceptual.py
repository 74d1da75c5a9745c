"""LPIPS (Zhang et al., 2018) for grey slices."""

import warnings

import lpips
import torch
from safetensors.torch import load_file
from torch import nn

from ..errors import InputError


class PerceptualLoss(nn.Module):
    """LPIPS between (B, 1, H, W) images in [-1, 1], in float32 and without trainable parameters.

    Args:
        trunk: `vgg` or `alex`. Its linear heads come with the `lpips` package.
        weights: a safetensors file of the convolutional trunk under torchvision's names
            (`features.<n>.weight`); without one torchvision downloads the trunk.

    Raises:
        InputError: the trunk cannot be had, or the file is not of this trunk.
    """

    def __init__(self, trunk: str, weights: str | None = None):
        super().__init__()
        try:
            with warnings.catch_warnings():  # lpips calls torchvision by a deprecated name
                warnings.simplefilter("ignore")
                self.lpips = lpips.LPIPS(net=trunk, pnet_rand=weights is not None, verbose=False)
        except OSError as error:
            raise InputError(
                f"the {trunk} trunk cannot be downloaded ({error}); name a local file with --perceptual_weights, "
                "or switch the loss off with --perceptual none"
            ) from error
        if weights is not None:
            self._load_trunk(trunk, weights)
        self.requires_grad_(False).eval()

    def _load_trunk(self, trunk: str, weights: str) -> None:
        try:
            tensors = load_file(weights)
        except Exception as error:
            raise InputError(f"{weights} cannot be read as safetensors ({error})") from error
        # lpips cuts the trunk into slices but keeps torchvision's layer numbers as names inside them.
        names = {name: "features." + name.split(".", 1)[1] for name in self.lpips.net.state_dict()}
        missing = sorted(set(names.values()) - set(tensors))
        if missing:
            raise InputError(f"{weights} is no {trunk} trunk: it lacks {missing[0]}")
        try:
            self.lpips.net.load_state_dict({name: tensors[source] for name, source in names.items()})
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise InputError(f"{weights} is no {trunk} trunk: {reason}") from error

    def train(self, mode: bool = True) -> "PerceptualLoss":
        return super().train(False)  # a fixed measure: lpips has dropout in its heads

    def forward(
        self, images: torch.Tensor, reconstructions: torch.Tensor, crop_size: int | None = None
    ) -> torch.Tensor:
        """Mean LPIPS over a batch.

        With `crop_size` one random window of that size, or as much as the images have, is compared instead of the
        whole images: LPIPS is a mean over positions, so this is an unbiased estimate (edge effects aside) at a
        fraction of the cost.
        """
        with torch.autocast(images.device.type, enabled=False):
            pair = torch.stack([images, reconstructions]).float()
            if crop_size is not None:
                height, width = pair.shape[-2:]
                y = int(torch.randint(max(height - crop_size, 0) + 1, ()))
                x = int(torch.randint(max(width - crop_size, 0) + 1, ()))
                pair = pair[..., y : y + crop_size, x : x + crop_size]
            first, second = pair.expand(-1, -1, 3, -1, -1)
            return self.lpips(first, second).mean()
