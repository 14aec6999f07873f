import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tokensurgeon.cli.eval import eval_models
from tokensurgeon.errors import InputError

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
    assert len(figures) == 2
    assert model_dir.name in result.stdout
    assert len(figures[0][-1].partition(".")[2]) == 4
    assert "<s>" in result.stdout


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


def test_bench_writes_its_table_once_and_continues_from_the_cache(
    bench, model_dir, text, tmp_path, monkeypatch
):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{bench.START}\nold\n{bench.END}\nafter\n")
    arguments = ["--model", f"base={model_dir}", "--model", f"new={model_dir}", "--text", str(text)]
    arguments += ["--max-bytes", "64", "--markdown", str(tmp_path / "table.md"), "--readme", str(readme)]
    arguments += ["--cache", str(tmp_path / "cache.json")]
    bench.main(arguments)
    table = (tmp_path / "table.md").read_text()
    header, _, base, new = table.splitlines()[:4]
    assert header == "| model | english.txt |"
    figure = base.split("|")[2].strip()
    assert base == f"| base | {figure} |"
    assert new == f"| new | **{figure}** |"
    assert "`english.txt` 64" in table
    assert readme.read_text() == f"before\n{bench.START}\n{table}{bench.END}\nafter\n"
    monkeypatch.setattr(bench, "load_model", None)
    bench.main(arguments)
    assert (tmp_path / "table.md").read_text() == table
