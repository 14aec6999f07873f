"""Runs that edit the base's own tokenizer: what is kept stays as it was, bit for bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tokensurgeon.cli.app import main
from tokensurgeon.errors import InputError, RecipeError
from tokensurgeon.pipeline import run
from tokensurgeon.recipe.load import build_recipe
from tokensurgeon.vocab.vocabulary import load_vocabulary

TEXT = "the quick brown fox jumps over the dog. add the dog first. 1234 naïve café\n"


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT * 20 + "zyxwv zyxwv zyxwv\n" * 50, encoding="utf-8")
    return path


def edit(base: Path, output: Path, *edits: dict, **more):
    document = {"base": str(base), "output": str(output), "edits": list(edits), **more}
    return run(build_recipe(document)).report


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    return found


def logits(directory: Path, ids: list[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype="float32")
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


KINDS = [("llama", "byte_level"), ("gemma3", "sentencepiece"), ("gpt2", "byte_level")]


@pytest.mark.parametrize(("kind", "tokenizer"), KINDS)
def test_a_trimmed_model_reads_kept_tokens_as_before(kind, tokenizer, make_model, request, corpus, tmp_path):
    base = make_model(kind, request.getfixturevalue(tokenizer))
    out = tmp_path / "out"
    report = edit(base, out, {"operation": "trim", "corpus": [str(corpus)]})
    old, new = load_vocabulary(base), load_vocabulary(out)
    assert report.passed
    assert len(new) < len(old)
    assert list(new.tokens) == list(range(len(new)))
    origins = json.loads((out / "id_map.json").read_text())["new_to_old"]
    ids, old_ids = new.encode(TEXT), old.encode(TEXT)
    assert [origins[index] for index in ids] == old_ids
    assert torch.allclose(logits(out, ids), logits(base, old_ids)[:, origins], atol=1e-5)


def test_an_extended_model_has_every_old_row_where_it_was(make_model, byte_level, corpus, tmp_path):
    base = make_model("llama", byte_level)
    out = tmp_path / "out"
    report = edit(base, out, {"operation": "extend", "corpus": [str(corpus)], "count": 5})
    old, new = tensors(base), tensors(out)
    changed = {name for name in old if not torch.equal(old[name], new[name][: len(old[name])])}
    grown = {name for name in old if len(new[name]) > len(old[name])}
    assert report.passed
    assert not changed
    assert grown == {"model.embed_tokens.weight", "lm_head.weight"}
    assert report.edits.keeps_ids
    assert len(load_vocabulary(out).encode("zyxwv")) < len(load_vocabulary(base).encode("zyxwv"))


def test_padding_rows_are_used_first_and_those_left_over_stay(make_model, byte_level, corpus, tmp_path):
    bound = load_vocabulary(byte_level).bound
    base = make_model("llama-tied", byte_level, vocab_size=bound + 16)
    out = tmp_path / "out"
    edit(base, out, {"operation": "extend", "corpus": [str(corpus)], "count": 5})
    old, new = (tensors(place)["model.embed_tokens.weight"] for place in (base, out))
    added = load_vocabulary(out).bound - bound
    assert 0 < added < 16
    assert old.shape == new.shape
    assert torch.equal(old[:bound], new[:bound])
    assert torch.equal(old[bound + added :], new[bound + added :])
    assert not torch.equal(old[bound : bound + added], new[bound : bound + added])


def test_new_tokens_are_made_of_their_pieces_by_default(make_model, byte_level, corpus, tmp_path):
    base, out = make_model("llama", byte_level), tmp_path / "out"
    report = edit(base, out, {"operation": "extend", "corpus": [str(corpus)], "count": 5})
    assert [part.origin for part in report.origins if part.origin.startswith("method")] == ["method: pieces"]


def test_a_donor_that_counts_otherwise_gives_each_token_its_own_row(
    make_model, byte_level, sentencepiece, tmp_path
):
    from tokensurgeon.plan import make_plan
    from tokensurgeon.sourcing import donor_counterpart

    base, donor = make_model("llama", byte_level), make_model("llama-tied", sentencepiece, seed=1)
    plan = make_plan(
        build_recipe(
            {
                "base": str(base),
                "target": str(base),
                "donor": str(donor),
                "output": str(tmp_path / "out"),
                "edits": [{"operation": "union", "tokenizer": str(donor)}],
                "method": {"name": "omp", "k": 4},
                "anchors": {"minimum": 8},
            }
        )
    )
    rows = donor_counterpart(plan, plan.inputs.layout.embedding)
    table = tensors(donor)["model.embed_tokens.weight"]
    theirs = load_vocabulary(donor)
    new = [index for index in plan.wanted if index in plan.donor_ids]
    assert new
    for index in new:
        own = plan.donor_ids[index]
        assert plan.match.target.tokens[index].data == theirs.tokens[own].data
        assert torch.equal(rows[index], table[own])


def test_a_merged_model_speaks_both_vocabularies(make_model, byte_level, sentencepiece, tmp_path):
    base, donor = make_model("llama", byte_level), make_model("llama-tied", sentencepiece, seed=1)
    out = tmp_path / "out"
    report = edit(
        base,
        out,
        {"operation": "union", "tokenizer": str(donor)},
        target=str(base),
        donor=str(donor),
        method={"name": "omp", "k": 4},
        anchors={"minimum": 8},
    )
    old, new = (tensors(place)["model.embed_tokens.weight"] for place in (base, out))
    assert report.passed
    assert torch.equal(new[: len(old)], old)
    assert sum(part.tokens for part in report.origins if part.origin == "method: omp") > 0


def test_edits_are_done_in_their_order_and_reported_together(make_model, byte_level, corpus, tmp_path):
    base, out = make_model("llama", byte_level), tmp_path / "out"
    report = edit(
        base,
        out,
        {"operation": "extend", "corpus": [str(corpus)], "count": 5},
        {"operation": "trim", "corpus": [str(corpus)]},
        report={"texts": [str(corpus)]},
    )
    extended, trimmed = report.edits.steps
    assert (extended.operation, trimmed.operation) == ("extend", "trim")
    assert extended.before < extended.after == trimmed.before > trimmed.after
    assert report.edits.bytes_per_token_after > report.edits.bytes_per_token_before
    assert report.passed


def test_a_target_is_trimmed_before_it_is_transplanted(
    make_model, byte_level, sentencepiece, corpus, tmp_path
):
    base, donor = make_model("llama", byte_level), make_model("gemma3", sentencepiece)
    out = tmp_path / "out"
    report = edit(
        base,
        out,
        {"operation": "trim", "corpus": [str(corpus)]},
        donor=str(donor),
        method={"name": "nearest", "k": 4},
        anchors={"minimum": 8},
    )
    assert report.passed
    assert report.vocabulary.rows == len(load_vocabulary(out)) < len(load_vocabulary(donor))
    assert load_vocabulary(out).encode(TEXT) != load_vocabulary(base).encode(TEXT)


def test_supertokens_shorten_text_and_leave_other_text_alone(make_model, byte_level, corpus, tmp_path):
    base, out = make_model("llama", byte_level), tmp_path / "out"
    report = edit(
        base,
        out,
        {"operation": "supertokens", "corpus": [str(corpus)], "count": 8},
        report={"texts": [str(corpus)]},
    )
    old, new = load_vocabulary(base), load_vocabulary(out)
    assert report.edits.keeps_ids
    assert len(new.encode(TEXT)) < len(old.encode(TEXT))
    assert new.encode("the first dog, the second") == old.encode("the first dog, the second")


def test_a_trained_tokenizer_is_a_target(make_model, byte_level, corpus, tmp_path):
    base, out = make_model("llama", byte_level), tmp_path / "out"
    report = edit(base, out, {"operation": "train", "corpus": [str(corpus)], "size": 300})
    assert report.passed
    assert report.vocabulary.rows == len(load_vocabulary(out)) <= 300


def special_heavy(directory: Path, source: Path, names: list[str], first: int) -> Path:
    """A tokenizer with special tokens behind a hole in its ids, as mBART's language codes are."""
    import shutil

    shutil.copytree(source, directory)
    path = directory / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for place, name in enumerate(names):
        spec["added_tokens"].append({"id": first + place, "content": name, **flags})
        spec["model"]["vocab"][name] = first + place
    path.write_text(json.dumps(spec), encoding="utf-8")
    return directory


def test_language_codes_behind_a_hole_close_up_and_configs_follow(make_model, byte_level, corpus, tmp_path):
    bound = load_vocabulary(byte_level).bound
    codes = ["en_XX", "fr_XX"]
    tokenizer = special_heavy(tmp_path / "tokenizer", byte_level, codes, bound + 5)
    base, out = make_model("bart", tokenizer, vocab_size=bound + 7), tmp_path / "out"
    path = base / "generation_config.json"
    named = {"forced_bos_token_id": bound + 6, "forced_decoder_ids": [[1, bound + 5], [2, bound + 6]]}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    report = edit(base, out, {"operation": "trim", "corpus": [str(corpus)]})
    new = load_vocabulary(out)
    assert report.passed
    assert list(new.tokens) == list(range(len(new)))
    english, french = (new.by_content[code].id for code in codes)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["forced_bos_token_id"] == french
    assert generation["forced_decoder_ids"] == [[1, english], [2, french]]
    old_row, new_row = (
        tensors(place)["model.shared.weight"][load_vocabulary(place).by_content["fr_XX"].id]
        for place in (base, out)
    )
    assert torch.equal(old_row, new_row)


def test_every_sentinel_of_t5_is_kept_with_its_row(make_model, sentencepiece, corpus, tmp_path):
    bound = load_vocabulary(sentencepiece).bound
    sentinels = [f"<extra_id_{number}>" for number in range(9, -1, -1)]
    tokenizer = special_heavy(tmp_path / "tokenizer", sentencepiece, sentinels, bound)
    base, out = make_model("t5", tokenizer), tmp_path / "out"
    edit(base, out, {"operation": "trim", "corpus": [str(corpus)]})
    old, new = load_vocabulary(base), load_vocabulary(out)
    rows, kept = tensors(base)["shared.weight"], tensors(out)["shared.weight"]
    ids = [new.by_content[name].id for name in sentinels]
    assert ids == list(range(ids[0], ids[0] + 10))
    assert torch.equal(kept[ids], rows[[old.by_content[name].id for name in sentinels]])


def test_suppressed_ids_follow_their_tokens_and_lose_those_that_are_gone(
    make_model, byte_level, corpus, tmp_path
):
    base, out = make_model("llama", byte_level), tmp_path / "out"
    old = load_vocabulary(base)
    stays = old.encode(TEXT)[:3]
    goes = next(index for index in reversed(old.tokens) if index not in set(old.encode(TEXT)))
    path = base / "generation_config.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | {"suppress_tokens": [*stays, goes], "begin_suppress_tokens": stays}))
    edit(base, out, {"operation": "trim", "corpus": [str(corpus)]})
    new_ids = {
        old: new for new, old in enumerate(json.loads((out / "id_map.json").read_text())["new_to_old"])
    }
    assert goes not in new_ids
    after = json.loads((out / "generation_config.json").read_text())
    assert after["suppress_tokens"] == after["begin_suppress_tokens"] == [new_ids[index] for index in stays]


def test_what_an_edit_lacks_is_refused_before_anything_is_written(make_model, byte_level, tmp_path):
    base, out = make_model("llama", byte_level), tmp_path / "out"
    with pytest.raises(RecipeError, match="trim"):
        edit(base, out, {"operation": "trim"})
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        edit(base, out, {"operation": "trim", "corpus": [str(tmp_path / "nowhere.txt")]})
    with pytest.raises(RecipeError, match="extend needs tokens"):
        edit(base, out, {"operation": "extend"})
    with pytest.raises(RecipeError, match="operation"):
        edit(base, out, {"operation": "shrink"})
    assert not out.exists()


def test_the_edited_tokenizer_leaves_no_temporary_files(
    make_model, byte_level, corpus, tmp_path, monkeypatch
):
    import gc
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    edit(make_model("llama", byte_level), tmp_path / "out", {"operation": "trim", "corpus": [str(corpus)]})
    gc.collect()
    assert not list((tmp_path / "temporary").glob("tokensurgeon-*"))


def command(monkeypatch, capsys, *words: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["tokensurgeon", *words, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert not ended.value.code, captured.err
    return json.loads(captured.out)


def test_each_verb_is_its_recipe_in_one_line(make_model, byte_level, corpus, tmp_path, monkeypatch, capsys):
    base = str(make_model("llama", byte_level))
    lines = {
        "trim": ["--corpus", str(corpus), "--least", "2", "--multiple-of", "8"],
        "extend": ["--corpus", str(corpus), "--count", "4", "--method", "mean"],
        "supertokens": ["--corpus", str(corpus), "--count", "4", "--most-words", "3"],
    }
    asked = {
        "trim": {"corpus": [str(corpus)], "least": 2, "multiple_of": 8},
        "extend": {"corpus": [str(corpus)], "count": 4},
        "supertokens": {"corpus": [str(corpus)], "count": 4, "most_words": 3},
    }
    for verb, words in lines.items():
        document = command(monkeypatch, capsys, verb, base, str(tmp_path / verb), "--dry-run", *words)
        again = build_recipe(
            {"base": base, "output": "x", "edits": [{"operation": verb, **asked[verb]}], "method": "pieces"}
        )
        step = document["plan"]["edits"]
        assert step == [f"{s.params.operation} {s.before:,} -> {s.after:,} tokens" for s in steps_of(again)]


def steps_of(recipe):
    from tokensurgeon.edits.chain import edit_tokenizer

    return edit_tokenizer(Path(recipe.base.path), recipe.edits).steps


def test_a_tokenizer_is_trained_alone_and_taken_as_a_target(
    make_model, byte_level, corpus, tmp_path, monkeypatch, capsys
):
    base, new = make_model("llama", byte_level), tmp_path / "new"
    document = command(
        monkeypatch, capsys, "train-tokenizer", str(base), str(new), "--corpus", str(corpus), "--size", "300"
    )
    assert document["facts"]["tokens_after"] == len(load_vocabulary(new)) <= 300
    assert not list(new.glob("*.safetensors"))
    command(
        monkeypatch, capsys, "transplant", str(base), str(new), str(tmp_path / "out"), "--method", "pieces"
    )
    assert load_vocabulary(tmp_path / "out").encode(TEXT) == load_vocabulary(new).encode(TEXT)


def test_tokenised_data_follows_the_id_map(make_model, byte_level, corpus, tmp_path, monkeypatch, capsys):
    import numpy as np

    base, out = make_model("llama", byte_level), tmp_path / "out"
    command(monkeypatch, capsys, "trim", str(base), str(out), "--corpus", str(corpus), "--tokenizer-only")
    old, new = load_vocabulary(base), load_vocabulary(out)
    np.save(tmp_path / "old.npy", np.array([old.encode(TEXT)] * 2, dtype=np.uint16))
    command(monkeypatch, capsys, "remap-ids", str(out), str(tmp_path / "old.npy"), str(tmp_path / "new.npy"))
    assert np.load(tmp_path / "new.npy").tolist() == [new.encode(TEXT)] * 2


def test_supertokens_may_take_the_place_of_the_least_used_tokens(byte_level, corpus):
    from tokensurgeon.edits.chain import edit_tokenizer
    from tokensurgeon.edits.params import SupertokensParams

    params = SupertokensParams(corpus=(str(corpus),), count=6, replace=True)
    edited = edit_tokenizer(byte_level, [params])
    assert len(edited.after) == len(edited.before)
    assert not edited.keeps_ids
    assert edited.steps[0].facts["removed"] > 0
    assert len(edited.after.encode(TEXT)) < len(edited.before.encode(TEXT))
    assert edited.after.tokenizer.decode(edited.after.encode(TEXT)) == TEXT


def refused(monkeypatch, capsys, code: int, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["tokensurgeon", *words])
    with pytest.raises(SystemExit, match=rf"^{code}$"):
        main()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "option", "key"),
    [
        ("trim", "--size", "size"),
        ("trim", "--least", "least"),
        ("trim", "--multiple-of", "multiple_of"),
        ("extend", "--count", "count"),
        ("supertokens", "--most-words", "most_words"),
        ("train-tokenizer", "--growth", "growth"),
    ],
)
def test_an_option_of_zero_is_refused_and_not_forgotten(
    verb, option, key, byte_level, corpus, tmp_path, monkeypatch, capsys
):
    line = [verb, str(byte_level), str(tmp_path / "out"), "--corpus", str(corpus), option, "0"]
    assert f"edits.0.{key}: 0" in refused(monkeypatch, capsys, 2, *line).replace("0.0;", "0;")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_alone_refuses_what_only_a_model_has(byte_level, corpus, tmp_path, monkeypatch, capsys):
    line = ["extend", str(byte_level), str(tmp_path / "out"), "--corpus", str(corpus), "--count", "3"]
    for words, named in {
        ("--text", str(corpus)): "report",
        ("--method", "mean"): "method",
        ("--donor", "elsewhere"): "donor",
        ("--set", "rows=exact"): "rows",
        ("--fail-on", "TS001"): "verify",
    }.items():
        err = refused(monkeypatch, capsys, 2, *line, "--tokenizer-only", *words)
        assert f"--tokenizer-only with {named}" in err
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_alone_can_be_planned_and_set(byte_level, corpus, tmp_path, monkeypatch, capsys):
    line = ["trim", str(byte_level), str(tmp_path / "out"), "--corpus", str(corpus), "--tokenizer-only"]
    planned = command(monkeypatch, capsys, *line, "--dry-run")
    assert planned["dry_run"]
    assert not (tmp_path / "out").exists()
    smaller = f"edits=[{{operation: trim, corpus: [{corpus}], size: 285}}]"
    written = command(monkeypatch, capsys, *line, "--set", smaller, "--set", f"output={tmp_path / 'small'}")
    assert written["facts"]["tokens_after"] <= 285 < planned["facts"]["tokens_after"]
    assert len(load_vocabulary(tmp_path / "small")) == written["facts"]["tokens_after"]
