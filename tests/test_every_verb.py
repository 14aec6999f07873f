"""What holds for every verb: one JSON document, whatever comes; help, hints and completion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tokensurgeon.cli.app import app, main

VERBS = [command.name for command in app.registered_commands]
NOWHERE = "/nowhere/at/all"

# A command line of each verb that fails on what it is given, not on how.
BAD_INPUT = {
    "run": [f"{NOWHERE}.yaml"],
    "transplant": [NOWHERE, NOWHERE, "OUT"],
    "heal": [NOWHERE, NOWHERE, "OUT"],
    "apply-to-finetune": [NOWHERE, NOWHERE, "OUT"],
    "trim": [NOWHERE, "OUT", "--script", "Latin"],
    "extend": [NOWHERE, "OUT", "--tokens", NOWHERE],
    "supertokens": [NOWHERE, "OUT", "--corpus", NOWHERE],
    "merge": [NOWHERE, NOWHERE, "OUT"],
    "train-tokenizer": [NOWHERE, "OUT", "--corpus", NOWHERE],
    "remap-ids": [NOWHERE, NOWHERE, "OUT"],
    "plan": [f"{NOWHERE}.yaml"],
    "verify": [NOWHERE],
    "calibrate": [f"{NOWHERE}.yaml"],
    "check-draft": [NOWHERE, NOWHERE],
    "eval": [NOWHERE, "--text", NOWHERE],
    "inspect": [NOWHERE, NOWHERE],
    "methods": ["no-such-method"],
    "recipes": ["no-such-recipe"],
    "report": [NOWHERE],
    "push": [NOWHERE, "me/model"],
}


def test_every_verb_is_asked():
    assert set(BAD_INPUT) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_option_is_one_document_with_the_nearest_option(call, verb):
    code, out, err = call(verb, "--json", "--jsonn")
    document = json.loads(out)
    assert (code, document["ok"], document["exit_code"], document["error"]["code"]) == (2, False, 2, "TE2")
    assert "did you mean --json?" in document["error"]["next_step"]
    assert err.startswith("error TE2: ")
    assert f"`tokensurgeon {verb} --help`" in err


@pytest.mark.parametrize("verb", VERBS)
def test_a_bad_input_is_one_document(call, verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(verb, *BAD_INPUT[verb], "--json")
    document = json.loads(out)
    assert code in (2, 3)
    assert (document["schema_version"], document["ok"], document["exit_code"]) == (1, False, code)
    assert set(document["error"]) == {"code", "type", "found", "expected", "next_step"}
    assert document["error"]["found"].splitlines()[0] in err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def place(make_model, sentencepiece, byte_level, tmp_path_factory):
    """A folder with all that each verb needs to succeed quickly."""
    folder = tmp_path_factory.mktemp("verbs")
    shutil.copytree(make_model("llama", sentencepiece), folder / "base")
    shutil.copytree(make_model("llama", byte_level, seed=1), folder / "donor")
    (folder / "text.txt").write_text("the quick brown fox jumps over the dog. add the dog first.\n" * 20)
    (folder / "recipe.yaml").write_text(
        "base: base\ntarget: donor\noutput: out\nmethod: {name: affknn, k: 4}\nanchors: {minimum: 8}\n"
        "verify: {forward: false}\nreport: {hidden: 0}\n"
    )
    np.save(folder / "ids.npy", np.array([5, 6, 7]))
    return folder


# In this order: later ones read what earlier ones wrote. Pushing needs a hub; its own tests stand in for one.
GOOD = {
    "run": ["recipe.yaml"],
    "transplant": ["base", "donor", "mean", "--method", "mean", "--set", "verify.forward=false"],
    "heal": ["out", "base", "healed", "--dry-run"],
    "apply-to-finetune": ["out", "base", "tuned", "--dry-run"],
    "trim": ["base", "trimmed", "--corpus", "text.txt", "--tokenizer-only"],
    "extend": ["base", "extended", "--corpus", "text.txt", "--count", "3", "--tokenizer-only"],
    "supertokens": ["donor", "super", "--corpus", "text.txt", "--count", "3", "--tokenizer-only"],
    "merge": ["base", "donor", "merged", "--method", "mean", "--dry-run"],
    "train-tokenizer": ["donor", "trained", "--corpus", "text.txt", "--size", "300"],
    "remap-ids": ["trimmed", "ids.npy", "new.npy", "--fill", "0"],
    "plan": ["recipe.yaml", "--force"],
    "verify": ["out", "--no-forward"],
    "calibrate": ["recipe.yaml"],
    "check-draft": ["donor", "out"],
    "eval": ["base", "--text", "text.txt"],
    "inspect": ["donor", "base"],
    "methods": ["omp"],
    "recipes": [],
    "report": ["out"],
}


def test_success_is_one_document_for_every_verb(call, place, monkeypatch):
    assert set(GOOD) == set(VERBS) - {"push"}
    monkeypatch.chdir(place)
    for verb, arguments in GOOD.items():
        code, out, err = call("-q", verb, *arguments, "--json")
        assert code == 0, f"{verb}: {err}"
        assert json.loads(out)["schema_version"] == 1, verb
        assert json.loads(out).get("exit_code", 0) == 0, verb


def test_a_bug_is_one_document_and_a_traceback(call, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("tokensurgeon.cli.recipes.shipped_recipes", fail)
    monkeypatch.setattr(sys, "argv", ["tokensurgeon", "recipes", "--json"])
    with pytest.raises(ZeroDivisionError):
        main()
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["exit_code"], document["error"]["code"]) == (False, 1, "TE1")
    assert document["error"]["found"] == "ZeroDivisionError: a bug"


def test_an_interrupt_is_one_document(call, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokensurgeon.cli.recipes.shipped_recipes", interrupt)
    code, out, err = call("recipes", "--json")
    assert (code, json.loads(out)["exit_code"], json.loads(out)["error"]["code"]) == (130, 130, "TE130")
    assert err.startswith("error TE130: interrupted")


def test_no_verb_is_met_with_the_help(call):
    code, out, err = call()
    assert (code, err) == (0, "")
    assert out.startswith("Usage:")
    assert all(verb in out for verb in VERBS)


def test_a_mistyped_verb_is_met_with_the_nearest(call):
    code, _, err = call("transplnt")
    assert code == 2
    assert "Did you mean 'transplant'?" in err


def complete(shell: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Ask for completions as the shell's script does; stderr tells whether large libraries were loaded."""
    code = (
        "import sys\nsys.argv = ['tokensurgeon']\nfrom tokensurgeon.cli.app import main\n"
        "try:\n    main()\nfinally:\n    print({'torch', 'transformers'} & {*sys.modules}, file=sys.stderr)"
    )
    line = " ".join(words)
    told = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line}
    environment = {**os.environ, **told, "_TOKENSURGEON_COMPLETE": f"complete_{shell}"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("words", "offered", "not_offered"),
    [
        (["tokensurgeon", "tra"], ["transplant", "train-tokenizer"], ["eval"]),
        (["tokensurgeon", "run", "--fail"], ["--fail-on"], ["--force"]),
        (["tokensurgeon", "transplant", "--method", "aff"], ["affknn", "affine"], ["zett"]),
        (["tokensurgeon", "recipes", "de"], ["demo"], ["hard"]),
        (["tokensurgeon", "--explain", "TS01"], ["TS017"], ["TS001"]),
        (["tokensurgeon", "run", "--fail-on", "TS"], ["TS017"], ["TE3"]),
    ],
)
def test_a_shell_completes_verbs_options_and_values_without_torch(shell, words, offered, not_offered):
    done = complete(shell, *words)
    assert done.stderr == "set()\n"
    for name in offered:
        assert name in done.stdout
    for name in not_offered:
        assert name not in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_can_be_shown_for_a_shell(call, shell, monkeypatch):
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, f"/bin/{shell}"))
    code, out, _ = call("--show-completion")
    assert code == 0
    assert f"complete_{shell}" in out
