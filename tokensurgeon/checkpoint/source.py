"""Where a checkpoint comes from: a local directory, or the hub, of which only what is needed is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokensurgeon.checkpoint.index import INDEX_NAME, SINGLE_NAME, find_weights
from tokensurgeon.checkpoint.layout import is_vocab_name
from tokensurgeon.checkpoint.sidefiles import plain_files
from tokensurgeon.errors import InputError, PolicyError

_SMALL = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*", "README.md"]


def resolve_checkpoint(path: str, revision: str | None, weights: str) -> Path:
    """Find a checkpoint directory, fetching it when it is a hub id.

    Args:
        path: A local directory or a hub id.
        revision: Commit, branch or tag on the hub.
        weights: ``all``, ``vocabulary`` (shards that hold vocabulary tensors) or ``none``.

    Returns:
        A local directory.

    Raises:
        InputError: There is no such directory or repository, or it cannot be reached.
        PolicyError: The repository is gated.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if local.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise InputError(f"{path}: no such directory", "a checkpoint directory, or a hub id such as org/name")
    directory = _fetch(path, revision, _SMALL)
    if weights == "all":
        return _fetch(path, revision, [*_SMALL, "*.safetensors"])
    if weights == "vocabulary":
        return _fetch(path, revision, [*_SMALL, *_vocabulary_shards(directory)])
    return directory


def readable_files(directory: Path, weights: str) -> list[Path]:
    """The files of a checkpoint that a run may read.

    Args:
        directory: A local directory.
        weights: As for ``resolve_checkpoint``.

    Returns:
        Those that are there.
    """
    names: list[str] = []
    if weights == "vocabulary":
        names = _vocabulary_shards(directory)
    elif weights == "all" and any(directory.glob("*.safetensors")):
        names, _ = find_weights(directory)
    found = [directory / path for path in plain_files(directory)]
    return [*found, *(directory / name for name in (*names, INDEX_NAME) if (directory / name).is_file())]


def _vocabulary_shards(directory: Path) -> list[str]:
    if not (directory / INDEX_NAME).is_file():
        return [SINGLE_NAME]
    _, index = find_weights(directory)
    return sorted({file for name, file in (index or {})["weight_map"].items() if is_vocab_name(name)})


def _fetch(repository: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    options: dict[str, Any] = {"revision": revision, "allow_patterns": patterns}
    try:
        return Path(snapshot_download(repository, **options))
    except GatedRepoError as error:
        raise PolicyError(
            f"{repository}: gated",
            "access to it",
            "accept its terms on the hub and log in with `hf auth login`",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise InputError(
            f"{repository}: no such repository or revision {revision or 'main'}",
            "a public repository, or one your token can see",
            "check the name; log in with `hf auth login` if it is private",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise InputError(
            f"{repository}: not in the local cache, and the hub cannot be reached",
            "a cached repository when offline",
            "download it where there is a network, or give a local directory",
        ) from error
    except HFValidationError as error:
        raise InputError(
            f"{repository}: no such directory", "a checkpoint directory, or a hub id such as org/name"
        ) from error
    except HfHubHTTPError as error:
        raise InputError(f"{repository}: {error}", "an answer from the hub", "try again") from error
