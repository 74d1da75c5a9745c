"""Files and folders appear under their final name whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
