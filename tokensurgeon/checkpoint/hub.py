"""Outputs to the hub, when a user asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokensurgeon.errors import InputError, PolicyError

_REFUSED = {401, 403}


def push_directory(directory: Path, repository: str, *, public: bool = False, message: str = "") -> str:
    """Upload every file of a directory, in one commit.

    Args:
        directory: What to upload.
        repository: Such as ``me/name``; made if there is none.
        public: Whether everybody may see it. An existing repository stays as it is.
        message: Of the commit.

    Returns:
        Where it is.

    Raises:
        InputError: The hub cannot be reached, or will not have it.
        PolicyError: There is no login that may write, or the repository is public and shall not be.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    with _clear_errors(repository):
        api.whoami()
        try:
            if not api.repo_info(repository).private and not public:
                raise PolicyError(
                    f"{repository}: everybody can see it",
                    "a private repository",
                    "push to another, or say --public",
                )
        except RepositoryNotFoundError:
            api.create_repo(repository, private=not public)
        done = api.upload_folder(repo_id=repository, folder_path=directory, commit_message=message or None)
    return str(done.repo_url)


@contextmanager
def _clear_errors(repository: str) -> Iterator[None]:
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    login = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PolicyError("no token for the hub", "a login", login) from error
    except OfflineModeIsEnabled as error:
        raise InputError(
            "the hub may not be reached: offline mode is on", "a network", "unset HF_HUB_OFFLINE"
        ) from error
    except HFValidationError as error:
        raise InputError(f"{repository}: not the name of a repository", "owner/name") from error
    except HfHubHTTPError as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        if error.response is not None and error.response.status_code in _REFUSED:
            raise PolicyError(f"{repository}: {reason}", "a login that may write there", login) from error
        raise InputError(f"{repository}: {reason}", "an answer from the hub", "try again") from error
    except HTTPError as error:
        raise InputError(
            f"the hub cannot be reached: {error}", "a network", "try again where there is one"
        ) from error
