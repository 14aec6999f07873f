"""Every bad input ends with its exit code, one clear message, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tokensurgeon.cli.app import main


@pytest.fixture
def models(make_model, sentencepiece, byte_level, tmp_path):
    """Copies of a base and a donor that a test may damage."""
    base = make_model("llama", sentencepiece, shard="12KB")
    donor = make_model("llama", byte_level, seed=1)
    return (
        Path(shutil.copytree(base, tmp_path / "base")),
        Path(shutil.copytree(donor, tmp_path / "donor")),
    )


@pytest.fixture
def refuses(monkeypatch, capsys, tmp_path):
    """Run the command line, expect an exit code and a message, and nothing new in the folder."""

    def check(code: int, message: str, *arguments: object) -> None:
        before = snapshot(tmp_path)
        monkeypatch.setattr(sys, "argv", ["tokensurgeon", *map(str, arguments)])
        with pytest.raises(SystemExit, match=rf"^{code}$"):
            main()
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count(f"error TE{code}: ") == 1
        assert "Traceback" not in captured.err
        assert captured.out == ""
        assert "\x1b" not in captured.err
        assert "\r" not in captured.err
        assert snapshot(tmp_path) == before

    return check


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def transplant(base: Path, donor: Path, output: Path) -> list[object]:
    return ["transplant", base, donor, output, "--set", "anchors.minimum=8", "--set", "method.k=8"]


def test_a_missing_shard(models, refuses, tmp_path):
    base, donor = models
    shard = sorted(base.glob("*.safetensors"))[-1]
    shard.unlink()
    refuses(3, f"{shard}: missing shard", *transplant(base, donor, tmp_path / "out"))


def test_a_truncated_header(models, refuses, tmp_path):
    base, donor = models
    path = donor / "model.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    refuses(3, f"{path}: the header is", *transplant(base, donor, tmp_path / "out"))


def test_a_truncated_body(models, refuses, tmp_path):
    base, donor = models
    path = donor / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refuses(3, "as its header says", *transplant(base, donor, tmp_path / "out"))


def test_a_donor_without_weights(models, byte_level, refuses, tmp_path):
    base, _ = models
    refuses(3, "methods that need no donor weights", *transplant(base, byte_level, tmp_path / "out"))


def test_a_quantised_embedding(models, refuses, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    base, donor = models
    tensors = load_file(donor / "model.safetensors")
    tensors["model.embed_tokens.weight"] = torch.zeros(
        tensors["model.embed_tokens.weight"].shape, dtype=torch.int8
    )
    save_file(tensors, donor / "model.safetensors")
    refuses(3, "model.embed_tokens.weight is I8", *transplant(base, donor, tmp_path / "out"))


def test_an_output_that_is_an_input(models, refuses):
    base, donor = models
    refuses(4, "is the input", *transplant(base, donor, base), "--force")


def test_an_output_inside_an_input(models, refuses):
    base, donor = models
    refuses(4, "is inside the input", *transplant(base, donor, donor / "out"))


def test_an_output_around_an_input_through_a_link(models, refuses, tmp_path):
    base, donor = models
    (tmp_path / "link").symlink_to(tmp_path)
    refuses(4, "contains the input", *transplant(base, donor, tmp_path / "link"), "--force")


@pytest.mark.parametrize(
    ("place", "message"),
    [("out", "is the output"), ("out/work", "is inside the output"), ("donor/work", "is inside the input")],
)
def test_a_work_folder_that_is_no_place_of_its_own(place, message, models, refuses, tmp_path):
    base, donor = models
    command = transplant(base, donor, tmp_path / "out")
    refuses(4, message, *command, "--work-dir", tmp_path / place)


def test_less_memory_than_the_run_needs(models, refuses, tmp_path, monkeypatch):
    base, donor = models
    monkeypatch.setattr("tokensurgeon.pipeline.available_memory", lambda: 100_000)
    refuses(6, "0.0 GB of memory available", *transplant(base, donor, tmp_path / "out"))


def test_an_existing_output(models, refuses, tmp_path):
    base, donor = models
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("data")
    refuses(4, "pass --force", *transplant(base, donor, tmp_path / "out"))


def test_an_existing_output_survives_a_forced_run_that_fails(models, refuses, tmp_path):
    base, donor = models
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("data")
    (donor / "tokenizer.json").unlink()
    refuses(3, "no tokenizer.json", *transplant(base, donor, tmp_path / "out"), "--force")


def test_an_unknown_recipe_key(refuses, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: a\ndonor: b\noutput: c\nmethud: omp\nrows: {multipel: 3}\n")
    refuses(2, "methud: unknown key; did you mean 'method'?", "run", recipe)


def test_remote_code_is_not_run(models, refuses, tmp_path):
    base, donor = models
    canary = tmp_path / "canary"
    code = f"from pathlib import Path\nPath({str(canary)!r}).touch()\nclass Config: ...\n"
    for directory in (base, donor):
        (directory / "modeling_canary.py").write_text(code)
        config = json.loads((directory / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "modeling_canary.Config"}
        (directory / "config.json").write_text(json.dumps(config))
        refuses(4, "auto_map asks to run code", *transplant(base, donor, tmp_path / "out"))
        del config["auto_map"]
        (directory / "config.json").write_text(json.dumps(config))
    assert not canary.exists()


def test_pickles_are_not_opened(models, refuses, tmp_path):
    base, donor = models
    (donor / "model.safetensors").rename(donor / "pytorch_model.bin")
    refuses(4, "only pickled weights", *transplant(base, donor, tmp_path / "out"))


def test_too_little_overlap(models, refuses, tmp_path):
    base, donor = models
    arguments = [*transplant(base, donor, tmp_path / "out"), "--set", "anchors.min_coverage=0.99"]
    refuses(4, "of the target's tokens are in the base", *arguments)


def test_too_few_rows(models, refuses, tmp_path):
    base, donor = models
    refuses(2, "rows: 100", *transplant(base, donor, tmp_path / "out"), "--rows", "100")


def test_rows_that_are_not_finite(models, refuses, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    base, donor = models
    tensors = load_file(donor / "model.safetensors")
    tensors["model.embed_tokens.weight"][3] = torch.nan
    save_file(tensors, donor / "model.safetensors")
    refuses(3, "donor rows are not finite", "-q", *transplant(base, donor, tmp_path / "out"))


def test_a_donor_with_another_tokenizer(models, sentencepiece, byte_level, refuses, tmp_path):
    base, donor = models
    arguments = [*transplant(base, donor, tmp_path / "out"), "--set", f"target={sentencepiece}"]
    refuses(3, "a donor that was trained with the target tokenizer", *arguments)


def test_a_map_to_a_token_that_does_not_exist(models, refuses, tmp_path):
    base, donor = models
    arguments = [*transplant(base, donor, tmp_path / "out"), "--map", "no such token=<eos>"]
    refuses(2, "'no such token' is", *arguments)


def test_a_missing_directory(refuses, tmp_path):
    refuses(3, "no such directory", "transplant", tmp_path / "a", tmp_path / "b", tmp_path / "out")


def test_a_text_that_does_not_exist(models, refuses, tmp_path):
    base, donor = models
    arguments = [*transplant(base, donor, tmp_path / "out"), "--text", tmp_path / "no.txt"]
    refuses(3, "no.txt: No such file", *arguments)


def test_an_unknown_method(models, refuses, tmp_path):
    arguments = ["transplant", *models, tmp_path / "out", "--method", "focuss"]
    refuses(2, "method.name: 'focuss'; did you mean 'focus'? `tokensurgeon methods` lists", *arguments)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("focus", "method focus without corpus\nexpected: resources.corpus in the recipe"),
        (
            "wechsel",
            "method wechsel without word vectors or corpus\n"
            "expected: resources.target_vectors or resources.corpus in the recipe",
        ),
        ("tokenadapt", "method tokenadapt without text encoder\nexpected: resources.encoder in the recipe"),
        ("transtokenizer", "expected: resources.parallel or resources.corpus in the recipe"),
    ],
)
def test_a_method_without_what_it_needs(method, said, models, refuses, tmp_path):
    refuses(2, said, "transplant", *models, tmp_path / "out", "--method", method)


def test_a_method_whose_package_is_not_installed(models, refuses, tmp_path, monkeypatch):
    monkeypatch.setattr("tokensurgeon.inputs.find_spec", lambda name: None)
    arguments = ["transplant", *models, tmp_path / "out", "--method", "focus"]
    refuses(
        2,
        "method focus needs gensim, which is not installed\nnext: pip install 'tokensurgeon[vectors]'",
        *arguments,
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "corpus.txt: No such file"),
        (b"", "corpus.txt: empty text"),
        (b" \n\n", "corpus.txt: blank"),
        ("café".encode("latin-1"), "corpus.txt: byte 3 is not UTF-8"),
    ],
)
def test_a_corpus_that_cannot_be_used(data, said, models, refuses, tmp_path):
    corpus = tmp_path / "corpus.txt"
    if data is not None:
        corpus.write_bytes(data)
    arguments = ["transplant", *models, tmp_path / "out", "--method", "tokalign"]
    refuses(3, said, *arguments, "--set", f"resources.corpus=[{corpus}]", "--set", "anchors.minimum=8")


@pytest.mark.parametrize("method", ["detokenize", "zett"])
def test_a_base_that_writes_no_text_for_a_method_that_lets_it(
    method, make_model, wordpiece, byte_level, refuses, tmp_path
):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The quick brown fox.\n")
    arguments = ["transplant", make_model("bert", wordpiece), byte_level, tmp_path / "out"]
    arguments += ["--method", method, "--set", f"resources.corpus=[{corpus}]"]
    refuses(3, "expected: a causal language model", *arguments)


def test_an_encoder_that_is_none(models, refuses, tmp_path):
    arguments = ["transplant", *models, tmp_path / "out", "--method", "tokenadapt"]
    refuses(3, "a text encoder that AutoModel", *arguments, "--set", f"resources.encoder={tmp_path}")


@pytest.mark.parametrize("method", ["omp", "nearest", "unks_everywhere"])
def test_too_few_anchors(method, models, refuses, tmp_path):
    arguments = ["transplant", *models, tmp_path / "out", "--method", method]
    arguments += ["--set", "anchors.minimum=1000"]
    refuses(4, "choose a method without anchors, such as pieces", *arguments)


def test_an_unknown_option_and_an_unknown_verb(refuses):
    refuses(2, "--methud", "transplant", "a", "b", "c", "--methud", "omp")
    refuses(2, "transplent", "transplent")


def test_token_text_in_a_message_is_not_markup(models, refuses, tmp_path):
    base, donor = models
    refuses(2, "[/INST][red]", *transplant(base, donor, tmp_path / "out"), "--map", "[/INST][red]=<eos>")


def test_failures_are_one_json_document_too(models, monkeypatch, capsys, tmp_path):
    base, donor = models
    arguments = ["transplant", str(base), str(donor), str(tmp_path / "out"), "--json"]
    arguments += ["--set", "anchors.minimum=1000"]
    monkeypatch.setattr(sys, "argv", ["tokensurgeon", *arguments])
    with pytest.raises(SystemExit, match=r"^4$"):
        main()
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 4
    assert document["error"]["type"] == "PolicyError"


def test_a_dry_run_predicts_the_refusal_and_writes_nothing(models, refuses, tmp_path):
    base, donor = models
    arguments = ["transplant", base, donor, tmp_path / "out", "--set", "anchors.minimum=1000"]
    refuses(4, "(anchors.minimum)", *arguments, "--dry-run")
