"""Upload a model, a data set or the demonstration page to the Hub: in one commit, after checks."""

from collections.abc import Collection
from pathlib import Path

from huggingface_hub import SpaceCard

from ..errors import InputError
from ..uploading import Contents, HubRepository
from .checks import is_data_set, refuse
from .model_card import model_card
from .model_files import own_files, system_of
from .record import DATA_FACTS, own_record

SPACE_PIPELINE = "checkpoints/vq-ihdm-oasis-fine"  # where app.py looks for its pipeline
COMMIT_MESSAGE = "Publish with vq-ihdm"


def publish(
    folder: str | Path, repo_id: str, private: bool = True, allow: Collection[str] = (), dry_run: bool = False
) -> str:
    """Make a Hub repository hold what a folder holds, in a single commit.

    Whatever fails on the way, the repository shows all of its old state or all of the new one; trying again uploads
    only what is missing. Files that are not in the folder are removed, and stay in the repository's history.

    Args:
        folder: a saved pipeline, a VQModel with its record, or a set built by dataset_scripts/.
        repo_id: `name` or `account/name`; made when missing.
        private: visibility of a new repository.
        allow: failed checks (keys of `checks.failed_checks`) that are to be overruled.
        dry_run: check, and leave the Hub alone.

    Returns:
        the repository's address; of a dry run, what would be uploaded (see `listing`).

    Raises:
        InputError: a check failed, the repository is public where a private one was asked for, or the Hub
            cannot be reached or refuses.
    """
    folder = Path(folder)
    refuse(folder, allow)
    if dry_run:
        return listing(contents_of(folder, repo_id))
    repository = HubRepository(repo_id, "dataset" if is_data_set(folder) else "model", private)
    repository.commit(contents_of(folder, repository.repo_id), COMMIT_MESSAGE, mirror=True)
    return repository.url


def contents_of(folder: Path, repo_id: str) -> Contents:
    """What a repository of this name is to hold of a folder; the examples of a model's card name it."""
    files = files_of(folder)
    return files if is_data_set(folder) else files | {"README.md": str(model_card(folder, repo_id)).encode()}


def publish_space(
    root: Path,
    folder: Path,
    repo_id: str,
    private: bool = True,
    allow: Collection[str] = (),
    dry_run: bool = False,
) -> str:
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
    if dry_run:
        return listing(files)
    repository = HubRepository(repo_id, "space", private)
    repository.commit(files, COMMIT_MESSAGE, mirror=True)
    return repository.url


def listing(contents: Contents) -> str:
    """Sizes and names, a line a file, and the sum."""
    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in sorted(contents.items())}
    return "\n".join(f"{size / 1e6:10.3f} MB  {name}" for name, size in [*sizes.items(), ("all", sum(sizes.values()))])


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a model or data set that are to be uploaded, whatever else lies in its folder."""
    if not is_data_set(folder):
        return own_files(folder)
    chosen = [folder / "README.md", folder / DATA_FACTS, *folder.glob("data/*.parquet")]
    return {file.relative_to(folder).as_posix(): file for file in sorted(chosen)}
