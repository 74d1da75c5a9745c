"""Absorbing diffusion over VQGAN codes as a diffusers pipeline."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import ImagePipelineOutput, VQModel
from transformers import PreTrainedModel

from ..checks import check_count, check_equal
from ..code_sampling import code_probabilities, draw_codes, rand_each
from .token_pipeline import TokenPipeline


class AbsorbingDiffusionPipeline(TokenPipeline):
    """Draws slices by revealing codes, in a random order (Bond-Taylor et al., 2022) or the most confident first
    (MaskGIT, Chang et al., 2022), which needs no other training.

    Args:
        vqvae ([`~diffusers.VQModel`]): the tokenizer of stage 1.
        denoiser ([`AbsorbingDenoiser`]): p(z_0 | z_t).
    """

    COMPONENTS = {"vqvae": "diffusers.VQModel", "denoiser": "vq_ihdm.baselines.absorbing.AbsorbingDenoiser"}
    model_cpu_offload_seq = "denoiser->vqvae"
    _callback_tensor_inputs = ["code_indices"]

    def __init__(self, vqvae: VQModel, denoiser: PreTrainedModel):
        super().__init__()
        self.register_modules(vqvae=vqvae, denoiser=denoiser)

    def check_components(self) -> None:
        super().check_components()
        num_codes = self.vqvae.config.num_vq_embeddings
        check_equal("number of codes", vqvae=num_codes, denoiser=self.denoiser.config.num_codes)

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        num_inference_steps: int | None = None,
        temperature: float = 1.0,
        reveal_order: str = "random",
        choice_temperature: float = 4.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        covariates: Mapping[str, Any] | None = None,
        guidance_scale: float = 1.0,
        batch_size: int | None = None,
        chunk_size: int = 32,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw `num_images` slices.

        Args:
            num_images, batch_size: how many, by either name; 1 unless given.
            num_inference_steps: steps of the chain, 1 to T; by default T, the original chain. No more than one
                network evaluation each.
            temperature: divides the logits before a code is drawn; 0 takes the most likely code.
            reveal_order: `random`, the chain it was trained as, or `confidence`: each step draws all codes and keeps
                the most likely ones, as many as MaskGIT's cosine schedule says.
            choice_temperature: of `confidence`: Gumbel noise on log p, this many times at first and 0 at the end.
            generator: one, from which a seed is drawn for each image, or a list with one for each image. The same
                seed gives the same images whatever `chunk_size`.
            covariates, guidance_scale: as of `VQIHDMPipeline`, but there is no prior that would draw the covariates
                which are not given: the network was trained to do without.
            chunk_size: images that are worked on at a time: fewer take less memory.
            output_type: `pil` (mode L), `np` (N, H, W, 1) or `pt` (N, 1, H, W) in [0, 1], or `latent`: code indices
                (N, h, w).
            callback_on_step_end: called as f(pipe, step, timestep, tensors) after each step of each batch; the
                tensors are `code_indices` (B, h, w), `denoiser.config.mask_index` where masked, and what it returns
                replaces them.
            callback_on_step_end_tensor_inputs: which of the tensors it is given; all by default.

        Returns:
            `ConditionalOutput` with `images` and the `covariates` given, or a tuple of the images alone.

        Raises:
            ValueError: covariates as of `VQIHDMPipeline`, `num_inference_steps` outside 1..T, or an unknown
                `reveal_order`.
        """
        T = self.denoiser.config.num_train_timesteps
        num_inference_steps = T if num_inference_steps is None else num_inference_steps
        check_count("num_inference_steps", num_inference_steps, most=T)
        if reveal_order not in ("random", "confidence"):
            raise ValueError(f"reveal_order is random or confidence, not {reveal_order}")
        num_images = self.how_many(num_images, batch_size, chunk_size, output_type)
        self.check_guidance(guidance_scale)
        generators = self.image_generators(num_images, generator)
        callback_inputs = self.callback_inputs(callback_on_step_end_tensor_inputs)
        table = self.denoiser.encode_covariates(covariates, num_images).to(self._execution_device)
        starts = range(0, num_images, chunk_size)
        code_indices = []
        with self.progress_bar(total=len(starts) * num_inference_steps) as progress:
            for start in starts:
                code_indices.append(
                    self._sample_codes(
                        generators[start : start + chunk_size],
                        table[start : start + chunk_size],
                        guidance_scale,
                        num_inference_steps,
                        temperature,
                        choice_temperature if reveal_order == "confidence" else None,
                        progress,
                        callback_on_step_end,
                        callback_inputs,
                    )
                )
        told = self.denoiser.decode_covariates(table)
        return self.finish(torch.cat(code_indices), chunk_size, output_type, return_dict, told or None)

    def _sample_codes(
        self,
        generators,
        covariates,
        guidance_scale,
        num_inference_steps,
        temperature,
        choice_temperature,
        progress,
        callback,
        callback_inputs,
    ):
        """Codes (B, h, w) of one batch; `choice_temperature` is None where the order is random."""
        device, config = self._execution_device, self.denoiser.config
        shape = (config.height, config.width)
        code_indices = torch.full((len(generators), *shape), config.mask_index, device=device)
        for step, steps_left in enumerate(range(num_inference_steps, 0, -1)):
            uniform = rand_each((2, *shape), len(generators), generators, device)
            given = (covariates, guidance_scale)
            if choice_temperature is None:
                code_indices = self._reveal_at_random(code_indices, *given, uniform, steps_left, temperature)
            else:
                left = (steps_left - 1) / num_inference_steps
                code_indices = self._reveal_confident(
                    code_indices, *given, uniform, left, temperature, choice_temperature
                )
            if callback is not None:
                tensors = {"code_indices": code_indices}
                timestep = config.num_train_timesteps * steps_left / num_inference_steps
                replaced = callback(self, step, timestep, {name: tensors[name] for name in callback_inputs})
                code_indices = replaced.get("code_indices", code_indices)
            progress.update()
        return code_indices

    def _predict(self, code_indices, covariates, guidance_scale):
        """Logits (B, h, w, K)."""
        return self.guided(partial(self.denoiser, code_indices), covariates, guidance_scale)

    def _reveal_at_random(self, code_indices, covariates, guidance_scale, uniform, steps_left, temperature):
        revealed = to_reveal(code_indices, uniform[:, 1], steps_left, self.denoiser.config.mask_index)
        # Images of which this step reveals nothing need no evaluation: the network does not see the time. In a chain
        # with more steps than codes they are the most.
        rows = revealed.flatten(1).any(1)
        logits = self._predict(code_indices[rows], covariates[rows], guidance_scale)[revealed[rows]]
        probabilities = code_probabilities(logits, temperature, top_p=1.0)
        return code_indices.masked_scatter(revealed, draw_codes(probabilities, uniform[:, 0][revealed]))

    def _reveal_confident(
        self, code_indices, covariates, guidance_scale, uniform, left, temperature, choice_temperature
    ):
        """`left`: the share of the steps that are still to come."""
        logits = self._predict(code_indices, covariates, guidance_scale)
        drawn = draw_codes(code_probabilities(logits, temperature, top_p=1.0), uniform[:, 0])
        likelihood = logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
        gumbel = -(-uniform[:, 1].log()).log()
        revealed = most_confident(
            code_indices == self.denoiser.config.mask_index,
            likelihood + choice_temperature * left * gumbel.to(likelihood.dtype),
            left,
        )
        return torch.where(revealed, drawn, code_indices)


def to_reveal(
    code_indices: torch.LongTensor, uniform: torch.Tensor, steps_left: int, mask_index: int
) -> torch.BoolTensor:
    """The positions that one reverse step reveals: each masked one with probability 1 / steps_left.

    With steps_left = t = T..1 this is the original chain. A chain strided from t to s reveals with probability
    (t - s) / t, which for n even strides is 1 / n, 1 / (n - 1), ..., 1: the same rule counted in strides.

    Args:
        code_indices: (B, h, w).
        uniform: (B, h, w) uniform numbers in [0, 1).
    """
    return (code_indices == mask_index) & (uniform * steps_left < 1)


def most_confident(masked: torch.BoolTensor, confidence: torch.Tensor, left: float) -> torch.BoolTensor:
    """The masked positions that a step of MaskGIT reveals: all but the least confident ones.

    So many stay masked as its cosine schedule says, cos(pi/2 (1 - left)) of all positions (Chang et al., sec. 3.3).

    Args:
        masked: (B, h, w).
        confidence: (B, h, w).
        left: share of the steps that are still to come.
    """
    num_masked = int(math.sin(math.pi / 2 * left) * masked[0].numel())
    rank = confidence.masked_fill(~masked, math.inf).flatten(1).argsort(1).argsort(1)  # the least confident first
    return masked & (rank >= num_masked).view_as(masked)
