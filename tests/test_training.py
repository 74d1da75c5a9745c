"""What the train scripts share: state on disk, data order, presets, checkpoints, moving average, guards."""

import argparse
import itertools
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from conftest import ROOT
from huggingface_hub import get_token
from torch import nn

import train_ihdm
import train_vqgan
from vq_ihdm.errors import InputError
from vq_ihdm.pictures import contact_sheet, reconstruction_sheet
from vq_ihdm.training.batches import batch_order
from vq_ihdm.training.checkpoints import Checkpointer, list_checkpoints
from vq_ihdm.training.config import add_training_arguments, parse_args
from vq_ihdm.training.ema import EMA
from vq_ihdm.training.interruption import Interruption
from vq_ihdm.training.preparation import make_accelerator
from vq_ihdm.training.run import TrainingRun, check_finite
from vq_ihdm.training.state import load_state, save_state


def same(a, b) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


# ---- state --------------------------------------------------------------------------------------------------------


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
    assert same(load_state(tmp_path), state)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["state.json", "state.safetensors"]


def test_state_with_shared_tensors(tmp_path):
    shared = torch.randn(4)
    save_state({"a": shared, "b": shared[1:]}, tmp_path)
    assert same(load_state(tmp_path), {"a": shared, "b": shared[1:]})


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


# ---- data order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("examples", "batch_size", "processes"), [(23, 4, 1), (23, 2, 3), (16, 4, 2), (5, 5, 1)])
def test_batches(examples, batch_size, processes):
    orders = [batch_order(examples, batch_size, 7, 0, process, processes) for process in range(processes)]
    batches_per_epoch = examples // (batch_size * processes)
    epochs = []
    for _ in range(3):
        batches = [batch for order in orders for batch in itertools.islice(order, batches_per_epoch)]
        assert {len(batch) for batch in batches} == {batch_size}
        seen = [index for batch in batches for index in batch]
        assert len(set(seen)) == len(seen) == batches_per_epoch * batch_size * processes  # nobody sees one twice
        assert set(seen) <= set(range(examples))
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_are_a_function_of_the_position():
    whole = list(itertools.islice(batch_order(23, 4, seed=7), 20))
    for start in (0, 1, 4, 5, 13):  # in and between epochs of five batches
        assert list(itertools.islice(batch_order(23, 4, seed=7, start=start), 20 - start)) == whole[start:]
    assert list(itertools.islice(batch_order(23, 4, seed=8), 20)) != whole


def test_two_processes_see_what_one_with_the_double_batch_sees():
    one = itertools.islice(batch_order(23, 4, 7), 15)
    two = [batch_order(23, 2, 7, process_index=process, num_processes=2) for process in range(2)]
    assert [[*next(two[0]), *next(two[1])] for _ in range(15)] == list(one)


def test_every_example_is_seen_within_a_few_epochs():
    seen = itertools.chain.from_iterable(itertools.islice(batch_order(23, 4, 7), 25))
    assert set(seen) == set(range(23))


def test_too_few_examples():
    with pytest.raises(InputError, match="lower --train_batch_size"):
        next(batch_order(7, 4, 0, num_processes=2))


# ---- moving average -----------------------------------------------------------------------------------------------


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


def test_ema_leaves_the_network_alone_and_copies_whole_numbers():
    network = nn.BatchNorm1d(3)
    ema = EMA(network, decay=0.9)
    network(torch.randn(8, 3) + 5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ema.update(network)
    assert same(dict(network.state_dict()), before)
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


# ---- presets and flags --------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    parser.add_argument("--widths", type=int, nargs="+", default=[1])
    parser.set_defaults(max_train_steps=100, train_batch_size=2)
    return parser


@pytest.fixture
def preset(tmp_path):
    def write(text: str) -> list[str]:
        file = tmp_path / "preset.yaml"
        file.write_text(text)
        return ["--config", str(file), "--output_dir", "out"]

    return write


def test_a_preset_gives_defaults_and_flags_override_them(preset):
    argv = preset("part:\n  learning_rate: 1e-4\n  train_batch_size: 8\n  random_flip: false\n  widths: [3, 4]\n")
    args = parse_args(parser(), "part", argv)
    assert (args.learning_rate, args.train_batch_size, args.random_flip) == (1e-4, 8, False)
    assert type(args.learning_rate) is float  # YAML takes 1e-4, without a dot, for text
    assert args.widths == [3, 4]
    assert args.max_train_steps == 100  # said by nobody but the script
    args = parse_args(parser(), "part", [*argv, "--train_batch_size", "9", "--random_flip", "--widths", "5"])
    assert (args.train_batch_size, args.random_flip, args.widths) == (9, True, [5])


@pytest.mark.parametrize("content", [b"\x93NUMPY\x01", b"part:\n  \0", b"\xff\xfep\0a\0r\0t\0", b"part: [", b""])
def test_a_file_that_is_no_preset(tmp_path, content):
    file = tmp_path / "preset.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match="preset.yaml (is no valid YAML|has no section)") as error:
        parse_args(parser(), "part", ["--config", str(file), "--output_dir", "out"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (train_ihdm, ("--vqvae", "x", "--num_attention_heads", "3")),
        (train_vqgan, ("--norm_num_groups", "3")),
        (train_vqgan, ("--block_out_channels", "32", "48")),
    ],
)
def test_widths_that_cannot_be_divided_are_refused_by_name(script, flags):
    with pytest.raises(InputError, match=r"--\w+ \d+ is not divisible by --num_attention_heads|--norm_num_groups"):
        parse_args(script.build_parser(), "part", ["--output_dir", "out", *flags])


def test_a_token_reaches_the_hub_and_no_file(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "another")
    args = parse_args(parser(), "part", ["--output_dir", "out", "--hub_token", "hf_secret"])
    assert get_token() == "hf_secret"
    assert "hf_secret" not in str(vars(args))


def test_without_preset():
    args = parse_args(parser(), "part", ["--output_dir", "out"])
    assert (args.max_train_steps, args.widths, args.config) == (100, [1], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part:\n  learning_rat: 1\n", "learning_rat under 'part'"),
        ("other:\n  seed: 1\n", "no section 'part'"),
        ("part: 3\n", "no section 'part'"),
        ("part: {seed: [1\n", "no valid YAML"),
        ("", "no section 'part'"),
    ],
)
def test_bad_presets(preset, text, message):
    with pytest.raises(InputError, match=message) as error:
        parse_args(parser(), "part", preset(text))
    assert "\n" not in str(error.value)


def test_a_missing_preset_names_those_there_are(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train_vqgan.py")])
    with pytest.raises(InputError, match="demo, oasis, oasis96, paper"):
        parse_args(parser(), "part", ["--config", "papr", "--output_dir", "out"])


@pytest.mark.parametrize("line", ["mixed_precision: fp32", "train_batch_size: 0", "seed: one", "lr_scheduler: cosin"])
def test_values_of_a_preset_are_checked_like_flags(preset, capsys, line):
    with pytest.raises(SystemExit) as stop:
        parse_args(parser(), "part", preset(f"part:\n  {line}\n"))
    assert stop.value.code == 2
    assert f"argument --{line.split(':')[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["max_train_steps", "checkpointing_steps", "validation_steps", "train_batch_size"])
def test_counts_are_positive(flag, capsys):
    with pytest.raises(SystemExit):
        parse_args(parser(), "part", ["--output_dir", "out", f"--{flag}", "0"])
    assert "no positive whole number" in capsys.readouterr().err


@pytest.mark.parametrize("preset_name", sorted(file.stem for file in (ROOT / "configs").glob("*.yaml")))
def test_presets_fit_their_scripts(preset_name, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train_vqgan.py")])
    for script, section, argv in [(train_vqgan, "vqgan", []), (train_ihdm, "ihdm", ["--vqvae", "x"])]:
        args = parse_args(script.build_parser(), section, ["--config", preset_name, "--output_dir", "out", *argv])
        assert args.max_train_steps > 0


def test_the_paper_preset_has_the_numbers_of_the_paper(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train_vqgan.py")])
    argv = ["--config", "paper", "--output_dir", "out"]
    vqgan = vars(parse_args(train_vqgan.build_parser(), "vqgan", argv))
    assert vqgan.items() >= {
        "block_out_channels": [128, 128, 256, 256, 512], "num_vq_embeddings": 1024, "train_batch_size": 3,
        "max_train_steps": 575_000, "learning_rate": 1e-4, "lr_warmup_steps": 30_000,
        "l2_normalized_codes": False, "gradient_accumulation_steps": None,
    }.items()  # fmt: skip
    ihdm = vars(parse_args(train_ihdm.build_parser(), "ihdm", [*argv, "--vqvae", "x"]))
    assert ihdm.items() >= {
        "hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 24, "train_batch_size": 20,
        "max_train_steps": 75_000, "learning_rate": 1e-4, "lr_warmup_steps": 30_000, "num_train_timesteps": 200,
        "sigma_min": 0.5, "sigma_max": 24.0, "delta": 0.0, "prior": "slice",
        "temperature": 1.0, "top_p": 1.0, "gradient_accumulation_steps": None,
    }.items()  # fmt: skip


# ---- checkpoints --------------------------------------------------------------------------------------------------


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


# ---- guards, pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_diverged_loss_stops_the_run(value):
    check_finite({"l1": 0.5}, 3)
    with pytest.raises(InputError, match="l1 became .* at step 3.*last checkpoint is intact"):
        check_finite({"gan": 1.0, "l1": value}, 3)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_and_a_second_one_an_order(signum):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        interruption = Interruption()
        assert not interruption.requested
        os.kill(os.getpid(), signum)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signum)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_run_adds_up_its_sessions(tmp_path, network):
    argv = ["--output_dir", str(tmp_path), "--report_to", "none", "--train_batch_size", "3"]
    args = parse_args(parser(), "part", argv)
    run = TrainingRun(args, Accelerator(cpu=True), "run", range(10), {}, EMA(network, 0.9))
    run.load_state_dict({"images_seen": 21, "seconds": 100.0, "best": None, "best_network": None, "last": None})
    assert 100 <= run.seconds < 110
    assert run.images_seen == 21


def test_contact_sheet_shows_every_image_once():
    images = np.stack([np.full((3, 4), value, np.uint8) for value in (10, 20, 30, 40, 50)])
    sheet = np.asarray(contact_sheet(images, columns=2, margin=1))
    assert sheet.shape == (3 * 3 + 2, 2 * 4 + 1)
    assert [(sheet == value).sum() for value in (10, 20, 30, 40, 50)] == [12] * 5
    assert sheet[0, 0] == 10 and sheet[0, -1] == 20 and sheet[-1, 0] == 50


def test_reconstruction_sheet_has_originals_above():
    sheet = np.asarray(reconstruction_sheet(torch.ones(3, 1, 4, 4), -torch.ones(3, 1, 4, 4)))
    assert (sheet[:4, :4] == 255).all() and (sheet[-4:, :4] == 0).all()


# ---- the accelerator ----------------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """What `make_accelerator` makes of the script's flags under a launcher's environment."""

    def launch(*flags: str, **environment: str):
        for name, value in environment.items():
            monkeypatch.setenv(f"ACCELERATE_{name}", value)
        args = parse_args(parser(), "part", ["--output_dir", str(tmp_path), "--report_to", "none", *flags])
        try:
            accelerator = make_accelerator(args)
            assert accelerator.mixed_precision == args.mixed_precision
            assert accelerator.gradient_accumulation_steps == args.gradient_accumulation_steps
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        return args.mixed_precision, args.gradient_accumulation_steps

    return launch


def test_what_no_flag_says_the_launcher_says(launched):
    assert launched() == ("no", 1)
    assert launched(MIXED_PRECISION="bf16", GRADIENT_ACCUMULATION_STEPS="4") == ("bf16", 4)


def test_a_flag_is_stronger_than_the_launcher(launched):
    flags = ("--mixed_precision", "no", "--gradient_accumulation_steps", "2")
    assert launched(*flags, MIXED_PRECISION="bf16", GRADIENT_ACCUMULATION_STEPS="4") == ("no", 2)


def test_what_splits_networks_is_refused(launched):
    with pytest.raises(InputError, match="FSDP is not supported"):
        launched(USE_FSDP="true")
