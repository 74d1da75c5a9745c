"""A growing data set on the Hub: one commit a shard, so that an upload that breaks off goes on where it stopped."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.hf_api import RepoFile

from ..errors import InputError
from ..files import read_json
from ..uploading import HubRepository, hub_errors


class ShardUpload:
    """Sends the files of a folder of shards to a data set on the Hub, each as soon as it is whole.

    Args:
        folder: with `manifest.json`, `README.md` and `data/*.parquet`.
        repo_id: `name` or `account/name`; made when missing.
        private: visibility of a new repository.

    Raises:
        InputError: the repository holds something else, is public where a private one was asked for, or the Hub
            cannot be reached or refuses.
    """

    def __init__(self, folder: Path, repo_id: str, private: bool):
        self.folder, self.repository = folder, HubRepository(repo_id, "dataset", private)
        repo_id = self.repository.repo_id
        with hub_errors(repo_id):
            tree = self.repository.api.list_repo_tree(repo_id, repo_type="dataset", recursive=True)
            files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
            files.pop(".gitattributes", None)
            if files and self._settings(files) != read_json(folder / "manifest.json")["settings"]:
                raise InputError(f"{repo_id} holds something else than these images; name another repository")
        self.sent = {path: entry.lfs.sha256 for path, entry in files.items() if entry.lfs is not None}
        self._commit("manifest.json", "README.md")

    def send(self) -> None:
        """Upload the shards that are whole and not there yet."""
        for file in sorted(self.folder.glob("data/*.parquet")):
            name = file.relative_to(self.folder).as_posix()
            if self.sent.get(name) != (digest := hashlib.sha256(file.read_bytes()).hexdigest()):
                self._commit(name)
                self.sent[name] = digest

    def _settings(self, files: Collection[str]) -> dict[str, Any] | None:
        """Of the images in the repository; None where it has no manifest."""
        if "manifest.json" not in files:
            return None
        manifest = hf_hub_download(self.repository.repo_id, "manifest.json", repo_type="dataset")
        return read_json(manifest).get("settings")

    def _commit(self, *names: str) -> None:
        contents = {name: self.folder / name for name in names}
        self.repository.commit(contents, f"Add {', '.join(names)}", on_failure=f"{names[-1]} was not published")
