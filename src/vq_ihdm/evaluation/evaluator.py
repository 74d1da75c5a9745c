"""Generated images against the real ones: every figure with floor, ceiling and interval.

    reference = EvaluationSet(*read_data_set("data/oasis"), load_networks())
    report = evaluate_images(images, reference)
    report.figure("kid").generated.value

The real side is measured once and serves any number of systems.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from ..errors import InputError
from .anatomy import compare_anatomy, measure_anatomy
from .diversity import duplicate_rate, pair_similarity
from .features import FeatureNetwork, Features, content_key
from .fidelity import fidelity
from .image_sets import ImageSet, independent
from .memorisation import Nearest, Space, memorisation_figures, nearest
from .pictures import anatomy_plot, distance_plot, image_rows, sample_grid
from .report import KINDS, Figure, Picture, Report
from .resampling import Estimate

MIN_IMAGES = 20  # a half of them fills the ten splits of the Inception Score
MIN_SUBJECTS = 4  # a quarter of them is one
CLOSEST = 8  # pairs in the picture


@dataclass(frozen=True)
class Sample:
    """An image set with all that a comparison needs: its features by network and its anatomy."""

    image_set: ImageSet
    features: dict[str, Features]
    anatomy: dict[str, np.ndarray]


class Tokenized(NamedTuple):
    """Real images as a tokenizer sees them.

    Attributes:
        training_codes, held_out_codes: (M, h, w) code indices of all images.
        training: (N, H, W) uint8, decoded codes of the training images that stand for N (or fewer) generated ones.
        held_out: (M, H, W) uint8, decoded codes of all held-out images.
    """

    training_codes: torch.Tensor
    held_out_codes: torch.Tensor
    training: np.ndarray
    held_out: np.ndarray


class EvaluationSet:
    """The real images and everything about them that does not depend on a system, each computed when first needed.

    Args:
        training, held_out: images of one size, of different people.
        networks: feature networks; the first is primary (perceptual distances, Inception Score).

    Raises:
        InputError: the two sides differ in size, or one has too few images or subjects to be measured.
    """

    def __init__(self, training: ImageSet, held_out: ImageSet, networks: list[FeatureNetwork]):
        self.training, self.held_out, self.networks = training, held_out, networks
        self.check(held_out.images, "held-out")
        self.check(training.images, "training")
        for side, image_set in (("training", training), ("held-out", held_out)):
            if image_set.num_subjects < MIN_SUBJECTS:
                raise InputError(
                    f"{image_set.num_subjects} {side} subjects are too few: intervals over subjects need at least "
                    f"{MIN_SUBJECTS}; choose more splits or build a larger set"
                )
        self._training_samples: dict[int, Sample] = {}
        self._compared: dict[str, dict[tuple[str, str], Estimate]] = {}

    def check(self, images: np.ndarray, side: str) -> None:
        """Raise an InputError if images (N, H, W) are too few to be measured or not of the training images' size."""
        if len(images) < MIN_IMAGES:
            raise InputError(
                f"{len(images)} {side} images are too few: the measures need at least {MIN_IMAGES}, and say little "
                "below some hundreds"
            )
        if images.shape[1:] != self.training.images.shape[1:]:
            sizes = ["x".join(map(str, array.shape[1:])) for array in (images, self.training.images)]
            raise InputError(
                f"{side} images of {sizes[0]} cannot be compared with training images of {sizes[1]}; "
                "bring them to one size"
            )

    def describe(self, image_set: ImageSet) -> Sample:
        features = {network.name: network(image_set.images) for network in self.networks}
        return Sample(image_set, features, measure_anatomy(image_set.images))

    @cached_property
    def held_out_sample(self) -> Sample:
        return self.describe(self.held_out)

    @cached_property
    def training_features(self) -> dict[str, Features]:
        return {network.name: network(self.training.images) for network in self.networks}

    def training_index(self, num_images: int) -> np.ndarray:
        """Which training images stand for `num_images` generated ones: a random choice, all if there are fewer.

        The choice for fewer images is the beginning of that for more.
        """
        return np.random.default_rng(0).permutation(len(self.training))[:num_images]

    def training_sample(self, num_images: int) -> Sample:
        if num_images not in self._training_samples:
            index = self.training_index(num_images)
            image_set = self.training.take(index)
            features = {name: features.take(index) for name, features in self.training_features.items()}
            self._training_samples[num_images] = Sample(image_set, features, measure_anatomy(image_set.images))
        return self._training_samples[num_images]

    @cached_property
    def pixels(self) -> Space:
        """Images with their root mean square difference, white = 1."""
        scale = 1 / (255 * np.sqrt(self.training.images[0].size))
        return self.space("pixels", self.training.images, self.held_out.images, scale)

    @cached_property
    def perceptual(self) -> Space:
        """Features of the primary network."""
        name = self.networks[0].name
        sides = self.training_features, self.held_out_sample.features
        return self.space(name, *(perceptual_vectors(features[name]) for features in sides))

    def space(self, name: str, training: np.ndarray, held_out: np.ndarray, scale: float = 1.0) -> Space:
        """Any other space, from one vector an image; see `Space`."""
        return Space(name, training, self.training.subjects, held_out, self.held_out.subjects, scale)

    def compare(self, sample: Sample) -> dict[tuple[str, str], Estimate]:
        """Fidelity, diversity and anatomy of a sample against the held-out images, by (name, features).

        Remembered by content: floor and ceiling are measured once for many systems.
        """
        images, groups = sample.image_set.images, sample.image_set.subjects
        key = content_key(images)
        if key not in self._compared:
            real, people = self.held_out_sample, self.held_out.subjects
            estimates = {}
            for network in self.networks:
                measured = fidelity(sample.features[network.name], real.features[network.name], groups, people)
                estimates |= {(name, network.name): estimate for name, estimate in measured.items()}
            estimates["ms_ssim", "pixels"] = pair_similarity(sample.image_set)
            nearest_other = nearest(images, images, groups, self.pixels.scale, own=groups).distance
            estimates["duplicate_rate", "pixels"] = duplicate_rate(nearest_other, self.pixels.copy_threshold, groups)
            anatomy = compare_anatomy(sample.anatomy, real.anatomy, groups, people)
            estimates |= {(name, "grey levels"): estimate for name, estimate in anatomy.items()}
            self._compared[key] = estimates
        return self._compared[key]


def perceptual_vectors(features: Features) -> np.ndarray:
    """Pooled features of unit length (N, D): their Euclidean distance orders as the cosine distance does."""
    return normalize(features.pooled, dim=1).numpy()


def evaluate_images(
    generated: np.ndarray,
    reference: EvaluationSet,
    tokenized: Tokenized | None = None,
    about: dict | None = None,
) -> Report:
    """Every figure of a set of generated images.

    Args:
        generated: (N, H, W) uint8.
        tokenized: the real images through the system's tokenizer (`pipelines.tokenize`), for ceiling, rFID and rKID.
        about: how the images were made, for the report.

    Raises:
        InputError: N is too small, or the size is not that of the real images.
    """
    reference.check(generated, "generated")
    sample, floor_sample = reference.describe(independent(generated)), reference.training_sample(len(generated))
    measured, floor, ceiling = reference.compare(sample), reference.compare(floor_sample), {}
    figures = []
    if tokenized is not None:
        images = tokenized.training[: len(generated)]
        decoded = ImageSet(images, reference.training.subjects[reference.training_index(len(images))])
        ceiling = reference.compare(reference.describe(decoded))
        figures += reconstruction_figures(tokenized.held_out, reference)
    figures += [
        Figure(name, features, estimate, ceiling.get((name, features)), floor[name, features])
        for (name, features), estimate in measured.items()
    ]
    primary = reference.networks[0].name
    if ("isc", primary) not in measured:
        figures.append(Figure("isc", primary, None, unavailable="these weights come without the 1008-way classifier"))
    same_level = pair_similarity(reference.held_out, same_level=True)
    if same_level is not None:
        reason = "the levels of generated images are not known"
        figures.append(Figure("ms_ssim_same_level", "pixels", None, floor=same_level, unavailable=reason))

    found = {}
    vectors = perceptual_vectors(sample.features[primary])
    for space, queries in ((reference.pixels, generated), (reference.perceptual, vectors)):
        found[space.name] = space.search(queries)
        figures += memorisation_figures(space, *found[space.name])

    order = list(KINDS)
    return Report(
        about={
            "generated": {"num_images": len(generated)} | (about or {}),
            "training": {"num_images": len(reference.training), "num_subjects": reference.training.num_subjects},
            "held_out": {"num_images": len(reference.held_out), "num_subjects": reference.held_out.num_subjects},
            "image_size": list(generated.shape[1:]),
            "networks": [{"name": network.name, "weights": network.fingerprint} for network in reference.networks],
        },
        figures=sorted(figures, key=lambda figure: order.index(figure.name)),
        pictures=_pictures(reference, sample, floor_sample, found, tokenized),
    )


def reconstruction_figures(decoded: np.ndarray, reference: EvaluationSet) -> list[Figure]:
    """rKID and rFID: the held-out images, decoded (M, H, W) uint8, against themselves."""
    figures = []
    people = reference.held_out.subjects
    floor = reference.compare(reference.training_sample(len(decoded)))
    for network in reference.networks:
        real = reference.held_out_sample.features[network.name]
        measured = fidelity(network(decoded), real, people, people, paired=True)
        figures += [
            Figure(f"r{name}", network.name, measured[name], floor=floor[name, network.name]) for name in ("kid", "fid")
        ]
    return figures


def _pictures(
    reference: EvaluationSet,
    sample: Sample,
    floor_sample: Sample,
    found: dict[str, tuple[Nearest, Nearest]],
    tokenized: Tokenized | None,
) -> dict[str, Picture]:
    generated, training, held_out = sample.image_set.images, reference.training.images, reference.held_out.images
    to_training, to_held_out = found["pixels"]
    closest = to_training.distance.argsort()[:CLOSEST]
    rows = {
        "generated": generated[closest],
        "nearest training": training[to_training.index[closest]],
        "nearest held-out": held_out[to_held_out.index[closest]],
    }
    notes = {
        "nearest training": [f"{distance:.3f}" for distance in to_training.distance[closest]],
        "nearest held-out": [f"{distance:.3f}" for distance in to_held_out.distance[closest]],
    }
    distances = {
        space.name: {
            "generated to training": found[space.name][0].distance,
            "generated to held-out": found[space.name][1].distance,
            "held-out to training": space.real[0].distance,
        }
        for space in (reference.pixels, reference.perceptual)
    }
    anatomy = {
        "generated": sample.anatomy,
        "training": floor_sample.anatomy,
        "held-out": reference.held_out_sample.anatomy,
    }
    pictures = {
        "samples.png": Picture("Random generated and held-out images.", lambda: sample_grid(generated, held_out)),
        "nearest.png": Picture(
            f"The {CLOSEST} generated images nearest to a training image, in root mean square difference of grey "
            "levels (white = 1). The lower two rows are scans of real people.",
            lambda: image_rows(rows, notes),
        ),
        "distances.png": Picture(
            "Distances to the nearest image. The larger of the two real sets has the nearer images for that alone.",
            lambda: distance_plot(distances),
        ),
        "anatomy.png": Picture("Distributions of the anatomical measures.", lambda: anatomy_plot(anatomy)),
    }
    if tokenized is not None:
        shown = np.linspace(0, len(held_out) - 1, CLOSEST).astype(int)
        pairs = {"held-out": held_out[shown], "decoded codes": tokenized.held_out[shown]}
        pictures["reconstructions.png"] = Picture(
            "Held-out images and what the VQGAN makes of them.", lambda: image_rows(pairs)
        )
    return pictures
