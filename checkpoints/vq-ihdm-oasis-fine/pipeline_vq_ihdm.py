# Made by `save_pretrained` from vq_ihdm.checks, vq_ihdm.code_indices, vq_ihdm.pipelines.standalone_pipeline, vq_ihdm.pipelines.slice_pipeline, vq_ihdm.pipelines.token_pipeline, vq_ihdm.pipelines.pipeline_vq_ihdm.
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin, VQModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel


"""What networks and arguments are asked before anything is drawn: finite, made for each other, of the right kind."""


def check_finite(model: torch.nn.Module, name: str) -> None:
    """
    Raises:
        ValueError: a parameter or buffer of `model`, called `name` in the message, is NaN or infinite.
    """
    for key, tensor in model.state_dict().items():
        if not tensor.is_meta and not torch.isfinite(tensor).all():  # meta: offloaded, and checked before
            raise ValueError(f"{name}.{key} holds numbers that are not finite")


def check_equal(what: str, **values: Any) -> None:
    """
    Raises:
        ValueError: components, given by name with what each says of `what`, do not belong together.
    """
    if len(set(values.values())) > 1:
        said = ", ".join(f"{name} {value}" for name, value in values.items())
        raise ValueError(f"components of one pipeline have one {what}, not {said}")


def check_count(name: str, value: int, most: int | None = None) -> None:
    """
    Raises:
        ValueError: an argument, called `name`, is no positive whole number, or more than `most`.
    """
    if most is not None and not (isinstance(value, Integral) and 1 <= value <= most):
        raise ValueError(f"{name} must be a whole number in 1..{most}, not {value!r}")
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")


"""From slices to code indices and back, for training, evaluation and sampling alike."""


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


"""A pipeline where the package is not installed: loaded by the code beside its weights, and saved with it again."""


class StandalonePipeline(DiffusionPipeline):
    """A `DiffusionPipeline` that checks its components, keeps its code when it is saved, and is published privately.

    A subclass declares its components as `COMPONENTS`, the paths of their classes by name of the constructor's
    argument; it does not import them, since each travels in a file of its own.
    """

    COMPONENTS: dict[str, str] = {}

    def register_modules(self, **components: Any) -> None:
        """As `DiffusionPipeline.register_modules`, which every constructor calls, and a check of what was given."""
        super().register_modules(**components)
        self.check_components()

    def check_components(self) -> None:
        """Asked when a pipeline is made, so whenever one is loaded, and when the package saves it.

        Raises:
            ValueError: a weight is not finite, or the components do not belong together.
        """
        for name, component in self.components.items():
            if isinstance(component, torch.nn.Module):
                check_finite(component, name)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Write `model_index.json`, the last step of saving, and the code of whatever is not part of a library."""
        super().save_config(save_directory, push_to_hub, **kwargs)
        folder = Path(save_directory)
        configs = [file for name in self.COMPONENTS for file in (folder / name).glob("*config.json")]
        for config in [folder / self.config_name, *configs]:  # where it was loaded from is nobody's business
            content = json.loads(config.read_text())
            if content.pop("_name_or_path", None) is not None:
                config.write_text(json.dumps(content, indent=2) + "\n")
        index = json.loads((folder / self.config_name).read_text())
        index.pop("_module", None)
        index["_class_name"] = self.save_code(type(self), folder)
        for name in self.COMPONENTS:
            part = getattr(self, name)
            component = type(getattr(part, "_orig_mod", part))  # as torch.compile wraps it
            if component.__module__.split(".")[0] not in ("diffusers", "transformers"):
                index[name] = self.save_code(component, folder / name)
        (folder / self.config_name).write_text(json.dumps(index, indent=2) + "\n")

    def save_code(self, cls: type, folder: Path) -> list[str]:
        """Write the module of `cls` into `folder`, as it came from there; its entry for model_index.json."""
        module = cls.__module__.rpartition(".")[2]
        (folder / f"{module}.py").write_text(Path(sys.modules[cls.__module__].__file__).read_text())
        return [module, cls.__name__]

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """As `DiffusionPipeline.save_pretrained`; a repository that `push_to_hub` makes is private."""
        if push_to_hub:
            self.refuse_training_images()
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **({"private": True} | kwargs))

    def push_to_hub(self, repo_id: str, private: bool = True, **kwargs) -> str:
        """As `DiffusionPipeline.push_to_hub`; a new repository is private."""
        self.refuse_training_images()
        return super().push_to_hub(repo_id, private=private, **kwargs)

    def refuse_training_images(self) -> None:
        """Raise a ValueError for a prior of training images: nothing here says whether they may be passed on."""
        prior = self.components.get("prior")
        if prior is not None and prior.config.kind != "mixture":
            raise ValueError("the prior is made of blurred training images; only publish.py of vq-ihdm can publish it")


"""What a call of the pipelines of all systems shares: how many images, whose random numbers, which output."""


class SlicePipeline(StandalonePipeline):
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


"""What the pipelines over VQGAN codes share: from pixels to codes and back."""


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


"""Discrete VQ-IHDM as a diffusers pipeline."""


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
