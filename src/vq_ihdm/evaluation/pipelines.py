"""Whole pipelines against the real images: draws, tokenizer and prior.

report = evaluate_pipeline(load_pipeline("runs/ihdm/pipeline"), reference, num_images=1000)
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from ..data.images import tensor_to_uint8
from ..heat import blur
from .evaluator import EvaluationSet, Tokenized, evaluate_images
from .memorisation import memorisation_figures
from .report import Figure, Report


def evaluate_pipeline(
    pipe: DiffusionPipeline,
    reference: EvaluationSet,
    num_images: int,
    seed: int = 0,
    batch_size: int = 32,
    tokenized: Tokenized | None = None,
    **sampling,
) -> Report:
    """Draw images from a pipeline and evaluate them, its tokenizer and its prior, as far as it has them.

    Args:
        batch_size: images that the pipeline works on at a time.
        tokenized: what `tokenize` gave for the same tokenizer and at least as many images, if it is at hand.
        sampling: arguments of the pipeline's call, such as `num_inference_steps` or `temperature`.

    Raises:
        InputError: num_images is too small, or the pipeline draws another size than that of the real images.
    """
    generated, seconds = draw_images(pipe, num_images, seed, batch_size, **sampling)
    reference.check(generated, "generated")
    if tokenized is None and hasattr(pipe, "encode_images"):
        tokenized = tokenize(pipe, reference, num_images, batch_size)
    about = {"pipeline": type(pipe).__name__, **sampling, "seed": seed, "seconds_per_image": round(seconds, 4)}
    report = evaluate_images(generated, reference, tokenized, about)
    if hasattr(pipe, "prior") and tokenized is not None:
        report.figures.extend(prior_figures(pipe, reference, tokenized, num_images, seed))
    return report


def draw_images(
    pipe: DiffusionPipeline, num_images: int, seed: int, batch_size: int = 32, **sampling
) -> tuple[np.ndarray, float]:
    """Images (N, H, W) uint8 of a pipeline, and the seconds each took."""
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    images = pipe(num_images=num_images, batch_size=batch_size, generator=generator, **sampling).images
    return np.stack(images), (time.perf_counter() - start) / num_images


@torch.no_grad()
def tokenize(pipe: DiffusionPipeline, reference: EvaluationSet, num_images: int, batch_size: int = 32) -> Tokenized:
    """The real images through a pipeline's tokenizer, and back where `evaluate_images` needs them for N images."""

    def encode(images: np.ndarray) -> torch.Tensor:
        tensors = torch.from_numpy(images).unsqueeze(1)
        return _in_batches(lambda batch: pipe.encode_images(batch / 127.5 - 1), tensors, batch_size, "encoding")

    def decode(codes: torch.Tensor) -> np.ndarray:
        return tensor_to_uint8(_in_batches(pipe.decode_codes, codes, batch_size, "decoding"))

    training_codes, held_out_codes = encode(reference.training.images), encode(reference.held_out.images)
    sample_codes = training_codes[reference.training_index(num_images)]
    return Tokenized(training_codes, held_out_codes, decode(sample_codes), decode(held_out_codes))


@torch.no_grad()
def prior_figures(
    pipe: DiffusionPipeline, reference: EvaluationSet, tokenized: Tokenized, num_images: int, seed: int = 0
) -> list[Figure]:
    """The memorisation audit of the blurry prior: its draws against u_T of training and of held-out images."""

    def blurry_states(codes: torch.Tensor) -> np.ndarray:
        def state(batch: torch.Tensor) -> torch.Tensor:
            return blur(pipe.code_embeddings(batch.to(pipe.device)), pipe.prior.sigma)

        return _in_batches(state, codes, 256, "blurring").numpy()

    draws = pipe.prior.sample(num_images, torch.Generator().manual_seed(seed)).cpu().numpy()
    training, held_out = (blurry_states(codes) for codes in tokenized[:2])
    space = reference.space("u_T", training, held_out, scale=1 / np.sqrt(draws[0].size))
    return memorisation_figures(space, *space.search(draws))


def _in_batches(
    function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, batch_size: int, description: str
) -> torch.Tensor:
    batches = tqdm(rows.split(batch_size), description, leave=False)
    return torch.cat([function(batch).cpu() for batch in batches])
