"""The memorisation audit's verdict, and its positive control: how many planted copies it would have noticed."""

import numpy as np
from scipy.stats import binomtest, norm

from .memorisation import Space
from .report import Audit, Figure, Power, Test
from .resampling import difference

LEVEL = 0.05  # of false alarms, shared equally by all tests of an audit
BY_CHANCE = 0.002  # a copy rate that raises no alarm; among held-out images it is 0, by the definition of a copy
MARGIN = 0.03  # nor does a distance ratio less than this below its floor
PLANTED = (0.01, 0.02, 0.05, 0.1)  # shares of copies that are planted to learn the audit's power
TRIALS = 200  # of each share
IMPERFECT = 0.25  # relative distance of planted copies that are not exact: so much nearer than to anybody held out
MUST_NOTICE = ("imperfect", 0.05)  # copies, and their share, that an audit must notice, or its silence says nothing
NOTICED = 0.95  # share of trials in which there must be an alarm


def audit(figures: list[Figure], power: list[Power]) -> Audit:
    """Test every copy rate against chance and every distance ratio against its floor.

    A figure fails where its p-value is below `LEVEL` over the number of tests (Bonferroni). The audit fails as well
    where it would not notice copies: of too few images, or where a person stands on both sides of the split, whose
    scans make every other nearness look harmless.
    """
    tested = [figure for figure in figures if figure.name in TESTS]
    tests = [Test(figure.name, figure.features, TESTS[figure.name](figure)) for figure in tested]
    failures = [
        SENTENCES[figure.name].format(
            features=figure.features, value=figure.generated.value, floor=figure.floor.value, p=test.p_value
        )
        for figure, test in zip(tested, tests, strict=True)
        if test.p_value < LEVEL / len(tests)
    ]
    failures += [
        f"The audit is blind: {share.planted:.0%} of imperfect copies among so many images would be noticed in "
        f"{share.caught:.0%} of trials. Evaluate more images; if that changes nothing, a person stands in training and "
        "among those held out."
        for share in power
        if (share.copies, share.planted) == MUST_NOTICE and share.caught < NOTICED
    ]
    return Audit(failures, tests, power, LEVEL, BY_CHANCE, MARGIN)


def copy_test(figure: Figure) -> float:
    """Exact binomial test of the number of copies; generated images are independent."""
    estimate = figure.generated
    return copies_by_chance(round(estimate.value * estimate.num_images), estimate.num_images)


def copies_by_chance(copies: int, num_images: int) -> float:
    """How likely so many copies are where each image is one with probability `BY_CHANCE`."""
    return float(binomtest(copies, num_images, BY_CHANCE, alternative="greater").pvalue)


def ratio_test(figure: Figure) -> float:
    """Normal test of the ratio's difference to its floor, whose half-samples share the people on both sides."""
    below = difference(figure.generated, figure.floor)
    return float(norm.cdf((below.value + MARGIN) / max(np.std(below.resampled), 1e-9)))


TESTS = {"copy_rate": copy_test, "nearest_ratio": ratio_test}
SENTENCES = {
    "copy_rate": "In {features} {value:.1%} of the images are copies of training images (none of the held-out "
    "ones, p = {p:.1g}).",
    "nearest_ratio": "In {features} the images stand nearer to training subjects than held-out people do: ratio "
    "{value:.3f} beside {floor:.3f} (p = {p:.1g}).",
}


def power_of_copy_test(
    copies: str,
    generated: dict[str, np.ndarray],
    planted: dict[str, np.ndarray],
    spaces: list[Space],
) -> list[Power]:
    """How often copies would be noticed by the copy rate in any of the spaces.

    Args:
        copies: what they are: `verbatim` training images, `decoded` from their codes, or `imperfect`, at `IMPERFECT`.
        generated: (N,) relative distances of the generated images, by space.
        planted: (P,) those of the copies; P different ones are at hand.
    """
    rng = np.random.default_rng(0)
    num_images, level = len(next(iter(generated.values()))), LEVEL / (len(TESTS) * len(spaces))
    alarm = next((k for k in range(num_images + 1) if copies_by_chance(k, num_images) < level), np.inf)
    result = []
    for share in PLANTED:
        k = round(share * num_images)
        caught = 0
        for _ in range(TRIALS):
            kept, chosen = rng.permutation(num_images)[k:], rng.integers(len(next(iter(planted.values()))), size=k)
            caught += any(
                (generated[s.name][kept] < s.copy_threshold).sum() + (planted[s.name][chosen] < s.copy_threshold).sum()
                >= alarm
                for s in spaces
            )
        result.append(Power(copies, share, caught / TRIALS))
    return result
