"""What a builder leaves out, and why."""

import csv
from pathlib import Path

from ..errors import InputError
from ..files import replacing


class Rejections:
    """Inputs that were left out, each with its reason, for the report beside the set.

    Unusable ones stop the build at the first when it is `strict`; those that were not chosen, such as a second visit
    of a subject, never do.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.rows: list[tuple[str, str, str]] = []  # (input, kind, reason)

    def __call__(self, name: str | Path, message: str) -> None:
        """Leave out the input `name` as unusable; `message`: what is wrong, with which file, and the remedy."""
        if self.strict:
            raise InputError(message)
        self.rows.append((str(name), "unusable", message))

    def not_chosen(self, name: str | Path, reason: str) -> None:
        """Leave out the input `name`, with which nothing is wrong."""
        self.rows.append((str(name), "not chosen", reason))

    def __str__(self) -> str:
        kinds = [kind for _, kind, _ in self.rows]
        counts = [f"{kinds.count(kind)} {kind}" for kind in ("unusable", "not chosen") if kind in kinds]
        return f"{len(kinds)} inputs left out" + (f" ({', '.join(counts)})" if counts else "")

    def write(self, output_dir: Path) -> str:
        """The report OUTPUT_DIR.left_out.csv of input, kind and reason, beside the output for it names files.

        With nothing to report there is none, nor an old one.

        Returns:
            how many were left out, and where it says why.
        """
        path = output_dir.with_name(output_dir.name + ".left_out.csv")
        if not self.rows:
            path.unlink(missing_ok=True)
            return str(self)
        # Names of files need not be UTF-8.
        with replacing(path) as temporary, temporary.open("w", newline="", errors="backslashreplace") as file:
            csv.writer(file).writerows([("input", "kind", "reason"), *self.rows])
        return f"{self}: {path} says why"
