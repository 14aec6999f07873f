"""``inspect``: two tokenizers side by side, and where a row of a finished output came from."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tokensurgeon.checkpoint import reader
from tokensurgeon.vocab.vocabulary import load_vocabulary


@pytest.fixture(scope="module")
def pair(make_model, sentencepiece, byte_level):
    return make_model("llama", sentencepiece), make_model("llama", byte_level, seed=1)


@pytest.fixture(scope="module")
def output(pair, tmp_path_factory):
    """A finished run: rows by omp, and one row that the user spelt out."""
    from tokensurgeon.pipeline import run
    from tokensurgeon.recipe.load import build_recipe

    place = tmp_path_factory.mktemp("finished") / "out"
    document = {
        "base": str(pair[0]),
        "donor": str(pair[1]),
        "output": str(place),
        "method": {"name": "omp", "k": 4},
        "anchors": {"minimum": 8, "map": {"<file_sep>": "the dog"}},
        "verify": {"forward": False},
    }
    run(build_recipe(document))
    return place


@pytest.fixture(scope="module")
def rows(output):
    return load_file(output / "model.safetensors")["model.embed_tokens.weight"]


def trace(call, output, *what):
    code, out, _ = call("inspect", output, *what, "--json")
    assert code == 0
    return json.loads(out)


def made_id(output):
    source = json.loads((output / "provenance.json").read_text())["vocab"]["model.embed_tokens.weight"][
        "source"
    ]
    report = json.loads((output / "report.json").read_text())
    table = report["tensors"][0]["rows"]
    return next(
        i for i, name in zip(table["ids"], table["methods"], strict=True) if source[i] == -1 and name == "omp"
    )


class TestRow:
    def test_a_copied_row_names_the_base_row_it_is_bit_for_bit(self, call, output, pair, rows):
        found = trace(call, output, "--token", " the")
        row = found["rows"][0]
        base = load_file(pair[0] / "model.safetensors")["model.embed_tokens.weight"]
        assert (row["tensor"], row["origin"]) == ("model.embed_tokens.weight", "copied")
        assert torch.equal(base[row["base_id"]], rows[found["token"]["id"]])
        assert load_vocabulary(pair[0]).tokens[row["base_id"]].text == " the"
        assert [row["role"] for row in found["rows"]] == ["embedding", "lm_head"]

    def test_a_made_row_is_the_combination_that_is_shown(self, call, output, pair, rows):
        index = made_id(output)
        row = trace(call, output, "--id", index)["rows"][0]
        base = load_file(pair[0] / "model.safetensors")["model.embed_tokens.weight"].float()
        combined = sum(part["weight"] * base[part["id"]] for part in row["made_of"])
        assert (row["origin"], row["method"]) == ("made", "omp")
        assert 0 < row["residual"] < 1
        torch.testing.assert_close(combined, rows[index].float(), atol=2e-2, rtol=2e-2)
        tokens = load_vocabulary(pair[0]).tokens
        assert all(tokens[part["id"]].text == part["token"] for part in row["made_of"])

    def test_the_nearest_rows_are_those_of_the_written_table(self, call, output, rows):
        index = made_id(output)
        row = trace(call, output, "--id", index)["rows"][0]
        cosines = torch.nn.functional.cosine_similarity(rows[index].double()[None], rows.double())
        cosines[index] = -2
        values, places = cosines.topk(len(row["nearest"]))
        assert [near["id"] for near in row["nearest"]] == places.tolist()
        assert [near["cosine"] for near in row["nearest"]] == pytest.approx(values.tolist())
        assert row["norm"] == pytest.approx(float(rows[index].double().norm()))

    def test_a_row_that_the_user_spelt_out_and_a_special_token_say_so(self, call, output):
        assert trace(call, output, "--token", "<file_sep>")["rows"][0]["method"] == "map"
        assert trace(call, output, "--token", "<|im_end|>")["rows"][0]["decided_by"] == "role eos"
        _, out, _ = call("inspect", output, "--token", "<|im_end|>")
        assert "(role eos)" in out

    def test_a_table_prints_the_same(self, call, output, monkeypatch):
        monkeypatch.setenv("CI", "1")
        index = made_id(output)
        row = trace(call, output, "--id", index)["rows"][0]
        code, out, _ = call("inspect", output, "--id", index)
        assert code == 0
        assert "omp" in out
        for near in row["nearest"]:
            assert f"{near['cosine']:.4f}" in out
        for part in row["made_of"]:
            assert f"{part['weight']:+.4g}" in out

    def test_the_body_is_not_read(self, call, output, monkeypatch):
        mapped = []
        map_tensor = reader.map_tensor
        monkeypatch.setattr(
            "tokensurgeon.evaluation.trace.map_tensor", lambda ref: mapped.append(ref.name) or map_tensor(ref)
        )
        trace(call, output, "--token", " the")
        assert mapped == ["model.embed_tokens.weight", "lm_head.weight"]

    def test_without_a_report_the_origin_is_still_known(self, call, output, tmp_path):
        bare = shutil.copytree(output, tmp_path / "bare")
        (bare / "report.json").unlink()
        row = trace(call, bare, "--id", made_id(output))["rows"][0]
        assert (row["origin"], row["method"], row["made_of"]) == ("made", None, [])
        assert "not in the report" in call("inspect", bare, "--id", made_id(output))[1]

    def test_what_is_no_output_or_no_token_is_refused(self, call, output, pair):
        code, _, err = call("inspect", pair[0], "--token", "the")
        assert (code, "no provenance.json" in err) == (3, True)
        code, _, err = call("inspect", output, "--token", "thee")
        assert (code, "no token 'thee'; it is cut into" in err, "did you mean" in err) == (3, True, True)
        code, _, err = call("inspect", output, "--id", 5000)
        assert (code, "no token with id 5000" in err) == (3, True)

    @pytest.mark.parametrize("arguments", [[], ["--token", "a", "--id", "3"], ["OTHER", "--token", "a"]])
    def test_what_does_not_go_together_is_refused(self, call, output, arguments):
        code, _, err = call("inspect", output, *arguments)
        assert code == 2
        assert "expected" in err


class TestTokenizers:
    def test_a_swap_changes_what_differs_and_nothing_for_the_same_tokenizer(
        self, call, byte_level, sentencepiece, tmp_path
    ):
        text = tmp_path / "text.txt"
        text.write_text("the dog\nthe fox 12\n" * 5)
        found = json.loads(call("inspect", byte_level, sentencepiece, "--text", text, "--json")[1])
        changes = {row["what"]: (row["base"], row["target"]) for row in found["swap"] if row["changes"]}
        assert changes["BOS before a prompt"] == (1, 0)
        assert changes["tokens"] == (load_size(sentencepiece), load_size(byte_level))
        assert changes["tokens of the texts"] == (
            found["cuts"]["base"]["tokens"],
            found["cuts"]["target"]["tokens"],
        )
        assert "digits" not in changes
        same = json.loads(call("inspect", byte_level, byte_level, "--text", text, "--json")[1])
        assert not any(row["changes"] for row in same["swap"])

    def test_roles_and_chat_markers_stand_side_by_side(self, call, byte_level, sentencepiece):
        found = json.loads(call("inspect", byte_level, sentencepiece, "--json")[1])["markers"]
        rows = {row["what"]: (row["base"], row["target"]) for row in found}
        assert rows["eos"] == (["<eos>"], ["<|im_end|>"])
        assert rows["chat, user to assistant"] == (
            ["<end_of_turn>", "<start_of_turn>"],
            ["<|im_end|>", "<|im_start|>"],
        )

    def test_overlap_by_frequency_is_that_of_the_text(self, call, byte_level, sentencepiece, tmp_path):
        text = tmp_path / "text.txt"
        text.write_text("the dog sleeps\n" * 5)
        document = json.loads(call("inspect", byte_level, sentencepiece, "--text", text, "--json")[1])
        [band] = document["frequency"]["bands"]
        assert band["occurrences"] == document["cuts"]["target"]["tokens"]
        assert band["occurrence_share"] == band["shared_occurrences"] / band["occurrences"]
        out = call("inspect", byte_level, sentencepiece, "--text", text)[1]
        assert f"{band['occurrence_share']:.1%}" in out

    def test_a_text_that_is_empty_or_no_utf8_is_refused(self, call, byte_level, sentencepiece, tmp_path):
        text = tmp_path / "text.txt"
        text.write_bytes(b"\xff\xfe")
        code, _, err = call("inspect", byte_level, sentencepiece, "--text", text)
        assert (code, "text.txt: byte 0 is not UTF-8" in err) == (3, True)
        text.write_bytes(b"")
        code, _, err = call("inspect", byte_level, sentencepiece, "--text", text)
        assert (code, "text.txt: empty text" in err) == (3, True)


def load_size(directory):
    return len(load_vocabulary(directory))
