"""Latent diffusion as a diffusers pipeline."""

import inspect

import torch
from diffusers import DPMSolverMultistepScheduler, ImagePipelineOutput, UNet2DModel, VQModel
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor

from ..baselines.latent_diffusion import padding
from ..checks import check_count, check_equal
from ..code_indices import nearest_codes
from .token_pipeline import TokenPipeline


class LatentDiffusionPipeline(TokenPipeline):
    """Draws slices by denoising latents of the VQGAN and quantising them (Rombach et al., 2022).

    Args:
        vqvae ([`~diffusers.VQModel`]): the tokenizer of stage 1; latents are its embeddings times its
            `scaling_factor`.
        unet ([`~diffusers.UNet2DModel`]): v(z_t, t); its `sample_size` is the grid of the codes.
        scheduler ([`~diffusers.DPMSolverMultistepScheduler`]): the solver.
    """

    COMPONENTS = {
        "vqvae": "diffusers.VQModel",
        "unet": "diffusers.UNet2DModel",
        "scheduler": "diffusers.DPMSolverMultistepScheduler",
    }
    model_cpu_offload_seq = "unet->vqvae"

    def __init__(self, vqvae: VQModel, unet: UNet2DModel, scheduler: DPMSolverMultistepScheduler):
        super().__init__()
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler)

    def check_components(self) -> None:
        super().check_components()
        check_equal("dimension of a code", vqvae=self.vqvae.config.vq_embed_dim, unet=self.unet.config.in_channels)

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        num_inference_steps: int = 20,
        generator: torch.Generator | list[torch.Generator] | None = None,
        batch_size: int | None = None,
        chunk_size: int = 32,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw `num_images` slices.

        Args:
            num_images, batch_size: how many, by either name; 1 unless given.
            num_inference_steps: network evaluations an image.
            generator: one, from which a seed is drawn for each image, or a list with one for each image. The same
                seed gives the same images whatever `chunk_size`.
            chunk_size: images that are worked on at a time: fewer take less memory.
            output_type: `pil` (mode L), `np` (N, H, W, 1) or `pt` (N, 1, H, W) in [0, 1], or `latent`: code indices
                (N, h, w).

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple.
        """
        num_images = self.how_many(num_images, batch_size, chunk_size, output_type)
        check_count("num_inference_steps", num_inference_steps, most=self.scheduler.config.num_train_timesteps)
        generators = self.image_generators(num_images, generator)
        starts = range(0, num_images, chunk_size)
        code_indices = []
        with self.progress_bar(total=len(starts) * num_inference_steps) as progress:
            for start in starts:
                batch = generators[start : start + chunk_size]
                code_indices.append(self._sample_codes(batch, num_inference_steps, progress))
        return self.finish(torch.cat(code_indices), chunk_size, output_type, return_dict)

    def _sample_codes(self, generators, num_inference_steps, progress):
        """Codes (B, h, w) of one batch."""
        device, dtype, config = self._execution_device, self.unet.dtype, self.unet.config
        (height, width), (rows, columns) = config.sample_size, padding(self.unet)
        shape = (len(generators), config.in_channels, height + rows, width + columns)
        self.scheduler.set_timesteps(num_inference_steps, device=device)  # forgets the last batch's steps, too
        latents = randn_tensor(shape, generators, device, dtype) * self.scheduler.init_noise_sigma
        is_random = "generator" in inspect.signature(self.scheduler.step).parameters  # of some solvers
        noise = {"generator": generators} if is_random else {}
        for timestep in self.scheduler.timesteps:
            velocity = self.unet(latents, timestep).sample
            latents = self.scheduler.step(velocity, timestep, latents, **noise, return_dict=False)[0]
            progress.update()
        embeddings = latents[..., :height, :width] / self.vqvae.config.scaling_factor
        return quantize(self.vqvae, embeddings)


@apply_forward_hook
def quantize(vqvae: VQModel, embeddings: torch.Tensor) -> torch.LongTensor:
    """(B, D, h, w) -> (B, h, w) the nearest codes; an offloaded VQGAN comes to the device for it."""
    return nearest_codes(vqvae, embeddings)
