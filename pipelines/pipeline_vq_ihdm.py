"""Discrete VQ-IHDM as a diffusers pipeline."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import ImagePipelineOutput, ModelMixin, SchedulerMixin, VQModel
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel

from ..checks import check_count, check_equal
from .token_pipeline import TokenPipeline


class VQIHDMPipeline(TokenPipeline):
    """Draws slices: u_T from the blurry prior, codes by the denoiser, pixels by the VQGAN's decoder.

    Args:
        vqvae ([`~diffusers.VQModel`]): the tokenizer of stage 1.
        denoiser ([`VQIHDMDenoiser`]): p(z_0 | u_T, revealed codes).
        prior ([`BlurryPrior`]): where u_T comes from.
        scheduler ([`HeatDissipationScheduler`]): draws and reveals codes.

    Raises:
        ValueError: they do not belong together: of another codebook or grid, or the prior was fitted at another sigma
            than the scheduler's `sigma_max`.
    """

    COMPONENTS = {
        "vqvae": "diffusers.VQModel",
        "denoiser": "vq_ihdm.denoiser.VQIHDMDenoiser",
        "prior": "vq_ihdm.prior.BlurryPrior",
        "scheduler": "vq_ihdm.scheduling_heat_dissipation.HeatDissipationScheduler",
    }
    model_cpu_offload_seq = "denoiser->vqvae"
    _exclude_from_cpu_offload = ["prior"]  # it has buffers, but no parameter by which `accelerate` finds its device
    _callback_tensor_inputs = ["sample", "code_indices"]

    def __init__(
        self,
        vqvae: VQModel,
        denoiser: PreTrainedModel,
        prior: ModelMixin,
        scheduler: SchedulerMixin,
    ):
        super().__init__()
        self.register_modules(vqvae=vqvae, denoiser=denoiser, prior=prior, scheduler=scheduler)

    def check_components(self) -> None:
        super().check_components()
        vqvae, denoiser, prior = self.vqvae.config, self.denoiser.config, self.prior.config
        check_equal("sigma_T", prior=prior.sigma, scheduler=self.scheduler.config.sigma_max)
        check_equal("number of codes", vqvae=vqvae.num_vq_embeddings, denoiser=denoiser.num_codes)
        shapes = {name: (c.code_dim, c.height, c.width) for name, c in (("denoiser", denoiser), ("prior", prior))}
        check_equal("shape of u_T", **shapes)
        if self.prior.known_covariates:  # a slice has none
            # As text: of what the Hub has, each component brings its own code.
            vocabularies = {"denoiser": self.denoiser.known_covariates, "prior": self.prior.known_covariates}
            check_equal("covariates", **{name: str(known) for name, known in vocabularies.items()})

    def embed_codes(self, code_indices: torch.LongTensor) -> torch.Tensor:
        """(B, h, w) code indices -> (B, D, h, w) standardised embeddings e_0."""
        table = self.denoiser.code_embeddings  # an offloaded denoiser's is elsewhere than codes that were just found
        return self.denoiser.embed_codes(code_indices.to(table.device)).to(self._execution_device)

    def prepare_latents(self, generators: list[torch.Generator], blurred: torch.Tensor | None = None) -> torch.Tensor:
        """Draw u_T = blur(e_0, sigma_T) + delta * noise, (N, D, h, w): where sampling starts.

        Args:
            generators: one for each image.
            blurred: (N, D, h, w) the blurred embeddings without their noise; from the prior unless given.
        """
        if blurred is None:
            blurred = self.prior.sample(len(generators), generators)
        noise = randn_tensor(blurred.shape, generators, blurred.device)
        return blurred + self.scheduler.config.delta * noise.to(blurred.dtype)

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        num_inference_steps: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        sample: torch.Tensor | None = None,
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
            num_inference_steps: network evaluations an image; 1 draws all codes at once.
            temperature, top_p: of the draw of codes. Temperature 0 takes the most likely code. These three are by
                default what the scheduler's config says.
            generator: one, from which a seed is drawn for each image, or a list with one for each image. The same
                seed gives the same images whatever `chunk_size`.
            sample: (num_images, D, h, w) u_T, noise included, to start from instead of `prepare_latents`.
            covariates: what the images are to be, any subset of what the model knows: a value for all images or a list
                with one for each, as in `{"age": 75, "sex": "F"}`. The prior draws the others together with u_T,
                as in the training set: a mixture of Gaussians describes both.
            guidance_scale: how far the denoiser's logits move from those without covariates to those with them
                (classifier-free guidance); 1, as trained, needs no second evaluation.
            chunk_size: images that are worked on at a time: fewer take less memory.
            output_type: `pil` (mode L), `np` (N, H, W, 1) or `pt` (N, 1, H, W) in [0, 1], or `latent`: code indices
                (N, h, w).
            callback_on_step_end: called as f(pipe, step, timestep, tensors) after each step of each batch; what it
                returns replaces the tensors.
            callback_on_step_end_tensor_inputs: which of `sample` and `code_indices` it is given; both by default.

        Returns:
            `ConditionalOutput` with `images` and their `covariates`, or a tuple of the images alone.

        Raises:
            ValueError: unknown covariates, or outside of what the model was trained on; states of another shape; a
                number without sense.
        """
        default, config = 1 if sample is None else len(sample), self.denoiser.config
        num_images = self.how_many(num_images, batch_size, chunk_size, output_type, default)
        shape = (num_images, config.code_dim, config.height, config.width)
        if sample is not None and sample.shape != shape:
            raise ValueError(f"sample holds u_T of the shape {shape}, not {tuple(sample.shape)}")
        self.check_guidance(guidance_scale)
        generators = self.image_generators(num_images, generator)
        if num_inference_steps is None:
            num_inference_steps = self.scheduler.config.num_inference_steps
        check_count("num_inference_steps", num_inference_steps)
        device = self._execution_device  # finding it out takes a millisecond
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        callback_inputs = self.callback_inputs(callback_on_step_end_tensor_inputs)
        starts = range(0, num_images, chunk_size)
        table = self.denoiser.encode_covariates(covariates, num_images).to(device)
        parts = []
        with self.progress_bar(total=len(starts) * num_inference_steps) as progress:
            for start in starts:
                batch = slice(start, start + chunk_size)
                parts.append(
                    self._sample_codes(
                        generators[batch],
                        sample[batch] if sample is not None else None,
                        table[batch],
                        guidance_scale,
                        temperature,
                        top_p,
                        progress,
                        callback_on_step_end,
                        callback_inputs,
                    )
                )
        code_indices, table = (torch.cat(part) for part in zip(*parts, strict=True))
        told = self.denoiser.decode_covariates(table)
        return self.finish(code_indices, chunk_size, output_type, return_dict, told or None)

    def _sample_codes(
        self, generators, sample, covariates, guidance_scale, temperature, top_p, progress, callback, callback_inputs
    ):
        """Codes (B, h, w) of one batch, and its completed table of covariates."""
        device, config, num_images = covariates.device, self.denoiser.config, len(generators)
        if sample is None:
            blurred, covariates = self.prior.draw(covariates, generators)
            sample = self.prepare_latents(generators, blurred)
            covariates = covariates.to(device)
        sample = sample.to(device, self.denoiser.dtype)
        sigma = torch.full((num_images,), self.prior.sigma, device=device)
        is_open = self.scheduler.open_index
        code_indices = torch.full((num_images, config.height, config.width), is_open, device=device)
        for i, timestep in enumerate(self.scheduler.timesteps):
            known = code_indices != is_open
            predict = partial(self.denoiser, sample, sigma, known)
            logits = self.guided(predict, covariates, guidance_scale)
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
        return code_indices, covariates
