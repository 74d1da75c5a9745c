"""What the pipelines over VQGAN codes share: from pixels to codes and back."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ImagePipelineOutput

from ..code_indices import decode_codes, encode_images
from .slice_pipeline import SlicePipeline


@dataclass
class ConditionalOutput(ImagePipelineOutput):
    """`images`, and by name what each of them was asked to be: `covariates`, None where nothing was asked for."""

    covariates: dict[str, list] | None = None


class TokenPipeline(SlicePipeline):
    """Base of the pipelines with a `vqvae`."""

    output_types = (*SlicePipeline.output_types, "latent")

    def encode_images(self, images: torch.Tensor) -> torch.LongTensor:
        """(B, 1, H, W) in [-1, 1], which decoded images leave a little, -> (B, h, w) code indices.

        Raises:
            ValueError: they are no such tensor.
        """
        if images.ndim != 4 or images.shape[1] != 1 or not images.is_floating_point() or images.abs().max() > 2:
            raise ValueError("encode_images takes a float tensor of the shape (B, 1, H, W) with values in [-1, 1]")
        return encode_images(self.vqvae, images.to(self._execution_device, self.vqvae.dtype))

    def decode_codes(self, code_indices: torch.LongTensor) -> torch.Tensor:
        """(B, h, w) code indices -> (B, 1, H, W), about [-1, 1]."""
        return decode_codes(self.vqvae, code_indices, self._execution_device)

    def callback_inputs(self, names: list[str] | None) -> list[str]:
        """The tensors that a callback asked for, by default all there are.

        Raises:
            ValueError: one does not exist.
        """
        unknown = sorted(set(names or []) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(f"a callback is given {', '.join(self._callback_tensor_inputs)}, not {', '.join(unknown)}")
        return self._callback_tensor_inputs if names is None else names

    def check_guidance(self, guidance_scale: float) -> None:
        """
        Raises:
            ValueError: it is not finite, or there is nothing to be guided by.
        """
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale must be a finite number, not {guidance_scale}")
        if guidance_scale != 1 and not self.known_covariates:
            raise ValueError("this model knows no covariates to be guided by; leave guidance_scale out")

    @staticmethod
    def guided(predict: Callable[..., Any], covariates: torch.Tensor, guidance_scale: float) -> torch.Tensor:
        """Logits `guidance_scale` times as far from those without covariates as those with them (B, C) are.

        Args:
            predict: what takes `covariates` and gives a denoiser's output with `logits`.
        """
        logits = predict(covariates=covariates).logits
        if guidance_scale == 1 or covariates.isnan().all():
            return logits
        unconditional = predict(covariates=None).logits
        return unconditional + guidance_scale * (logits - unconditional)

    def finish(
        self,
        code_indices: torch.LongTensor,
        chunk_size: int,
        output_type: str,
        return_dict: bool,
        covariates: dict[str, list] | None = None,
    ) -> ConditionalOutput | tuple:
        """Decode codes (N, h, w) where they are, `chunk_size` at a time, into the asked output; `latent`: the codes."""
        if output_type == "latent":
            images = code_indices
        else:
            chunks = code_indices.split(chunk_size)
            decoded = torch.cat([decode_codes(self.vqvae, codes, codes.device).cpu() for codes in chunks])
            (images,) = self.to_output(decoded, output_type, return_dict=False)
        self.maybe_free_model_hooks()
        return ConditionalOutput(images=images, covariates=covariates) if return_dict else (images,)
