"""LPIPS (Zhang et al., 2018) for grey slices, and the features it compares."""

import warnings

import lpips
import torch
from safetensors.torch import load_file
from torch import nn

from ..errors import InputError

SMALLEST_SIDE = {"vgg": 16, "alex": 31}  # of images, in pixels: it leaves one pixel in a trunk's coarsest map


class PerceptualLoss(nn.Module):
    """LPIPS between (B, 1, H, W) images in [-1, 1], without trainable parameters.

    The trunk's features follow the ambient autocast; they are compared in float32.

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
        except Exception as error:  # whatever safetensors raises over foreign bytes
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

    @property
    def feature_channels(self) -> list[int]:
        """Channels of the maps that `features` returns."""
        return self.lpips.chns

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The trunk's maps of (B, 1, H, W) images in [-1, 1], from the finest to the coarsest.

        Of `vgg`: relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, with H, H/2, H/4, H/8 and H/16 rows.
        """
        return list(self.lpips.net(self.lpips.scaling_layer(images.expand(-1, 3, -1, -1))))

    def distance(self, first: list[torch.Tensor], second: list[torch.Tensor]) -> torch.Tensor:
        """Mean LPIPS over a batch, from the `features` of both sides."""
        total = torch.zeros((), device=first[0].device)
        with torch.autocast(first[0].device.type, enabled=False):
            for head, one, other in zip(self.lpips.lins, first, second, strict=True):
                difference = lpips.normalize_tensor(one.float()) - lpips.normalize_tensor(other.float())
                total = total + head(difference**2).mean()
        return total

    def texture(self, first: list[torch.Tensor], second: list[torch.Tensor]) -> torch.Tensor:
        """How far the textures of a batch are apart: |G_1 - G_2| / |G_1| of the Gram matrices of each map, their mean.

        Where LPIPS asks for the right feature at the right place, and answers doubt with blur, a Gram matrix (Gatys et
        al., 2016) holds which features occur together in an image, wherever (Sajjadi et al., 2017, "EnhanceNet").
        """
        total = torch.zeros((), device=first[0].device)
        with torch.autocast(first[0].device.type, enabled=False):
            for one, other in zip(first, second, strict=True):
                one, other = one.float().flatten(2), other.float().flatten(2)
                gram, other_gram = one @ one.mT, other @ other.mT
                total = total + ((gram - other_gram).norm(dim=(1, 2)) / (gram.norm(dim=(1, 2)) + 1e-8)).mean()
        return total / len(first)

    def forward(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Mean LPIPS over a batch of pairs."""
        return self.distance(self.features(images), self.features(reconstructions))
