"""From slices to code indices and back, for training, evaluation and sampling alike."""

import torch
from diffusers import VQModel
from diffusers.utils.accelerate_utils import apply_forward_hook

# Images in a batch on a CPU. With more, the C library maps the memory of every layer's output anew: decoding takes 1.5
# times as long in batches of 32 and 2.5 times in batches of 64.
CPU_BATCH = 8


@torch.no_grad()
def encode_images(vqvae: VQModel, images: torch.Tensor) -> torch.LongTensor:
    """(B, 1, H, W) in [-1, 1] -> (B, h, w) code indices."""
    parts = []
    for batch in images.split(CPU_BATCH if images.device.type == "cpu" else len(images)):
        parts.append(nearest_codes(vqvae, vqvae.encode(batch).latents))
    return torch.cat(parts)


def nearest_codes(vqvae: VQModel, latents: torch.Tensor) -> torch.LongTensor:
    """(B, D, h, w) -> (B, h, w), as `vqvae.quantize` in float32: half precision is too coarse for these distances."""
    flat, codebook = latents.movedim(1, -1).flatten(0, -2).float(), vqvae.quantize.embedding.weight.float()
    return torch.cdist(flat, codebook).argmin(1).view(len(latents), *latents.shape[2:])


@torch.no_grad()
def decode_codes(vqvae: VQModel, code_indices: torch.LongTensor, device: torch.device) -> torch.Tensor:
    """(B, h, w) code indices -> (B, 1, H, W), about [-1, 1].

    Args:
        device: where the VQGAN decodes; an offloaded one comes there for it.
    """
    batches = code_indices.split(CPU_BATCH if device.type == "cpu" else len(code_indices))
    return torch.cat([decode_batch(vqvae, batch, device) for batch in batches])


@apply_forward_hook
def decode_batch(vqvae: VQModel, code_indices: torch.LongTensor, device: torch.device) -> torch.Tensor:
    """As `decode_codes`, all at once."""
    shape = (*code_indices.shape, vqvae.config.vq_embed_dim)
    embeddings = vqvae.quantize.get_codebook_entry(code_indices.flatten().to(device), shape)
    return vqvae.decode(embeddings, force_not_quantize=True).sample
