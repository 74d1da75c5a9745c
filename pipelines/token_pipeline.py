"""What the pipelines over VQGAN codes share: from pixels to codes and back."""

import torch
from diffusers import ImagePipelineOutput

from ..code_indices import decode_codes, encode_images
from .slice_pipeline import SlicePipeline


class TokenPipeline(SlicePipeline):
    """Base of the pipelines with a `vqvae`."""

    def encode_images(self, images: torch.Tensor) -> torch.LongTensor:
        """(B, 1, H, W) in [-1, 1] -> (B, h, w) code indices."""
        return encode_images(self.vqvae, images.to(self._execution_device, self.vqvae.dtype))

    def decode_codes(self, code_indices: torch.LongTensor) -> torch.Tensor:
        """(B, h, w) code indices -> (B, 1, H, W), about [-1, 1]."""
        return decode_codes(self.vqvae, code_indices, self._execution_device)

    def finish(
        self, code_indices: torch.LongTensor, batch_size: int, output_type: str, return_dict: bool
    ) -> ImagePipelineOutput | tuple:
        """Decode drawn codes (N, h, w), `batch_size` images at a time, into the asked output; `latent`: the codes."""
        if output_type == "latent":
            return ImagePipelineOutput(images=code_indices) if return_dict else (code_indices,)
        images = torch.cat([self.decode_codes(codes).cpu() for codes in code_indices.split(batch_size)])
        self.maybe_free_model_hooks()
        return self.to_output(images, output_type, return_dict)
