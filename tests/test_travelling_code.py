"""The code that is written beside the weights: one file a class, or a refusal."""

import sys
from pathlib import Path

import pytest

from vq_ihdm import VQIHDMPipeline
from vq_ihdm.pipelines.travelling_code import export_code


def export(package: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> str:
    """What `export_code` writes of class `Thing` in module `thing` of a package that is made of `modules`."""
    package.mkdir()
    for name, source in {"__init__": "", **modules}.items():
        (package / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(package.parent)
    try:
        thing = __import__(f"{package.name}.thing", fromlist=["Thing"]).Thing
        assert export_code(thing, package.parent) == ["thing", "Thing"]
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == package.name]:
            del sys.modules[name]
    return (package.parent / "thing.py").read_text()


def test_what_a_module_imports_stands_above_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = export(
        tmp_path / "travelling_a", monkeypatch,
        thing="from .left import left\nfrom .right import (\n    right,\n)\n\n\nclass Thing:\n    both = left, right\n",
        left="from .base import base\nleft = base + 1\n", right="from .base import base\nright = base + 2\n",
        base="base = 1\n",
    )  # fmt: skip
    names: dict = {}
    exec(code, names)
    assert names["Thing"].both == (2, 3) and code.count("base = 1") == 1


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("from . import other", "without `as`"),
        ("from .other import value as another", "without `as`"),
        ("def late():\n    from .other import value", "at the top"),
        ("import {package}.other", "has no {package}"),
        ("from {package}.other import value", "has no {package}"),
    ],
)
def test_imports_that_would_not_survive_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, problem: str
):
    package = f"travelling_{abs(hash(source))}"
    thing = source.format(package=package) + "\n\n\nclass Thing: ...\n"
    with pytest.raises(ValueError, match=problem.format(package=package)):
        export(tmp_path / package, monkeypatch, thing=thing, other="value = 1\n")


def test_imports_of_libraries_stand_at_the_top_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = export(
        tmp_path / "travelling_b", monkeypatch,
        thing="import torch\nfrom collections import abc\n\nfrom .base import base\n\n\nclass Thing: ...\n",
        base="import math\nfrom collections import (\n    OrderedDict,\n)\n\nimport torch\n\nbase = math.pi\n",
    )  # fmt: skip
    block = "import math\nfrom collections import OrderedDict, abc\n\nimport torch\n"
    assert code.partition("\n")[2].startswith(f"{block}\n\nbase = ") and code.count("import") == 3


def test_a_pipelines_file_holds_no_component_and_nothing_that_needs_the_package(pipeline_folder: Path):
    code = (pipeline_folder / "pipeline_vq_ihdm.py").read_text()
    assert "class SlicePipeline(StandalonePipeline)" in code and "InstalledPipeline" not in code
    assert code.count("\n") < 500
    for name, path in VQIHDMPipeline.COMPONENTS.items():
        definition = f"class {path.rpartition('.')[2]}("
        assert definition not in code
        if path.startswith("vq_ihdm."):
            (file,) = (pipeline_folder / name).glob("*.py")
            assert definition in file.read_text()
