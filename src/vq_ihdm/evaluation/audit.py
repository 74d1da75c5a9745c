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
NOTICED = 0.95  # share of trials with the most verbatim copies in which there must be an alarm, or silence says nothing


def audit(figures: list[Figure], power: list[Power]) -> Audit:
    """Test every copy rate against chance and every distance ratio against its floor.

    A figure fails where its p-value is below `LEVEL` over the number of tests (Bonferroni). The audit fails as well
    where it would not notice copies: of too few images, or where a scan stands on both sides of the split.
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
        f"The audit is blind: {share.planted:.0%} of verbatim copies among so many images would be noticed in "
        f"{share.caught:.0%} of trials. Evaluate more images; if that changes nothing, a scan stands in training and "
        "among the held-out ones."
        for share in power
        if (share.copies, share.planted) == ("verbatim", PLANTED[-1]) and share.caught < NOTICED
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
        copies: what they are: `verbatim` training images, or `decoded` from their codes.
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
