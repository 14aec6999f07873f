"""A checkpoint is a local directory or a hub id, of which only what is needed is fetched."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors
from safetensors.torch import save_file
from torch import ones

from tokensurgeon.checkpoint.source import resolve_checkpoint
from tokensurgeon.errors import InputError, PolicyError

SHARDS = {
    "model.embed_tokens.weight": "model-1.safetensors",
    "model.layers.0.mlp.up_proj.weight": "model-2.safetensors",
    "lm_head.weight": "model-3.safetensors",
}
REPOSITORY = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "LICENSE",
    "chat_template.jinja", "modeling_x.py", "README.md", "pytorch_model.bin", "picture.png",
    "model.safetensors", *SHARDS.values(),
]  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that notes what it is asked for and answers with a directory of config and index."""
    asked: list[dict[str, object]] = []
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": SHARDS}))

    def download(repository: str, **options: object) -> str:
        asked.append({"repository": repository, **options})
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return tmp_path, asked


def fetched(asked: list[dict[str, object]]) -> set[str]:
    patterns = [pattern for call in asked for pattern in call["allow_patterns"]]
    return {name for name in REPOSITORY if any(fnmatch(name, pattern) for pattern in patterns)}


def no_fetching(monkeypatch, error: Exception) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


ANSWER = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize("weights", ["all", "vocabulary", "none"])
def test_a_local_directory_is_taken_as_it_is(weights, tmp_path, monkeypatch):
    no_fetching(monkeypatch, AssertionError("asked the hub"))
    assert resolve_checkpoint(str(tmp_path), None, weights) == tmp_path


def test_a_directory_wins_over_a_hub_id_of_the_same_name(tmp_path, monkeypatch):
    no_fetching(monkeypatch, AssertionError("asked the hub"))
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("org/model", None, "all") == Path("org/model")


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve_checkpoint("~/model", None, "all") == tmp_path / "model"


@pytest.mark.parametrize("path", ["./model", "/nowhere/model", "~/nowhere", "model", "a/b/c", "../org/model"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(path, tmp_path, monkeypatch):
    no_fetching(monkeypatch, AssertionError("asked the hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=f"{path}: no such directory\nexpected: a checkpoint directory, or a hub"
    ):
        resolve_checkpoint(path, None, "all")


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"model\.safetensors: no such directory"):
        resolve_checkpoint(str(tmp_path / "model.safetensors"), None, "all")


def test_a_name_that_no_repository_can_have_is_refused():
    with pytest.raises(InputError, match=r"org/na me!: no such directory"):
        resolve_checkpoint("org/na me!", None, "none")


def test_a_tokenizer_alone_is_fetched_without_weights(hub):
    directory, asked = hub
    assert resolve_checkpoint("org/model", "v1", "none") == directory
    assert [(call["repository"], call["revision"]) for call in asked] == [("org/model", "v1")]
    assert fetched(asked) == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "modeling_x.py",
    }


def test_a_donor_is_fetched_with_the_shards_of_its_vocabulary_tensors_only(hub):
    directory, asked = hub
    assert resolve_checkpoint("org/model", "v1", "vocabulary") == directory
    weights = {name for name in fetched(asked) if name.endswith(".safetensors")}
    assert weights == {"model-1.safetensors", "model-3.safetensors"}
    assert {call["revision"] for call in asked} == {"v1"}
    assert "pytorch_model.bin" not in fetched(asked)


def test_a_donor_in_one_file_is_fetched_with_that_file(hub):
    directory, asked = hub
    (directory / "model.safetensors.index.json").unlink()
    resolve_checkpoint("org/model", None, "vocabulary")
    assert {name for name in fetched(asked) if name.endswith(".safetensors")} == {"model.safetensors"}


def test_a_donor_with_a_damaged_index_is_refused(hub):
    directory, _ = hub
    (directory / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="expected: a shard index with a weight_map"):
        resolve_checkpoint("org/model", None, "vocabulary")


def test_a_base_is_fetched_with_all_its_safetensors_and_no_pickle(hub):
    _, asked = hub
    resolve_checkpoint("org/model", None, "all")
    assert set(SHARDS.values()) < fetched(asked)
    assert not fetched(asked) & {"pytorch_model.bin", "picture.png"}


@pytest.fixture
def offline_cache(tmp_path, monkeypatch):
    """An empty hub cache, and a hub that must not be reached."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_an_uncached_repository_offline_is_one_message(offline_cache):
    with pytest.raises(
        InputError, match=r"org/model: not in the local cache, and the hub cannot be reached\n"
    ):
        resolve_checkpoint("org/model", None, "all")


@pytest.mark.parametrize("weights", ["all", "vocabulary", "none"])
@pytest.mark.parametrize("revision", [None, "main", "0" * 40])
def test_a_cached_repository_is_found_offline(revision, weights, offline_cache):
    place = offline_cache / "models--org--model"
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    save_file({"lm_head.weight": ones(1)}, snapshot / "model.safetensors")
    assert resolve_checkpoint("org/model", revision, weights) == snapshot


def test_an_uncached_revision_offline_is_refused(offline_cache):
    (offline_cache / "models--org--model" / "snapshots" / ("0" * 40)).mkdir(parents=True)
    with pytest.raises(InputError, match="org/model: not in the local cache"):
        resolve_checkpoint("org/model", "v2", "all")


def test_a_gated_repository_is_refused_by_policy(monkeypatch):
    no_fetching(monkeypatch, errors.GatedRepoError("gated", response=ANSWER))
    with pytest.raises(PolicyError, match=r"org/model: gated\n(.|\n)*accept its terms"):
        resolve_checkpoint("org/model", None, "all")


@pytest.mark.parametrize("kind", ["RepositoryNotFoundError", "RevisionNotFoundError"])
def test_a_repository_or_revision_that_is_not_there_is_refused(kind, monkeypatch):
    no_fetching(monkeypatch, getattr(errors, kind)("gone", response=ANSWER))
    with pytest.raises(
        InputError, match=r"org/model: no such repository or revision v1\n(.|\n)*hf auth login"
    ):
        resolve_checkpoint("org/model", "v1", "all")


def test_another_answer_of_the_hub_is_bad_input(monkeypatch):
    no_fetching(monkeypatch, errors.HfHubHTTPError("504 gateway timeout", response=ANSWER))
    with pytest.raises(InputError, match="org/model: 504 gateway timeout"):
        resolve_checkpoint("org/model", None, "all")
