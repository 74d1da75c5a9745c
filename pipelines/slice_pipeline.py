"""What a call of the pipelines of all systems shares: how many images, whose random numbers, which output."""

import torch
from diffusers import ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor

from ..checks import check_count
from .installed_pipeline import InstalledPipeline


class SlicePipeline(InstalledPipeline):
    """Base of the pipelines that draw grey slices.

    A subclass draws images from a list of generators, one for each image: then an image does not depend on the batch
    it is drawn in.
    """

    output_types: tuple[str, ...] = ("pil", "np", "pt")

    @property
    def known_covariates(self) -> tuple:
        """What images can be asked to be (`vq_ihdm.covariates.Covariate`); nothing without a conditional denoiser."""
        return getattr(self.components.get("denoiser"), "known_covariates", ())

    def how_many(
        self, num_images: int | None, batch_size: int | None, chunk_size: int, output_type: str, default: int = 1
    ) -> int:
        """The number of images a call asks for, by either name; `default` where it says nothing.

        Raises:
            ValueError: the two differ, or a number is not positive; or there is no such output.
        """
        if output_type not in self.output_types:
            raise ValueError(f"output_type is one of {', '.join(self.output_types)}, not {output_type}")
        asked = [count for count in (num_images, batch_size) if count is not None] or [default]
        for count in asked:
            check_count("num_images", count)
        check_count("chunk_size", chunk_size)
        if len(set(asked)) > 1:
            raise ValueError(
                f"batch_size {batch_size} is another word for num_images, which is {num_images}; chunk_size is how "
                "many images are worked on at a time"
            )
        return asked[0]

    @staticmethod
    def image_generators(
        num_images: int, generator: torch.Generator | list[torch.Generator] | None
    ) -> list[torch.Generator]:
        """One generator for each image: as given, or seeded by draws from a single one.

        Raises:
            ValueError: a list of another length, or something else than generators.
        """
        if isinstance(generator, int):
            raise ValueError(f"generator takes torch.Generator().manual_seed({generator}), not the number")
        if isinstance(generator, (list, tuple)):
            if len(generator) != num_images:
                raise ValueError(f"{num_images} images need as many generators, not {len(generator)}")
            return list(generator)
        device = generator.device if generator is not None else "cpu"
        seeds = torch.randint(2**63 - 1, (num_images,), generator=generator, device=device)
        return [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    @staticmethod
    def to_output(images: torch.Tensor, output_type: str, return_dict: bool) -> ImagePipelineOutput | tuple:
        """(N, 1, H, W) in [-1, 1] as PIL images of mode L, or as `np` (N, H, W, 1) or `pt` (N, 1, H, W) in [0, 1]."""
        output = VaeImageProcessor().postprocess(images.float(), output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)
