"""One table says which file of the output comes from the base, which from the target, which from nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokensurgeon.checkpoint.sidefiles import (
    TOKENIZER_FILES,
    carried_files,
    is_tokenizer_file,
    read_card,
    tokenizer_files,
)
from tokensurgeon.errors import PolicyError


def fill(directory: Path, *names: str) -> Path:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return directory


def names(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths]


FROM_BASE = [
    "preprocessor_config.json",
    "processor_config.json",
    "modeling_x.py",
    "LICENSE",
    "NOTICE.txt",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "docs/README.md",
    "what_is_this.xyz",
]
REBUILT = [
    "config.json", "generation_config.json", "README.md", "report.json", "report.html", "provenance.json",
    "model.safetensors", "model.safetensors.index.json",
]  # fmt: skip
WEIGHTS = [
    "pytorch_model.bin", "pytorch_model.bin.index.json", "model-00001-of-00002.safetensors", "tf_model.h5",
    "tf_model.h5.index.json", "flax_model.msgpack", "flax_model.msgpack.index.json", "model.gguf",
    "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model.onnx.data", "original/consolidated.00.pth",
    "optimizer.pt", "training_args.bin", "rust_model.ot", "model.ckpt", "weights.npz", "coreml/model.mlmodel",
    "adapter_model.safetensors", "model.tflite", "state.pkl",
]  # fmt: skip
TOKENIZER = [
    *TOKENIZER_FILES, "qwen.tiktoken", "spm.model", "source.spm", "tokenizer.model.v3",
    "additional_chat_templates/tool_use.jinja",
]  # fmt: skip
HIDDEN = [".git/HEAD", ".cache/huggingface/x.json", "onnx/.hidden/file.json"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "---\nlicense: other\nlicense_name: gemma\ntags: [a]\n---\n# Title\n---\n",
            ["license", "license_name"],
        ),
        (
            "\ufeff---\r\nlanguage: [en, fr]\r\npipeline_tag: fill-mask\r\n---\r\n",
            ["language", "pipeline_tag"],
        ),
        ("---\nlicense: [1, 2]\nlanguage: no\n---\n", []),
        ("---\nlicense: [\n---\n", []),
        ("---\n- license\n---\n", []),
        ("# No front matter\nlicense: mit\n", []),
        ("---\nlicense: mit\n", []),
    ],
)
def test_a_card_tells_what_holds_for_a_model_made_of_it_or_nothing(text, told, tmp_path):
    (tmp_path / "README.md").write_bytes(text.encode())
    assert list(read_card(tmp_path)) == told


def test_no_card_and_a_card_that_is_no_text_tell_nothing(tmp_path):
    assert read_card(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert read_card(tmp_path) == {}


@pytest.mark.parametrize("name", FROM_BASE)
def test_a_side_file_is_carried_from_the_base(name, tmp_path):
    assert names(carried_files(fill(tmp_path, name))) == [name]


@pytest.mark.parametrize("name", [*REBUILT, *WEIGHTS, *TOKENIZER, *HIDDEN])
def test_these_are_never_carried_from_the_base(name, tmp_path):
    assert carried_files(fill(tmp_path, name)) == []


@pytest.mark.parametrize("name", ["onnx/tokenizer.json", "original/tokenizer.model"])
def test_a_nested_tokenizer_of_the_base_is_left_behind(name, tmp_path):
    assert carried_files(fill(tmp_path, name)) == []


@pytest.mark.parametrize("name", TOKENIZER)
def test_tokenizer_files_come_from_the_target(name, tmp_path):
    assert names(tokenizer_files(fill(tmp_path, name))) == [name]


@pytest.mark.parametrize("name", [*FROM_BASE, *REBUILT, *WEIGHTS, *HIDDEN, "onnx/tokenizer.json"])
def test_nothing_else_comes_from_the_target(name, tmp_path):
    assert tokenizer_files(fill(tmp_path, name)) == []


@pytest.mark.parametrize("name", [*FROM_BASE, *REBUILT, *WEIGHTS])
def test_no_side_file_or_weight_counts_as_a_tokenizer_file(name):
    assert not is_tokenizer_file(Path(name))


def test_files_are_listed_in_one_order(tmp_path):
    fill(tmp_path, "b.py", "a.py", "z/c.py", "vocab.json", "merges.txt", "LICENSE")
    assert names(carried_files(tmp_path)) == ["LICENSE", "a.py", "b.py", "z/c.py"]
    assert names(tokenizer_files(tmp_path)) == ["merges.txt", "vocab.json"]


def test_a_checkpoint_below_a_hidden_folder_is_read_like_any_other(tmp_path):
    place = fill(tmp_path / ".cache" / "snapshot", "modeling_x.py", "tokenizer.json")
    assert names(carried_files(place)) == ["modeling_x.py"]
    assert names(tokenizer_files(place)) == ["tokenizer.json"]


def test_links_into_a_cache_are_files(tmp_path):
    fill(tmp_path, "blobs/1234")
    place = tmp_path / "snapshots" / "main"
    place.mkdir(parents=True)
    (place / "modeling_x.py").symlink_to(tmp_path / "blobs" / "1234")
    (place / "tokenizer.json").symlink_to(Path("..") / ".." / "blobs" / "1234")
    assert names(carried_files(place)) == ["modeling_x.py"]
    assert names(tokenizer_files(place)) == ["tokenizer.json"]


def test_links_within_a_checkpoint_are_files_and_links_to_elsewhere_are_refused(tmp_path):
    place = fill(tmp_path / "model", "LICENSE")
    (place / "COPYING").symlink_to("LICENSE")
    assert names(carried_files(place)) == ["COPYING", "LICENSE"]
    fill(tmp_path, "blobs/secret")
    (place / "notes.txt").symlink_to(tmp_path / "blobs" / "secret")
    with pytest.raises(PolicyError, match=r"notes\.txt: a link to .*secret, outside the checkpoint"):
        carried_files(place)
    (place / "vocab.json").symlink_to(tmp_path / "blobs" / "secret")
    with pytest.raises(PolicyError, match=r"vocab\.json: a link"):
        tokenizer_files(place)
