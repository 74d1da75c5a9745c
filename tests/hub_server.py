"""A Hub on loopback: the part of the Hugging Face Hub's HTTP interface that publishing and loading use.

Repositories live in memory. A commit replaces a repository's files in one assignment, LFS objects lie apart until a
commit names them, private repositories show themselves to the token `TOKEN` alone: what the real Hub promises too.
"""

import base64
import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

import yaml

TOKEN, ACCOUNT = "hf_loopback", "tester"
LFS_SUFFIXES = (".safetensors", ".parquet", ".png")


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(json.dumps([self.commits, *sorted(self.files)]).encode()).hexdigest()


class HubServer(ThreadingHTTPServer):
    """Serves until `close`; `endpoint` is its address.

    Attributes:
        repositories: by (type, id), such as ("model", "tester/tiny").
        objects: LFS objects by sha256.
        requests: how many came in.
        uploads: how many LFS objects were received, those that were there already not counted.
        fail: "PUT", "commit" or "resolve": the next such request (of resolve, for weights) is cut off without an answer
            (commit) or refused.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests = self.uploads = 0
        self.fail: str | None = None
        self.closed = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.closed = True  # connections that are kept alive have threads of their own
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    # ---- answers ----------------------------------------------------------------------------------------------
    def answer(self, content: object = None, status: int = 200, headers: dict[str, object] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Content-Length": len(body), "Content-Type": "application/json"} | (headers or {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fault(self, status: int, code: str, message: str) -> None:
        self.answer({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    # ---- what was asked ---------------------------------------------------------------------------------------
    def handle_request(self) -> None:
        if self.server.closed:
            return self.hang_up()
        self.server.requests += 1
        url = urlparse(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = unquote(url.path).strip("/").split("/")
        if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            return self.fault(401, "Unauthorized", "Invalid username or password.")
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(self.body))
        if parts == ["api", "validate-yaml"]:
            front_matter = json.loads(self.body)["content"].split("---\n")[1]
            return self.answer({"errors": [], "warnings": [], "parsed": yaml.safe_load(front_matter)})
        if parts[0] == "lfs":
            return self.receive_object(parts[1])
        if parts[0] == "api" and parts[1] in ("models", "datasets", "spaces") and len(parts) >= 4:
            repo_type, repo_id, rest = parts[1][:-1], "/".join(parts[2:4]), parts[4:] or ["info"]
        elif parts[0] in ("datasets", "spaces") and len(parts) >= 4:
            repo_type, repo_id, rest = parts[0][:-1], "/".join(parts[1:3]), parts[3:]
        elif len(parts) >= 3 and parts[0] != "api":
            repo_type, repo_id, rest = "model", "/".join(parts[:2]), parts[2:]
        else:
            return self.fault(404, "EntryNotFound", "no such address")
        repository = self.server.repositories.get((repo_type, repo_id.removesuffix(".git")))
        if repository is None or (repository.private and not self.headers.get("Authorization")):
            return self.fault(401 if repository else 404, "RepoNotFound", "Repository not found")
        action = {
            "info": self.info,
            "revision": self.info,
            "tree": self.tree,
            "paths-info": self.paths_info,
            "preupload": self.preupload,
            "commit": self.commit,
            "resolve": self.resolve,
        }.get(rest[0])
        if rest[:3] == ["info", "lfs", "objects"]:
            action = self.lfs_batch
        if action is None:
            return self.fault(404, "EntryNotFound", f"no {rest[0]} here")
        self.repo_type, self.repo_id = repo_type, repo_id
        return action(repository, rest[1:])

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def create(self, wish: dict) -> None:
        if not self.headers.get("Authorization"):
            return self.fault(401, "Unauthorized", "Invalid username or password.")
        account = wish.get("organization") or ACCOUNT
        if account != ACCOUNT:
            return self.fault(403, "Forbidden", f"no right to create repositories under {account}")
        repo_type, repo_id = wish.get("type", "model"), f"{account}/{wish['name']}"
        prefix = "" if repo_type == "model" else f"{repo_type}s/"
        place = {"url": f"{self.server.endpoint}/{prefix}{repo_id}"}
        if (repo_type, repo_id) in self.server.repositories:
            return self.answer(place, 409)
        private = wish.get("private") or wish.get("visibility") == "private"
        self.server.repositories[repo_type, repo_id] = Repository(bool(private))
        return self.answer(place)

    def info(self, repository: Repository, rest: list[str]) -> None:
        siblings = [{"rfilename": name} for name in sorted(repository.files)]
        self.answer(
            {"id": self.repo_id, "sha": repository.sha, "private": repository.private, "siblings": siblings, "tags": []}
        )

    def tree(self, repository: Repository, rest: list[str]) -> None:
        folder = "/".join(rest[1:])
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries, seen = [], set()
        for name in sorted(repository.files):
            if folder and not name.startswith(f"{folder}/"):
                continue
            below = name[len(folder) :].strip("/").split("/")
            for depth in range(1, len(below)):
                path = "/".join([*([folder] if folder else []), *below[:depth]])
                if path not in seen and (recursive or depth == 1):
                    entries.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
                    seen.add(path)
            if recursive or len(below) == 1:
                entries.append(describe(name, repository.files[name]))
        if folder and not entries:
            return self.fault(404, "EntryNotFound", f"no folder {folder}")
        return self.answer(entries)

    def paths_info(self, repository: Repository, rest: list[str]) -> None:
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        self.answer([describe(name, repository.files[name]) for name in paths if name in repository.files])

    def preupload(self, repository: Repository, rest: list[str]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.answer({"files": files})

    def lfs_batch(self, repository: Repository, rest: list[str]) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.objects:
                entry["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{wanted['oid']}"}}
            objects.append(entry)
        self.answer({"transfer": "basic", "objects": objects})

    def receive_object(self, oid: str) -> None:
        if self.server.fail == "PUT":
            self.server.fail = None
            return self.fault(400, "BadRequest", "the upload was interrupted")
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.objects[oid] = self.body
        self.server.uploads += 1
        return self.answer({})

    def commit(self, repository: Repository, rest: list[str]) -> None:
        if self.server.fail == "commit":
            self.server.fail = None
            return self.hang_up()
        files = dict(repository.files)
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        repository.files = files
        repository.commits += 1
        url = f"{self.server.endpoint}/{self.repo_id}/commit/{repository.sha}"
        return self.answer({"commitUrl": url, "commitOid": repository.sha, "success": True})

    def resolve(self, repository: Repository, rest: list[str]) -> None:
        content = repository.files.get("/".join(rest[1:]))
        if self.server.fail == "resolve" and rest[-1].endswith(".safetensors"):
            self.server.fail = None
            return self.fault(400, "BadRequest", "the download was interrupted")
        if content is None:
            return self.fault(404, "EntryNotFound", "Entry not found")
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repository.sha, "Content-Type": "application/octet-stream"}
        return self.answer(content, headers=headers)


def describe(name: str, content: bytes) -> dict:
    """A file's entry in the answers of `tree` and `paths-info`."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": name, "size": len(content), "oid": oid}
    if name.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
