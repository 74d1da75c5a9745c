"""Where u_T comes from: the three kinds of blurry prior."""

import pytest
import torch
from conftest import CODE_DIM, HEIGHT, WIDTH
from safetensors.torch import load_file

from vq_ihdm import BlurryPrior
from vq_ihdm.errors import InputError
from vq_ihdm.fit_prior import MIN_GAIN, MIN_SUBJECTS, blurred_coefficients, fit_prior
from vq_ihdm.heat import blur, dct, idct, surviving_modes

SIGMA = 2.0
KINDS = ["mixture", "slice", "images"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(num_slices: int = 240, groups: int = 2) -> torch.Tensor:
    """Sharp embeddings of slices that fall into groups and vary smoothly inside them."""
    generator = seeded()
    shape = (CODE_DIM, HEIGHT, WIDTH)
    centres = 2 * torch.randn(groups, *shape, generator=generator)
    directions = torch.randn(3, *shape, generator=generator)
    scores = torch.randn(num_slices, 3, generator=generator)
    noise = 0.3 * torch.randn(num_slices, *shape, generator=generator)
    return centres[torch.arange(num_slices) % groups] + torch.tensordot(scores, directions, 1) + noise


def blurred(sharp: torch.Tensor, sigma: float = SIGMA) -> torch.Tensor:
    """u_T as far as the prior keeps it: without the modes that vanish in the noise."""
    return idct(dct(blur(sharp.double(), sigma)) * surviving_modes(sigma, HEIGHT, WIDTH, MIN_GAIN)).float()


def distance_to_nearest(draws: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    return torch.cdist(draws.flatten(1).double(), training.flatten(1).double()).min(1).values


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_smooth_fields_of_the_right_shape(kind):
    prior = fit_prior(embeddings(), SIGMA, kind, rank=8, num_components=2)
    draws = prior.sample(5, seeded())
    assert draws.shape == (5, CODE_DIM, HEIGHT, WIDTH) and draws.dtype == torch.float32
    lost = dct(draws.double())[..., ~surviving_modes(SIGMA, HEIGHT, WIDTH, MIN_GAIN)]
    assert lost.abs().max() < 1e-5
    config = prior.config
    assert (config.kind, config.sigma, prior.sigma) == (kind, SIGMA, SIGMA)
    assert config.num_modes == surviving_modes(SIGMA, HEIGHT, WIDTH, MIN_GAIN).sum()


def test_mixture_has_the_mean_and_covariance_of_the_training_states():
    sharp = embeddings(400)
    prior = fit_prior(sharp, SIGMA, rank=40, num_components=2)
    assert 0.999 < prior.config.variance_kept <= 1
    wanted = blurred_coefficients(sharp, SIGMA)[0]
    drawn = dct(prior.sample(8000, seeded()).double()).flatten(2)[..., prior.modes].flatten(1)
    scale = wanted.var(0).sum().sqrt()
    assert (drawn.mean(0) - wanted.mean(0)).norm() < 0.03 * scale
    assert torch.linalg.matrix_norm(drawn.T.cov() - wanted.T.cov()) < 0.05 * torch.linalg.matrix_norm(wanted.T.cov())


def test_mixture_draws_both_groups_and_neither_a_mean_of_them():
    sharp = embeddings(groups=2)
    draws = fit_prior(sharp, SIGMA, rank=20, num_components=2).sample(200, seeded())
    centres = torch.stack([blurred(sharp)[i::2].mean(0) for i in range(2)])
    nearest = torch.cdist(draws.flatten(1), centres.flatten(1)).argmin(1)
    assert 60 < nearest.sum() < 140
    assert distance_to_nearest(draws, blurred(sharp)).mean() < 0.5 * torch.dist(*centres)


def test_variance_kept_grows_with_the_rank():
    sharp = embeddings(100)
    kept = [fit_prior(sharp, SIGMA, rank=rank, num_components=1).config.variance_kept for rank in (1, 2, 4, 30)]
    assert kept == sorted(kept) and 0 < kept[0] < 0.9 and kept[-1] > 0.99


def test_rank_is_bounded_by_the_data():
    assert fit_prior(embeddings(10), SIGMA, rank=500, num_components=1).config.rank == 9


def test_slice_is_a_blurred_training_slice():
    sharp = embeddings()
    prior = fit_prior(sharp, SIGMA, "slice")
    draws = prior.sample(3, seeded())
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])
    assert distance_to_nearest(draws, blurred(sharp)).max() < 1e-4
    assert prior.config.rank == 0
    others = [fit_prior(sharp, SIGMA, "slice", seed=seed).sample(1) for seed in range(1, 4)]
    assert any(not torch.equal(draws[:1], other) for other in others)


def test_slice_of_the_paper_is_a_mean_vector():
    """At sigma 24 nothing but the mean embedding is left, on every cell the same."""
    sharp = embeddings()
    draw = fit_prior(sharp, 24.0, "slice").sample(1)
    assert (draw - draw.mean((-2, -1), keepdim=True)).abs().max() < 1e-5
    assert distance_to_nearest(draw.mean((-2, -1)), sharp.mean((-2, -1))) < 1e-5


def test_images_draws_training_states_exactly():
    sharp = embeddings()
    draws = fit_prior(sharp, SIGMA, "images").sample(300, seeded())
    assert distance_to_nearest(draws, blurred(sharp)).max() < 1e-3
    assert len(torch.unique(torch.cdist(draws.flatten(1), blurred(sharp).flatten(1)).argmin(1))) > 100


def test_images_are_not_saved_unless_told_so(tmp_path):
    prior = fit_prior(embeddings(), SIGMA, "images")
    with pytest.raises(ValueError, match="allow_saving_images"):
        prior.save_pretrained(tmp_path / "prior")
    assert not (tmp_path / "prior").exists()
    prior.allow_saving_images = True
    prior.save_pretrained(tmp_path / "prior")
    assert torch.equal(BlurryPrior.from_pretrained(tmp_path / "prior").means, prior.means)


def test_a_loaded_images_prior_refuses_again(tmp_path):
    prior = fit_prior(embeddings(), SIGMA, "images")
    prior.allow_saving_images = True
    prior.save_pretrained(tmp_path / "first")
    with pytest.raises(ValueError, match="allow_saving_images"):
        BlurryPrior.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")


@pytest.mark.parametrize("num_components", [1, 4, 8])
def test_a_saved_mixture_shows_no_single_slice(tmp_path, num_components):
    """Neither in a tensor nor as the mean of a component: left alone, the outliers would have one each."""
    sharp = embeddings(900)
    sharp[7:10] += 10 * torch.randn(3, *sharp.shape[1:], generator=seeded(7))
    fit_prior(sharp, SIGMA, rank=8, num_components=num_components).save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    state = load_file(file)
    assert all(len(sharp) not in tensor.shape for tensor in state.values())
    assert state["weights"].min() * len(sharp) >= min(MIN_SUBJECTS, len(sharp))
    assert state["weights"].sum().item() == pytest.approx(1)
    training = blurred_coefficients(sharp, SIGMA)[0].float()
    shown = torch.cat([state["mean"][None], state["mean"] + state["means"] @ state["basis"], state["basis"]])
    between = torch.cdist(training.double(), training.double()).fill_diagonal_(torch.inf).min(1).values
    assert distance_to_nearest(shown, training).min() > 0.5 * between.median()  # no nearer than another slice is


def test_a_small_set_gets_a_single_gaussian():
    assert len(fit_prior(embeddings(MIN_SUBJECTS - 1), SIGMA, rank=8, num_components=8).weights) == 1
    assert len(fit_prior(embeddings(3), SIGMA, rank=8, num_components=8).weights) == 1


@pytest.mark.parametrize("case", ["constant channel", "repeated slices", "fewer slices than dimensions"])
def test_near_singular_covariance_stays_finite(case):
    sharp = embeddings()
    if case == "constant channel":
        sharp[:, 0] = 1.0
    elif case == "repeated slices":
        sharp = sharp[:4].repeat(60, 1, 1, 1)
    else:
        sharp = sharp[:12]
    draws = fit_prior(sharp, SIGMA, rank=64, num_components=2).sample(50, seeded())
    assert torch.isfinite(draws).all()
    assert draws.abs().max() < 3 * blurred(sharp).abs().max()
    if case == "constant channel":
        torch.testing.assert_close(draws[:, 0], torch.ones_like(draws[:, 0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_generators(kind):
    prior = fit_prior(embeddings(), SIGMA, kind, rank=8, num_components=2)
    assert torch.equal(prior.sample(4, seeded(1)), prior.sample(4, seeded(1)))
    if kind != "slice":
        assert not torch.equal(prior.sample(4, seeded(1)), prior.sample(4, seeded(2)))
    together = prior.sample(4, [seeded(i) for i in range(4)])
    alone = torch.cat([prior.sample(1, [seeded(i)]) for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_draws_need_not_be_a_prefix_to_be_reproducible():
    prior = fit_prior(embeddings(), SIGMA, rank=8, num_components=2)
    torch.testing.assert_close(prior.sample(6, seeded())[:2], prior.sample(2, seeded()))


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_bit_for_bit(kind, tmp_path):
    prior = fit_prior(embeddings(), SIGMA, kind, rank=8, num_components=2)
    prior.allow_saving_images = True
    prior.save_pretrained(tmp_path)
    loaded = BlurryPrior.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == prior.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in prior.state_dict().items())
    assert torch.equal(loaded.sample(5, seeded()), prior.sample(5, seeded()))
    names = ("kind", "sigma", "rank", "variance_kept", "num_modes")
    assert {n: loaded.config[n] for n in names} == {n: prior.config[n] for n in names}


def test_fit_is_reproducible():
    first, again = (fit_prior(embeddings(), SIGMA, rank=8, num_components=2, seed=3) for _ in range(2))
    assert all(torch.equal(first.state_dict()[k], v) for k, v in again.state_dict().items())


def test_unknown_kind():
    with pytest.raises(ValueError, match="mixture, slice or images"):
        fit_prior(embeddings(), SIGMA, "histogram")


def test_a_single_slice_makes_no_distribution():
    with pytest.raises(InputError, match="train on more"):
        fit_prior(embeddings()[:1], SIGMA, "mixture")
