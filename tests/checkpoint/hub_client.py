"""A stand-in for the hub's client."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from huggingface_hub.errors import RepositoryNotFoundError


class Hub:
    """Stands where the hub's client does, and remembers what it was asked for."""

    def __init__(self, private: bool | None) -> None:
        self.private = private  # None: there is no such repository
        self.asked: list[tuple[str, object]] = []

    def whoami(self) -> None:
        pass

    def repo_info(self, repository: str) -> SimpleNamespace:
        if self.private is None:
            raise RepositoryNotFoundError(
                "404", response=SimpleNamespace(status_code=404, headers={}, request=None)
            )
        return SimpleNamespace(private=self.private)

    def create_repo(self, repository: str, private: bool) -> None:
        self.asked.append(("create", private))

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str | None) -> SimpleNamespace:
        self.asked.append(("upload", commit_message))
        return SimpleNamespace(repo_url=f"https://hub/{repo_id}")
