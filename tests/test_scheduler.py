"""The forward process and the revealing of codes."""

import pytest
import torch
from scipy.stats import chisquare

from vq_ihdm import HeatDissipationScheduler
from vq_ihdm.code_sampling import code_probabilities
from vq_ihdm.heat import blur
from vq_ihdm.scheduling_heat_dissipation import OPEN

BATCH, HEIGHT, WIDTH, NUM_CODES, DIM = 2, 4, 5, 7, 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state(batch: int = BATCH):
    """Logits, a blurred state, no code revealed, and the codes' embeddings."""
    logits = 2 * torch.randn(batch, HEIGHT, WIDTH, NUM_CODES, generator=seeded(1))
    sample = torch.randn(batch, DIM, HEIGHT, WIDTH, generator=seeded(2))
    codes = torch.full((batch, HEIGHT, WIDTH), OPEN)
    return logits, sample, codes, torch.randn(NUM_CODES, DIM, generator=seeded(3))


def reverse(scheduler: HeatDissipationScheduler, steps: int, generator=None):
    """Every output of a reverse process, with fresh logits at each step as a network would give."""
    _, sample, codes, embeddings = state()
    scheduler.set_timesteps(steps)
    outputs = []
    for i, t in enumerate(scheduler.timesteps):
        logits = torch.randn(BATCH, HEIGHT, WIDTH, NUM_CODES, generator=seeded(10 + i))
        out = scheduler.step(logits, t, sample, codes, embeddings, generator=generator)
        sample, codes = out.prev_sample, out.code_indices
        outputs.append(out)
    return outputs


# ---- time and sigma -----------------------------------------------------------------------------------------------


def test_timestep_T_is_the_most_blurred():
    """The paper lists its sigmas from 24 down; here the last index is the most blurred one, as in IHDM's code."""
    scheduler = HeatDissipationScheduler()
    T = scheduler.config.num_train_timesteps
    assert T == len(scheduler) == 200 and len(scheduler.sigmas) == T + 1
    assert scheduler.sigmas[0] == 0 and scheduler.sigmas[1] == 0.5
    assert scheduler.sigmas[T] == scheduler.sigmas.max() == 24
    assert (scheduler.sigmas.diff() > 0).all()


@pytest.mark.parametrize("steps", [1, 2, 7, 200, 300])
def test_sampling_starts_at_T_and_goes_down(steps):
    scheduler = HeatDissipationScheduler()
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps
    assert scheduler.timesteps[0] == 200
    assert (scheduler.timesteps.diff() < 0).all() and scheduler.timesteps[-1] > 0


def test_add_noise_blurs_and_adds_delta():
    scheduler = HeatDissipationScheduler(num_train_timesteps=10, sigma_max=4.0, delta=0.3)
    sharp, noise = torch.randn(3, DIM, HEIGHT, WIDTH), torch.randn(3, DIM, HEIGHT, WIDTH)
    timesteps = torch.tensor([1, 5, 10])
    expected = blur(sharp, scheduler.sigmas[timesteps]) + 0.3 * noise
    torch.testing.assert_close(scheduler.add_noise(sharp, noise, timesteps), expected)
    paper = HeatDissipationScheduler()
    u_T = paper.add_noise(sharp, noise, torch.full((3,), 200))
    torch.testing.assert_close(u_T, sharp.mean((-2, -1), keepdim=True).expand_as(sharp), atol=1e-6, rtol=0)


# ---- revealing ----------------------------------------------------------------------------------------------------


def test_one_step_reveals_everything():
    scheduler = HeatDissipationScheduler()
    logits, sample, codes, embeddings = state()
    out = scheduler.step(logits, scheduler.timesteps[0], sample, codes, embeddings)
    assert (out.code_indices != OPEN).all()
    assert torch.equal(out.code_indices, out.pred_code_indices)
    assert torch.equal(out.prev_sample, embeddings[out.code_indices].permute(0, 3, 1, 2))


@pytest.mark.parametrize("steps", [2, 5, 40])
def test_steps_reveal_more_and_more_and_change_nothing_revealed(steps):
    scheduler = HeatDissipationScheduler()
    _, u_T, _, embeddings = state()
    outputs = reverse(scheduler, steps, seeded())
    assert (outputs[-1].code_indices != OPEN).all()
    before = torch.full((BATCH, HEIGHT, WIDTH), OPEN)
    for i, out in enumerate(outputs):
        known = before != OPEN
        assert torch.equal(out.code_indices[known], before[known])
        assert torch.equal(out.pred_code_indices[known], before[known])
        revealed = out.code_indices != OPEN
        assert torch.equal(out.code_indices[revealed], out.pred_code_indices[revealed])
        # The state: sharp where codes are revealed, u_T as it was elsewhere.
        sharp = embeddings[out.pred_code_indices].permute(0, 3, 1, 2)
        assert torch.equal(out.prev_sample, torch.where(revealed[:, None], sharp, u_T))
        left = scheduler.timesteps[i + 1] if i + 1 < steps else 0
        assert ((~revealed).sum((1, 2)) == int(scheduler.open_share(left) * HEIGHT * WIDTH)).all()
        before = out.code_indices
    assert (outputs[0].code_indices != OPEN).sum() >= BATCH  # already the first step is worth its evaluation


def test_random_order_differs_between_images_and_seeds():
    scheduler = HeatDissipationScheduler()
    first, second = (reverse(scheduler, 4, seeded(seed))[1].code_indices != OPEN for seed in (0, 1))
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])


# ---- drawing ------------------------------------------------------------------------------------------------------


def test_temperature_zero_is_argmax():
    scheduler = HeatDissipationScheduler()
    logits, *rest = state()
    out = scheduler.step(logits, scheduler.timesteps[0], *rest, temperature=0)
    assert torch.equal(out.code_indices, logits.argmax(-1))


def test_low_temperature_approaches_argmax_and_high_the_uniform():
    logits = state()[0]
    assert (code_probabilities(logits, 0.01, 1.0).max(-1).values > 0.9).float().mean() > 0.9
    torch.testing.assert_close(
        code_probabilities(logits, 1e6, 1.0), torch.full(logits.shape, 1 / NUM_CODES).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(code_probabilities(logits, 1.0, 1.0), logits.double().softmax(-1))


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9])
def test_top_p_keeps_the_smallest_sufficient_set(top_p):
    full = code_probabilities(state()[0], 1.0, 1.0).flatten(0, 2)
    kept = code_probabilities(state()[0], 1.0, top_p).flatten(0, 2)
    for p, k in zip(full, kept, strict=True):
        inside = k > 0
        assert torch.equal(k[inside], p[inside])
        assert k.sum() >= top_p and k.sum() - p[inside].min() < top_p  # sufficient, and not without its last member
        assert inside.all() or p[inside].min() >= p[~inside].max()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7)])
def test_draws_follow_the_softmax(temperature, top_p):
    """Chi-square of 20000 draws against the probabilities; the seed is fixed, so the test is not a lottery."""
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1.5])
    scheduler = HeatDissipationScheduler(temperature=temperature, top_p=top_p)
    size = (1000, HEIGHT, WIDTH)
    out = scheduler.step(
        logits.expand(*size, -1),
        scheduler.timesteps[0],
        torch.zeros(1000, DIM, HEIGHT, WIDTH),
        torch.full(size, OPEN),
        torch.zeros(NUM_CODES, DIM),
        generator=seeded(),
    )
    counts = torch.bincount(out.code_indices.flatten(), minlength=NUM_CODES)
    probabilities = code_probabilities(logits, temperature, top_p)
    probabilities /= probabilities.sum()
    inside = probabilities > 0
    assert counts[~inside].sum() == 0
    assert chisquare(counts[inside], counts.sum() * probabilities[inside]).pvalue > 0.01


def test_an_image_does_not_depend_on_its_batch():
    scheduler = HeatDissipationScheduler()
    scheduler.set_timesteps(3)
    logits, sample, codes, embeddings = state(3)
    t = scheduler.timesteps[0]
    together = scheduler.step(logits, t, sample, codes, embeddings, generator=[seeded(i) for i in range(3)])
    for i in range(3):
        one = slice(i, i + 1)
        alone = scheduler.step(logits[one], t, sample[one], codes[one], embeddings, generator=[seeded(i)])
        assert torch.equal(alone.code_indices, together.code_indices[one])
        assert torch.equal(alone.pred_code_indices, together.pred_code_indices[one])


def test_one_generator_reproduces():
    scheduler = HeatDissipationScheduler()
    first, again = (reverse(scheduler, 4, seeded(5))[-1].code_indices for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, reverse(scheduler, 4, seeded(6))[-1].code_indices)


# ---- conventions --------------------------------------------------------------------------------------------------


def test_return_dict():
    scheduler = HeatDissipationScheduler()
    logits, *rest = state()
    out = scheduler.step(logits, 200, *rest, generator=seeded())
    as_tuple = scheduler.step(logits, 200, *rest, generator=seeded(), return_dict=False)
    assert all(torch.equal(a, b) for a, b in zip(out.to_tuple(), as_tuple, strict=True))


def test_config_round_trip(tmp_path):
    settings = {
        "num_train_timesteps": 17, "sigma_min": 0.4, "sigma_max": 3.0, "delta": 0.15, "temperature": 0.8,
        "top_p": 0.9,
    }  # fmt: skip
    scheduler = HeatDissipationScheduler(**settings)
    scheduler.save_pretrained(tmp_path)
    loaded = HeatDissipationScheduler.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in settings} == settings
    assert torch.equal(loaded.sigmas, scheduler.sigmas)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"), ({"top_p": 1.5}, "top_p")],
)
def test_bad_arguments_of_a_step(arguments, named):
    scheduler = HeatDissipationScheduler()
    logits, *rest = state()
    with pytest.raises(ValueError, match=named):
        scheduler.step(logits, 200, *rest, **arguments)


def test_bad_settings():
    with pytest.raises(ValueError, match="num_inference_steps"):
        HeatDissipationScheduler().set_timesteps(0)
