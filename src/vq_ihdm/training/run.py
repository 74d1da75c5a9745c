"""A training run that its script iterates over: the script shows the step, the run does what surrounds it."""

import argparse
import copy
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.images import SliceTensors
from ..errors import INTERRUPTED, InputError
from ..files import replacing
from ..pictures import save_picture
from .batches import batch_order
from .checkpoints import Checkpointer, Stateful
from .config import save_args
from .ema import EMA
from .interruption import Interruption
from .preparation import TimedAccelerator


class TrainingRun:
    """Steps up to the budget or an interruption, with exact resume, checkpoints, validation and trackers.

        run = TrainingRun(args, accelerator, "vqgan", train_set, parts, ema)
        for step in run:                    # how many were done before: 0, 1, ...
            for batch in run.batches():     # of this step, one for each accumulated gradient
                ...
                run.add(loss=loss)
            run.log(lr=rate)                # ends the step
            if run.validation_due:
                run.keep(*validate(ema.module))

    The budget is --max_train_steps or, where they end it earlier, --max_train_images and --max_train_minutes. The run
    leaves in --output_dir `checkpoint-<step>/`, `best/` and `last/` (averaged networks with their `metrics.json`), the
    pictures of the last validation, `config.json` and `logs/`. All that decides how it goes on is in the checkpoint,
    the best network too: a resumed run writes `best/` anew, whatever a killed one left there.

    Args:
        args: the effective configuration: the shared flags of `add_training_arguments`.
        name: of the progress bar, and of the project in the trackers unless --tracker_project_name says another.
        examples: the training set, from which `batches` takes: slices, read ahead by --dataloader_num_workers
            processes, or the numbers 0..N-1 as a `range` where the examples are at hand.
        parts: everything with a state that a resumed run needs, by name; networks unwrapped.
        ema: one of them, the average of the network that is validated and kept; it has `save_pretrained`.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: TimedAccelerator,
        name: str,
        examples: SliceTensors | range,
        parts: dict[str, Stateful],
        ema: EMA,
    ):
        self.args, self.accelerator, self.name, self.ema = args, accelerator, name, ema
        self.examples = examples
        self.output_dir = Path(args.output_dir)
        self.best_folder = self.output_dir / "best"
        self.step = 0
        self.images_seen = 0  # by all processes together
        self.best: dict[str, float] | None = None  # metrics of best/, the first of which decides
        self.best_network: dict[str, torch.Tensor] | None = None
        self.last: dict[str, float] | None = None  # metrics of the last validation
        self.losses: dict[str, torch.Tensor] = {}  # of this step so far
        self.seconds_before, self.started = 0.0, accelerator.started
        self.checkpointer = Checkpointer(
            accelerator, self.output_dir, parts | {"run": self}, vars(args), args.checkpoints_total_limit
        )

    # ---- what a script uses -----------------------------------------------------------------------------------
    def __iter__(self) -> Iterator[int]:
        """
        Raises:
            InputError: from `Checkpointer.resume`; or the budget ends where an earlier session was interrupted.
            SystemExit: with the code `INTERRUPTED`, when the run was interrupted and its checkpoint is saved.
        """
        args, accelerator = self.args, self.accelerator
        self.step = self.checkpointer.resume(args.resume_from_checkpoint)
        self.is_last = self.step > 0 and self._is_finished()
        if self.is_last and (self.last is None or self.last["step"] < self.step):
            raise InputError(
                f"the run was interrupted at step {self.step}, where nothing was measured, and --max_train_steps, "
                "--max_train_images or --max_train_minutes asks for no further step; give more"
            )
        self.interruption = Interruption()
        if accelerator.is_main_process:
            save_args(args, self.output_dir / "config.json")
            self._restore_networks()
            _start_trackers(args, accelerator, self.name)
        order = batch_order(
            len(self.examples),
            args.train_batch_size,
            args.seed,
            self.images_seen // self._images_per_batch,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self.upcoming = order if isinstance(self.examples, range) else self._read_ahead(order)
        self.progress = tqdm(
            total=args.max_train_steps if args.max_train_minutes is None else None,
            initial=self.step,
            desc=self.name,
            disable=not accelerator.is_local_main_process,
        )
        while not self.is_last:
            yield self.step
            stop = self._any_process(self.interruption.requested)
            if self.step % args.checkpointing_steps == 0 or self.is_last or stop:
                folder = self.checkpointer.save(self.step)
                if stop and not self.is_last:
                    self._end()
                    accelerator.print(
                        f"interrupted at step {self.step}: {folder} is saved; go on with "
                        "--resume_from_checkpoint latest"
                    )
                    raise SystemExit(INTERRUPTED)
        self._end()

    def batches(self) -> Iterator[torch.Tensor | list[int]]:
        """This process's examples of one optimizer step, a batch for each gradient to accumulate.

        Slices as (B, 1, H, W) in [-1, 1]; of a `range` the list of indices.
        """
        for _ in range(self.args.gradient_accumulation_steps):
            self.images_seen += self._images_per_batch
            yield next(self.upcoming)

    def add(self, **losses: torch.Tensor) -> None:
        """Losses of a batch: their mean over the batches of the step, of all processes, is logged with it."""
        for name, loss in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss.detach() / self.args.gradient_accumulation_steps

    def log(self, **values: torch.Tensor | float) -> None:
        """End a step, with what is to be logged of it beside its losses: rates, counts.

        Raises:
            InputError: a figure is NaN or infinite; the last checkpoint stays as it is.
        """
        self.step += 1
        figures = {}
        if self.losses:
            means = self.accelerator.reduce(torch.stack([*self.losses.values()]), "mean").tolist()
            figures = dict(zip(self.losses, means, strict=True))
        figures |= {name: torch.as_tensor(value).item() for name, value in values.items()}
        self.losses = {}
        stop_if_diverged(figures, self.step)
        self.accelerator.log({f"train/{name}": figure for name, figure in figures.items()}, step=self.step)
        self.progress.update()
        self.progress.set_postfix({name: f"{figure:.3g}" for name, figure in figures.items() if name != "lr"})
        self.is_last = self._is_finished()

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which all processes together see each example about once."""
        images_per_step = self._images_per_batch * self.args.gradient_accumulation_steps
        return max(1, len(self.examples) // images_per_step)

    @property
    def validation_due(self) -> bool:
        """Whether this process is to measure the averaged network after this step: the first one does for all."""
        due = self.step % self.args.validation_steps == 0 or self.is_last
        return due and self.accelerator.is_main_process

    def keep(
        self, metrics: dict[str, float], pictures: Mapping[str, Image.Image], scans: Mapping[str, Image.Image] = {}
    ) -> None:
        """Log a validation, and keep the averaged network where it is the best so far, or the last.

        Args:
            metrics: held-out measures by name, the lower the better; the first decides which network is the best.
            pictures: by name.
            scans: others, on which real people are seen: they stay on this machine.

        Raises:
            InputError: a measure is NaN or infinite; the last checkpoint stays as it is.
        """
        stop_if_diverged(metrics, self.step)
        self.progress.write(f"step {self.step}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
        self.accelerator.log({f"validation/{key}": value for key, value in metrics.items()}, step=self.step)
        for key, picture in {**pictures, **scans}.items():
            save_picture(picture, self.output_dir / f"{key}.png")
            _log_picture(self.accelerator, f"validation/{key}", picture, self.step, shows_scans=key in scans)
        measure = next(iter(metrics))
        metrics = metrics | {"step": self.step, "images_seen": self.images_seen, "seconds": self.seconds}
        self.last = metrics
        if self.best is None or metrics[measure] < self.best[measure]:
            self.best = metrics
            self.best_network = {name: tensor.cpu().clone() for name, tensor in self.ema.module.state_dict().items()}
            _save_network(self.ema.module, self.best_folder, metrics)
        if self.is_last:
            _save_network(self.ema.module, self.output_dir / "last", metrics)

    # ---- state ------------------------------------------------------------------------------------------------
    @property
    def seconds(self) -> float:
        """Of training, over all the sessions of the run; the first from the beginning of the script."""
        return self.seconds_before + time.monotonic() - self.started

    def state_dict(self) -> dict:
        names = ("images_seen", "seconds", "best", "best_network", "last")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        self.images_seen, self.last = state["images_seen"], state["last"]
        self.best, self.best_network = state["best"], state["best_network"]
        self.seconds_before, self.started = state["seconds"], time.monotonic()

    def _restore_networks(self) -> None:
        """Write what the checkpoint says was kept: a killed run may have gone on to others, or they were removed."""
        if self.best is not None:
            network = copy.deepcopy(self.ema.module)
            network.load_state_dict(self.best_network)
            _save_network(network, self.best_folder, self.best)
        if self.is_last:
            _save_network(self.ema.module, self.output_dir / "last", self.last)

    # ---- inside -----------------------------------------------------------------------------------------------
    @property
    def _images_per_batch(self) -> int:
        return self.args.train_batch_size * self.accelerator.num_processes

    def _read_ahead(self, order: Iterator[list[int]]) -> Iterator[torch.Tensor]:
        return iter(
            DataLoader(
                self.examples,
                batch_sampler=order,
                num_workers=self.args.dataloader_num_workers,
                collate_fn=_as_it_is,
                pin_memory=self.accelerator.device.type == "cuda",
                generator=torch.Generator(),  # or it would draw a seed from the state that a resumed run restores
            )
        )

    def _is_finished(self) -> bool:
        args = self.args
        if self.step >= args.max_train_steps:
            return True
        if args.max_train_images is not None and self.images_seen >= args.max_train_images:
            return True
        if args.max_train_minutes is None:
            return False
        return self._any_process(self.seconds >= 60 * args.max_train_minutes)

    def _any_process(self, asked: bool) -> bool:
        """Whether one of the processes asks for something that all of them must do at the same step."""
        if self.accelerator.num_processes == 1:
            return asked
        asked_by = self.accelerator.reduce(torch.tensor(float(asked), device=self.accelerator.device), "sum")
        return bool(asked_by.item() > 0)

    def _end(self) -> None:
        self.interruption.end()
        self.progress.close()
        self.accelerator.end_training()


def _save_network(network: nn.Module, folder: Path, metrics: dict[str, float]) -> None:
    with replacing(folder) as temporary:
        network.save_pretrained(temporary)
        (temporary / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def _as_it_is(batch: torch.Tensor) -> torch.Tensor:
    return batch  # `SliceTensors` gives whole batches


def stop_if_diverged(figures: dict[str, float], step: int) -> None:
    """Stop before a checkpoint is overwritten by a run that has diverged.

    Raises:
        InputError: a figure is NaN or infinite.
    """
    for name, value in figures.items():
        if not abs(value) < float("inf"):
            raise InputError(
                f"{name} became {value} at step {step}; the last checkpoint is intact: resume from it with a lower "
                "--learning_rate, or without --mixed_precision"
            )


def _start_trackers(args: argparse.Namespace, accelerator: TimedAccelerator, name: str) -> None:
    """Hand the trackers the settings, lists as text: TensorBoard takes numbers, booleans and text."""
    settings = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in vars(args).items()
        if value is not None
    }
    accelerator.init_trackers(args.tracker_project_name or name, settings)


def _log_picture(accelerator: Accelerator, name: str, picture: Image.Image, step: int, shows_scans: bool) -> None:
    """Hand a picture to every tracker of the run; one that shows scans to those alone that send nothing away."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.writer.add_image(name, np.asarray(picture), step, dataformats="HW")
        elif shows_scans:
            continue
        elif tracker.name == "wandb":
            import wandb

            tracker.log({name: wandb.Image(picture)}, step=step)
        elif tracker.name == "trackio":
            import trackio

            tracker.log({name: trackio.Image(picture)}, step=step)
