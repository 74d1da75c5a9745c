"""The loss of stage 2, by hand on tiny tensors."""

import math

import pytest
import torch
from conftest import HEIGHT, NUM_CODES, WIDTH, tiny_denoiser

from vq_ihdm import HeatDissipationScheduler
from vq_ihdm.denoising_loss import denoising_loss, draw_known
from vq_ihdm.heat import blur

SCHEDULER = HeatDissipationScheduler(num_train_timesteps=20, sigma_max=2.0, delta=0.0)


class Recorder(torch.nn.Module):
    """Knows the answer at every position but the first, of which it knows nothing; keeps what it was shown."""

    def __init__(self, z_0):
        super().__init__()
        self.logits = 1e3 * torch.nn.functional.one_hot(z_0, NUM_CODES).float()
        self.logits[:, 0, 0] = 0

    def forward(self, sample, sigma, known, covariates):
        self.sample, self.sigma, self.known, self.covariates = sample, sigma, known, covariates
        return type("Output", (), {"logits": self.logits})


@pytest.fixture
def z_0():
    return torch.randint(NUM_CODES, (4, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))


def test_every_position_counts_where_nothing_is_revealed(z_0):
    """One position of H W is a guess among K codes, the others are certain."""
    network, embed_codes = Recorder(z_0), tiny_denoiser().embed_codes
    loss = denoising_loss(network, SCHEDULER, embed_codes, z_0, 0.0)
    assert loss.item() == pytest.approx(math.log(NUM_CODES) / (HEIGHT * WIDTH))
    assert not network.known.any()
    assert (network.sigma == 2).all()
    torch.testing.assert_close(network.sample, blur(embed_codes(z_0), torch.full((4,), 2.0)))


def test_the_network_is_told_the_covariates(z_0):
    network, table = Recorder(z_0), torch.tensor([[20.0], [30.0], [torch.nan], [50.0]])
    denoising_loss(network, SCHEDULER, tiny_denoiser().embed_codes, z_0, 0.5, table)
    assert network.covariates is table


def test_revealed_positions_are_sharp_and_do_not_count(z_0):
    network, embed_codes = Recorder(z_0), tiny_denoiser().embed_codes
    loss = denoising_loss(network, SCHEDULER, embed_codes, z_0, 1.0)
    e_0, known = embed_codes(z_0), network.known
    assert known.any() and not known.flatten(1).all(1).any()
    shown = network.sample.movedim(1, -1)
    assert torch.equal(shown[known], e_0.movedim(1, -1)[known])
    u_T = blur(e_0, torch.full((4,), 2.0)).movedim(1, -1)
    torch.testing.assert_close(shown[~known], u_T[~known])
    guesses, expected_open = (~known[:, 0, 0]).sum(), z_0.numel() * 2 / math.pi
    assert loss.item() == pytest.approx((guesses * math.log(NUM_CODES) / expected_open).item())


def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_parts(z_0, monkeypatch):
    """However unequally the open positions fall on the parts."""
    denoiser = tiny_denoiser().eval()
    known = draw_known(z_0.shape, 0.5, z_0.device)
    known[0, 1:], known[3] = True, False

    def loss(part):
        monkeypatch.setattr("vq_ihdm.denoising_loss.draw_known", lambda *_: known[part])
        return denoising_loss(denoiser, SCHEDULER, denoiser.embed_codes, z_0[part], 0.5)

    parts = [loss(slice(0, 2)), loss(slice(2, 4))]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(slice(0, 4)))


def test_share_of_examples_with_revealed_codes_and_of_codes_in_them():
    """Times are uniform: the mean of sin(pi t / 2) is 2 / pi."""
    torch.manual_seed(0)
    known = draw_known(torch.Size((2000, 40, 40)), 0.25, torch.device("cpu"))
    some = known.flatten(1).any(1)
    assert some.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (~known[some]).float().mean().item() == pytest.approx(2 / math.pi, abs=0.03)
    assert (~known).flatten(1).any(1).all()
