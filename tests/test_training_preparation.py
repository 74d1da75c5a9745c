"""What stands before the first step: the accelerator of flags and launcher, and a network ready to be trained."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT, forget_accelerator
from tiny_training import parser
from torch import nn

from vq_ihdm.errors import InputError
from vq_ihdm.training.config import parse_args
from vq_ihdm.training.preparation import clip_gradients, make_accelerator, make_scheduler, prepare_network


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """What `make_accelerator` makes of the script's flags under a launcher's environment."""

    def launch(*flags: str, **environment: str):
        for name, value in environment.items():
            monkeypatch.setenv(f"ACCELERATE_{name}", value)
        args = parse_args(parser(), "part", ["--output_dir", str(tmp_path), "--report_to", "none", *flags])
        accelerator = make_accelerator(args)
        assert accelerator.mixed_precision == args.mixed_precision
        assert accelerator.gradient_accumulation_steps == args.gradient_accumulation_steps
        forget_accelerator()
        return args.mixed_precision, args.gradient_accumulation_steps

    return launch


def test_what_no_flag_says_the_launcher_says(launched):
    assert launched() == ("no", 1)
    assert launched(MIXED_PRECISION="bf16", GRADIENT_ACCUMULATION_STEPS="4") == ("bf16", 4)


def test_a_flag_is_stronger_than_the_launcher(launched):
    flags = ("--mixed_precision", "no", "--gradient_accumulation_steps", "2")
    assert launched(*flags, MIXED_PRECISION="bf16", GRADIENT_ACCUMULATION_STEPS="4") == ("no", 2)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_what_splits_networks_is_refused(launched, name):
    with pytest.raises(InputError, match=f"{name} is not supported"):
        launched(**{f"USE_{name}": "true"})


def test_what_accelerate_would_do_otherwise_than_asked_is_refused(launched):
    with pytest.raises(InputError, match="torch.compile is not supported; launch with --dynamo_backend no"):
        launched(DYNAMO_BACKEND="INDUCTOR")
    assert launched(DYNAMO_BACKEND="NO") == ("no", 1)
    with pytest.raises(InputError, match="fp16 needs a GPU"):  # it would train in float32 and say fp16
        launched("--mixed_precision", "fp16")


def test_a_warmup_longer_than_the_training_is_told(launched, capsys: pytest.CaptureFixture):
    launched("--lr_warmup_steps", "100", "--max_train_steps", "100")
    assert "--lr_warmup_steps 100: the learning rate is not reached in --max_train_steps 100" in capsys.readouterr().out
    launched("--lr_warmup_steps", "100", "--max_train_steps", "101")
    assert "--lr_warmup_steps" not in capsys.readouterr().out


def test_the_launcher_s_example_is_one_for_several_gpus():
    config = load_config_from_file(str(ROOT / "examples" / "accelerate_multi_gpu.yaml"))
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == ("MULTI_GPU", 4, "bf16")


def test_a_prepared_network_its_average_and_its_rates_belong_together(tmp_path):
    flags = ["--output_dir", str(tmp_path), "--report_to", "none", "--lr_warmup_steps", "4", "--ema_decay", "0.5"]
    args = parse_args(parser(), "part", flags)
    bare = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0)).eval()  # a mode, but no step without a gradient
    optimizer = torch.optim.Adam(bare.parameters(), lr=args.learning_rate)
    network, optimizer, lr_scheduler, ema = prepare_network(args, make_accelerator(args), bare, optimizer)
    assert network.training and not ema.module.training and ema.decay == 0.5
    assert all(torch.equal(value, ema.module.state_dict()[name]) for name, value in bare.state_dict().items())
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"] / args.learning_rate)
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        lr_scheduler.step()
    assert rates == [0, 0.25, 0.5, 0.75, 1]
    assert not torch.equal(bare[0].weight, ema.module[0].weight)  # the average follows when it is told to


def test_groups_that_begin_later_warm_up_from_there(tmp_path):
    flags = [
        "--output_dir",
        str(tmp_path),
        "--lr_warmup_steps",
        "2",
        "--lr_scheduler",
        "linear",
        "--max_train_steps",
        "8",
    ]
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1.0, 0.5)])
    lr_scheduler = make_scheduler(
        parse_args(parser(), "part", ["--output_dir", str(tmp_path), *flags]), optimizer, (0, 4)
    )
    rates = []
    for _ in range(8):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        lr_scheduler.step()
    first, second = zip(*rates, strict=True)
    assert first == pytest.approx([0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert second == pytest.approx([0, 0, 0, 0, 0, 1 / 4, 1 / 2, 1 / 4])


def test_each_group_is_clipped_by_itself_and_unscaled_once():
    accelerator = Accelerator(cpu=True)
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    large, small = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = accelerator.prepare(torch.optim.SGD([{"params": [large]}, {"params": [small]}], lr=1.0))
    accelerator.backward((torch.tensor([3.0, 4.0]) * (large + small / 10)).sum())
    clip_gradients(accelerator, optimizer, max_norm=1.0)
    optimizer.step()
    torch.testing.assert_close(large.data, -torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(small.data, -torch.tensor([0.3, 0.4]))
