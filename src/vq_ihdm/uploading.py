"""The one way to the Hub: a repository, private unless asked otherwise, that takes a commit whole or not at all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

from .errors import InputError

Contents = Mapping[str, Path | bytes]  # what to upload, by its name in the repository


class HubRepository:
    """A repository to be written to; made when missing.

    Args:
        repo_id: `name` or `account/name`.
        repo_type: `model`, `dataset` or `space`.
        private: visibility of a new repository.
        token: of the account; by default the one of this machine.

    Attributes:
        api: client of the Hub.
        repo_id: with the account.
        url: its address.

    Raises:
        InputError: the repository is public where a private one was asked for, or the Hub cannot be reached or refuses.
    """

    def __init__(self, repo_id: str, repo_type: str = "model", private: bool = True, token: str | None = None):
        self.api, self.repo_type = HfApi(token=token), repo_type
        sdk = "gradio" if repo_type == "space" else None
        with hub_errors(repo_id):
            url = self.api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
            self.url, self.repo_id = str(url), url.repo_id
            if private and not self.api.repo_info(self.repo_id, repo_type=repo_type).private:
                raise InputError(
                    f"{self.repo_id} exists and is public; name another repository, or ask for a public one"
                )

    def commit(
        self, contents: Contents, message: str, mirror: bool = False, on_failure: str = "nothing was published"
    ) -> str:
        """Add files in a single commit, whose address is returned.

        Args:
            mirror: remove every other file; it stays in the repository's history.
            on_failure: what a commit that fails leaves, for the message.

        Raises:
            InputError: the Hub cannot be reached or refuses; the repository is then as it was before.
        """
        with hub_errors(self.repo_id, on_failure):
            operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
            if mirror:
                there = set(self.api.list_repo_files(self.repo_id, repo_type=self.repo_type)) - {".gitattributes"}
                operations += [CommitOperationDelete(name) for name in sorted(there - set(contents))]
            commit = self.api.create_commit(self.repo_id, operations, commit_message=message, repo_type=self.repo_type)
            return commit.commit_url


@contextmanager
def hub_errors(repo_id: str, on_failure: str = "nothing was published") -> Iterator[None]:
    """Whatever goes wrong with a commit to the Hub, as an `InputError` that tells what it leaves."""
    try:
        yield
    except HFValidationError as error:
        raise InputError(f"{repo_id} cannot be the name of a repository; use account/name") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        reasons = {
            401: "the Hub does not know this token; run `hf auth login`, or set HF_TOKEN",
            403: f"this account may not write to {repo_id}; use a token with write access or another repository",
        }
        problem = f"the Hub answered with status {status} and {on_failure}; try again later"
        raise InputError(reasons.get(status, problem)) from error
    except RuntimeError as error:  # a large file did not arrive, so nothing was committed
        raise InputError(f"{str(error).rstrip('.')} and {on_failure}; try again") from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        reason = f"the Hub at {HfApi().endpoint} cannot be reached"
        raise InputError(f"{reason} and {on_failure}; check the network and try again") from error
