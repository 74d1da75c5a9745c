"""What follows a pipeline's weights to another folder, and what leaves the machine."""

import shutil
from pathlib import Path

from ..errors import InputError
from ..hub.checks import failed_checks
from ..hub.model_card import model_card
from ..hub.model_files import AUDIT_INDEX, COMPANIONS, SCANS, own_files, weights_digest
from ..uploading import HubRepository


def carry_over(source: Path, folder: Path) -> None:
    """Copy the companions of a pipeline's weights from the folder it was loaded from, unless the weights have changed.

    A folder that is gone has none. The evaluation tells how it drew, and counts no longer where that has changed.
    """
    is_elsewhere = source.is_dir() and source.resolve() != folder.resolve()
    if not is_elsewhere or weights_digest(source) != weights_digest(folder):
        return
    for name in (*COMPANIONS, AUDIT_INDEX):
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def upload(
    folder: Path, repo_id: str, private: bool, token: str | None, commit_message: str, name: str | None = None
) -> str:
    """Commit a saved pipeline to the Hub, with those of its companions that show no scan; the commit's address.

    Args:
        name: what the sentences of a refusal call it; the folder's path when None.

    Raises:
        InputError: a file cannot be read, a check failed (see `failed_checks`), or the Hub refuses (see
            `HubRepository`).
    """
    for option, sentence in failed_checks(folder, name).items():
        raise InputError(f"{sentence}; publish.py --allow_{option} publishes it all the same")
    repository = HubRepository(repo_id, private=private, token=token)
    contents: dict[str, Path | bytes] = {n: file for n, file in own_files(folder).items() if n not in SCANS}
    contents["README.md"] = str(model_card(folder, repository.repo_id)).encode()  # whose examples name the new place
    return repository.commit(contents, commit_message)
