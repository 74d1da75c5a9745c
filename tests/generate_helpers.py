"""What the tests of generate.py share."""

from pathlib import Path

import pytest


def refusal(generate, *arguments, **keywords) -> str:
    with pytest.raises(SystemExit) as stop:
        generate(*arguments, **keywords)
    assert isinstance(stop.value.code, str) and stop.value.code.startswith("error: ") and "\n" not in stop.value.code
    return stop.value.code


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def flip(data: bytes) -> bytes:
    """One byte of the image itself another."""
    middle = len(data) - 200
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
