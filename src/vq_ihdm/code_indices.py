"""From slices to code indices and back, for training, evaluation and sampling alike."""

import torch
from diffusers import VQModel


@torch.no_grad()
def encode_images(vqvae: VQModel, images: torch.Tensor) -> torch.LongTensor:
    """(B, 1, H, W) in [-1, 1] -> (B, h, w) code indices."""
    latents = vqvae.encode(images).latents
    batch, _, height, width = latents.shape
    return vqvae.quantize(latents)[2][2].view(batch, height, width)


@torch.no_grad()
def decode_codes(vqvae: VQModel, code_indices: torch.LongTensor, device: torch.device) -> torch.Tensor:
    """(B, h, w) code indices -> (B, 1, H, W), about [-1, 1].

    Args:
        device: where the VQGAN decodes. Under `enable_model_cpu_offload` it comes there no earlier than `decode` is
            called, and its codebook is still elsewhere.
    """
    shape = (*code_indices.shape, vqvae.config.vq_embed_dim)
    embeddings = vqvae.quantize.get_codebook_entry(code_indices.flatten().to(vqvae.device), shape)
    return vqvae.decode(embeddings.to(device), force_not_quantize=True).sample
