"""Whole pipelines against the real images: draws, tokenizer and prior.

report = evaluate_pipeline(load_pipeline("runs/ihdm/pipeline"), reference, num_images=1000)
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from ..covariates import Covariate, decode_covariates
from ..data.conditioning import askable, covariate_table
from ..data.images import check_image_size
from ..data.pixels import tensor_to_uint8
from ..data.tokens import encode_shifted, encode_split
from ..heat import blur, dct
from ..sampling_arguments import usual_sampling
from ..vqgan.model import downsampling_factor
from .conditioning import Labelled, conditioning_figures
from .evaluator import EvaluationSet, evaluate_images
from .image_sets import ImageSet, independent
from .memorisation import memorisation_figures
from .report import Figure, Report
from .second_stage import Tokenized


class Drawn(NamedTuple):
    """Images of a pipeline.

    Attributes:
        images: (N, H, W) uint8.
        codes: (N, h, w) code indices they were decoded from, or None where the pipeline has no tokenizer.
        seconds: of each image.
    """

    images: np.ndarray
    codes: np.ndarray | None
    seconds: float


def evaluate_pipeline(
    pipe: DiffusionPipeline,
    reference: EvaluationSet,
    num_images: int,
    seed: int = 0,
    batch_size: int = 32,
    views: Sequence[dict] = (),
    **sampling,
) -> Report:
    """Draw images from a pipeline and evaluate them, its tokenizer and its prior, as far as it has them.

    A pipeline that knows covariates is asked for those of training images, so that its images are of that population.

    Args:
        batch_size: images that the pipeline works on at a time.
        views: that its second stage learnt from, see `tokenize`.
        sampling: arguments of the pipeline's call, such as `num_inference_steps` or `temperature`.

    Raises:
        InputError: num_images is too small, or the pipeline draws another size than that of the real images.
    """
    known = pipe.known_covariates
    usual = usual_sampling(pipe.scheduler.config) if hasattr(pipe, "scheduler") else {}
    asked, about = {}, {"pipeline": type(pipe).__name__, **usual, **sampling, "seed": seed}
    if known:
        table = covariate_table(known, reference.training.split)
        table = table[np.resize(reference.training_index(num_images), num_images)]
        table = askable(known, table)
        if not table.isnan().all():
            asked["covariates"] = decode_covariates(known, table)
            about["covariates"] = "of training images"
    drawn = draw_images(pipe, num_images, seed, batch_size, **sampling, **asked)
    reference.check(drawn.images, "generated")
    tokenized, others = None, []
    if drawn.codes is not None:
        tokenized = tokenize(pipe, reference, batch_size, views)
    if hasattr(pipe, "prior"):
        others += prior_figures(pipe, reference, tokenized, num_images, seed)
    if known:
        others += covariate_figures(known, table, drawn.images, reference, tokenized)
    about["seconds_per_image"] = round(drawn.seconds, 4)
    return evaluate_images(drawn.images, reference, tokenized, drawn.codes, others, about)


def draw_images(pipe: DiffusionPipeline, num_images: int, seed: int, batch_size: int = 32, **sampling) -> Drawn:
    """Images of a pipeline, with their codes where it has a tokenizer."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {"num_images": num_images, "chunk_size": batch_size, "generator": generator, **sampling}
    start = time.perf_counter()
    if hasattr(pipe, "decode_codes"):
        codes = pipe(output_type="latent", **arguments).images.cpu()
        images = decode(pipe, codes, batch_size)
        return Drawn(images, codes.numpy(), (time.perf_counter() - start) / num_images)
    images = np.stack(pipe(**arguments).images)
    return Drawn(images, None, (time.perf_counter() - start) / num_images)


def decode(pipe: DiffusionPipeline, codes: torch.Tensor, batch_size: int = 32) -> np.ndarray:
    """(N, h, w) code indices -> (N, H, W) uint8."""
    batches = tqdm(codes.split(batch_size), "decoding", leave=False)
    return np.concatenate([tensor_to_uint8(pipe.decode_codes(batch)) for batch in batches])


def tokenize(
    pipe: DiffusionPipeline, reference: EvaluationSet, batch_size: int = 32, views: Sequence[dict] = ()
) -> Tokenized:
    """The real images through a pipeline's tokenizer and back; codes come from the cache that training uses.

    Args:
        batch_size: images that are decoded at a time.
        views: what a second stage learnt from beside each image and its mirror image, as `hub.record.views_learnt_from`
            tells it.

    Raises:
        InputError: they have a size that it does not take.
    """
    check_image_size(reference.training.split, "the data set", downsampling_factor(pipe.vqvae))
    sides = reference.training.split, reference.held_out.split
    codes = [encode_split(pipe.vqvae, split, mirrored=True) for split in sides]
    of_views = [
        torch.cat([of_side, *(encode_shifted(pipe.vqvae, split, **drawn) for drawn in views)], dim=1)
        for of_side, split in zip(codes, sides, strict=True)
    ]
    return Tokenized(
        *(of_side.numpy() for of_side in codes),
        *(decode(pipe, of_side[:, 0], batch_size) for of_side in codes),
        pipe.vqvae.config.num_vq_embeddings,
        *(of_side.numpy() for of_side in of_views),
    )


@torch.no_grad()
def prior_figures(
    pipe: DiffusionPipeline, reference: EvaluationSet, tokenized: Tokenized | None, num_images: int, seed: int = 0
) -> list[Figure]:
    """The memorisation audit of the blurry prior: its draws against u_T of training and of held-out images.

    They are compared in the cosine modes that the prior has: what the blur wiped out does not count.

    Args:
        tokenized: None where u_T is of pixels.
    """

    def modes(states: torch.Tensor) -> torch.Tensor:
        return dct(states).flatten(2)[..., pipe.prior.modes].flatten(1)

    def blurred(views: np.ndarray) -> np.ndarray:
        """(M, 2, ...) images or codes with their mirror images -> (M, 2, P)."""

        def state(batch: torch.Tensor) -> torch.Tensor:
            batch = batch.to(pipe.device)
            return modes(blur(batch[:, None] / 255 if tokenized is None else pipe.embed_codes(batch), pipe.prior.sigma))

        batches = tqdm(torch.from_numpy(views).flatten(0, 1).split(256), "blurring", leave=False)
        return torch.cat([state(batch).cpu() for batch in batches]).unflatten(0, (-1, 2)).numpy()

    if tokenized is None:
        sides = (np.stack([s.images, s.images[..., ::-1]], axis=1) for s in (reference.training, reference.held_out))
    else:
        sides = tokenized.training_codes, tokenized.held_out_codes
    draws = pipe.prior.sample(num_images, torch.Generator().manual_seed(seed))
    space = reference.space_of_views("u_T", *map(blurred, sides), scale=1 / np.sqrt(draws[0].numel()))
    return memorisation_figures(space, *space.search(modes(draws).cpu().numpy()))


def covariate_figures(
    known: Sequence[Covariate],
    asked: torch.Tensor,
    images: np.ndarray,
    reference: EvaluationSet,
    tokenized: Tokenized | None = None,
) -> list[Figure]:
    """Whether images (N, H, W) uint8 show the covariates (N, C) that were asked for; see `conditioning`."""

    def label(image_set: ImageSet, table: torch.Tensor) -> Labelled:
        features = reference.features_of(image_set.images)[reference.networks[0].name]
        return Labelled(features.pooled.numpy(), table.numpy(), image_set.subjects)

    tables = [covariate_table(known, side.split) for side in (reference.training, reference.held_out)]
    training, held_out = map(label, (reference.training, reference.held_out), tables)
    decoded = None
    if tokenized is not None:
        index = reference.training_index(len(images))
        held_out_decoded = ImageSet(tokenized.held_out, reference.held_out.subjects)
        stand_in = label(reference.decoded_stand_in(tokenized, len(images)), tables[0][index])
        decoded = stand_in, label(held_out_decoded, tables[1])
    return conditioning_figures(known, training, held_out, label(independent(images), asked), decoded)
