"""The GANs the paper compares with as one diffusers pipeline: they differ by their weights alone."""

import torch
from diffusers import ImagePipelineOutput, ModelMixin
from diffusers.utils.torch_utils import randn_tensor

from .slice_pipeline import SlicePipeline


class GANPipeline(SlicePipeline):
    """Draws slices from standard normal latents: WGAN, AlphaWGAN, VAEGAN and CCE-GAN.

    Args:
        decoder ([`LatentDecoder`]): the generator of the GAN.
    """

    COMPONENTS = {"decoder": "vq_ihdm.baselines.stacks.LatentDecoder"}
    model_cpu_offload_seq = "decoder"

    def __init__(self, decoder: ModelMixin):
        super().__init__()
        self.register_modules(decoder=decoder)

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
        """Draw `num_images` slices.

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
        images = []
        for start in self.progress_bar(range(0, num_images, chunk_size)):
            batch = generators[start : start + chunk_size]
            shape = (len(batch), self.decoder.config.latent_dim)
            latents = randn_tensor(shape, batch, self._execution_device)
            images.append(self.decoder(latents.to(self.decoder.dtype)).cpu())
        self.maybe_free_model_hooks()
        return self.to_output(torch.cat(images), output_type, return_dict)
