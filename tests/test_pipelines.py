"""Runs in Makefiles and CI: skipped when nothing changed, failed by warnings and by cost, plain in a pipe."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tokensurgeon.errors import RecipeError, VerificationError
from tokensurgeon.limits import refuse_costly
from tokensurgeon.notices import Notice
from tokensurgeon.recipe.load import build_recipe, load_recipe
from tokensurgeon.recipe.schema import VerifyRules
from tokensurgeon.recipe.shipped import recipe_folder, shipped_recipes
from tokensurgeon.record import find_inputs
from tokensurgeon.report.model import TextScore

TEXT = "The quick brown fox jumps over the lazy dog.\n" * 30


@pytest.fixture(scope="module")
def models(make_model, sentencepiece, byte_level):
    return make_model("llama", sentencepiece), make_model("llama", byte_level, seed=1)


@pytest.fixture
def folder(models, tmp_path, monkeypatch):
    """A working directory with two models, a text and a recipe."""
    base, donor = models
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(donor, tmp_path / "donor")
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "recipe.yaml").write_text(
        "base: base\ntarget: donor\noutput: out\nmethod: mean\nverify: {forward: false}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


SKIP = ("run", "recipe.yaml", "--if-unchanged", "skip")


def stamps(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


def test_an_unchanged_output_is_left_as_it_is_without_torch(finished, call, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    monkeypatch.chdir(folder)
    before = stamps(folder / "out")
    code = (
        f"import sys\nsys.argv = ['tokensurgeon', *{SKIP!r}]\nfrom tokensurgeon.cli.app import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "unchanged: out\nFalse\n"), done.stderr
    code, out, _ = call(*SKIP, "--json")
    document = json.loads(out)
    assert (code, document["ok"], document["unchanged"], document["output"]) == (0, True, True, "out")
    # Without the option an existing output needs --force as ever.
    assert call("run", "recipe.yaml")[0] == 4
    assert stamps(folder / "out") == before


def spoil(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


CHANGES = {
    "a base's weights": lambda folder: spoil(folder / "base" / "model.safetensors"),
    "a donor's weights": lambda folder: spoil(folder / "donor" / "model.safetensors"),
    "a tokenizer": lambda folder: (folder / "donor" / "tokenizer.json").write_text(
        (folder / "donor" / "tokenizer.json").read_text() + "\n"
    ),
    "a file that is carried over": lambda folder: (folder / "base" / "NOTICE").write_text("new"),
    "the recipe": lambda folder: (folder / "recipe.yaml").write_text(
        (folder / "recipe.yaml").read_text() + "rows: exact\n"
    ),
    "a part of the output": lambda folder: (folder / "out" / "tokenizer.json").write_text("{}"),
    "an output without its weights": lambda folder: (folder / "out" / "model.safetensors").unlink(),
    "an output that does not say": lambda folder: (folder / "out" / "made_from.json").unlink(),
}


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """A folder with a finished run, to copy."""
    base, donor = models
    place = tmp_path_factory.mktemp("finished")
    shutil.copytree(base, place / "base")
    shutil.copytree(donor, place / "donor")
    (place / "recipe.yaml").write_text(
        "base: base\ntarget: donor\noutput: out\nmethod: mean\nverify: {forward: false}\n"
    )
    command = [sys.executable, "-m", "tokensurgeon", "run", "recipe.yaml"]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    return place


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_makes_an_output_a_changed_one(change, finished, call, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    monkeypatch.chdir(folder)
    assert call(*SKIP)[1] == "unchanged: out\n"
    CHANGES[change](folder)
    code, _, err = call(*SKIP)
    assert code == 4
    assert "pass --force" in err


def test_what_does_not_change_a_model_does_not_count(finished, call, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    monkeypatch.chdir(folder)
    (folder / "out" / "README.md").write_text("a card of my own")
    (folder / "base" / "pytorch_model.bin").write_text("not read")
    (folder / "out").rename(folder / "elsewhere")
    for option in ("output=elsewhere", "runtime.work_dir=work"):
        assert call(*SKIP, "--set", "output=elsewhere", "--set", option)[1] == "unchanged: elsewhere\n"


def test_a_recipe_that_chooses_its_method_is_compared_as_it_was_asked(folder, call):
    auto = ("--set", "method={name: auto, calibrate: false}", "--set", "anchors.minimum=8")
    assert call(*SKIP, *auto)[0] == 0
    assert call(*SKIP, *auto)[1] == "unchanged: out\n"
    assert call(*SKIP, "--set", "method=affomp", "--set", "anchors.minimum=8")[0] == 4


def test_a_corpus_is_an_input_and_a_tokenizer_alone_is_no_model(folder, call):
    edit = ("trim", "base", "small", "--corpus", "text.txt", "--if-unchanged", "skip")
    assert call(*edit, "--tokenizer-only")[0] == 0
    assert call(*edit, "--tokenizer-only")[1] == "unchanged: small\n"
    assert call(*edit)[0] == 4
    (folder / "text.txt").write_text(TEXT + "more")
    assert call(*edit, "--tokenizer-only")[0] == 4


def test_a_word_of_the_recipe_is_no_input_though_a_file_has_its_name(folder):
    (folder / "mean").write_text("x")
    (folder / "target").mkdir()
    (folder / "target" / "a.json").write_text("x")
    recipe = load_recipe(Path("recipe.yaml"), ["report.texts=[text.txt]"])
    assert {name.split("/")[0] for name in find_inputs(recipe)} == {"base", "donor", "text.txt"}


def test_files_that_an_edit_or_a_resource_names_are_inputs(folder):
    for name in ("keep.txt", "corpus.txt", "left.txt", "right.txt", "heal.txt"):
        (folder / name).write_text("x")
    recipe = build_recipe(
        {
            "base": "base",
            "output": "out",
            "edits": [
                {"operation": "trim", "keep": ["keep.txt"]},
                {"operation": "union", "tokenizer": "donor"},
            ],
            "resources": {
                "corpus": ["corpus.txt"],
                "parallel": [{"base": "left.txt", "target": "right.txt"}],
            },
            "heal": {"corpus": ["heal.txt"], "teacher": {"path": "donor"}},
        }
    )
    found = find_inputs(recipe)
    assert {"keep.txt", "corpus.txt", "left.txt", "right.txt", "heal.txt"} <= found.keys()
    assert {"base/model.safetensors", "donor/model.safetensors", "donor/tokenizer.json"} <= found.keys()


def test_a_warning_that_is_denied_fails_before_a_row_is_made(folder, call, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a row was made")

    monkeypatch.setattr("tokensurgeon.pipeline.operate", refuse)
    code, _, err = call("run", "recipe.yaml", "--fail-on", "ts019,TS017")
    assert code == 5
    assert "TS019: the base opens every prompt with BOS" in err
    assert "verify.fail_on" in err
    assert not (folder / "out").exists()
    assert call("plan", "recipe.yaml", "--set", "verify.fail_on=[TS019]")[0] == 5


def test_a_warning_that_comes_late_is_denied_too(folder, call):
    code, _, err = call("run", "recipe.yaml", "--fail-on", "TS010")
    assert code == 5
    assert "TS010: new tokens share one row" in err
    assert not (folder / "out").exists()
    assert not list(folder.glob(".out*"))


@pytest.mark.parametrize(
    ("codes", "told"),
    [("TS17", "did you mean 'TS01"), ("TE3", "an error such as TE3"), ("TS001,nonsense", "code 'nonsense'")],
)
def test_codes_that_are_no_warnings_are_refused(codes, told):
    document = {"base": "a", "target": "b", "output": "c", "verify": {"fail_on": codes}}
    with pytest.raises(RecipeError, match=r"verify\.fail_on") as raised:
        build_recipe(document)
    assert told in str(raised.value)


def test_an_output_that_costs_too_much_is_not_published(folder, call):
    gate = ("--set", "report.texts=[text.txt]", "--set", "report.max_bytes=400", "--max-bpb-increase")
    code, out, err = call("run", "recipe.yaml", *gate, "0", "--json")
    document = json.loads(out)
    assert (code, document["exit_code"]) == (5, 5)
    assert "text.txt: " in document["error"]["found"]
    assert " bits per byte, +" in document["error"]["found"]
    assert "at most +0 bits per byte" in err
    assert not (folder / "out").exists()


def score(text: str, base: float, output: float) -> TextScore:
    return TextScore(
        text=text, bytes=9, base=base, output=output, base_bytes_per_token=3, output_bytes_per_token=3
    )


def test_every_text_has_to_cost_little_enough():
    rules = VerifyRules(max_bpb_increase=0.15)
    scores = [score("a.txt", 1.0, 1.15), score("b.txt", 2.0, 1.5)]
    refuse_costly(rules, scores[1:], [])
    with pytest.raises(VerificationError, match=r"a\.txt: 1\.000 -> 1\.160 .* \+0\.160, too much\nb\.txt"):
        refuse_costly(rules, [score("a.txt", 1.0, 1.16), scores[1]], [])
    refuse_costly(VerifyRules(), [score("a.txt", 1.0, 9.0)], [])


def test_a_cost_that_is_not_known_is_too_much():
    rules = VerifyRules(max_bpb_increase=9)
    with pytest.raises(VerificationError, match="not known: the texts were not scored: killed"):
        refuse_costly(rules, [], [Notice("TS018", "killed")])
    with pytest.raises(VerificationError, match="too much"):
        refuse_costly(rules, [score("a.txt", 1.0, float("nan"))], [])


def test_a_largest_cost_needs_texts(folder, call):
    code, _, err = call("run", "recipe.yaml", "--max-bpb-increase", "0.15")
    assert code == 2
    assert "verify.max_bpb_increase without report.texts" in err


def test_no_escapes_in_a_pipe_under_ci(folder):
    command = [sys.executable, "-m", "tokensurgeon", "run", "recipe.yaml"]
    command += ["--set", "report.texts=[text.txt]", "--set", "report.max_bytes=400"]
    environment = {**os.environ, "CI": "1", "FORCE_COLOR": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not set(b"\x1b\r\b") & set(done.stdout + done.stderr)
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "Reading tokenizers and headers"
    assert len(lines) == len(set(lines)) < 12


def ci_file(name: str) -> Path:
    return recipe_folder() / "ci" / name


def test_the_workflow_for_github_runs_as_it_stands(folder, call):
    document = yaml.safe_load(ci_file("github-actions.yml").read_text(encoding="utf-8"))
    steps = document["jobs"]["model"]["steps"]
    commands = [step["run"] for step in steps if step.get("run", "").startswith("tokensurgeon")]
    assert len(commands) == 3
    (folder / "recipe.yaml").write_text(
        "base: base\noutput: elsewhere\nedits: [{operation: trim, corpus: [text.txt]}]\n"
        "report: {texts: [text.txt], max_bytes: 400}\nverify: {forward: false}\n"
    )
    for command in commands:
        code, _, err = call(*shlex.split(command)[1:])
        assert code == 0, err
    assert (folder / "out" / "report.html").is_file()
    assert call(*shlex.split(commands[1])[1:])[1] == "unchanged: out\n"


def test_the_makefile_fragment_makes_what_has_changed(folder):
    shutil.copy(ci_file("tokensurgeon.mk"), folder)
    (folder / "Makefile").write_text("include tokensurgeon.mk\nall: models\n")
    (folder / "recipes").mkdir()
    (folder / "recipe.yaml").rename(folder / "recipes" / "small.yaml")
    tool = f"{sys.executable} -m tokensurgeon"
    command = ["make", "-s", "all", f"TOKENSURGEON={tool}", "GATES=--fail-on TS017"]

    def make() -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Done and verified" in make()
    assert make() == "unchanged: models/small\n"
    spoil(folder / "donor" / "model.safetensors")
    dry = subprocess.run(["make", "-n", "verify-models"], capture_output=True, text=True, check=True)
    assert "--max-bpb-increase 0.15" in dry.stdout


def test_files_for_ci_are_no_recipes():
    assert "github-actions" not in shipped_recipes()
