"""The moving average of a network: by hand, apart from the network, through a checkpoint."""

import torch
from states import differences
from torch import nn

from vq_ihdm.training.ema import EMA


def test_ema_by_hand():
    network = nn.Linear(2, 2)
    ema = EMA(network, decay=0.5)
    expected = network.weight.detach().clone()
    for update in range(1, 21):
        network.weight.data += 1
        ema.update(network)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * network.weight.detach()
    torch.testing.assert_close(ema.module.weight, expected)
    assert not ema.module.training and not ema.module.weight.requires_grad


def test_a_share_of_the_start_stays():
    network = nn.BatchNorm1d(3)
    plain, leaning = EMA(network, 0.9), EMA(network, 0.9, start_share=0.25)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for _ in range(5):
        network.weight.data += 1
        network.bias.data += 1
        network(torch.randn(8, 3) + 5)
        plain.update(network)
        leaning.update(network)
    for name, tensor in leaning.module.state_dict().items():
        learnt = plain.module.state_dict()[name]
        expected = 0.25 * start[name] + 0.75 * learnt if tensor.is_floating_point() else learnt
        torch.testing.assert_close(tensor, expected)
        assert not torch.equal(tensor, start[name])


def test_ema_leaves_the_network_alone_and_copies_whole_numbers():
    network = nn.BatchNorm1d(3)
    ema = EMA(network, decay=0.9)
    network(torch.randn(8, 3) + 5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ema.update(network)
    assert differences(dict(network.state_dict()), before) == []
    assert ema.module.num_batches_tracked == 1
    assert (ema.module.running_mean > 0).all() and (ema.module.running_mean < network.running_mean).all()


def test_ema_state_round_trip():
    network = nn.Linear(2, 2)
    first, second = EMA(network, 0.9), EMA(nn.Linear(2, 2), 0.9)
    for _ in range(3):
        first.update(network)
    second.load_state_dict(first.state_dict())
    network.weight.data += 1
    first.update(network)
    second.update(network)
    assert torch.equal(first.module.weight, second.module.weight)
