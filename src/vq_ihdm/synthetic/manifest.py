"""`manifest.json` in a folder of drawn images: how many it is to hold, how they are drawn, by which libraries."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json, replacing

LIBRARIES = ("vq-ihdm", "torch", "diffusers", "transformers")


def read_manifest(output_dir: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The manifest of an earlier run with these settings; empty for a new folder.

    Raises:
        InputError: the folder holds images of other settings, or something else, or its manifest is damaged.
    """
    file = output_dir / "manifest.json"
    if not file.is_file():
        # What a process leaves that was killed while it wrote the manifest is no file of somebody else's.
        if output_dir.exists() and not all(file.name.endswith(".partial") for file in output_dir.iterdir()):
            raise InputError(f"{output_dir} holds files but no manifest.json; name a new --output_dir")
        return {}
    if not any(file for pattern in ("[0-9]*", "data/*") for file in output_dir.glob(pattern)):
        return {}  # stopped by a mistake in its settings
    manifest = read_json(file)
    there = manifest.get("settings", {})
    for name, value in settings.items():
        if there.get(name) != value:
            raise InputError(
                f"{output_dir} holds images of other settings ({name}: {there.get(name)} there, {value} now); "
                "name a new --output_dir"
            )
    return manifest


def write_manifest(output_dir: Path, num_images: int, settings: dict[str, Any]) -> None:
    versions = {name: version(name) for name in LIBRARIES}
    manifest = {"synthetic": True, "num_images": num_images, "settings": settings, "versions": versions}
    with replacing(output_dir / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n")
