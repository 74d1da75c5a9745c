"""The documents name what exists."""

import ast
import re

import pytest
from conftest import ROOT

NAMED = re.compile(r"`([\w/]+\.py)`(: `\w+`(?:, `\w+`)*)?")


def definitions(file: str) -> set[str]:
    """Names of all functions and classes of a module, methods too."""
    nodes = ast.walk(ast.parse((ROOT / file).read_text()))
    return {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("document", sorted(file.name for file in (ROOT / "docs").glob("*.md")))
def test_files_and_functions_that_a_document_names_exist(document):
    for file, names in NAMED.findall((ROOT / "docs" / document).read_text()):
        assert (ROOT / file).is_file(), file
        assert set(re.findall(r"`(\w+)`", names)) <= definitions(file), file
