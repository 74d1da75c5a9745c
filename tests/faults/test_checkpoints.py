"""Damaged checkpoints are named and passed over; a run killed anywhere goes on bit for bit.

VQ_IHDM_FAULTS=20 makes it twenty times as many cases.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from killing import child, reap
from safetensors.torch import load_file, save_file
from tiny_training import assert_same_run, train
from torch import nn
from tqdm.auto import tqdm

from vq_ihdm.errors import InputError
from vq_ihdm.training.checkpoints import Checkpointer, list_checkpoints

ROUNDS = int(os.environ.get("VQ_IHDM_FAULTS", 1))
FILES = ("state.json", "state.safetensors")
FOREIGN = ("", "{", "null", "7", "[1, 2]", "{}", '{"sha256": {}, "structure": {}}', "[" * 100_000, "\0", "NaN")

# ---- damage -------------------------------------------------------------------------------------------------------


def damages(chance: random.Random) -> Iterator[tuple[str, Callable[[Path, Path], None]]]:
    """Damages by name, each done to a checkpoint's folder, given an earlier checkpoint's."""
    for file in FILES:
        for _ in range(8 * ROUNDS):
            place, bit = chance.random(), chance.randrange(8)
            yield f"{file}: bit {bit} at {place:.3f}", lambda new, old, f=file, p=place, b=bit: flip(new / f, p, b)
            yield f"{file}: cut at {place:.3f}", lambda new, old, f=file, p=place: cut(new / f, p)
            yield f"{file}: zeros from {place:.3f} on", lambda new, old, f=file, p=place: blank(new / f, p)
        yield f"{file}: gone", lambda new, old, f=file: (new / f).unlink()
        yield f"{file}: of another step", lambda new, old, f=file: shutil.copy(old / f, new / f)
        yield f"{file}: a folder", lambda new, old, f=file: ((new / f).unlink(), (new / f).mkdir())
        yield f"{file}: longer", lambda new, old, f=file: (new / f).write_bytes((new / f).read_bytes() + b"\1")
    for text in FOREIGN:
        yield f"state.json: {text[:20]!r}", lambda new, old, t=text: (new / FILES[0]).write_text(t)
    yield "foreign names", lambda new, old: save_file({"other": torch.zeros(3)}, new / FILES[1])
    yield (
        "renamed tensors",
        lambda new, old: save_file(
            {f"{name}x": tensor for name, tensor in load_file(new / FILES[1]).items()}, new / FILES[1]
        ),
    )
    yield "a changed step", lambda new, old: change_step(new / FILES[0])
    yield "empty", lambda new, old: [file.unlink() for file in new.iterdir()]


def flip(file: Path, place: float, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    file.write_bytes(data)


def cut(file: Path, place: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(place * len(data))])


def blank(file: Path, place: float) -> None:
    """As a power cut leaves a file whose length was written and whose content was not."""
    data = file.read_bytes()
    kept = data[: int(place * len(data))]
    file.write_bytes(kept + bytes(len(data) - len(kept)))


def change_step(file: Path) -> None:
    content = json.loads(file.read_text())
    (step,) = (pair for pair in content["structure"]["dict"] if pair[0] == "step")
    step[1]["value"] += 1
    file.write_text(json.dumps(content))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def checkpointer(folder: Path, network: nn.Module) -> Checkpointer:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    return Checkpointer(Accelerator(cpu=True), folder, {"network": network, "optimizer": optimizer}, {}, total_limit=2)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(network, tmp_path, capsys):
    keeper = checkpointer(tmp_path / "whole", network)
    for step in (4, 8):
        nn.init.constant_(network.weight, step)
        keeper.save(step)
    cases = list(damages(random.Random(0)))
    assert len(cases) > 60
    for name, damage in cases:
        folder = shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
        damage(folder / "checkpoint-8", folder / "checkpoint-4")
        keeper = checkpointer(folder, network)
        nn.init.constant_(network.weight, 0)
        with pytest.raises(InputError, match="checkpoint-8 is no complete checkpoint") as error:
            keeper.resume(str(folder / "checkpoint-8"))
        assert "\n" not in str(error.value), name
        assert network.weight.eq(0).all(), f"{name}: nothing is restored"
        capsys.readouterr()
        assert keeper.resume("latest") == 4, name
        said = capsys.readouterr().out
        assert "checkpoint-8 is no complete checkpoint" in said and "going on with" in said and "checkpoint-4" in said
        assert network.weight.eq(4).all()
        keeper.save(6)
        assert [checkpoint.name for checkpoint in list_checkpoints(folder)] == ["checkpoint-4", "checkpoint-6"], name
        shutil.rmtree(folder)


def test_without_a_whole_checkpoint_a_run_does_not_start_anew(network, tmp_path):
    """It would seem to go on, and its first checkpoint would take the place of the others."""
    keeper = checkpointer(tmp_path, network)
    for step in (4, 8):
        cut(keeper.save(step) / FILES[1], 0.5)
    with pytest.raises(InputError, match="no checkpoint in .* is whole"):
        keeper.resume("latest")


# ---- kills --------------------------------------------------------------------------------------------------------


def test_one_who_is_killed_keeps_no_lock_that_others_need():
    def hold() -> None:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    def family() -> None:
        signal.alarm(30)
        tqdm.set_lock(multiprocessing.RLock())
        assert reap(child(hold))
        list(tqdm([1]))

    assert not reap(child(family))


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_bit_for_bit(tmp_path):
    """Before a call to the system, or at some instant, inside the writing of a file among them."""
    whole, folder, chance = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    reap(child(lambda: train(whole)))
    kills = 0
    while kills < 15 * ROUNDS:
        if chance.random() < 0.7:
            kills += reap(child(lambda: train(folder), chance.randrange(1, 120)))
        else:
            pid = child(lambda: train(folder))
            time.sleep(chance.uniform(0, 0.2))
            os.kill(pid, signal.SIGKILL)
            kills += reap(pid)
    assert not reap(child(lambda: train(folder)))
    assert not list(folder.rglob(".*"))
    assert_same_run(folder, whole)
