"""Does a conditional model obey, is it useful, does it serve every group: linear probes on frozen features.

A probe learns a covariate from images of one kind and is asked about images of another; its score is the mean absolute
error of a number and the balanced accuracy (mean recall over the categories) of a category. Intervals are over the
subjects, or generated images, that it is asked about.

A tokenizer leaves its mark on every image it decodes, and a probe of such images is wrong about scans that lack it. So
the probe of generated images is also asked about held-out scans that went through the tokenizer, as whoever trains on
synthetic images can send theirs: what it then misses more than a probe of decoded training images is the model's.

Beside every probe stands a guess that sees no image: the median of the training images, or one and the same category.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ..covariates import Covariate
from ..data.subjects import MIN_HELD_OUT
from .fidelity import MAX_RESAMPLED, Grams, kernel_distance
from .report import Figure
from .resampling import Estimate, choice, difference, estimate, half_samples

MIN_IMAGES = 20  # of a group, or with a known value, on each side
COMPONENTS = 64  # principal components a probe sees: scans of some hundred people determine no more


class Labelled(NamedTuple):
    """Images as a feature network sees them, with their covariates.

    Attributes:
        features: (N, D).
        table: (N, C), as `vq_ihdm.covariates` has it: NaN where a value is not known.
        groups: (N,) int, images that are resampled together: the subject of a scan; a generated image is its own.
    """

    features: np.ndarray
    table: np.ndarray
    groups: np.ndarray

    def take(self, chosen: np.ndarray) -> "Labelled":
        return Labelled(*(array[chosen] for array in self))

    def known(self, column: int, covariate: Covariate) -> "Labelled":
        """The images whose value of a covariate is known, and a category that two groups have: halves need one each."""
        values = self.table[:, column]
        known = ~np.isnan(values)
        if covariate.kind == "category":
            for category in np.unique(values[known]):
                of_it = values == category
                known &= ~of_it | (len(np.unique(self.groups[of_it])) > 1)
        return self.take(known)

    @property
    def enough(self) -> bool:
        return len(self.groups) >= MIN_IMAGES and len(np.unique(self.groups)) >= MIN_HELD_OUT


def conditioning_figures(
    known: Sequence[Covariate],
    training: Labelled,
    held_out: Labelled,
    generated: Labelled,
    decoded: tuple[Labelled, Labelled] | None = None,
) -> list[Figure]:
    """Control, utility and fidelity by group, for every covariate that is known often enough on all sides.

    Args:
        known: the model's vocabulary; column c of each table is its c-th covariate.
        generated: with what was asked for.
        decoded: of a model with a tokenizer, training images that stand for as many generated ones, and the held-out
            images, both through the tokenizer.
    """
    figures = []
    for column, covariate in enumerate(known):
        sides = [side.known(column, covariate) for side in (training, held_out, generated, *(decoded or ()))]
        if all(side.enough for side in sides):
            figures += probe_figures(covariate, column, *sides)
            figures += group_figures(covariate, column, *sides[:3])
    return figures


def probe_figures(
    covariate: Covariate,
    column: int,
    training: Labelled,
    held_out: Labelled,
    generated: Labelled,
    stand_in: Labelled | None = None,
    held_out_decoded: Labelled | None = None,
) -> list[Figure]:
    """Control: the probe of real training images, asked about generated ones (floor: about held-out people).

    Utility: probes of generated images, alone and with the real ones, asked about held-out people (floor: the probe of
    the real ones). The floor's subjects are the same, so the difference to it has an interval of its own.

    Ceiling, where there is a tokenizer: the same with decoded images of real people in place of the generated ones. It
    is what a probe that is asked about decoded scans is compared with: the floor is asked another question.
    """

    def learn(images: Labelled) -> Callable[[Labelled], Estimate]:
        return partial(ask, fit_probe(covariate, column, images), covariate, column)

    guess = partial(ask, fit_guess(covariate, column, training), covariate, column)
    of_real, of_generated = learn(training), learn(generated)
    of_both = learn(Labelled(*map(np.concatenate, zip(training, generated, strict=True))))
    real = of_real(held_out)
    measured = {
        "control": of_real(generated),
        "synthetic": beside(of_generated(held_out), real),
        "augmented": beside(of_both(held_out), real),
    }
    ceiling = {}
    if stand_in is not None:
        of_stand_in = learn(stand_in)
        ceiling["control"] = of_real(held_out_decoded)
        ceiling["synthetic"] = of_stand_in(held_out)
        ceiling["decoded_synthetic"] = of_stand_in(held_out_decoded)
        measured["decoded_synthetic"] = beside(of_generated(held_out_decoded), ceiling["decoded_synthetic"])
    kind = "accuracy" if covariate.kind == "category" else "error"
    figures = [
        Figure(f"{name}_{kind}", covariate.name, estimate, ceiling.get(name), real)
        for name, estimate in measured.items()
    ]
    return [*figures, Figure(f"guess_{kind}", covariate.name, guess(generated), floor=guess(held_out))]


def fit_guess(covariate: Covariate, column: int, images: Labelled) -> DummyClassifier | DummyRegressor:
    """What is best to say of an image that nobody has looked at."""
    blind = DummyClassifier() if covariate.kind == "category" else DummyRegressor(strategy="median")
    return blind.fit(images.features, images.table[:, column])


def fit_probe(covariate: Covariate, column: int, images: Labelled) -> Pipeline:
    """Ridge regression, or classification with balanced weights, on standardised principal components."""
    components = PCA(min(COMPONENTS, *images.features.shape), random_state=0)
    linear = RidgeClassifier(class_weight="balanced") if covariate.kind == "category" else Ridge()
    return make_pipeline(StandardScaler(), components, linear).fit(images.features, images.table[:, column])


def ask(
    probe: Pipeline | DummyClassifier | DummyRegressor, covariate: Covariate, column: int, images: Labelled
) -> Estimate:
    """The probe's score. Halves that lack a category are left out: chance is another among fewer."""
    predicted, true = probe.predict(images.features), images.table[:, column]

    def score(rows: np.ndarray) -> float:
        if covariate.kind != "category":
            return float(np.abs(predicted[rows] - true[rows]).mean())
        right = predicted[rows] == true[rows]
        return float(np.mean([right[true[rows] == category].mean() for category in categories]))

    highest = 1 if covariate.kind == "category" else np.inf
    categories, halves = np.unique(true), half_samples(images.groups)
    if covariate.kind == "category":
        halves = [half for half in halves if len(np.unique(true[half])) == len(categories)]
    resampled = [score(half) for half in halves]
    return estimate(score(np.arange(len(true))), resampled, len(true), 0, highest)


def beside(measured: Estimate, real: Estimate) -> Estimate:
    """`measured` with its difference to one of real images, asked about the same subjects, in its details."""
    apart = difference(measured, real)
    details = {"difference": apart.value, "difference_interval": list(apart.interval)}
    return Estimate(measured.value, measured.interval, measured.num_images, details, measured.resampled)


def group_figures(
    covariate: Covariate, column: int, training: Labelled, held_out: Labelled, generated: Labelled
) -> list[Figure]:
    """KID of each group's generated images against its held-out people; the floor has its training images."""
    figures = []
    sides = training, held_out, generated
    for label, chosen in zip(*groups_of(covariate, *(side.table[:, column] for side in sides)), strict=True):
        real, people, made = (side.take(rows) for side, rows in zip(sides, chosen, strict=True))
        if real.enough and people.enough and made.enough:
            floor = kernel_estimate(real, people)
            figures.append(Figure("group_kid", label, kernel_estimate(made, people), floor=floor))
    return figures


def groups_of(
    covariate: Covariate, training: np.ndarray, *others: np.ndarray
) -> tuple[list[str], Iterator[list[np.ndarray]]]:
    """Labels of a covariate's groups, and for each the masks of its members among the values of every side.

    A category's groups are its values; those of a number are the terciles of the training images.
    """
    sides = training, *others
    if covariate.kind == "category":
        labels = [f"{covariate.name} {category}" for category in covariate.categories]
        return labels, ([values == index for values in sides] for index in range(len(labels)))
    low, high = np.quantile(training, (1 / 3, 2 / 3))
    name = covariate.name
    labels = [f"{name} below {low:.3g}", f"{name} {low:.3g} to {high:.3g}", f"{name} above {high:.3g}"]
    return labels, ([np.digitize(values, (low, high)) == tercile for values in sides] for tercile in range(3))


def kernel_estimate(images: Labelled, real: Labelled) -> Estimate:
    """KID over pairs of different people, of at most `MAX_RESAMPLED` images a side, with its interval over both.

    A group has few people: pairs of slices of one of them would add more than a model's KID is.
    """
    images, real = (side.take(choice(side.groups, MAX_RESAMPLED)) for side in (images, real))
    grams = Grams.of(*(torch.from_numpy(np.ascontiguousarray(side.features)) for side in (images, real)))

    def kid(i: np.ndarray, j: np.ndarray) -> float:
        return kernel_distance(grams.take(i, j), images.groups[i], real.groups[j])

    halves = zip(half_samples(images.groups), half_samples(real.groups, real=True), strict=True)
    whole = kid(np.arange(len(images.groups)), np.arange(len(real.groups)))
    return estimate(whole, [kid(i, j) for i, j in halves], len(images.groups))
