"""Two processes over gloo, as `torchrun --nproc_per_node 2` starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script

from vq_ihdm.training.checkpoints import list_checkpoints
from vq_ihdm.training.state import load_state

# Runs train scripts one after the other; each process leaves what it holds at a checkpoint, not the first one alone.
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


def torchrun(folder: Path, *commands: list) -> subprocess.CompletedProcess:
    (folder / "worker.py").write_text(WORKER)
    (folder / "commands").write_text("\n".join("\t".join(map(str, command)) for command in commands))
    arguments = ["--standalone", "--nproc_per_node", "2", str(folder / "worker.py"), str(folder / "commands")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_two_processes(tmp_path, tiny_preset, template_set, vqgan_run):
    data = ["--config", tiny_preset, "--dataset_name", template_set, "--report_to", "none"]
    stage_1 = ["train_vqgan.py", *data, "--perceptual", "none", "--max_train_steps", 4]
    # Without chance in its loss the denoiser can be compared with one process and the double batch.
    stage_2 = [
        "train_ihdm.py", *data, "--vqvae", vqgan_run / "best", "--dropout", 0, "--delta", 0, "--reveal_probability", 0,
        "--no-random_flip", "--gradient_accumulation_steps", 1, "--max_train_steps", 4,
    ]  # fmt: skip
    run = torchrun(
        tmp_path,
        [*stage_1, "--output_dir", tmp_path / "vqgan"],
        [*stage_2, "--output_dir", tmp_path / "ihdm", "--train_batch_size", 1],
    )
    assert run.returncode == 0, run.stderr[-3000:]
    for name in ("vqgan", "ihdm"):
        first, second = (load_state(tmp_path / name / f"process-{process}") for process in (0, 1))
        del first["stopwatch"], second["stopwatch"]
        for part in first.keys() - {"usage", "epoch_usage"}:
            assert_equal(first[part], second[part], part)
        assert len(load_state(list_checkpoints(tmp_path / name)[-1])["random"]) == 2
    # What each has counted since the last restart of codes, the third step: the codes of its own 2 x 3 images.
    usage = [load_state(tmp_path / "vqgan" / f"process-{process}")["usage"]["counts"] for process in (0, 1)]
    assert usage[0].sum() == usage[1].sum() == 6 * 64
    assert not torch.equal(*usage)
    assert (tmp_path / "ihdm" / "pipeline" / "model_index.json").exists()
    assert run.stdout.count("the pipeline is in") == 1

    run_script(*stage_2, "--output_dir", tmp_path / "one", "--train_batch_size", 2)
    alone = load_state(list_checkpoints(tmp_path / "one")[-1])["parts"]["network"]
    together = load_state(list_checkpoints(tmp_path / "ihdm")[-1])["parts"]["network"]
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=2e-5, rtol=1e-4)


def assert_equal(first, second, name: str) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key], f"{name}.{key}")
    elif isinstance(first, list):
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{name}.{i}")
    else:
        assert torch.equal(first, second) if torch.is_tensor(first) else first == second, name
