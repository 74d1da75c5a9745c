"""A growing data set on the Hub: one commit a shard, so that an upload that breaks off goes on where it stopped."""

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.hf_api import RepoFile

from ..errors import InputError
from ..hub.publishing import hub_errors


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
        self.folder, self.api = folder, HfApi()
        with hub_errors(repo_id):
            self.repo_id = self.api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
            if private and not self.api.repo_info(self.repo_id, repo_type="dataset").private:
                raise InputError(f"{self.repo_id} exists and is public; name another repository, or --no-private")
            tree = self.api.list_repo_tree(self.repo_id, repo_type="dataset", recursive=True)
            files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
            files.pop(".gitattributes", None)
            if files and self._manifest(files)["settings"] != json.loads(self._read("manifest.json"))["settings"]:
                raise InputError(f"{self.repo_id} holds something else than these images; name another repository")
        self.sent = {path: entry.lfs.sha256 for path, entry in files.items() if entry.lfs is not None}
        self._commit("manifest.json", "README.md")

    def send(self) -> None:
        """Upload the shards that are whole and not there yet."""
        for file in sorted(self.folder.glob("data/*.parquet")):
            name = file.relative_to(self.folder).as_posix()
            if self.sent.get(name) != (digest := hashlib.sha256(file.read_bytes()).hexdigest()):
                self._commit(name)
                self.sent[name] = digest

    def _read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def _manifest(self, files: dict[str, RepoFile]) -> dict[str, Any]:
        if "manifest.json" not in files:
            return {"settings": None}
        return json.loads(Path(hf_hub_download(self.repo_id, "manifest.json", repo_type="dataset")).read_text())

    def _commit(self, *names: str) -> None:
        operations = [CommitOperationAdd(name, self._read(name)) for name in names]
        with hub_errors(self.repo_id, f"{names[-1]} was not published"):
            self.api.create_commit(
                self.repo_id, operations, commit_message=f"Add {', '.join(names)}", repo_type="dataset"
            )
