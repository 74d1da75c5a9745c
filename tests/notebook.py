"""Runs the cells of a notebook in this process; as a script it stores what they show in the notebook itself:

python tests/notebook.py examples/quickstart.ipynb
"""

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image


def run_notebook(file: Path) -> dict[str, Any]:
    """The notebook with the outputs of a fresh run: pictures that are displayed, and text that is printed.

    Lines for IPython alone (`%pip`) are left out: they install, and here everything is installed.
    """
    notebook = json.loads(file.read_text())
    names: dict[str, Any] = {}
    for count, cell in enumerate((cell for cell in notebook["cells"] if cell["cell_type"] == "code"), start=1):
        outputs: list[dict[str, Any]] = []
        names["display"] = lambda picture, outputs=outputs: outputs.append(as_output(picture))
        lines = [line if not line.lstrip().startswith("%") else "    pass\n" for line in cell["source"]]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec("".join(lines), names)
        if text := printed.getvalue():
            outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
        cell.update(execution_count=count, outputs=outputs)
    return notebook


def as_output(picture: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture.convert("L").save(buffer, format="PNG", optimize=True)
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": ["<PIL.Image.Image>"]}
    return {"output_type": "display_data", "data": data, "metadata": {}}


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(json.dumps(run_notebook(path), indent=1, ensure_ascii=False) + "\n")
