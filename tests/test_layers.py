"""Dependencies point downwards: no two folders of the package need each other, no module needs a script."""

import ast
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

from conftest import ROOT

PACKAGE = {"vq_ihdm": ROOT / "src" / "vq_ihdm", "vq_ihdm.pipelines": ROOT / "pipelines"}
SCRIPTS = {file.stem for file in ROOT.glob("*.py")}


def imports(file: Path, module: str) -> set[str]:
    """The modules a file imports anywhere, by absolute name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = module if file.stem == "__init__" else module.rpartition(".")[0]
            found.add(resolve_name("." * node.level + (node.module or ""), parent) if node.level else node.module)
    return found


def test_no_folder_needs_one_that_needs_it():
    needed: dict[str, set[str]] = {}
    for package, folder in PACKAGE.items():
        for file in folder.rglob("*.py"):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            module = ".".join(parts).removesuffix(".__init__")
            assert not imports(file, module) & SCRIPTS, f"{file} needs a script"
            unit = ".".join(module.split(".")[:2])  # a folder, or a module at the top
            if unit != "vq_ihdm":  # which offers what lies below
                below = {".".join(name.split(".")[:2]) for name in imports(file, module) if name.startswith("vq_ihdm.")}
                needed.setdefault(unit, set()).update(below - {unit})
    assert needed["vq_ihdm.hub"] and needed["vq_ihdm.pipelines"]
    list(TopologicalSorter(needed).static_order())  # raises CycleError where there is no order
