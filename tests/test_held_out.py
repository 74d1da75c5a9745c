"""The held-out loss by which the best network is chosen."""

import torch

from vq_ihdm.training.held_out import held_out_mean


def noisy(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    assert not torch.is_grad_enabled()
    return (values + offsets + torch.randn_like(values)).mean()


def test_the_mean_is_over_examples_whatever_the_last_batch_holds():
    values, offsets = torch.arange(10.0), torch.ones(10)
    plain = held_out_mean(lambda v, o: (v + o).mean(), 0, values, offsets, batch_size=4)
    assert plain == (values + offsets).mean()


def test_every_validation_draws_the_same_and_disturbs_nothing():
    columns = torch.arange(10.0), torch.ones(10)
    torch.manual_seed(1)
    first = held_out_mean(noisy, 0, *columns)
    following = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), following)
    torch.manual_seed(2)
    assert held_out_mean(noisy, 0, *columns) == first != held_out_mean(noisy, 3, *columns)
