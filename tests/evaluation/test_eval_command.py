import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tokensurgeon.cli.eval import eval_models
from tokensurgeon.errors import InputError, RecipeError

ROOT = Path(__file__).parents[2]


def run(*arguments):
    app = typer.Typer()
    app.command("eval")(eval_models)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "english.txt"
    path.write_text("the quick brown fox " * 10)
    return path


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_quality", ROOT / "scripts" / "bench_quality.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_json_is_one_document(model_dir, text):
    result = run(model_dir, model_dir, "--text", text, "--max-bytes", 100, "--json")
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    assert [entry["model"] for entry in document["models"]] == [str(model_dir)] * 2
    [score] = document["models"][0]["texts"]
    assert document["models"][0]["bos"] == "<s>"
    assert score["text"] == "english.txt"
    assert score["bytes"] == 100
    assert score["bits_per_byte"] == score["bits"] / 100


def test_tables_have_a_row_a_text_and_a_column_a_model(model_dir, text, monkeypatch):
    monkeypatch.setenv("CI", "1")
    result = run(model_dir, "--text", text)
    figures = [line.split() for line in result.stdout.splitlines() if line.startswith("english.txt")]
    assert [len(line) for line in figures] == [3, 5, 5, 3]  # bits, bytes per token, tokens per word, Rényi
    assert model_dir.name in result.stdout
    assert len(figures[0][-1].partition(".")[2]) == 4
    assert "<s>" in result.stdout


@pytest.fixture
def other_dir(tmp_path, llama, tokenizers):
    """The same body under a tokenizer of bytes."""
    directory = tmp_path / "other"
    llama.save_pretrained(directory)
    tokenizers["bytes"].save_pretrained(directory)
    return directory


def mark_made(directory, ids):
    source = [-1 if index in ids else -2 if index >= 300 else index for index in range(320)]
    rows = {"role": "embedding", "dtype": "F32", "shape": [320, 32], "axis": 0, "equal_to": None}
    rows |= {"source": source, "copied_sha256": "", "may_repeat": [], "may_vanish": False}
    document = {"rows": 320, "bound": 258, "body": {}, "vocab": {"e": rows}, "files": {}, "probe": []}
    (directory / "provenance.json").write_text(json.dumps({**document, "chat": None}))


def test_the_anatomy_of_every_further_model_is_in_the_json(model_dir, other_dir, text):
    result = run(model_dir, other_dir, model_dir, "--text", text, "--anatomy", "--json")
    [base], [other], [same] = (model["texts"] for model in json.loads(result.stdout)["models"])
    assert "anatomy" not in base
    assert other["anatomy"]["excess"] == other["bits_per_byte"] - base["bits_per_byte"]
    assert "missing" not in {part["name"] for part in other["anatomy"]["by_cut"]}
    assert other["anatomy"]["by_new_rows"] is None
    assert {part["name"]: part["chunks"] for part in same["anatomy"]["by_cut"]} == {
        "same token": same["tokens"],
        "after a re-segmented one": 0,
        "split": 0,
        "merged": 0,
        "cut differently": 0,
    }
    assert same["anatomy"]["excess"] == 0


def test_rows_that_a_method_made_are_read_from_the_provenance(model_dir, other_dir, text, tokenizers):
    mark_made(other_dir, tokenizers["bytes"].convert_tokens_to_ids(["q"]))
    result = run(model_dir, other_dir, "--text", text, "--anatomy", "--json")
    anatomy = json.loads(result.stdout)["models"][1]["texts"][0]["anatomy"]
    missing = next(part for part in anatomy["by_cut"] if part["name"] == "missing")
    assert missing["chunks"] == 10  # "quick", ten times
    assert [part["name"] for part in anatomy["by_new_rows"]][-1] == "neither"


def test_the_table_of_an_anatomy_names_the_splits(model_dir, other_dir, text, monkeypatch):
    monkeypatch.setenv("CI", "1")
    result = run(model_dir, other_dir, "--text", text, "--anatomy")
    title = next(line for line in result.stdout.splitlines() if line.startswith("Where other loses"))
    assert title.strip().endswith("bits per byte")
    lines = [[cell.strip() for cell in line.split("│")] for line in result.stdout.splitlines()]
    assert {line[0] for line in lines if len(line) == 7} == {"cut", "script", "content"}
    [latin] = [line for line in lines if line[:2] == ["script", "Latin"]]
    assert latin[6][0] in "+-"


def figures_of(document):
    """Numbers of a document that are measurements, as they are printed: to four digits."""
    if isinstance(document, dict):
        return set().union(*map(figures_of, document.values()))
    if isinstance(document, list):
        return set().union(*map(figures_of, document), set())
    return {f"{document:.4f}"} if isinstance(document, float) else set()


def test_every_model_is_compared_with_the_first_in_tables_json_csv_and_html(
    model_dir, other_dir, text, tmp_path, monkeypatch
):
    monkeypatch.setenv("CI", "1")
    files = ["--csv", tmp_path / "all.csv", "--html", tmp_path / "all.html"]
    arguments = [model_dir, other_dir, model_dir, "--text", text, "--probes", "--exact", 8]
    document = json.loads(run(*arguments, "--json", *files).stdout)
    printed = run(*arguments).stdout
    first, other, same = (model["texts"][0] for model in document["models"])
    assert first["difference"] == same["difference"] == 0
    assert other["difference"] == other["bits_per_byte"] - first["bits_per_byte"]
    assert "other -" in printed
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    lines = {(row["model"], row["text"], row["measure"]): float(row["value"]) for row in rows}
    assert lines[str(other_dir), "english.txt", "bits_per_byte"] == other["bits_per_byte"]
    assert lines[str(other_dir), "english.txt", "by_script.Latin.words"] == 40
    assert lines[str(other_dir), "english.txt", "exact.next_bytes.32"] == other["exact"]["next_bytes"][32]
    page = (tmp_path / "all.html").read_text()
    assert f"{other['bits_per_byte']:.4f}" in page
    assert "http" not in page
    assert "<script" not in page


def test_every_figure_of_the_tables_is_in_the_json(model_dir, other_dir, text, monkeypatch):
    monkeypatch.setenv("CI", "1")
    arguments = [model_dir, other_dir, "--text", text, "--anatomy", "--probes", "--exact", 8]
    printed = set(re.findall(r"(?<![\d.])\d\.\d{4}(?!\d)", run(*arguments).stdout))
    known = figures_of(json.loads(run(*arguments, "--json").stdout))
    known |= {figure.lstrip("-") for figure in known}
    assert len(printed) > 10
    assert printed <= known


def test_the_first_bytes_of_a_text_are_scored_over_all_cuts(model_dir, text):
    [score] = json.loads(run(model_dir, "--text", text, "--exact", 10, "--json").stdout)["models"][0]["texts"]
    exact = score["exact"]
    assert exact["bytes"] == len(exact["byte_bits"]) == 10
    assert exact["least_bits"] <= exact["most_bits"] < exact["canonical_bits"]
    assert len(exact["next_bytes"]) == 256


def test_samples_go_on_with_prompts_or_parts_of_the_texts(model_dir, text, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the fox\n\nthe dog\nthe cat\n")
    options = ["--samples", 2, "--new-tokens", 8, "--json"]
    found = json.loads(run(model_dir, "--prompts", prompts, *options).stdout)["models"][0]
    assert [one["prompt"] for one in found["samples"]["continuations"]] == ["the fox", "the dog"]
    shares = [one["repeated"] for one in found["samples"]["continuations"]]
    assert found["samples"]["mean_repeated"] == sum(shares) / 2
    assert found["texts"] == []
    found = json.loads(run(model_dir, "--text", text, *options).stdout)["models"][0]["samples"]
    assert [one["prompt"] for one in found["continuations"]] == [
        text.read_text()[:100],
        text.read_text()[100:],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to measure"),
        (["--samples", 2], "nothing to measure"),
        (["--probes", "--exact", 8], "--exact without a text"),
        (["--probes", "--prompts", "x"], "--prompts without --samples"),
        (["--probes", "--samples", 2], "--samples without a text"),
        (["--probes", "--task-dir", "x"], "--task-dir or --task-limit without --tasks"),
    ],
)
def test_what_does_not_go_together_is_refused(model_dir, options, message):
    with pytest.raises(RecipeError, match=message):
        run(model_dir, *options)


def test_a_text_that_is_empty_or_no_utf8_is_refused_by_name(model_dir, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"bad.txt: empty text"):
        run(model_dir, "--text", path)
    path.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match=r"bad.txt: byte 2 is not UTF-8"):
        run(model_dir, "--text", path)
    path.write_text("\n\n")
    with pytest.raises(InputError, match="blank lines only"):
        run(model_dir, "--samples", 1, "--prompts", path)


def test_an_anatomy_needs_a_base_to_compare_with(model_dir, text):
    with pytest.raises(RecipeError, match=r"(?s)--anatomy with one model.*the base first"):
        run(model_dir, "--text", text, "--anatomy")


def test_errors_reach_the_caller(tmp_path, text):
    with pytest.raises(InputError, match="expected: a causal language model"):
        run(tmp_path, "--text", text)


def test_help_loads_no_torch():
    code = (
        "import sys, typer\n"
        "from tokensurgeon.cli.eval import eval_models\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."})


def test_bench_makes_and_scores_an_output_once(
    bench, make_model, sentencepiece, wordpiece, text, tmp_path, monkeypatch
):
    base, donor = make_model("gemma3", sentencepiece), make_model("llama-tied", wordpiece, seed=1)
    found = tmp_path / "quality.json"
    arguments = [str(base), str(donor), "--text", str(text), "--max-bytes", "64", "--direction", "1"]
    arguments += ["--only", "pieces", "--work", str(tmp_path / "work"), "--json", str(found)]
    bench.main(arguments)
    document = json.loads(found.read_text())
    assert document["texts"] == {"english.txt": 64}
    models = document["directions"][0]["models"]
    assert list(models) == ["base", "pieces"]
    assert models["pieces"]["seconds"] > 0
    assert all(model["bits"]["english.txt"] > 0 for model in models.values())
    monkeypatch.setattr(bench, "load_model", None)
    monkeypatch.setattr(bench.subprocess, "run", None)
    bench.main(arguments)
    assert json.loads(found.read_text()) == document
