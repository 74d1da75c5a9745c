"""The code that is written beside the weights: for each class one file that needs nothing of this package."""

import ast
import re
import sys
from collections.abc import Iterable
from importlib.util import resolve_name
from pathlib import Path

# What needs the package stays with it, and what it extends travels in its place: names in the code.
STAND_INS = {"installed_pipeline": "standalone_pipeline", "InstalledPipeline": "StandalonePipeline"}


def export_code(cls: type, folder: Path) -> list[str]:
    """Write the module of `cls`, with all it imports relatively, into `folder`; its entry for model_index.json.

    It becomes one file: of a component diffusers fetches from the Hub the file that model_index.json names, no other.

    Raises:
        ValueError: one of the modules imports another in a way that does not survive this.
    """
    parts: dict[str, tuple[list[ast.stmt], str]] = {}
    collect(cls.__module__, parts)
    note = f"# Made by `save_pretrained` from {', '.join(parts)}."
    imports = merged(node for nodes, _ in parts.values() for node in nodes)
    module = cls.__module__.rpartition(".")[2]
    text = "\n\n\n".join([f"{note}\n{imports}", *(body for _, body in parts.values())])
    (folder / f"{module}.py").write_text(f"{text}\n")
    return [module, cls.__name__]


def collect(module: str, parts: dict[str, tuple[list[ast.stmt], str]]) -> None:
    """Add a module to `parts`, after those that it imports relatively: its imports of libraries, and its other lines.

    Raises:
        ValueError: see `check_imports`.
    """
    source = Path(sys.modules[module].__file__).read_text()
    for name, stand_in in STAND_INS.items():
        source = source.replace(name, stand_in)
    tree, lines, libraries = ast.parse(source), source.splitlines(keepends=True), []
    check_imports(tree, module)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            collect(resolve_name("." * node.level + node.module, module.rpartition(".")[0]), parts)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            libraries.append(node)
        else:
            continue
        lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    parts.setdefault(module, (libraries, re.sub("\n{4,}", "\n\n\n", "".join(lines)).strip()))


def check_imports(tree: ast.Module, module: str) -> None:
    """
    Raises:
        ValueError: an import of the package is not relative, at the top, of names from a module, and without `as`.
    """
    package = module.split(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.module is None or node not in tree.body or any(alias.asname for alias in node.names):
                raise ValueError(
                    f"line {node.lineno} of {module}: code that travels with weights imports names from modules of "
                    "its package at the top of a file and without `as`"
                )
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if package in [name.split(".")[0] for name in names]:
                raise ValueError(f"line {node.lineno} of {module}: code that travels with weights has no {package}")


def merged(imports: Iterable[ast.stmt]) -> str:
    """The imports of several modules in one block, each name once; the standard library's before all others."""
    lines, names = set(), {}
    for node in imports:
        if isinstance(node, ast.ImportFrom):
            names.setdefault(node.module, set()).update(ast.unparse(alias) for alias in node.names)
        else:
            lines.add(ast.unparse(node))
    lines |= {f"from {module} import {', '.join(sorted(found))}" for module, found in names.items()}
    ordered = sorted(lines, key=lambda line: (line.startswith("from"), line))
    standard = [line for line in ordered if line.split()[1].split(".")[0] in sys.stdlib_module_names]
    blocks = (standard, [line for line in ordered if line not in standard])
    return "\n\n".join("\n".join(block) for block in blocks if block)
