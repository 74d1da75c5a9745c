"""The prior over states and covariates together: conditioning, missing values, whom a component stands for."""

import dataclasses
import functools
import itertools
import math

import pytest
import torch
from conftest import CODE_DIM, HEIGHT, WIDTH

from vq_ihdm import BlurryPrior
from vq_ihdm.covariates import Covariate, covariate_features, nearest_covariates
from vq_ihdm.errors import InputError
from vq_ihdm.fit_prior import MIN_SUBJECTS, fit_prior
from vq_ihdm.heat import blur, dct

AGE = Covariate("age", "continuous", low=20, high=80, mean=50, std=20)
SEX = Covariate("sex", "category", categories=("F", "M"))
LEVEL = Covariate("slice_level", "level")
KNOWN = [AGE, SEX, LEVEL]
ASKED = torch.tensor([62.0, 1.0, 0.3])
RANK, NOISE, COMPONENTS = 2, 0.5, 3
SIGMA = 2.0


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def known_mixture():
    """A prior whose features are those of a mixture without noise plus NOISE, and that mixture."""
    dimension = RANK + sum(covariate.num_features for covariate in KNOWN)
    prior = BlurryPrior(
        "mixture", 1, 1, RANK, 0.0, RANK, RANK, COMPONENTS, 2 * dimension - RANK, 1.0,
        [vars(covariate) for covariate in KNOWN],
    ).double()  # fmt: skip
    means = 0.7 * torch.randn(COMPONENTS, dimension, generator=seeded(1), dtype=torch.float64)
    factors = 0.4 * torch.randn(COMPONENTS, dimension, dimension, generator=seeded(2), dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    noise = NOISE * torch.eye(dimension, dtype=torch.float64)[:, RANK:].expand(COMPONENTS, -1, -1)
    state = {"means": means, "factors": torch.cat([factors, noise], 2), "weights": weights}
    state |= {"modes": torch.arange(RANK), "basis": torch.eye(RANK)}
    prior.load_state_dict(prior.state_dict() | state)
    return prior, (weights, means, factors)


@functools.cache
def joint_draws(num_draws: int = 300_000):
    """Of the mixture without noise: scores and features."""
    weights, means, factors = known_mixture()[1]
    component = torch.multinomial(weights, num_draws, replacement=True, generator=seeded(3))
    noise = torch.randn(num_draws, means.shape[1], generator=seeded(4), dtype=torch.float64)
    draws = means[component] + torch.einsum("knj,kij,nk->ni", noise.expand(COMPONENTS, -1, -1), factors,
                                            torch.nn.functional.one_hot(component).double())  # fmt: skip
    return draws[:, :RANK], draws[:, RANK:]


def rejection(asked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and completed covariates by brute force: draws of the joint are kept as likely as their noise explains
    what is asked."""
    scores, features = joint_draws()
    wanted = covariate_features(KNOWN, asked[None].double())[0]
    given = ~wanted.isnan()
    distance = ((features - wanted)[:, given] ** 2).sum(1)
    uniform = torch.rand(len(scores), generator=seeded(5), dtype=torch.float64)
    kept = (uniform < (-distance / (2 * NOISE**2)).exp()).nonzero()[:20_000, 0]
    noisy = features[kept] + NOISE * torch.randn(len(kept), features.shape[1], generator=seeded(6), dtype=torch.float64)
    return scores[kept], torch.where(asked.isnan(), nearest_covariates(KNOWN, noisy), asked)


SUBSETS = [subset for size in range(4) for subset in itertools.combinations(range(3), size)]


@pytest.mark.parametrize("subset", SUBSETS, ids=lambda subset: "+".join(KNOWN[i].name for i in subset) or "nothing")
def test_conditioning_on_any_subset_is_rejection_from_the_joint(subset):
    prior, _ = known_mixture()
    asked = torch.full((3,), math.nan, dtype=torch.float64)
    asked[list(subset)] = ASKED.double()[list(subset)]
    states, completed = prior.draw(asked.expand(1500, -1), seeded())
    scores = dct(states).flatten(1)
    wanted_scores, wanted_completed = rejection(asked)
    assert len(wanted_scores) > 250
    assert torch.equal(completed[:, list(subset)], asked[list(subset)].expand(1500, -1))
    ours, theirs = torch.cat([scores, completed], 1), torch.cat([wanted_scores, wanted_completed], 1)
    powers = [lambda x: x, lambda x: x**2, lambda x: x[:, :1] * x[:, 1:]]  # means, variances, how they move together
    for power in powers:
        first, second = power(ours), power(theirs)
        error = (first.var(0) / len(first) + second.var(0) / len(second)).sqrt()
        assert ((first.mean(0) - second.mean(0)).abs() <= 4.5 * error + 1e-9).all()


def test_each_image_may_be_given_something_else():
    prior, _ = known_mixture()
    table = torch.full((4, 3), math.nan)
    table[1, 0], table[2], table[3, 1:] = ASKED[0], ASKED, ASKED[1:]
    together, completed = prior.draw(table, [seeded(i) for i in range(4)])
    for i in range(4):
        alone, values = prior.draw(table[i : i + 1], [seeded(i)])
        torch.testing.assert_close(alone[0], together[i])
        torch.testing.assert_close(values[0], completed[i])
    assert not completed.isnan().any()
    torch.testing.assert_close(prior.sample(1, [seeded(0)]), together[:1])  # nothing given


# ---- fitted -----------------------------------------------------------------------------------------------------


def population(num_slices: int = 600):
    """Sharp embeddings that depend on age (linearly), sex and level (not linearly), with the table of these."""
    generator = seeded()
    shape = (CODE_DIM, HEIGHT, WIDTH)
    age = 20 + 60 * torch.rand(num_slices, generator=generator)
    sex = (torch.rand(num_slices, generator=generator) < 0.5).float()
    level = torch.rand(num_slices, generator=generator)
    directions = torch.randn(3, *shape, generator=generator)
    effects = torch.stack([(age - 50) / 20, 2 * sex - 1, torch.cos(2 * math.pi * level)], 1)
    sharp = torch.tensordot(effects, directions, 1) + 0.3 * torch.randn(num_slices, *shape, generator=generator)
    return sharp, torch.stack([age, sex, level], 1), directions


def effect(prior: BlurryPrior, direction: torch.Tensor, asked: list[float]) -> float:
    """How far the draws given `asked` lie along a direction of `population`, in units of it."""
    states, _ = prior.draw(torch.tensor([asked]).expand(200, -1), seeded())
    pattern = dct(direction)
    kept = torch.zeros_like(pattern).flatten(1)
    kept[:, prior.modes] = 1
    kept = kept.view_as(pattern) * pattern
    gain = dct(blur(direction[None], prior.sigma)[0]) * kept
    return float((dct(states.mean(0)) * kept).sum() / gain.sum())


@pytest.mark.parametrize("missing", [False, True])
def test_a_fitted_prior_obeys(missing):
    """Age, sex and level move the draws as they moved the training states; also where a third of the ages and sexes
    are missing."""
    sharp, table, (of_age, of_sex, of_level) = population()
    if missing:
        table[:, :2][torch.rand(len(table), 2, generator=seeded(5)) < 0.33] = math.nan
    prior = fit_prior(sharp, SIGMA, rank=20, num_components=1, known_covariates=KNOWN, covariates=table)
    nan, close = math.nan, pytest.approx
    assert effect(prior, of_age, [70, nan, nan]) - effect(prior, of_age, [30, nan, nan]) == close(2, abs=0.3)
    assert effect(prior, of_sex, [nan, 1, nan]) - effect(prior, of_sex, [nan, 0, nan]) == close(2, abs=0.3)
    assert effect(prior, of_level, [nan, nan, 0.0]) - effect(prior, of_level, [nan, nan, 0.5]) == close(2, abs=0.3)
    assert effect(prior, of_age, [70, 1, 0.5]) - effect(prior, of_age, [30, 1, 0.5]) == close(2, abs=0.3)


def test_what_grows_late_in_life_is_drawn_so():
    """Nothing changes until 50, then more and more: a straight line gives half of it too early, and half to the old."""
    sharp, table, (of_age, *_) = population()
    late = ((table[:, 0] - 50).clamp_min(0) / 20) ** 2
    sharp += torch.tensordot((late - (table[:, 0] - 50) / 20)[:, None], of_age[None], 1)
    for degree, accuracy in ((1, 0.6), (2, 0.3)):
        known = [dataclasses.replace(AGE, degree=degree), SEX, LEVEL]
        prior = fit_prior(sharp, SIGMA, rank=20, num_components=1, known_covariates=known, covariates=table)
        young, middle, old = (effect(prior, of_age, [age, math.nan, math.nan]) for age in (25, 50, 80))
        error = max(abs(old - middle - 2.25), abs(middle - young))
        assert (error < accuracy) == (degree == 2)


def test_what_is_not_given_is_drawn_as_in_the_population():
    sharp, table, _ = population()
    table[:, 1] = (table[:, 0] > 50).float()  # the old are men
    prior = fit_prior(sharp, SIGMA, rank=20, num_components=4, known_covariates=KNOWN, covariates=table)
    nothing = torch.full((800, 3), math.nan)
    _, drawn = prior.draw(nothing, seeded())
    assert drawn[:, 0].mean() == pytest.approx(50, abs=2) and drawn[:, 1].mean() == pytest.approx(0.5, abs=0.07)
    assert drawn[:, 2].min() >= 0 and drawn[:, 2].max() <= 1
    nothing[:, 0] = 30
    assert prior.draw(nothing, seeded())[1][:, 1].mean() < 0.1


def test_a_distribution_that_no_gaussian_has_is_drawn_all_the_same():
    """Half of the people are 20 to 24 years old, nobody is 30 to 75; most levels are low."""
    sharp, table, _ = population()
    table[:, 0] = torch.where(table[:, 0] > 50, 75 + (table[:, 0] - 50) / 6, 20 + (table[:, 0] - 20) / 7)
    table[:, 2] = table[:, 2] ** 3
    prior = fit_prior(sharp, SIGMA, rank=20, num_components=1, known_covariates=KNOWN, covariates=table)
    _, drawn = prior.draw(torch.full((4000, 3), math.nan), seeded())
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    for column, tolerance in ((0, 1), (2, 0.05)):
        wanted, found = (values[:, column].quantile(shares) for values in (table, drawn))
        assert (wanted - found).abs().max() < tolerance
    assert ((drawn[:, 0] == 20) | (drawn[:, 0] == 80)).float().mean() < 0.01  # no heap at an end of the range


def test_the_numbers_of_a_draw_stand_for_its_state_and_covariates():
    """With nothing given the conditional draw is that of the joint Gaussian, which the export holds."""
    sharp, table, _ = population(120)
    prior = fit_prior(sharp, SIGMA, rank=8, num_components=2, known_covariates=KNOWN, covariates=table)
    uniform, noise = [], []
    for g in map(seeded, range(50)):
        uniform.append(torch.rand((), dtype=torch.float64, generator=g))
        noise.append(torch.randn(prior.config.factor_rank, generator=g))
    states, covariates = prior(torch.stack(uniform), torch.stack(noise))
    drawn, drawn_covariates = prior.draw(torch.full((50, 3), math.nan), list(map(seeded, range(50))))
    torch.testing.assert_close(states, drawn)
    torch.testing.assert_close(covariates, drawn_covariates)


def test_no_slice_with_every_value():
    sharp, table, _ = population(60)
    table[::2, 0], table[1::2, 1] = math.nan, math.nan
    with pytest.raises(InputError, match="no slice has a value of all of age, sex, slice_level; leave one of them out"):
        fit_prior(sharp, SIGMA, rank=4, known_covariates=KNOWN, covariates=table)


def test_a_fitted_prior_travels(tmp_path):
    sharp, table, _ = population(120)
    prior = fit_prior(sharp, SIGMA, rank=8, num_components=2, known_covariates=KNOWN, covariates=table)
    prior.save_pretrained(tmp_path)
    loaded = BlurryPrior.from_pretrained(tmp_path)
    for first, second in zip(prior.draw(table[:5], seeded()), loaded.draw(table[:5], seeded()), strict=True):
        assert torch.equal(first, second)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size < 50_000


@pytest.mark.parametrize("kind", ["slice", "images"])
def test_the_other_kinds_do_without(kind):
    sharp, table, _ = population(30)
    prior = fit_prior(sharp, SIGMA, kind, known_covariates=KNOWN, covariates=table)
    states, covariates = prior.draw(table[:4], seeded())
    assert torch.equal(states, prior.sample(4, seeded())) and torch.equal(covariates, table[:4])


def test_components_count_subjects_not_slices():
    """Forty slices each of three people are no group; five slices each of many are."""
    sharp, _, _ = population(600)
    sharp[:120] += 10 * torch.randn(3, *sharp.shape[1:], generator=seeded(7)).repeat_interleave(40, 0)
    few = [f"s{i // 40}" for i in range(120)] + [f"t{i // 5}" for i in range(480)]
    by_slices = fit_prior(sharp, SIGMA, rank=20, num_components=4)
    by_subjects = fit_prior(sharp, SIGMA, rank=20, num_components=4, subjects=few)
    assert len(by_subjects.weights) < len(by_slices.weights)
    alone = [f"t{i // (600 // (MIN_SUBJECTS - 1))}" for i in range(600)]
    assert len(fit_prior(sharp, SIGMA, rank=20, num_components=4, subjects=alone).weights) == 1


def test_the_fit_sees_chunks_only():
    """What `embed` is asked for is never the whole set, and of a prior of one slice nearly nothing."""
    codebook = torch.randn(40, CODE_DIM, generator=seeded())
    codes = torch.randint(40, (1500, HEIGHT, WIDTH), generator=seeded(1))
    asked = []

    def embed(chunk):
        asked.append(len(chunk))
        return codebook[chunk].movedim(-1, 1)

    chunked = fit_prior(codes, SIGMA, rank=8, num_components=1, embed=embed)
    assert max(asked) < 600
    whole = fit_prior(embed(codes), SIGMA, rank=8, num_components=1)
    torch.testing.assert_close(chunked.sample(3, seeded()), whole.sample(3, seeded()))
    asked.clear()
    fit_prior(codes, SIGMA, "slice", embed=embed)
    assert sum(asked) <= 3
