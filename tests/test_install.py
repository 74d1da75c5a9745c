"""setup.cfg: what a part of the project imports, the extra of that part installs; sampling needs no extra at all."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from importlib.util import resolve_name
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
SAMPLING = SETUP["options"]["install_requires"].split()
EXTRAS = {
    name: [line for line in SETUP["options.extras_require"][name].splitlines() if line and not line.startswith("#")]
    for name in ("app", "data", "evaluation", "train")
}
BUILDERS = (ROOT / "dataset_scripts").glob("*.py")
# What each part starts from, beside the requirements of sampling.
PARTS = {
    "sampling": ["src/vq_ihdm/__init__.py", "src/vq_ihdm/__main__.py", "generate.py"],
    "app": ["app.py"],
    "data": [
        *(f"src/vq_ihdm/synthetic/{name}.py" for name in ("shards", "images_card", "upload")),
        "src/vq_ihdm/hub/checks.py",
        *(f"dataset_scripts/{name}.py" for name in ("nifti", "slices", "dicom")),
    ],
    "evaluation": ["evaluate.py", "publish.py"],
    "train": ["train_vqgan.py", "train_ihdm.py", "train_baseline.py", "publish.py"],
}


def installed_with(requirements: Iterable[str], seen: set[str] | None = None) -> set[str]:
    """The canonical names of what pip installs for these requirements, as far as it is installed here."""
    seen = set() if seen is None else seen
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        try:
            installed_with(requires(name) or [], seen)
        except PackageNotFoundError:  # of another platform
            continue
    return seen


def imports_of(file: Path) -> Iterator[str]:
    """The absolute names of what a file imports when it is imported itself."""
    folder = file.parent
    inside = folder.relative_to(ROOT / "src").parts if ROOT / "src" in folder.parents else ("vq_ihdm", "pipelines")
    pending = list(ast.parse(file.read_text()).body)
    for node in pending:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), ".".join(inside))
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif not isinstance(node, (ast.FunctionDef, ast.ClassDef)) and "TYPE_CHECKING" not in ast.unparse(node):
            pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def reached_from(files: Iterable[Path]) -> set[str]:
    """The packages, not ours and not Python's, that importing these files imports."""
    packages, pending = set(), list(files)
    for file in pending:
        for name in imports_of(file):
            first, *rest = name.split(".")
            if first != "vq_ihdm":
                packages.add(first)
                continue
            base = ROOT / "pipelines" if rest[0] == "pipelines" else ROOT / "src" / "vq_ihdm"
            steps = rest[1:] if rest[0] == "pipelines" else rest
            for count in range(len(steps) + 1):  # a package, its module, and a name in it
                path = base.joinpath(*steps[:count])
                for candidate in (path / "__init__.py", path.with_suffix(".py")):
                    if candidate.is_file() and candidate not in pending:
                        pending.append(candidate)
    return packages - set(sys.stdlib_module_names)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_what_a_part_imports_comes_with_it(part: str):
    provided = installed_with([*SAMPLING, *EXTRAS.get(part, [])])
    distributions = packages_distributions()
    for package in reached_from(ROOT / file for file in PARTS[part]):
        owners = {canonicalize_name(name) for name in distributions[package]}
        assert owners & provided, f"{part} imports {package}, which its requirements do not install"


@pytest.mark.slow
def test_sampling_imports_nothing_of_the_extras(pipeline_folder: Path, tmp_path: Path):
    """In a process where none of it can be imported, as where it is not installed."""
    sampling = installed_with(SAMPLING)
    extras = installed_with(requirement for extra in EXTRAS.values() for requirement in extra)
    blocked = [
        package
        for package, names in packages_distributions().items()
        if not sampling & (owners := {canonicalize_name(name) for name in names}) and owners & extras
    ]
    assert {"datasets", "gradio", "matplotlib", "nibabel", "scipy", "sklearn", "torchvision"} <= set(blocked)
    command = ["generate.py", "--pipeline", str(pipeline_folder), "--output_dir", str(tmp_path), "--num_images", "2"]
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({blocked!r}))
from vq_ihdm import load_pipeline
load_pipeline({str(pipeline_folder)!r})(2)
sys.argv = {command!r}
runpy.run_path("generate.py", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_every_package_is_installed():
    folders = [*(ROOT / "src" / "vq_ihdm").rglob("__init__.py")]
    packages = {".".join(folder.parent.relative_to(ROOT / "src").parts) for folder in folders}
    assert set(SETUP["options"]["packages"].split()) == packages | {"vq_ihdm.pipelines"}


def test_nobody_is_told_to_install_it_from_an_index():
    """It is on none: what is needed comes with the clone."""
    files = [file for folder in ("docs", "src", "pipelines", "dataset_scripts") for file in (ROOT / folder).rglob("*")]
    for file in [*files, *ROOT.glob("*.*")]:
        if file.suffix in (".py", ".md", ".cfg"):
            assert not re.search(r"pip install '?vq.ihdm", file.read_text()), file
