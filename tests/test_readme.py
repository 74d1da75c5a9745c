"""The README's commands, in the order in which they stand there, as one pastes them into a shell after a clone."""

import re
import shlex
import subprocess
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


def lines_of(block: str) -> Iterator[list[str]]:
    """Every line of shell commands as a list of words."""
    for line in block.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def commands() -> Iterator[list[str]]:
    """Every command of the README's `sh` blocks."""
    for block in re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE):
        yield from lines_of(block)


def scripts() -> Iterator[list]:
    """Every script that these commands start, `make` among them, with its arguments."""
    for words in commands():
        lines = [words]
        if words[0] == "make":
            dry = ["make", "--dry-run", words[1]]
            lines = lines_of(subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        for line in lines:
            if Path(line[0]).name in ("python", "accelerate"):
                yield line[[word.endswith(".py") for word in line].index(True) :]


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


def test_what_the_commands_write_is_not_committed():
    ignored = (ROOT / ".gitignore").read_text().split()
    written = [words[words.index("--output_dir") + 1] for words in scripts() if "--output_dir" in words]
    assert len(written) > 10 and {f"/{Path(folder).parts[0]}/" for folder in written} <= set(ignored)
    assert {"*.salt", "*.left_out.csv"} <= set(ignored)


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
    for script, *arguments in scripts():
        arguments = [tiny_preset if word in ("demo", "oasis") else word for word in arguments] + SMALL.get(script, [])
        if script == "train_vqgan.py":
            arguments += ["--perceptual_weights", trunk]
        run_script(script, *arguments, folder=tmp_path)
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
    for file in ("outputs/demo/shipped.png", "outputs/demo/samples.png", "report/report.md"):
        assert (tmp_path / file).is_file()
    published = hub.repositories["model", "tester/your-model"]
    assert published.private and set(files_of(tmp_path / "runs" / "ihdm" / "pipeline")) <= set(published.files)
