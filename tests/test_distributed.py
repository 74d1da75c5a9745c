"""Two and four processes over gloo, as `torchrun --nproc_per_node` starts them, and the loss of one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import GENERATE_FLAGS, ROOT, SHARD_FLAGS, run_script
from states import differences

from vq_ihdm.baselines.wgan import WGAN
from vq_ihdm.training.checkpoints import list_checkpoints
from vq_ihdm.training.state import load_state

# Runs scripts one after the other, since imports are dear. Of a training each process leaves what it holds, where
# a checkpoint has the first one's state alone.
WORKER = """
import runpy, sys
from pathlib import Path
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from vq_ihdm.training.checkpoints import Checkpointer
from vq_ihdm.training.state import save_state

save = Checkpointer.save

def save_by_each(self, step):
    folder = self.output_dir / f"process-{self.accelerator.process_index}"
    folder.mkdir(parents=True, exist_ok=True)
    save_state({name: part.state_dict() for name, part in self.parts.items()}, folder)
    return save(self, step)

Checkpointer.save = save_by_each
Accelerator.end_training = lambda self: None  # one group of processes serves all scripts
for line in Path(sys.argv[1]).read_text().splitlines():
    sys.argv = line.split("\\t")
    runpy.run_path(sys.argv[0], run_name="__main__")
    AcceleratorState._reset_state()
    GradientState._reset_state()
"""

# The last of four processes is killed after its second step, and leaves the time.
KILLED = """
import os, runpy, signal, sys
from pathlib import Path
from vq_ihdm.training.run import TrainingRun

log = TrainingRun.log

def log_and_die(self, **values):
    log(self, **values)
    if self.step == 2 and self.accelerator.process_index == 3:
        Path(sys.argv[-1], "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)

TrainingRun.log = log_and_die
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def torchrun(folder: Path, num_processes: int, *commands: list) -> subprocess.CompletedProcess:
    """Processes that run these commands."""
    (folder / "worker.py").write_text(WORKER)
    (folder / "commands").write_text("\n".join("\t".join(map(str, command)) for command in commands))
    arguments = [
        "--standalone",
        "--nproc_per_node",
        str(num_processes),
        str(folder / "worker.py"),
        str(folder / "commands"),
    ]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def plain_ihdm(tiny_preset, template_set, vqgan_run) -> list:
    """train_ihdm.py without chance in its loss: a batch of two is then twice a batch of one."""
    return [
        "train_ihdm.py", "--config", tiny_preset, "--dataset_name", template_set, "--vqvae", vqgan_run / "best",
        "--dropout", 0, "--delta", 0, "--reveal_probability", 0, "--no-random_flip", "--covariate_dropout", 0,
        "--max_train_steps", 4, "--gradient_accumulation_steps", 1, "--report_to", "none",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_preset, template_set, pipeline_folder, plain_ihdm) -> Path:
    """What two processes make: `vqgan`, the same `resumed`, `ihdm`, `wgan`, `images`, `shards`; and `stdout`."""
    folder = tmp_path_factory.mktemp("distributed")
    vqgan = ["train_vqgan.py", "--config", tiny_preset, "--dataset_name", template_set, "--perceptual", "none",
             "--discriminator", "patch", "--disc_warmup_steps", 0, "--max_train_steps", 4, "--report_to", "none",
             "--output_dir", folder / "vqgan"]  # fmt: skip
    ihdm = [*plain_ihdm, "--train_batch_size", 1, "--output_dir", folder / "ihdm"]
    gan = ["train_baseline.py", "--model", "wgan", "--dataset_name", template_set, "--latent_dim", 8,
           "--max_train_steps", 1, "--num_validation_images", 8, "--report_to", "none",
           "--output_dir", folder / "wgan"]  # fmt: skip
    images = ["generate.py", "--pipeline", pipeline_folder, "--output_dir", folder / "images", *GENERATE_FLAGS]
    shards = ["generate.py", "--pipeline", pipeline_folder, "--output_dir", folder / "shards", *SHARD_FLAGS]
    stopped = [*vqgan[:-1], folder / "resumed", "--max_train_steps", 2]  # before dead codes are restarted first
    resumed = [*vqgan[:-1], folder / "resumed", "--resume_from_checkpoint", "latest"]
    done = torchrun(folder, 2, vqgan, stopped, resumed, ihdm, gan, images, shards)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "stdout").write_text(done.stdout)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("script", ["vqgan", "ihdm"])
def test_both_processes_end_with_the_same_state(runs, script):
    """Weights, averages, moments of the optimizers, schedules, and how often codes were used in both."""
    first, second = (load_state(runs / script / f"process-{process}") for process in (0, 1))
    for part in first.keys() - {"run"}:
        assert differences(first[part], second[part], part) == []
    if script == "vqgan":  # since the last restart of codes, the third step: 2 x 2 x 3 images of 64 codes
        assert first["usage"]["counts"].sum() == 12 * 64


@pytest.mark.slow
def test_two_processes_resumed_are_the_uninterrupted_ones(runs):
    """Also in which codes are dead: what either process had counted before the stop is counted once."""
    ours, theirs = (load_state(list_checkpoints(runs / name)[-1])["parts"] for name in ("resumed", "vqgan"))
    for part in ours.keys() - {"run"}:
        assert differences(ours[part], theirs[part], part) == []


@pytest.mark.slow
def test_two_processes_train_the_same_gan(runs):
    first, second = (load_state(runs / "wgan" / f"process-{process}")["networks"] for process in (0, 1))
    weights = {name for name, _ in WGAN(32, 32, 8).named_parameters()}
    for name in weights:
        assert torch.equal(first[name], second[name]), name
    # Each sees its own half of the images.
    assert any(not torch.equal(first[name], second[name]) for name in first.keys() - weights)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_double_batch(runs, plain_ihdm, tmp_path):
    run_script(*plain_ihdm, "--train_batch_size", 2, "--output_dir", tmp_path / "one")
    alone = load_state(list_checkpoints(tmp_path / "one")[-1])["parts"]["network"]
    (checkpoint,) = list_checkpoints(runs / "ihdm")
    together = load_state(checkpoint)["parts"]["network"]
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_four_train_as_one_with_the_whole_batch_and_end_when_one_is_killed(plain_ihdm, tmp_path):
    """One group of processes shows both: the first training ends, in the second a process is lost."""
    (tmp_path / "killed.py").write_text(KILLED)
    ihdm = [*plain_ihdm, "--train_batch_size", 1, "--output_dir"]
    done = torchrun(tmp_path, 4, [*ihdm, tmp_path / "four"], [tmp_path / "killed.py", *ihdm, tmp_path / "lost"])
    assert time.time() - (tmp_path / "lost" / "killed").stat().st_mtime < 60
    assert done.returncode != 0 and "Signal 9 (SIGKILL)" in done.stderr
    assert list_checkpoints(tmp_path / "lost") == []

    run_script(*plain_ihdm, "--train_batch_size", 4, "--output_dir", tmp_path / "one")
    together, alone = (
        load_state(list_checkpoints(tmp_path / name)[-1])["parts"]["network"] for name in ("four", "one")
    )
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_checkpoint_has_the_random_state_of_each_process(runs):
    for script in ("vqgan", "ihdm"):
        (checkpoint,) = list_checkpoints(runs / script)
        first, second = load_state(checkpoint)["random"]
        assert not torch.equal(first["cpu"], second["cpu"])


@pytest.mark.slow
def test_only_the_first_process_writes_the_outcome(runs):
    stdout = (runs / "stdout").read_text()
    assert (stdout.count("the pipeline is in"), stdout.count("images are in")) == (2, 2)
    assert (runs / "ihdm" / "pipeline" / "model_index.json").exists()


@pytest.mark.slow
def test_two_processes_generate_the_files_of_one(runs, generated):
    ours, theirs = ({file.name: file.read_bytes() for file in f.iterdir()} for f in (runs / "images", generated))
    assert ours == theirs


@pytest.mark.slow
def test_two_processes_generate_the_shards_of_one(runs, pipeline_folder, tmp_path):
    run_script("generate.py", "--pipeline", pipeline_folder, "--output_dir", tmp_path / "shards", *SHARD_FLAGS)
    ours, theirs = (sorted((folder / "shards").rglob("*.parquet")) for folder in (runs, tmp_path))
    assert [file.name for file in ours] == [file.name for file in theirs]
    assert [file.read_bytes() for file in ours] == [file.read_bytes() for file in theirs]
