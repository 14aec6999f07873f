"""What a person and a program see: results on stdout, everything else on stderr, the documented codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tokensurgeon.methods.registry import METHODS
from tokensurgeon.vocab.vocabulary import load_vocabulary


@pytest.fixture(scope="module")
def output(make_model, sentencepiece, byte_level, tmp_path_factory):
    """A finished run."""
    from tokensurgeon.pipeline import run
    from tokensurgeon.recipe.load import build_recipe

    place = tmp_path_factory.mktemp("finished") / "out"
    document = {
        "base": str(make_model("llama", sentencepiece)),
        "donor": str(make_model("llama", byte_level, seed=1)),
        "output": str(place),
        "method": {"name": "omp", "k": 8},
        "anchors": {"minimum": 8},
    }
    run(build_recipe(document))
    return place


def test_a_run_prints_a_summary_and_where_its_report_is(
    call, make_model, sentencepiece, byte_level, tmp_path
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {make_model('llama', sentencepiece)}\ntarget: {byte_level}\n"
        f"output: {tmp_path / 'out'}\nmethod: pieces\n"
    )
    code, out, err = call("run", recipe)
    assert code == 0
    assert "Done and verified" in out
    assert str(tmp_path / "out" / "report.html") in out
    assert "\x1b" not in out + err
    assert "\r" not in out + err


def test_a_run_in_json_is_exactly_one_document(call, make_model, sentencepiece, byte_level, tmp_path):
    code, out, _ = call(
        "transplant",
        make_model("llama", sentencepiece),
        byte_level,
        tmp_path / "out",
        "--method",
        "mean",
        "--json",
    )
    document = json.loads(out)
    assert (code, document["exit_code"], document["error"]) == (0, 0, None)
    assert document["report"] == json.loads((tmp_path / "out" / "report.json").read_text())


def test_a_plan_reads_no_weights_and_writes_nothing(call, make_model, sentencepiece, byte_level, tmp_path):
    base = make_model("llama", sentencepiece)
    before = sorted(tmp_path.rglob("*"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {base}\ntarget: {byte_level}\noutput: {tmp_path / 'out'}\nmethod: pieces\n")
    code, out, _ = call("plan", recipe, "--json")
    plan = json.loads(out)["plan"]
    assert code == 0
    assert plan["rows_after"] == 420
    assert {row["field"] for row in plan["config_changes"]} >= {"vocab_size", "eos_token_id"}
    assert sorted(tmp_path.rglob("*")) == [*before, recipe]
    code, out, _ = call("run", recipe, "--dry-run")
    assert code == 0
    assert "Config changes" in out
    assert not (tmp_path / "out").exists()


def test_verify_accepts_an_output_and_names_what_was_tampered_with(call, output, tmp_path):
    code, out, _ = call("verify", output, "--no-forward")
    assert code == 0
    assert "FAILED" not in out
    damaged = Path(shutil.copytree(output, tmp_path / "damaged"))
    weights = damaged / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    code, out, err = call("verify", damaged, "--no-forward")
    assert code == 5
    assert "FAILED" in out
    assert "1 of" in err
    code, out, _ = call("verify", damaged, "--no-forward", "--json")
    assert (code, json.loads(out)["ok"]) == (5, False)


def test_verify_takes_any_checkpoint(call, make_model, sentencepiece):
    code, out, _ = call("verify", make_model("llama-tied", sentencepiece))
    assert code == 0
    assert "forward pass" in out


def test_inspect_tells_how_a_text_is_cut_and_which_tokens_no_text_leads_to(
    call, byte_level, sentencepiece, tmp_path
):
    text = tmp_path / "text.txt"
    text.write_text("the dog\nthe fox\n")
    code, out, _ = call("inspect", byte_level, sentencepiece, "--text", str(text), "--unreachable", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["texts"]["lines"] == 2
    assert found["texts"]["bytes_per_token_base"] != found["texts"]["bytes_per_token_target"]
    same = json.loads(call("inspect", byte_level, byte_level, "--text", str(text), "--json")[1])
    assert same["texts"]["share_of_lines_cut_otherwise"] == 0
    never = {row["id"] for row in found["unreachable"]}
    assert never
    assert not never & set(load_vocabulary(byte_level).encode("".join(map(chr, range(0x3000)))))
    code, out, _ = call("inspect", byte_level, sentencepiece, "--text", str(text), "--unreachable")
    assert "bytes per token target" in out


def test_inspect_shows_overlap_and_special_tokens(call, byte_level, sentencepiece):
    code, out, _ = call("inspect", byte_level, sentencepiece)
    assert code == 0
    assert "Latin" in out
    assert "role eos" in out
    code, out, _ = call("inspect", byte_level, sentencepiece, "--json")
    facts = json.loads(out)
    assert facts["byte_equal"] + facts["missing"] <= facts["target"]["tokens"]
    assert facts["target"]["digits"]


def test_methods_lists_every_method_with_its_paper(call):
    code, out, _ = call("methods", "--json")
    methods = {row["name"]: row for row in json.loads(out)["methods"]}
    assert code == 0
    assert set(methods) == set(METHODS)
    assert "2506.06607" in methods["omp"]["paper"]
    assert methods["omp"]["parameters"]["k"]["default"] == 64


def test_methods_tells_all_about_one(call):
    code, out, _ = call("methods", "wechsel")
    assert code == 0
    for said in ("2112.06598", "resources.target_vectors, resources.corpus", "tokensurgeon[vectors]", "0.1"):
        assert said in out
    code, _, err = call("methods", "wexel")
    assert code == 2
    assert "did you mean 'wechsel'?" in err


def test_recipes_lists_and_copies_but_never_overwrites(call, tmp_path):
    code, out, _ = call("recipes")
    assert code == 0
    assert "demo" in out
    copy = tmp_path / "mine.yaml"
    assert call("recipes", "demo", copy)[0] == 0
    assert copy.read_text().startswith("# Gemma 3 270M")
    assert call("recipes", "demo", copy)[0] == 4
    code, _, err = call("recipes", "dmo")
    assert code == 2
    assert "did you mean 'demo'?" in err


def test_report_shows_the_summary_of_a_finished_run(call, output):
    code, out, _ = call("report", output)
    assert code == 0
    assert "byte-equal matches" in out
    code, out, _ = call("report", output, "--json")
    assert json.loads(out) == json.loads((output / "report.json").read_text())


def test_every_number_of_the_summary_is_in_the_report(output):
    from tokensurgeon.report.model import load_report

    report = load_report(output)
    assert sum(row.tokens for row in report.origins) == report.vocabulary.target_tokens
    for tensor in report.tensors:
        assert tensor.copied + tensor.made + tensor.padding == report.vocabulary.rows


def test_an_interrupt_has_its_own_code(call, monkeypatch, tmp_path):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokensurgeon.cli.run.load_recipe", interrupt)
    code, _, err = call("run", tmp_path / "recipe.yaml")
    assert code == 130
    assert "interrupted" in err


def test_force_replaces_an_output_once_the_new_one_is_verified(
    call, make_model, sentencepiece, byte_level, tmp_path
):
    base = make_model("llama", sentencepiece)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    arguments = ["transplant", base, byte_level, tmp_path / "out", "--method", "mean", "--set"]
    arguments += ["verify.forward=false", "--force"]
    assert call(*arguments)[0] == 0
    assert not (tmp_path / "out" / "old").exists()
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_quiet_says_nothing_on_success(call, make_model, sentencepiece, byte_level, tmp_path):
    arguments = ["-q", "transplant", make_model("llama", sentencepiece), byte_level, tmp_path / "out"]
    code, _, err = call(*arguments, "--method", "mean", "--set", "verify.forward=false")
    assert (code, err) == (0, "")


def test_verify_notices_a_tokenizer_file_that_is_not_the_targets(call, output, tmp_path):
    damaged = Path(shutil.copytree(output, tmp_path / "damaged"))
    (damaged / "tokenizer.model").write_bytes(b"stale")
    code, out, _ = call("verify", damaged, "--no-forward")
    assert code == 5
    assert "tokenizer.model is not the target's" in out
