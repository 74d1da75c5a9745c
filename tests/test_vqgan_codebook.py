"""Upkeep of a codebook: from data, in use, restarted."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from vq_ihdm.vqgan.codebook import (
    CodeUsage,
    code_vectors,
    draw_code_vectors,
    init_codebook,
    restart_dead_codes,
    usage_and_perplexity,
)

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam


@pytest.mark.parametrize("count", [10, 60, 150])
def test_codes_are_drawn_from_the_data(count):
    vectors = 5 * torch.randn(60, 3)
    codes = draw_code_vectors(vectors, count)
    distances = torch.cdist(codes, vectors)
    assert codes.shape == (count, 3) and distances.min(1).values.max() < 0.1
    # Evenly: no vector serves twice before every other has served once; and no two codes coincide.
    served = torch.bincount(distances.argmin(1), minlength=60)
    assert served.max() - served.min() <= 1
    assert len(torch.unique(codes, dim=0)) == count


def test_a_codebook_and_its_average_start_on_encoder_outputs():
    codebook, average = nn.Embedding(10, 3), nn.Embedding(10, 3).requires_grad_(False)
    latents = 5 * torch.randn(2, 3, 4, 5)
    init_codebook(codebook, average, latents, normalized=False)
    assert torch.cdist(codebook.weight, code_vectors(latents)).min(1).values.max() < 0.1
    assert torch.equal(codebook.weight, average.weight)
    init_codebook(codebook, average, latents, normalized=True)
    torch.testing.assert_close(average.weight.norm(dim=1), torch.ones(10))
    assert torch.equal(codebook.weight, average.weight)


def test_code_vectors_are_the_latents_of_positions():
    latents = torch.randn(2, 3, 4, 5)
    vectors = code_vectors(latents)
    assert vectors.shape == (40, 3)
    assert torch.equal(vectors[20 + 5 * 3 + 2], latents[1, :, 3, 2])


def test_usage_and_perplexity_by_hand():
    assert usage_and_perplexity(torch.tensor([5.0, 5, 5, 5])) == pytest.approx((1.0, 4.0))
    assert usage_and_perplexity(torch.tensor([7.0, 0, 0, 0])) == pytest.approx((0.25, 1.0))
    share, perplexity = usage_and_perplexity(torch.tensor([2.0, 1, 1, 0]))
    assert (share, perplexity) == pytest.approx((0.75, 2**1.5))


def test_usage_adds_up_over_batches_and_through_a_checkpoint():
    usage = CodeUsage(4, Accelerator(cpu=True))
    usage.update(torch.tensor([[[0, 1], [1, 3]]]))
    usage.update(torch.tensor([3, 3]))
    assert usage.counts.tolist() == [1, 2, 0, 3]
    resumed = CodeUsage(4, Accelerator(cpu=True))
    resumed.load_state_dict(usage.state_dict())
    usage.reset()
    assert resumed.counts.tolist() == [1, 2, 0, 3] and usage.counts.tolist() == [0, 0, 0, 0]


def test_restart_moves_dead_codes_and_forgets_their_statistics():
    codebook, average = nn.Embedding(6, 3), nn.Embedding(6, 3).requires_grad_(False)
    optimizer = torch.optim.Adam(codebook.parameters(), lr=0.1)
    codebook(torch.arange(6)).square().sum().backward()
    optimizer.step()
    moments = optimizer.state[codebook.weight]
    before = [codebook.weight.detach().clone(), average.weight.clone(), *(moments[n].clone() for n in MOMENTS)]
    counts, latents = torch.tensor([3.0, 0, 1, 0, 2, 5]), torch.randn(2, 3, 4, 4) + 50
    assert restart_dead_codes(codebook, average, optimizer, counts, latents) == 2

    dead = counts == 0
    after = [codebook.weight.detach(), average.weight, *(moments[name] for name in MOMENTS)]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[~dead], old[~dead])
    assert torch.cdist(codebook.weight[dead], code_vectors(latents)).min(1).values.max() < 0.1
    assert torch.equal(average.weight[dead], codebook.weight[dead])
    assert not any(moments[name][dead].any() for name in MOMENTS)
    assert all(moments[name][~dead].all() for name in MOMENTS)


def test_restart_leaves_a_living_codebook_alone():
    codebook = nn.Embedding(4, 3)
    before = codebook.weight.detach().clone()
    optimizer = torch.optim.Adam(codebook.parameters())
    assert restart_dead_codes(codebook, nn.Embedding(4, 3), optimizer, torch.ones(4), torch.randn(1, 3, 2, 2)) == 0
    assert torch.equal(codebook.weight, before)
