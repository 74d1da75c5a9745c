"""The tokenizer: a diffusers `VQModel`, and the wrapper that trains it."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import nn

from ..checks import check_finite
from ..errors import InputError
from ..weights import load_component


def create_vq_model(
    sample_size: int,
    block_out_channels: list[int],
    layers_per_block: int,
    latent_channels: int,
    vq_embed_dim: int,
    num_vq_embeddings: int,
    norm_num_groups: int,
) -> VQModel:
    """A grey-scale `VQModel` that halves the resolution once per entry of `block_out_channels` but the last."""
    levels = len(block_out_channels)
    model = VQModel(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        latent_channels=latent_channels,
        vq_embed_dim=vq_embed_dim,
        num_vq_embeddings=num_vq_embeddings,
        norm_num_groups=norm_num_groups,
        sample_size=sample_size,
        scaling_factor=1.0,  # VQModel never applies it; anything but 1 would mislead
    )
    return _with_paper_loss(model)


def load_vq_model(path: str | Path) -> VQModel:
    """`VQModel.from_pretrained`, of a model or of a pipeline that has one, with the loss of eq. 4 restored.

    Raises:
        InputError: there is no VQModel at `path`, a damaged one, or one of other images than grey ones.
    """
    reasons = []
    for subfolder in (None, "vqvae"):
        try:
            model = load_component(VQModel, path, subfolder=subfolder)
            check_finite(model, str(path))
        except ValueError as error:
            reasons.append(str(error))
        else:
            channels = model.config.in_channels, model.config.out_channels
            if channels != (1, 1):
                raise InputError(f"{path} is a VQModel of {channels[0]} channels, not of grey images; train one")
            return _with_paper_loss(model)
    for last in (Path(path) / "last", Path(path).parent / "last"):  # of a run, or of the run of a checkpoint
        if (last / "config.json").is_file():
            raise InputError(f"{path} holds no VQModel, but {last} does; name that")
    raise InputError(f"{path} holds no VQModel ({' and '.join(reasons)}); train one with train_vqgan.py")


def _with_paper_loss(model: VQModel) -> VQModel:
    # diffusers hard-codes legacy=True, which puts beta on the codebook term, and does not save the switch.
    model.quantize.legacy = False
    return model


def downsampling_factor(model: VQModel) -> int:
    return 2 ** (len(model.config.block_out_channels) - 1)


class TrainableVQModel(nn.Module):
    """Encode, quantise and decode in one forward pass, as distributed training needs it.

    With `l2_normalized_codes` latents are projected on the unit sphere and the codebook is kept there (see
    `codebook.normalize_codebook`), so that the nearest code is the one of highest cosine similarity. For unit-norm
    codes |h - e|^2 = |h|^2 + 1 - 2 h.e, hence a plain `VQModel` with the trained weights picks the same code from
    the unnormalised h: sampling needs none of this.
    """

    def __init__(self, vq_model: VQModel, l2_normalized_codes: bool):
        super().__init__()
        self.vq_model = vq_model
        self.l2_normalized_codes = l2_normalized_codes

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Args:
            images: (B, 1, H, W) in [-1, 1].

        Returns:
            reconstructions (B, 1, H, W) float32, the quantiser's loss (eq. 4: codebook term + 0.25 x commitment
            term), code indices (B, h, w), and the latents (B, D, h, w) that were quantised.
        """
        latents = self.latents(images)
        # Distances between codes are too fine for half precision.
        with torch.autocast(latents.device.type, enabled=False):
            quantized, loss, (_, _, code_indices) = self.vq_model.quantize(latents)
        reconstructions = self.vq_model.decode(quantized, force_not_quantize=True).sample
        batch, _, height, width = latents.shape
        return reconstructions.float(), loss, code_indices.view(batch, height, width), latents

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """What the quantiser sees: (B, D, h, w) float32."""
        latents = self.vq_model.encode(images).latents.float()
        return F.normalize(latents, dim=1) if self.l2_normalized_codes else latents

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the `VQModel`, which needs nothing of this wrapper."""
        self.vq_model.save_pretrained(folder)
