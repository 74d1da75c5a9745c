"""The README's commands, in the order in which they stand there, as one pastes them into a shell after a clone."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, run_script
from evaluation_helpers import TinyExtractor
from hub_server import TOKEN, HubServer

from vq_ihdm.evaluation.features import FeatureNetwork
from vq_ihdm.hub.publishing import files_of

README = (ROOT / "README.md").read_text()
# What makes a command small: flags that are added to it.
SMALL = {
    "generate.py": ["--num_images", 2],
    "dataset_scripts/template.py": ["--image_size", 32, "--num_subjects", 32, "--slices_per_subject", 4],
    "evaluate.py": ["--num_images", 48, "--batch_size", 16],
    "publish.py": ["--allow_failed_audit"],  # a model of eight steps may have learnt anything
}


def commands() -> Iterator[list[str]]:
    """Every command of the README's `sh` blocks as a list of words."""
    for block in re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_what_prepares_the_shell_exists():
    prepared = [words for words in commands() if words[0] not in ("python", "accelerate")]
    assert prepared[:3] == [["make", "samples"], ["make", "demo"], [".", ".venv/bin/activate"]]
    for words in prepared[:2]:
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    extras = re.findall(
        r"^(\w+) =$", (ROOT / "setup.cfg").read_text().split("[options.extras_require]")[1], re.MULTILINE
    )
    for words in prepared[3:]:
        assert words[:3] == ["pip", "install", "-e"]
        assert set(re.search(r"\[(.*)\]", words[3])[1].split(",")) <= set(extras)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_python_blocks_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for block in python_blocks():
        names = {}
        exec(block, names)
        assert len(names["images"]) == 8 and names["images"][0].size == (176, 176)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub on loopback, for this process."""
    server = HubServer()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


@pytest.mark.slow
def test_the_commands_run_in_their_order(
    hub: HubServer, tiny_preset: Path, trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    network = FeatureNetwork(TinyExtractor(), cache=tmp_path / "cache")
    monkeypatch.setattr("vq_ihdm.evaluation.features.load_networks", lambda weights, device: [network])
    for entry in ("checkpoints", "configs", "dataset_scripts", "examples"):
        (tmp_path / entry).symlink_to(ROOT / entry)
    for script in ROOT.glob("*.py"):
        (tmp_path / script.name).symlink_to(script)
    for words in commands():
        if words[0] not in ("python", "accelerate"):
            continue
        script, *arguments = words[2:] if words[:2] == ["accelerate", "launch"] else words[1:]
        arguments = [tiny_preset if word == "oasis" else word for word in arguments] + SMALL.get(script, [])
        if script == "train_vqgan.py":
            arguments += ["--perceptual_weights", trunk]
        run_script(script, *arguments, folder=tmp_path)
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
    assert (tmp_path / "report" / "report.md").is_file()
    published = hub.repositories["model", "tester/your-model"]
    assert published.private and set(files_of(tmp_path / "runs" / "ihdm" / "pipeline")) <= set(published.files)
