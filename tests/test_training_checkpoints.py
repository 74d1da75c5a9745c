"""Checkpoints: what they bring back, which are kept, and which are refused."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from vq_ihdm.errors import InputError
from vq_ihdm.training.checkpoints import Checkpointer, list_checkpoints
from vq_ihdm.training.ema import EMA
from vq_ihdm.training.state import load_state, save_state


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Linear(2, 2)


def checkpointer(folder: Path, network: nn.Module, **parts) -> Checkpointer:
    return Checkpointer(Accelerator(cpu=True), folder, {"network": network, **parts}, {"seed": 0}, total_limit=2)


def test_a_checkpoint_brings_back_weights_and_random_state(tmp_path, network):
    keeper = checkpointer(tmp_path, network)
    folder = keeper.save(5)
    weight, draw = network.weight.detach().clone(), torch.rand(3)
    network.weight.data.zero_()
    torch.manual_seed(99)
    for where in ("latest", str(folder)):
        assert keeper.resume(where) == 5
        assert torch.equal(network.weight, weight)
        assert torch.equal(torch.rand(3), draw)


def test_a_checkpoint_holds_no_pickle(tmp_path, network):
    folder = checkpointer(tmp_path, network).save(5)
    assert {file.suffix for file in folder.rglob("*") if file.is_file()} == {".json", ".safetensors"}
    json.loads((folder / "state.json").read_text())


def test_only_the_newest_checkpoints_are_kept(tmp_path, network):
    keeper = checkpointer(tmp_path, network)
    (tmp_path / "checkpoint-notes").mkdir()  # the user's
    for step in (90, 100, 110, 120):
        keeper.save(step)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["checkpoint-110", "checkpoint-120"]
    assert (tmp_path / "checkpoint-notes").exists()
    assert keeper.resume("latest") == 120


def test_nothing_to_resume(tmp_path, network):
    keeper = checkpointer(tmp_path, network)
    assert keeper.resume("latest") == keeper.resume(None) == 0
    with pytest.raises(InputError, match="no complete checkpoint"):
        keeper.resume(str(tmp_path / "checkpoint-7"))


def test_a_run_does_not_start_behind_another_ones_checkpoints(tmp_path, network):
    """Its own would be dropped as the older ones, and 'latest' would go on with the other run."""
    keeper = checkpointer(tmp_path, network)
    first = keeper.save(100)
    keeper.save(200)
    for where in (None, str(first)):
        with pytest.raises(InputError, match="checkpoint-200"):
            keeper.resume(where)


def test_a_checkpoint_of_another_network_is_refused(tmp_path, network):
    checkpointer(tmp_path, network).save(5)
    for other in (checkpointer(tmp_path, nn.Linear(3, 2)), checkpointer(tmp_path, network, ema=EMA(network, 0.9))):
        with pytest.raises(InputError, match="does not fit this configuration") as error:
            other.resume("latest")
        assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path, network):
    keeper = checkpointer(tmp_path, network)
    folder = keeper.save(5)
    state = load_state(folder)
    save_state(state | {"random": state["random"] * 2}, folder)
    with pytest.raises(InputError, match="2 processes"):
        keeper.resume("latest")


def test_weights_that_are_not_finite_are_not_saved(tmp_path, network):
    keeper = checkpointer(tmp_path, network)
    keeper.save(5)
    network.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"network\.weight is not finite at step 6"):
        keeper.save(6)
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-5"]


def test_an_interrupted_save_leaves_no_checkpoint(tmp_path, network, monkeypatch):
    keeper = checkpointer(tmp_path, network)

    def full_disk(state, folder):
        (folder / "state.json").write_text("{")
        raise OSError("no space left")

    monkeypatch.setattr("vq_ihdm.training.checkpoints.save_state", full_disk)
    with pytest.raises(OSError, match="no space"):
        keeper.save(5)
    assert list(tmp_path.iterdir()) == []
