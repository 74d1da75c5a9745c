"""Discrete VQ-IHDM as a diffusers pipeline."""

from collections.abc import Callable

import torch
from diffusers import ImagePipelineOutput, VQModel

from ..denoiser import VQIHDMDenoiser
from ..prior import BlurryPrior
from ..scheduling_heat_dissipation import OPEN, HeatDissipationScheduler
from .token_pipeline import TokenPipeline


class VQIHDMPipeline(TokenPipeline):
    """Draws slices: u_T from the blurry prior, codes by the denoiser, pixels by the VQGAN's decoder.

    Args:
        vqvae ([`~diffusers.VQModel`]): the tokenizer of stage 1.
        denoiser ([`VQIHDMDenoiser`]): p(z_0 | u_T, revealed codes).
        prior ([`BlurryPrior`]): where u_T comes from. It must belong to the scheduler's `sigma_max`.
        scheduler ([`HeatDissipationScheduler`]): draws and reveals codes.
    """

    COMPONENTS = {
        "vqvae": VQModel,
        "denoiser": VQIHDMDenoiser,
        "prior": BlurryPrior,
        "scheduler": HeatDissipationScheduler,
    }
    model_cpu_offload_seq = "denoiser->vqvae"
    _exclude_from_cpu_offload = ["prior"]  # it has buffers, but no parameter by which `accelerate` finds its device
    _callback_tensor_inputs = ["sample", "code_indices"]

    def __init__(
        self,
        vqvae: VQModel,
        denoiser: VQIHDMDenoiser,
        prior: BlurryPrior,
        scheduler: HeatDissipationScheduler,
    ):
        super().__init__()
        self.register_modules(vqvae=vqvae, denoiser=denoiser, prior=prior, scheduler=scheduler)

    def embed_codes(self, code_indices: torch.LongTensor) -> torch.Tensor:
        """(B, h, w) code indices -> (B, D, h, w) standardised embeddings e_0."""
        return self.denoiser.embed_codes(code_indices)

    @torch.no_grad()
    def __call__(
        self,
        num_images: int = 1,
        num_inference_steps: int = 1,
        temperature: float | None = None,
        top_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        sample: torch.Tensor | None = None,
        batch_size: int = 32,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw `num_images` slices.

        Args:
            num_images: how many.
            num_inference_steps: network evaluations an image; 1 draws all codes at once.
            temperature, top_p: of the draw of codes; by default what the scheduler's config says. Temperature 0 takes
                the most likely code.
            generator: one, from which a seed is drawn for each image, or a list with one for each image. The same
                seed gives the same images whatever `batch_size`.
            sample: (num_images, D, h, w) blurred embeddings u_T to start from instead of draws from the prior.
            batch_size: images that are worked on at a time.
            output_type: `pil` (mode L), `np` (N, H, W, 1) or `pt` (N, 1, H, W) in [0, 1], or `latent`: code indices
                (N, h, w).
            callback_on_step_end: called as f(pipe, step, timestep, tensors) after each step of each batch; what it
                returns replaces the tensors.
            callback_on_step_end_tensor_inputs: which of `sample` and `code_indices` it is given; both by default.

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple.
        """
        generators = self.image_generators(num_images, generator)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        starts = range(0, num_images, batch_size)
        code_indices = []
        with self.progress_bar(total=len(starts) * num_inference_steps) as progress:
            for start in starts:
                batch = slice(start, start + batch_size)
                code_indices.append(
                    self._draw_codes(
                        generators[batch],
                        sample[batch] if sample is not None else None,
                        temperature,
                        top_p,
                        progress,
                        callback_on_step_end,
                        callback_on_step_end_tensor_inputs or self._callback_tensor_inputs,
                    )
                )
        return self.finish(torch.cat(code_indices), batch_size, output_type, return_dict)

    def _draw_codes(self, generators, sample, temperature, top_p, progress, callback, callback_inputs):
        """Codes (B, h, w) of one batch."""
        device = self._execution_device
        num_images, config = len(generators), self.denoiser.config
        if sample is None:
            sample = self.prior.sample(num_images, generators)
            shape = sample.shape[1:]
            noise = torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators])
            sample = sample + self.scheduler.config.delta * noise.to(sample)
        sample = sample.to(device, self.denoiser.dtype)
        sigma = torch.full((num_images,), self.prior.sigma, device=device)
        code_indices = torch.full((num_images, config.height, config.width), OPEN, device=device)
        for i, timestep in enumerate(self.scheduler.timesteps):
            logits = self.denoiser(sample, sigma, known=code_indices != OPEN).logits
            sample, code_indices, _ = self.scheduler.step(
                logits,
                timestep,
                sample,
                code_indices,
                self.denoiser.code_embeddings,
                temperature=temperature,
                top_p=top_p,
                generator=generators,
                return_dict=False,
            )
            if callback is not None:
                tensors = {"sample": sample, "code_indices": code_indices}
                replaced = callback(self, i, timestep, {name: tensors[name] for name in callback_inputs})
                sample = replaced.get("sample", sample)
                code_indices = replaced.get("code_indices", code_indices)
            progress.update()
        return code_indices
