"""Latent diffusion on the latents of the VQGAN (Rombach et al., 2022), as it is trained today: v-prediction
(Salimans and Ho, 2022), the cosine schedule (Nichol and Dhariwal, 2021), DPM-Solver++ (Lu et al., 2022).

The latents are the embeddings of the codes, multiplied by `scaling_factor` of the VQModel's config so that their
variance is 1. The encoder's own output differs from them by what quantising takes away (of codes on the unit sphere
above all the length), which would have to be learned for nothing. A drawn latent is quantised before it is decoded.
"""

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel, VQModel

PROCESS = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


def code_latents(vqvae: VQModel, code_indices: torch.LongTensor) -> torch.Tensor:
    """(B, h, w) code indices -> (B, D, h, w) latents of about unit variance."""
    embeddings = vqvae.quantize.embedding.weight.detach()[code_indices.to(vqvae.device)]
    return embeddings.movedim(-1, 1) * vqvae.config.scaling_factor


def unit_scaling(vqvae: VQModel, code_indices: torch.LongTensor) -> float:
    """The `scaling_factor` that gives the embeddings of these codes unit variance."""
    return 1 / vqvae.quantize.embedding.weight.detach().cpu()[code_indices.cpu()].std().item()


def create_latent_unet(
    latent_channels: int,
    height: int,
    width: int,
    block_out_channels: list[int],
    layers_per_block: int,
    norm_num_groups: int,
    dropout: float,
) -> UNet2DModel:
    """A `UNet2DModel` for latents of (height, width) with attention at all resolutions but the finest."""
    levels = len(block_out_channels)
    return UNet2DModel(
        sample_size=(height, width),
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * (levels - 1),
        up_block_types=("AttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        norm_num_groups=norm_num_groups,
        dropout=dropout,
    )


def padding(unet: UNet2DModel) -> tuple[int, int]:
    """Rows and columns that complete the latents' grid to sides the UNet can halve: 11x11 to 12x12."""
    multiple = 2 ** (len(unet.config.block_out_channels) - 1)
    height, width = unet.config.sample_size
    return -height % multiple, -width % multiple


def pad(latents: torch.Tensor, unet: UNet2DModel) -> torch.Tensor:
    """(B, D, h, w) -> (B, D, H, W), the last row and column repeated."""
    rows, columns = padding(unet)
    return F.pad(latents, (0, columns, 0, rows), mode="replicate")


def training_scheduler() -> DDPMScheduler:
    """The forward process z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) noise, t in 0 .. 999."""
    return DDPMScheduler(**PROCESS)


def sampling_scheduler() -> DPMSolverMultistepScheduler:
    """The solver of its reverse. The cosine schedule's log-SNR must be cut off at its noisy end (diffusers' advice)."""
    return DPMSolverMultistepScheduler(**PROCESS, lambda_min_clipped=-5.1)


def velocity_loss(
    network: torch.nn.Module,
    scheduler: DDPMScheduler,
    latents: torch.Tensor,
    timesteps: torch.LongTensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Mean square of v(z_t, t) - (sqrt(a_t) noise - sqrt(1 - a_t) z_0) (Salimans and Ho, 2022, app. D).

    Args:
        network: v, called as a `UNet2DModel` is.
        latents: (B, D, H, W) z_0, of unit variance, padded.
        timesteps: (B,) in 0 .. 999.
        noise: standard normal, (B, D, H, W).
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    return F.mse_loss(network(noisy, timesteps).sample.float(), velocity)
