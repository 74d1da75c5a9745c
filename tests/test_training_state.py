"""Training state on disk: what is saved comes back, or the damage is named."""

import pytest
import torch
from states import differences
from torch import nn

from vq_ihdm.errors import InputError
from vq_ihdm.training.state import load_state, save_state


def test_state_round_trip(tmp_path):
    state = {
        "numbers": [1, 2.5, 1e-300, float("inf"), True, None, "text"],
        "tensors": {
            "float": torch.randn(3, 2),
            "transposed": torch.randn(3, 2).T,
            "double": torch.randn(1, dtype=torch.float64),
            "bytes": torch.get_rng_state(),
            "scalar": torch.tensor(3),
            "empty": torch.zeros(0, 4),
            "bool": torch.tensor([True, False]),
            "half": torch.randn(2).bfloat16(),
        },
        "state": {0: {"step": torch.tensor(1.0)}, 1: {"deep": [{"deeper": torch.ones(1)}]}},
        "names.with.dots": {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}},
        "nothing": {"list": [], "dict": {}},
    }
    save_state(state, tmp_path)
    assert differences(load_state(tmp_path), state) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["state.json", "state.safetensors"]


def test_state_with_shared_tensors(tmp_path):
    shared = torch.randn(4)
    save_state({"a": shared, "b": shared[1:]}, tmp_path)
    assert differences(load_state(tmp_path), {"a": shared, "b": shared[1:]}) == []


def test_state_of_an_optimizer_goes_on_as_if_never_saved(tmp_path):
    def make():
        torch.manual_seed(0)
        network = nn.Linear(3, 2)
        return network, torch.optim.AdamW(network.parameters(), lr=0.1)

    def train(network, optimizer, steps):
        for step in range(steps):
            network(torch.full((1, 3), 1.0 + step)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    network, optimizer = make()
    train(network, optimizer, 3)
    save_state({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path)
    train(network, optimizer, 3)
    resumed, its_optimizer = make()
    state = load_state(tmp_path)
    resumed.load_state_dict(state["network"])
    its_optimizer.load_state_dict(state["optimizer"])
    train(resumed, its_optimizer, 3)
    assert torch.equal(resumed.weight, network.weight)


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbled"])
def test_a_damaged_state_is_named(tmp_path, damage):
    save_state({"a": torch.randn(100)}, tmp_path)
    file = tmp_path / ("state.json" if damage == "garbled" else "state.safetensors")
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match="no complete checkpoint") as error:
        load_state(tmp_path)
    assert "\n" not in str(error.value)
