"""Generated images against the real ones: every figure with floor, ceiling and interval.

    reference = EvaluationSet(*read_data_set("data/oasis"), load_networks())
    report = evaluate_images(images, reference)
    report.figure("kid").generated.value

The real side is measured once and serves any number of systems.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch.nn.functional import normalize

from ..data.subjects import MIN_HELD_OUT
from ..errors import InputError
from .alignment import centred, moved
from .anatomy import compare_anatomy, measure_anatomy
from .audit import IMPERFECT, Power, audit, level_of_each, power_of_audit
from .diversity import duplicate_rate, pair_similarity
from .features import FeatureNetwork, Features, content_key
from .fidelity import fidelity
from .image_sets import ImageSet, independent
from .memorisation import Nearest, Space, memorisation_figures, nearest, relative_distance
from .plots import anatomy_plot, distance_plot, image_grid, image_rows
from .report import KINDS, Figure, Picture, Report
from .resampling import MAX_NEIGHBOURS, Estimate, choice
from .second_stage import Tokenized, code_figures

MIN_IMAGES = 20  # a half of them fills the ten splits of the Inception Score
CLOSEST = 8  # pairs in the picture
MAX_PLANTED = 256  # different copies in the audit's positive control
MOVED = 4  # pixels, by which some of them do not stand where they did


@dataclass(frozen=True)
class Sample:
    """An image set with all that a comparison needs: its features by network and its anatomy."""

    image_set: ImageSet
    features: dict[str, Features]
    anatomy: dict[str, np.ndarray]


SetKey = tuple[str, bytes]


def set_key(image_set: ImageSet) -> SetKey:
    """By which figures are remembered: the same images of other people have other intervals."""
    return content_key(image_set.images), image_set.subjects.tobytes()


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
            if image_set.num_subjects < MIN_HELD_OUT:
                raise InputError(
                    f"{image_set.num_subjects} {side} subjects are too few: intervals over subjects need at least "
                    f"{MIN_HELD_OUT}; build the set again with a larger share for them in --split"
                )
        # By content, so that floor and ceiling are measured once for many systems.
        self._training_samples: dict[int, Sample] = {}
        self._features: dict[str, dict[str, Features]] = {}
        self._compared: dict[SetKey, dict[tuple[str, str], Estimate]] = {}
        self._fidelity: dict[tuple[SetKey, SetKey, bool], dict[tuple[str, str], Estimate]] = {}

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

    def features_of(self, images: np.ndarray) -> dict[str, Features]:
        """By network."""
        key = content_key(images)
        if key not in self._features:
            self._features[key] = {network.name: network(images) for network in self.networks}
        return self._features[key]

    def describe(self, image_set: ImageSet) -> Sample:
        return Sample(image_set, self.features_of(image_set.images), measure_anatomy(image_set.images))

    @cached_property
    def held_out_sample(self) -> Sample:
        return self.describe(self.held_out)

    @property
    def training_features(self) -> dict[str, Features]:
        return self.features_of(self.training.images)

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
            self._features[content_key(image_set.images)] = features  # which no network has to see again
            self._training_samples[num_images] = self.describe(image_set)
        return self._training_samples[num_images]

    def decoded_stand_in(self, tokenized: Tokenized, num_images: int) -> ImageSet:
        """Those training images through the tokenizer: what a perfect stage 2 would draw."""
        index = self.training_index(num_images)
        return ImageSet(tokenized.training[index], self.training.subjects[index])

    @cached_property
    def pixels(self) -> Space:
        """Images with their root mean square difference, white = 1, as they are or mirrored, wherever they stand."""
        return self.space_of_pixels("pixels", self.training.images, self.held_out.images)

    @cached_property
    def perceptual(self) -> Space:
        """Features of the primary network."""
        name = self.networks[0].name
        sides = self.training_features, self.held_out_sample.features
        return self.space(name, *(perceptual_vectors(features[name]) for features in sides))

    @property
    def _pixel_scale(self) -> float:
        return 1 / (255 * np.sqrt(self.training.images[0].size))

    def token_spaces(self, tokenized: Tokenized) -> list[Space]:
        """Where the tokenizer's error hides no copy: decoded codes as images, and the share of codes that differ."""
        decoded = self.space_of_pixels("decoded pixels", tokenized.training, tokenized.held_out)
        sides = tokenized.training_views, tokenized.held_out_views
        return [decoded, self.space_of_views("codes", *sides, scale=1 / sides[0][0, 0].size, norm=0)]

    def space_of_pixels(self, name: str, training: np.ndarray, held_out: np.ndarray) -> Space:
        """A space of images (M, H, W); what is looked for in it is `centred` as well."""
        return self.space(name, centred(training), centred(held_out), self._pixel_scale, mirrored=True)

    def space_of_views(self, name: str, training: np.ndarray, held_out: np.ndarray, **how) -> Space:
        """A space from V vectors an image, (M, V, ...): of itself, of its mirror image and of what other views of it
        training sees.

        Copies of all views are looked for; and since a generated image is like one or the other, all views of the
        held-out people are there, too, or most of the images would seem far from them.
        """
        (training, subjects), (held_out, people) = (
            (views.reshape(-1, *views.shape[2:]), np.repeat(side.subjects, views.shape[1]))
            for views, side in ((training, self.training), (held_out, self.held_out))
        )
        return Space(name, training, subjects, held_out, people, **how)

    def space(self, name: str, training: np.ndarray, held_out: np.ndarray, scale: float = 1.0, **how) -> Space:
        """Any other space, from one vector an image; see `Space`."""
        return Space(name, training, self.training.subjects, held_out, self.held_out.subjects, scale, **how)

    def fidelity(self, sample: ImageSet, real: ImageSet, paired: bool = False) -> dict[tuple[str, str], Estimate]:
        """`fidelity.fidelity` of a sample by (name, features)."""
        key = set_key(sample), set_key(real), paired
        if key not in self._fidelity:
            ours, theirs = self.features_of(sample.images), self.features_of(real.images)
            self._fidelity[key] = {
                (name, network): estimate
                for network in ours
                for name, estimate in fidelity(
                    ours[network], theirs[network], sample.subjects, real.subjects, paired
                ).items()
            }
        return self._fidelity[key]

    def compare(self, sample: Sample) -> dict[tuple[str, str], Estimate]:
        """Fidelity, diversity and anatomy of a sample against the held-out images, by (name, features)."""
        image_set = sample.image_set
        key = set_key(image_set)
        if key not in self._compared:
            estimates = dict(self.fidelity(image_set, self.held_out))
            estimates["ms_ssim", "pixels"] = pair_similarity(image_set)
            compared = image_set.take(choice(image_set.subjects, MAX_NEIGHBOURS))
            images, groups = centred(compared.images), compared.subjects
            others = nearest(images, images, groups, self._pixel_scale, own=groups).by_subject
            estimates["duplicate_rate", "pixels"] = duplicate_rate(others, self.pixels.close, groups)
            real = self.held_out_sample.anatomy
            anatomy = compare_anatomy(sample.anatomy, real, image_set.subjects, self.held_out.subjects)
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
    codes: np.ndarray | None = None,
    others: list[Figure] | None = None,
    about: dict | None = None,
) -> Report:
    """Every figure of a set of generated images.

    Args:
        generated: (N, H, W) uint8.
        tokenized: the real images through the system's tokenizer (`pipelines.tokenize`), for ceiling, reconstruction
            and all that is measured on codes.
        codes: (N, h, w), those the images were decoded from, where they are known; given with `tokenized`.
        others: what needs the pipeline to be measured: its prior's audit, which takes part in the verdict, and whether
            it obeys (`pipelines.prior_figures`, `pipelines.covariate_figures`).
        about: how the images were made, for the report.

    Raises:
        InputError: N is too small, or the size is not that of the real images.
    """
    reference.check(generated, "generated")
    sample, floor_sample = reference.describe(independent(generated)), reference.training_sample(len(generated))
    measured, floor, ceiling = reference.compare(sample), reference.compare(floor_sample), {}
    figures = []
    if tokenized is not None:
        decoded = reference.decoded_stand_in(tokenized, len(generated))
        ceiling = reference.compare(reference.describe(decoded))
        figures += reconstruction_figures(tokenized.held_out, reference)
        figures += second_stage_figures(sample.image_set, decoded, codes, tokenized, reference)
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

    vectors = perceptual_vectors(sample.features[primary])
    in_place = centred(generated)
    queries = [(reference.pixels, in_place), (reference.perceptual, vectors)]
    if tokenized is not None:
        decoded_pixels, code_grids = reference.token_spaces(tokenized)
        queries.append((decoded_pixels, in_place))
        if codes is not None:
            queries.append((code_grids, codes))
    audited = choice(np.arange(len(generated)), MAX_NEIGHBOURS)
    found = {space.name: space.search(vectors[audited]) for space, vectors in queries}
    spaces = [space for space, _ in queries]
    figures += [figure for space in spaces for figure in memorisation_figures(space, *found[space.name])]
    figures += others or []
    relative = {name: relative_distance(*nearest_images) for name, nearest_images in found.items()}
    power = positive_control(spaces, relative, reference, tokenized, level_of_each(figures))

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
        pictures=_pictures(reference, sample, floor_sample, audited, found, tokenized),
        audit=audit(figures, power),
    )


def positive_control(
    spaces: list[Space],
    generated: dict[str, np.ndarray],
    reference: EvaluationSet,
    tokenized: Tokenized | None,
    level: float,
) -> list[Power]:
    """How often the audit notices copies of training images among the generated ones: as they are, moved, decoded or
    altered.

    Args:
        generated: (N,) relative distances of the generated images, by space.
        level: of each test of the audit.
    """
    index, primary = reference.training_index(MAX_PLANTED), reference.networks[0].name
    planted = {"verbatim": (reference.training.images[index], reference.training_features[primary].take(index))}
    elsewhere = moved(reference.training.images[index], MOVED)
    planted["moved"] = (elsewhere, reference.features_of(elsewhere)[primary])
    if tokenized is not None:
        planted["decoded"] = (tokenized.training[index], reference.features_of(tokenized.training[index])[primary])
    power = []
    for copies, (images, features) in planted.items():
        in_place = centred(images)
        vectors = {"pixels": in_place, "decoded pixels": in_place, primary: perceptual_vectors(features)}
        if tokenized is not None and copies != "moved":  # whose codes are others
            vectors["codes"] = tokenized.training_codes[index, 0]
        seen = [space for space in spaces if space.name in vectors]
        relative = {space.name: relative_distance(*space.search(vectors[space.name])) for space in seen}
        power += power_of_audit(copies, generated, relative, seen, level)
    altered = {space.name: np.full(1, IMPERFECT) for space in spaces}
    return power + power_of_audit("imperfect", generated, altered, spaces, level)


def second_stage_figures(
    generated: ImageSet,
    decoded: ImageSet,
    codes: np.ndarray | None,
    tokenized: Tokenized,
    reference: EvaluationSet,
) -> list[Figure]:
    """Generated images against the decoded codes of held-out images, and their codes (N, h, w), if known, to theirs.

    Args:
        decoded: training images that stand for N generated ones, through the tokenizer: what a perfect stage 2 scores.
    """
    real = ImageSet(tokenized.held_out, reference.held_out.subjects)
    measured, best = reference.fidelity(generated, real), reference.fidelity(decoded, real)
    figures = [
        Figure(f"second_stage_{name}", features, estimate, ceiling=best[name, features])
        for (name, features), estimate in measured.items()
        if f"second_stage_{name}" in KINDS
    ]
    if codes is None:
        return figures
    index = reference.training_index(len(generated))
    return figures + code_figures(codes, tokenized, index, decoded.subjects, real.subjects)


def reconstruction_figures(decoded: np.ndarray, reference: EvaluationSet) -> list[Figure]:
    """rKID and rFID: the held-out images, decoded (M, H, W) uint8, against themselves."""
    floor = reference.compare(reference.training_sample(len(decoded)))
    real = reference.held_out
    measured = reference.fidelity(ImageSet(decoded, real.subjects), real, paired=True)
    return [
        Figure(f"r{name}", features, estimate, floor=floor[name, features])
        for (name, features), estimate in measured.items()
        if name in ("kid", "fid")
    ]


def _pictures(
    reference: EvaluationSet,
    sample: Sample,
    floor_sample: Sample,
    audited: np.ndarray,
    found: dict[str, tuple[Nearest, Nearest]],
    tokenized: Tokenized | None,
) -> dict[str, Picture]:
    generated, training, held_out = sample.image_set.images, reference.training.images, reference.held_out.images
    to_training, to_held_out = found["pixels"]
    closest = to_training.distance.argsort()[:CLOSEST]
    rows = {
        "generated": generated[audited[closest]],
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
        "samples.png": Picture("Random generated images.", lambda: image_grid({"generated": generated})),
        "beside_real.png": Picture(
            "Random generated and held-out images.",
            lambda: image_grid({"generated": generated, "held-out": held_out}),
            shows_scans=True,
        ),
        "nearest.png": Picture(
            f"The {CLOSEST} generated images nearest to a training image, in root mean square difference of grey "
            "levels (white = 1). The lower two rows are scans of real people.",
            lambda: image_rows(rows, notes),
            shows_scans=True,
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
            "Held-out images and what the VQGAN makes of them.", lambda: image_rows(pairs), shows_scans=True
        )
    return pictures
