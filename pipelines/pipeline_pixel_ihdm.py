"""Inverse heat dissipation of pixels as a diffusers pipeline."""

import torch
from diffusers import ImagePipelineOutput, ModelMixin, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor

from ..checks import check_equal
from .slice_pipeline import SlicePipeline


class PixelIHDMPipeline(SlicePipeline):
    """Draws slices by deblurring a draw from the prior step by step (Rissanen et al., 2023).

    Args:
        unet ([`~diffusers.UNet2DModel`]): predicts what the next, less blurred state has more.
        prior ([`BlurryPrior`]): where the most blurred state comes from; of kind `images`, blurred training slices,
            in the paper.
        scheduler ([`InverseHeatScheduler`]): the blur widths and the noise.

    Raises:
        ValueError: the prior was fitted at another sigma than the scheduler's `sigma_max`.
    """

    COMPONENTS = {
        "unet": "diffusers.UNet2DModel",
        "prior": "vq_ihdm.prior.BlurryPrior",
        "scheduler": "vq_ihdm.baselines.pixel_ihdm.InverseHeatScheduler",
    }
    model_cpu_offload_seq = "unet"
    _exclude_from_cpu_offload = ["prior"]  # it has buffers, but no parameter by which `accelerate` finds its device

    def __init__(self, unet: UNet2DModel, prior: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, prior=prior, scheduler=scheduler)

    def check_components(self) -> None:
        super().check_components()
        check_equal(
            "sigma of the most blurred state", prior=self.prior.sigma, scheduler=self.scheduler.config.sigma_max
        )

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        batch_size: int | None = None,
        chunk_size: int = 32,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw `num_images` slices with as many network evaluations each as the scheduler has timesteps.

        Args:
            num_images, batch_size: how many, by either name; 1 unless given.
            generator: one, from which a seed is drawn for each image, or a list with one for each image. The same
                seed gives the same images whatever `chunk_size`.
            chunk_size: images that are worked on at a time: fewer take less memory.
            output_type: `pil` (mode L), `np` (N, H, W, 1) or `pt` (N, 1, H, W) in [0, 1].

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple.
        """
        num_images = self.how_many(num_images, batch_size, chunk_size, output_type)
        generators = self.image_generators(num_images, generator)
        device, dtype = self._execution_device, self.unet.dtype
        starts, timesteps = range(0, num_images, chunk_size), self.scheduler.timesteps.tolist()
        images = []
        with self.progress_bar(total=len(starts) * len(timesteps)) as progress:
            for start in starts:
                batch = generators[start : start + chunk_size]
                sample = self.prior.sample(len(batch), batch).to(device, dtype)
                for timestep in timesteps:
                    difference = self.unet(sample, timestep).sample
                    noise = randn_tensor(sample.shape, batch, device).to(dtype)
                    sample = self.scheduler.step(difference, timestep, sample, noise)
                    progress.update()
                images.append(sample.cpu())
        self.maybe_free_model_hooks()
        return self.to_output(2 * torch.cat(images) - 1, output_type, return_dict)
