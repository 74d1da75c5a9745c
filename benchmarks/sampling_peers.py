"""Whom sampling is timed beside: ONNX Runtime, and networks of the size of ours, untrained."""

import inspect
from pathlib import Path

from diffusers import UNet2DModel

from vq_ihdm.baselines.absorbing import AbsorbingDenoiserConfig
from vq_ihdm.baselines.latent_diffusion import create_latent_unet


def onnx_session(folder: Path, threads: int):
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # they would run into the next's turn
    return InferenceSession(folder / "sampler.onnx", options)


def absorbing_config(config) -> AbsorbingDenoiserConfig:
    """Absorbing diffusion's transformer of the size of ours."""
    names = inspect.signature(AbsorbingDenoiserConfig.__init__).parameters
    return AbsorbingDenoiserConfig(**{name: getattr(config, name) for name in names if hasattr(config, name)})


def latent_unet(config) -> UNet2DModel:
    """Latent diffusion's network, of the preset `oasis`."""
    return create_latent_unet(config.code_dim, config.height, config.width, [96, 128, 192], 1, 8, 0.1).eval()


def pixel_unet(num_parameters: int, image_size: tuple[int, int]) -> UNet2DModel:
    """diffusers' UNet for grey images, the widest of its kind with no more parameters than asked for."""
    for width in range(64, 0, -8):
        unet = UNet2DModel(
            sample_size=image_size,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(width, 2 * width, 4 * width),
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            norm_num_groups=8,
        )
        if unet.num_parameters() <= num_parameters or width == 8:
            return unet.eval()
