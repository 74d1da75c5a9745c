"""Files and folders appear under their final name whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what was written there (file or folder) takes `path`'s place.

    The body creates the file, or the folder, under the yielded name. When it raises, the temporary is removed
    and whatever stood at `path` before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        if path.is_dir() and temporary.is_dir():
            # A folder cannot be renamed over a non-empty one: the old one steps aside first.
            aside = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, aside)
            os.replace(temporary, path)
            shutil.rmtree(aside)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object a JSON file holds.

    Raises:
        InputError: the file is no JSON, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:  # of the file, its encoding or its syntax
        raise InputError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content
