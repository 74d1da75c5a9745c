"""The training step of systems in which networks play against each other."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from diffusers import ModelMixin
from PIL import Image
from torch import nn

from ..data.images import SliceTensors
from .ema import EMA
from .slices import draw_slices
from .trainer import make_scheduler, run_training


@dataclass(frozen=True)
class Turn:
    """One move of the game.

    Args:
        name: of the loss in the log.
        players: the networks that learn in it.
        loss: what they lower, a function of real images (B, 1, H, W) in [-1, 1].
        repeats: how many times in a row, each time on new images.
    """

    name: str
    players: list[nn.Module]
    loss: Callable[[torch.Tensor], torch.Tensor]
    repeats: int = 1


class Game(Protocol):
    """A module of several networks, one of which, the `decoder`, draws slices from latents."""

    decoder: ModelMixin

    def turns(self) -> list[Turn]: ...


def train_adversarial(
    args: argparse.Namespace,
    accelerator: Accelerator,
    game: Game,
    train_set: SliceTensors,
    validate: Callable[[nn.Module], tuple[dict[str, float], dict[str, Image.Image]]],
) -> tuple[Path, dict[str, float]]:
    """Play: in each step every turn in its order, every network with an Adam of its own.

    The networks are not wrapped for several processes, whose wrapper cannot differentiate a gradient penalty: the
    processes start from the same weights and average their gradients.

    Args:
        validate: see `run_training`, whose result is returned; it is given the average of the game's decoder.
    """
    device = accelerator.device
    game.to(device).train()
    broadcast([p.data for p in game.parameters()])
    networks = dict(game.named_children())
    optimizers = {n: torch.optim.Adam(net.parameters(), lr=args.learning_rate) for n, net in networks.items()}
    schedulers = {name: make_scheduler(args, optimizer) for name, optimizer in optimizers.items()}
    optimizers = {name: accelerator.prepare(optimizer) for name, optimizer in optimizers.items()}
    ema = EMA(game.decoder, args.ema_decay)
    turns = game.turns()

    def step_once(step: int, batches: Iterator[list[int]]) -> dict[str, float]:
        logged = {}
        for turn in turns:
            players = {name: network for name, network in networks.items() if network in turn.players}
            # Whoever does not play is a constant: no gradient is worked out for it.
            game.requires_grad_(False)
            for network in players.values():
                network.requires_grad_(True)
            for _ in range(turn.repeats):
                for _ in range(args.gradient_accumulation_steps):
                    images = draw_slices(train_set, next(batches), args.random_flip).to(device)
                    with accelerator.autocast():
                        value = turn.loss(images)
                    accelerator.backward(value)
                for name, network in players.items():
                    for parameter in network.parameters():
                        parameter.grad = accelerator.reduce(parameter.grad, "mean")
                    if args.max_grad_norm is not None:
                        accelerator.clip_grad_norm_(network.parameters(), args.max_grad_norm)
                    optimizers[name].step()
                    optimizers[name].zero_grad()
            logged[turn.name] = value.item()
        for scheduler in schedulers.values():
            scheduler.step()
        ema.update(game.decoder)
        return logged

    parts = {"networks": game, "ema": ema}
    parts |= {f"optimizer_{name}": optimizer for name, optimizer in optimizers.items()}
    parts |= {f"scheduler_{name}": scheduler for name, scheduler in schedulers.items()}
    batches_per_step = args.gradient_accumulation_steps * sum(turn.repeats for turn in turns)
    return run_training(
        args, accelerator, args.model, len(train_set), batches_per_step, step_once, parts, ema, validate
    )
