"""A training that computes nothing: its gradients are chance, so every state counts; a forked process can run it."""

import argparse
import json
from pathlib import Path

import torch
from conftest import forget_accelerator
from safetensors.torch import load_file, save_file
from states import differences, final_state
from torch import nn

from vq_ihdm.training.config import add_training_arguments, parse_args
from vq_ihdm.training.ema import EMA
from vq_ihdm.training.preparation import make_accelerator, make_scheduler
from vq_ihdm.training.run import TrainingRun


def parser() -> argparse.ArgumentParser:
    """The shared flags, and one that takes a list."""
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    parser.add_argument("--widths", type=int, nargs="+", default=[1])
    parser.set_defaults(max_train_steps=100, train_batch_size=2)
    return parser


class Network(nn.Linear):
    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        save_file(self.state_dict(), folder / "model.safetensors")


def train(folder: Path, *flags: object) -> TrainingRun:
    """Eight steps of three images, with checkpoints after 3, 6 and 8 and validations after 2, 4, 6 and 8."""
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    parser.set_defaults(max_train_steps=8, train_batch_size=3, checkpointing_steps=3, validation_steps=2)
    parser.set_defaults(report_to="none", lr_warmup_steps=2, learning_rate=1e-3, resume_from_checkpoint="latest")
    args = parse_args(parser, "part", ["--output_dir", str(folder), *map(str, flags)])
    try:
        accelerator = make_accelerator(args)
        torch.manual_seed(args.seed)
        network = Network(20, 20)
        optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate)
        scheduler = make_scheduler(args, optimizer)
        ema = EMA(network, args.ema_decay)
        parts = {"network": network, "ema": ema, "optimizer": optimizer, "scheduler": scheduler}
        run = TrainingRun(args, accelerator, "run", range(20), parts, ema)
        for _ in run:
            for number, _ in enumerate(run.batches()):
                for parameter in network.parameters():
                    parameter.grad = torch.randn_like(parameter)
                optimizer.step()
                run.add(batch=torch.tensor(float(number)))
            scheduler.step()
            ema.update(network)
            run.log(norm=network.weight.norm())
            if run.validation_due:
                run.keep({"measure": ema.module.weight.mean().item()}, {})
        return run
    finally:
        forget_accelerator()


def assert_same_run(first: Path, second: Path) -> None:
    """Bit for bit, but for clock and flags."""
    assert differences(final_state(first), final_state(second)) == []
    for name in ("best", "last"):
        ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (first, second))
        assert differences(ours, theirs) == []
        ours, theirs = (json.loads((folder / name / "metrics.json").read_text()) for folder in (first, second))
        assert ours.keys() == theirs.keys() and ours["measure"] == theirs["measure"] and ours["step"] == theirs["step"]
