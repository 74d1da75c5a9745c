"""What the tests of generate.py share."""

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def flip(data: bytes) -> bytes:
    """One byte of the image itself another."""
    middle = len(data) - 200
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
