"""A Python of its own that talks to the loopback Hub: huggingface_hub reads its endpoint when it is imported."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

WORKER = """
import json, sys
answers, sys.stdout = sys.stdout, sys.stderr
names = {}
for line in sys.stdin:
    try:
        exec(json.loads(line), names)
        reply = {"answer": names.pop("answer", None)}
    except BaseException as error:
        reply = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(reply), file=answers, flush=True)
"""


class RemoteError(Exception):
    """What a snippet raised: `Type: message`."""


class HubClient:
    """Runs snippets in one process, so that the libraries are imported once; what a snippet calls `answer` comes back.

    Args:
        package: whether `vq_ihdm` can be imported there.
        folder: the process's own working folder and Hugging Face cache.
    """

    def __init__(self, endpoint: str, folder: Path, package: bool, token: str | None):
        folder.mkdir()
        environment = os.environ | {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "HF_TOKEN": token or "",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment, cwd=folder,
        )  # fmt: skip
        if not package:
            self.run("import sys; sys.modules['vq_ihdm'] = None  # importing it raises ModuleNotFoundError")

    def run(self, code: str) -> object:
        """The `answer` of a snippet.

        Raises:
            RemoteError: the snippet raised.
        """
        self.process.stdin.write(json.dumps(textwrap.dedent(code)) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        if "error" in reply:
            raise RemoteError(reply["error"])
        return reply["answer"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
