"""Inverse heat dissipation of pixels (Rissanen, Heinonen and Solin, 2023).

The state u_k is the slice, in [0, 1], blurred to sigma_k; the network sees u_k + noise and predicts what is missing to
the less blurred u_(k-1). Sampling runs from a blurred slice at k = K through all k to 1.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from ..heat import blur, sigma_schedule


class InverseHeatScheduler(SchedulerMixin, ConfigMixin):
    """The blur widths of the forward process and the noise of both.

    Args:
        num_train_timesteps: K. All of them are gone through in sampling: the network knows no longer steps.
        sigma_min, sigma_max: in pixels, log-spaced in between; sigma_max of half the image leaves little but its mean.
        training_noise: standard deviation of the noise on u_k in training.
        delta: standard deviation of the noise added by a sampling step; the paper's is 1.25 times that of training.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 200,
        sigma_min: float = 0.5,
        sigma_max: float = 88.0,
        training_noise: float = 0.01,
        delta: float = 0.0125,
    ):
        # sigmas[k] belongs to timestep k; k = 0 is the sharp state.
        self.sigmas = torch.cat(
            [torch.zeros(1), sigma_schedule(sigma_min, sigma_max, num_train_timesteps).to(torch.float32)]
        )
        self.timesteps = torch.arange(num_train_timesteps, 0, -1)

    def blurred(self, images: torch.Tensor, timesteps: torch.LongTensor) -> torch.Tensor:
        """u_k of sharp images: (B, 1, H, W) in [0, 1] and (B,) in 0..K -> (B, 1, H, W)."""
        return blur(images, self.sigmas.to(images.device)[timesteps])

    def step(self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor, noise: torch.Tensor):
        """u_k -> u_(k-1) = u_k + f(u_k, k) + delta * noise; the last step adds no noise."""
        return sample + model_output + (self.config.delta * noise if timestep > 1 else 0)


def inverse_heat_loss(
    network: nn.Module,
    scheduler: InverseHeatScheduler,
    images: torch.Tensor,
    timesteps: torch.LongTensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Mean square of u_k + noise + f(u_k + noise, k) - u_(k-1) (algorithm 1 of the paper).

    Args:
        network: f, called as a `UNet2DModel` is.
        images: (B, 1, H, W) sharp slices in [0, 1].
        timesteps: (B,) in 1..K.
        noise: standard normal, (B, 1, H, W).
    """
    perturbed = scheduler.blurred(images, timesteps) + scheduler.config.training_noise * noise
    prediction = perturbed + network(perturbed, timesteps).sample
    return F.mse_loss(prediction, scheduler.blurred(images, timesteps - 1))


def create_unet(
    height: int, width: int, block_out_channels: list[int], layers_per_block: int, norm_num_groups: int
) -> UNet2DModel:
    """A grey `UNet2DModel` with attention at its two coarsest resolutions.

    With (128, 128, 256, 256, 512) channels and 2 layers a block, the default of train_baseline.py, it has 76,690,433
    parameters.
    """
    plain = len(block_out_channels) - 2
    return UNet2DModel(
        sample_size=(height, width),
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2 + ("UpBlock2D",) * plain,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        norm_num_groups=norm_num_groups,
    )
