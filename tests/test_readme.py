"""Every command in the README runs, in order, in a folder that holds what the README says it holds."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tokensurgeon.cli.app import main
from tokensurgeon.methods.registry import METHODS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "scripts" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    found = []
    for language, block in BLOCKS:
        if language == "console":
            joined = block.replace("\\\n", " ")
            found += [
                line[2:].split("  #")[0].strip() for line in joined.splitlines() if line.startswith("$ ")
            ]
    return found


@pytest.fixture
def folder(make_model, sentencepiece, byte_level, tmp_path, monkeypatch):
    """The working directory of the README: two models, two texts, the shipped recipes."""
    base = make_model("gemma3", sentencepiece)
    donor = make_model("llama-tied", byte_level, seed=1)
    for name, source in (("gemma3", base), ("smollm2", donor)):
        shutil.copytree(source, tmp_path / "build" / "models" / name)
    (tmp_path / "build" / "texts").mkdir()
    (tmp_path / "build" / "texts" / "english.txt").write_text(
        "The quick brown fox jumps over the dog first. " * 100
    )
    (tmp_path / "build" / "texts" / "code.txt").write_text("def add(a, b):\n    return a + b\n")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_opens_with_two_commands():
    assert commands()[:2] == ["make demo", "make test"]


def test_every_command_of_the_readme_runs(folder, monkeypatch, capsys):
    ran = []
    for command in commands():
        words = shlex.split(command)
        if words[0] == "make":
            done = subprocess.run(
                ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"
        else:
            assert words[0] == "tokensurgeon", f"no test knows how to run {command!r}"
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code, f"{command}: {capsys.readouterr().err}"
        ran.append(words[0])
    assert ran.count("tokensurgeon") >= 13


def test_the_readme_names_every_method_and_every_room():
    for name in METHODS:
        assert f"`{name}`" in README
    package = ROOT / "tokensurgeon"
    rooms = [path for path in package.iterdir() if path.is_dir() and (path / "__init__.py").is_file()]
    for room in [*rooms, *package.glob("[a-z]*.py")]:
        assert f"{room.name}/" in README or room.name in README, f"{room.name} is missing from the map"


def test_the_table_of_methods_is_what_the_command_prints(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tokensurgeon", "methods", "--markdown"])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    table = README.partition("<!-- methods:start -->\n")[2].partition("<!-- methods:end -->")[0]
    assert capsys.readouterr().out == table


def test_pictures_in_the_readme_exist():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


@pytest.fixture(scope="module")
def filled():
    """The README with its measured tables written anew."""
    return runpy.run_path(str(ROOT / "scripts" / "fill_readme.py"))["fill"](README)


def test_measured_tables_are_what_benchmarks_wrote(filled):
    assert filled == README


def test_figures_in_the_text_are_figures_of_results_or_of_a_table():
    tables = re.findall(r"<!-- ([\w-]+):start -->(.*?)<!-- \1:end -->", README, flags=re.DOTALL)
    results = [path.read_text(encoding="utf-8") for path in RESULTS.iterdir()]
    measured = {
        float(figure.replace(",", ""))
        for text in [*results, *(table for _, table in tables)]
        for figure in re.findall(r"\d[\d,]*\.\d+(?:e-?\d+)?", text)
    }
    for figure in prose_figures():
        digits = len(figure.partition(".")[2])
        assert any(f"{known:.{digits}f}" == figure for known in measured), f"{figure} was measured nowhere"


def prose_figures() -> list[str]:
    """Fractions in what people wrote: no code, no links, no tables of benchmarks, no versions."""
    text = re.sub(r"<!-- ([\w-]+):start -->.*?<!-- \1:end -->", "", README, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```$|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"arXiv:[\d.]+|(Python|mergekit|transformers|Apache)[ -][\w-]*\s*[\d.]+", "", text)
    return re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text)
