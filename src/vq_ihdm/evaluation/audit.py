"""The memorisation audit's verdict, and its positive control: how many planted copies it would have noticed."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, norm

from .memorisation import VERBATIM, Space
from .report import Audit, Figure, Power, Test
from .resampling import difference

LEVEL = 0.05  # of false alarms, shared equally by all tests of an audit
BY_CHANCE = 0.002  # a copy rate that raises no alarm; among held-out images it is 0, by the definition of a copy
MARGIN = 0.03  # nor does a distance ratio less than this below its floor
PLANTED = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # shares of copies that are planted to learn the audit's power
TRIALS = 200  # of each share
IMPERFECT = VERBATIM  # relative distance of planted copies that just are no verbatim ones
MUST_NOTICE = ("imperfect", 0.05)  # copies, and their share, that an audit must notice, or its silence says nothing
NOTICED = 0.95  # share of trials in which there must be an alarm


def audit(figures: list[Figure], power: list[Power]) -> Audit:
    """Test every copy rate against chance and every distance ratio against its floor, on either side of it.

    A test fails where its p-value is below `LEVEL` over the number of tests (Bonferroni). The audit fails as well where
    a single image is a training image all but verbatim; and where it would not notice copies: of too few images, or
    where a person stands on both sides of the split, whose scans make every other nearness look harmless.
    """
    tested = [(name, figure) for name, test in TESTS.items() for figure in figures if figure.name == test.figure]
    tests = [Test(name, figure.features, TESTS[name].p_value(figure)) for name, figure in tested]
    failures = [
        f"In {figure.features} {count} of the images are training images, hardly changed."
        for figure in figures
        if figure.name == "copy_rate" and (count := figure.generated.details["verbatim"])
    ]
    failures += [
        TESTS[name].sentence.format(
            features=figure.features, value=figure.generated.value, floor=figure.floor.value, p=test.p_value
        )
        for (name, figure), test in zip(tested, tests, strict=True)
        if test.p_value < level_of_each(figures)
    ]
    failures += [
        f"The audit is blind: {share.planted:.0%} of imperfect copies among so many images would be noticed in "
        f"{share.caught:.0%} of trials. Evaluate more images; if that changes nothing, a person stands in training and "
        "among those held out."
        for share in power
        if (share.copies, share.planted) == MUST_NOTICE and share.caught < NOTICED
    ]
    return Audit(failures, tests, power, LEVEL, BY_CHANCE, MARGIN)


def level_of_each(figures: list[Figure]) -> float:
    """The level of each of the tests of these figures."""
    return LEVEL / sum(figure.name == test.figure for figure in figures for test in TESTS.values())


def copy_test(figure: Figure) -> float:
    """Exact binomial test of the number of copies; generated images are independent."""
    estimate = figure.generated
    return copies_by_chance(round(estimate.value * estimate.num_images), estimate.num_images)


def copies_by_chance(copies: int, num_images: int) -> float:
    """How likely so many copies are where each image is one with probability `BY_CHANCE`."""
    return float(binomtest(copies, num_images, BY_CHANCE, alternative="greater").pvalue)


def ratio_test(figure: Figure, side: int = 1) -> float:
    """Normal test of the ratio's difference to its floor, whose half-samples share the people on both sides.

    Args:
        side: 1, whether it lies below the floor; -1, whether it lies above.
    """
    apart = difference(figure.generated, figure.floor)
    return float(norm.cdf((MARGIN + side * apart.value) / max(np.std(apart.resampled), 1e-9)))


class FigureTest(NamedTuple):
    """A one-sided test of the figures of a name, and what its failure says."""

    figure: str
    p_value: Callable[[Figure], float]
    sentence: str


TESTS = {
    "copy_rate": FigureTest(
        "copy_rate",
        copy_test,
        "In {features} {value:.1%} of the images are copies of training images (none of the held-out ones, "
        "p = {p:.1g}).",
    ),
    "nearest_ratio": FigureTest(
        "nearest_ratio",
        ratio_test,
        "In {features} the images stand nearer to training subjects than held-out people do: ratio {value:.3f} beside "
        "{floor:.3f} (p = {p:.1g}).",
    ),
    "leak": FigureTest(
        "nearest_ratio",
        partial(ratio_test, side=-1),  # of a system that was trained on those who are held out
        "In {features} the images stand nearer to held-out people than training subjects do: ratio {value:.3f} beside "
        "{floor:.3f} (p = {p:.1g}); the system seems to have been trained on them.",
    ),
}


def power_of_audit(
    copies: str,
    generated: dict[str, np.ndarray],
    planted: dict[str, np.ndarray],
    spaces: list[Space],
    level: float,
) -> list[Power]:
    """How often copies would be noticed, verbatim ones or by the copy rate, in any of the spaces.

    Args:
        copies: what they are: `verbatim` training images, `decoded` from their codes, or `imperfect`, at `IMPERFECT`.
        generated: (N,) relative distances of the generated images, by space.
        planted: (P,) those of the copies; P different ones are at hand.
        level: of each test of the audit.
    """
    rng = np.random.default_rng(0)
    num_images = len(next(iter(generated.values())))
    alarm = next((k for k in range(num_images + 1) if copies_by_chance(k, num_images) < level), np.inf)

    def notices(space: Space, kept: np.ndarray, chosen: np.ndarray) -> bool:
        relative = np.concatenate([generated[space.name][kept], planted[space.name][chosen]])
        return (relative < space.verbatim_threshold).any() or (relative < space.copy_threshold).sum() >= alarm

    result = []
    for share in [share for share in PLANTED if round(share * num_images)]:
        k = round(share * num_images)
        caught = 0
        for _ in range(TRIALS):
            kept, chosen = rng.permutation(num_images)[k:], rng.integers(len(next(iter(planted.values()))), size=k)
            caught += any(notices(space, kept, chosen) for space in spaces)
        result.append(Power(copies, share, caught / TRIALS))
    return result
