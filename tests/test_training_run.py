"""A resumed run: changed settings are applied and recorded, progress and best network belong to the checkpoint."""

import errno
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.tracking import GeneralTracker
from killing import child, reap
from PIL import Image
from tiny_training import assert_same_run, parser, train
from torch import nn

import vq_ihdm.training.run
from vq_ihdm.errors import InputError
from vq_ihdm.files import hold
from vq_ihdm.training.config import parse_args
from vq_ihdm.training.ema import EMA
from vq_ihdm.training.preparation import TimedAccelerator
from vq_ihdm.training.run import TrainingRun, stop_if_diverged
from vq_ihdm.training.state import load_state


class FarTracker(GeneralTracker):
    """A tracker that sends what it gets somewhere else."""

    name, requires_logging_directory, tracker = "wandb", False, None

    def __init__(self):
        super().__init__()
        self.got = {}

    def log(self, values: dict, step: int) -> None:
        self.got |= values


def test_no_picture_of_a_scan_is_sent_away(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Image=lambda picture: picture))
    far, picture = FarTracker(), Image.new("L", (8, 8))
    accelerator = SimpleNamespace(trackers=[far])
    for name, shows_scans in (("samples", False), ("reconstructions", True)):
        vq_ihdm.training.run._log_picture(accelerator, name, picture, 1, shows_scans)
    assert far.got == {"samples": picture}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A complete run of eight steps with all its checkpoints; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(folder, "--checkpoints_total_limit", 9)
    return folder


@pytest.fixture
def stopped(whole, tmp_path) -> Path:
    """A run that was killed after its last validation: `best/` and `last/` are of steps that are undone now."""
    folder = shutil.copytree(whole, tmp_path / "stopped")
    for step in (6, 8):
        shutil.rmtree(folder / f"checkpoint-{step}")
    return folder


def test_the_network_of_the_lowest_measure_is_the_best_one(tmp_path, monkeypatch):
    """By the first of the measures, here 3, 1, 2 and 4 at the four validations."""
    keep = TrainingRun.keep

    def measured(run: TrainingRun, metrics: dict, pictures: dict) -> None:
        keep(run, {"measure": {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0}[run.step], "other": -float(run.step)}, pictures)

    monkeypatch.setattr(TrainingRun, "keep", measured)

    def steps() -> list[int]:
        return [json.loads((tmp_path / name / "metrics.json").read_text())["step"] for name in ("best", "last")]

    train(tmp_path, "--checkpoints_total_limit", 9)
    assert steps() == [4, 8]
    best, last = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("best", "last"))
    assert best != last
    for step in (6, 8):  # and where the run goes on after that
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    train(tmp_path)
    assert steps() == [4, 8]


# ---- settings -----------------------------------------------------------------------------------------------------


def test_another_learning_rate_is_used_from_the_resumed_step_on(stopped, capsys):
    train(stopped, "--learning_rate", 5e-4)
    state = load_state(stopped / "checkpoint-6")["parts"]
    (group,) = state["optimizer"]["param_groups"]
    assert group["lr"] == group["initial_lr"] == 5e-4 and state["scheduler"]["base_lrs"] == [5e-4]
    assert state["scheduler"]["last_epoch"] == 6  # and the schedule goes on where it was
    assert "from step 3 on --learning_rate is 0.0005 instead of 0.001" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [("--lr_decay_steps", 6), ("--lr_scheduler", "linear"), ("--lr_warmup_steps", 5)])
def test_another_schedule_is_used_from_the_resumed_step_on(flags, stopped, tmp_path):
    resumed, fresh = (train(folder, *flags, "--max_train_images", 12) for folder in (stopped, tmp_path / "fresh"))
    rates = [run.checkpointer.parts["scheduler"].get_last_lr() for run in (resumed, fresh)]
    assert resumed.step == fresh.step == 4 and rates[0] == rates[1] != [1e-3]


def test_records_say_what_was_used_from_which_step(stopped):
    train(stopped, "--learning_rate", 5e-4, "--max_train_steps", 5)
    train(stopped, "--learning_rate", 2e-4)
    learning_rates = [
        {"from_step": 3, "setting": "learning_rate", "before": 1e-3, "after": 5e-4},
        {"from_step": 5, "setting": "learning_rate", "before": 5e-4, "after": 2e-4},
    ]
    config = json.loads((stopped / "config.json").read_text())
    assert config["learning_rate"] == 2e-4
    assert [c for c in config["changed_on_resume"] if c["setting"] == "learning_rate"] == learning_rates
    assert load_state(stopped / "checkpoint-8")["args"]["changed_on_resume"] == config["changed_on_resume"]


def test_what_did_not_change_is_not_recorded(stopped):
    args = train(stopped, "--checkpoints_total_limit", 9).args
    assert args.changed_on_resume == []


def test_a_budget_that_ends_where_a_run_was_interrupted_is_refused(stopped):
    with pytest.raises(InputError, match="interrupted at step 3.*give more"):
        train(stopped, "--max_train_steps", 3)


def test_trackers_get_the_settings_where_and_by_what_name_they_are_wanted(tmp_path):
    names = ("--tracker_project_name", "brains", "--logging_dir", tmp_path / "curves")
    train(tmp_path / "run", "--report_to", "tensorboard", *names, "--max_train_steps", 2)
    (file,) = (tmp_path / "curves" / "brains").glob("*/hparams.yml")
    settings = yaml.safe_load(file.read_text())
    assert (settings["learning_rate"], settings["max_train_steps"], settings["mixed_precision"]) == (1e-3, 2, "no")
    assert not (tmp_path / "run" / "logs").exists()


# ---- progress and best --------------------------------------------------------------------------------------------


def test_images_are_counted_as_they_were_seen(stopped):
    assert train(stopped, "--train_batch_size", 5).images_seen == 3 * 3 + 5 * 5


def test_what_is_logged_of_a_loss_is_its_mean_over_the_batches_of_the_step(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(TimedAccelerator, "log", lambda self, values, step: logged.append(values))
    train(tmp_path, "--gradient_accumulation_steps", 4)
    assert [values["train/batch"] for values in logged if "train/batch" in values] == [1.5] * 8


def test_a_run_adds_up_its_sessions(tmp_path):
    argv = ["--output_dir", str(tmp_path), "--report_to", "none", "--train_batch_size", "3"]
    args = parse_args(parser(), "part", argv)
    accelerator = TimedAccelerator(cpu=True)
    time.sleep(0.2)  # as scripts do that read, tokenise and fit a prior before the first step
    run = TrainingRun(args, accelerator, "run", range(10), {}, EMA(nn.Linear(2, 2), 0.9))
    assert 0.2 <= run.seconds < 100
    run.load_state_dict({"images_seen": 21, "seconds": 100.0, "best": None, "best_network": None, "last": None})
    assert 100 <= run.seconds < 110
    assert run.images_seen == 21
    args.max_train_minutes = 1.0
    for seconds, is_finished in ((50.0, False), (61.0, True)):
        run.seconds_before, run.started = seconds, time.monotonic()
        assert run._is_finished() is is_finished


def test_the_best_of_an_undone_branch_is_forgotten(stopped, whole, tmp_path):
    """Resumed with other settings, a run ends as it would had the steps after its checkpoint never been."""
    clean = tmp_path / "clean"
    shutil.copytree(whole / "checkpoint-3", clean / "checkpoint-3")
    for folder in (stopped, clean):
        train(folder, "--learning_rate", 0.1)
    assert_same_run(stopped, clean)
    train(clean.with_name("plain"), "--checkpoints_total_limit", 9)
    assert_same_run(clean.with_name("plain"), whole)  # which without other settings is what it was


def test_what_somebody_removed_from_a_complete_run_comes_back(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    for name in ("best", "last"):
        shutil.rmtree(folder / name)
    train(folder, "--checkpoints_total_limit", 9)
    assert_same_run(folder, whole)


# ---- what is not finite -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_diverged_loss_stops_the_run(value):
    stop_if_diverged({"l1": 0.5}, 3)
    with pytest.raises(InputError, match="l1 became .* at step 3.*last checkpoint is intact"):
        stop_if_diverged({"gan": 1.0, "l1": value}, 3)


def test_a_measure_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    """The first one would stay the best: no number is smaller than NaN."""
    monkeypatch.setattr(torch.Tensor, "mean", lambda tensor: torch.tensor(torch.nan))
    with pytest.raises(InputError, match="measure became nan at step 2"):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "best").exists()


def test_an_average_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    update = vq_ihdm.training.ema.EMA.update

    def spoil(ema, network):
        update(ema, network)
        ema.module.bias[0] = torch.inf

    monkeypatch.setattr(vq_ihdm.training.ema.EMA, "update", spoil)
    with pytest.raises(InputError, match=r"ema\.module\.bias is not finite at step 3"):
        train(tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_full_disk_loses_nothing(whole, tmp_path):
    """Here a limit on the size of files, which the checkpoint exceeds and best/ does not."""
    folder, (soft, hard) = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    shutil.copytree(whole / "checkpoint-3", folder / "checkpoint-3")
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OSError) as error:
            train(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(folder / "checkpoint-6"))
    assert {path.name for path in folder.iterdir()} == {"best", "checkpoint-3", "config.json", "lock.json"}
    train(folder)
    assert_same_run(folder, whole)


# ---- processes ----------------------------------------------------------------------------------------------------


def test_a_second_run_beside_the_first_is_refused(tmp_path):
    folder = tmp_path / "run"

    def other():
        hold(folder)
        (tmp_path / "held").touch()
        time.sleep(60)

    pid = child(other)
    while not (tmp_path / "held").exists():
        time.sleep(0.002)
    with pytest.raises(InputError, match=f"{folder} is in use by process {pid} "):
        train(folder)
    os.kill(pid, 9)
    reap(pid)
    assert train(folder).step == 8
