"""Upload a model, a data set or the demonstration page to the Hub: in one commit, after checks."""

from collections.abc import Collection
from pathlib import Path

from huggingface_hub import SpaceCard

from ..errors import InputError
from ..uploading import HubRepository
from .checks import is_data_set, refuse
from .model_card import model_card
from .model_files import own_files, system_of
from .record import DATA_FACTS, own_record

SPACE_PIPELINE = "checkpoints/vq-ihdm-oasis-fine"  # where app.py looks for its pipeline
COMMIT_MESSAGE = "Publish with vq-ihdm"


def publish(folder: str | Path, repo_id: str, private: bool = True, allow: Collection[str] = ()) -> str:
    """Make a Hub repository hold what a folder holds, in a single commit.

    Whatever fails on the way, the repository shows all of its old state or all of the new one; trying again uploads
    only what is missing. Files that are not in the folder are removed, and stay in the repository's history.

    Args:
        folder: a saved pipeline, a VQModel with its record, or a set built by dataset_scripts/.
        repo_id: `name` or `account/name`; made when missing.
        private: visibility of a new repository.
        allow: failed checks (keys of `checks.failed_checks`) that are to be overruled.

    Returns:
        the repository's address.

    Raises:
        InputError: a check failed, the repository is public where a private one was asked for, or the Hub
            cannot be reached or refuses.
    """
    folder = Path(folder)
    refuse(folder, allow)
    contents: dict[str, Path | bytes] = {**files_of(folder)}
    repository = HubRepository(repo_id, "dataset" if is_data_set(folder) else "model", private)
    if not is_data_set(folder):  # a card whose examples name the model's new place
        contents["README.md"] = str(model_card(folder, repository.repo_id)).encode()
    repository.commit(contents, COMMIT_MESSAGE, mirror=True)
    return repository.url


def publish_space(root: Path, folder: Path, repo_id: str, private: bool = True, allow: Collection[str] = ()) -> str:
    """As `publish`: the page `app.py` with the pipeline inside, as a Space under the licence of its weights.

    Args:
        root: of this project's repository, where app.py and space/ lie.
        folder: of a `VQIHDMPipeline`.

    Raises:
        InputError: as `publish`, or the folder holds something else.
    """
    if system_of(folder) != "VQIHDMPipeline":
        raise InputError(f"{folder} holds no VQIHDMPipeline, which the page draws from; name one of train_ihdm.py")
    refuse(folder, allow)
    card = SpaceCard.load(root / "space" / "README.md")
    card.data.license = own_record(folder)["data"]["licence"]
    files: dict[str, Path | bytes] = {"README.md": str(card).encode()}
    files |= {"app.py": root / "app.py", "requirements.txt": root / "space" / "requirements.txt"}
    files |= {f"{SPACE_PIPELINE}/{name}": file for name, file in files_of(folder).items()}
    repository = HubRepository(repo_id, "space", private)
    repository.commit(files, COMMIT_MESSAGE, mirror=True)
    return repository.url


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a model or data set that are to be uploaded, whatever else lies in its folder."""
    if not is_data_set(folder):
        return own_files(folder)
    chosen = [folder / "README.md", folder / DATA_FACTS, *folder.glob("data/*.parquet")]
    return {file.relative_to(folder).as_posix(): file for file in sorted(chosen)}
