"""A whole run on tiny models: what comes out is the base, but for the rows that had to change."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tokensurgeon.checkpoint.expectation import load_expectation
from tokensurgeon.pipeline import run
from tokensurgeon.recipe.load import build_recipe


def transplant(base: Path, donor: Path, output: Path, *overrides: str):
    recipe = build_recipe(
        {"base": str(base), "donor": str(donor), "output": str(output), "anchors": {"minimum": 8}},
        ["method.k=8", *overrides],
    )
    return run(recipe).report


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    return found


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gemma3", "granite", "gpt2", "t5", "phi"])
def test_a_model_given_its_own_tokenizer_is_bit_identical(kind, make_model, sentencepiece, tmp_path):
    base = make_model(kind, sentencepiece)
    report = transplant(base, base, tmp_path / "out")
    old, new = tensors(base), tensors(tmp_path / "out")
    assert old.keys() == new.keys()
    assert all(same_bits(old[name], new[name]) for name in old)
    assert report.passed
    assert not report.config_changes


def test_an_encoder_given_its_own_tokenizer_is_bit_identical(make_model, wordpiece, tmp_path):
    base = make_model("bert", wordpiece)
    assert transplant(base, base, tmp_path / "out").passed
    old, new = tensors(base), tensors(tmp_path / "out")
    assert old.keys() == new.keys()
    assert all(same_bits(old[name], new[name]) for name in old)


class TestHidden:
    """How far off rows are is told by shared tokens that are made again."""

    @pytest.fixture
    def pair(self, make_model, sentencepiece, byte_level):
        return make_model("llama", byte_level), make_model("llama-tied", sentencepiece, seed=1)

    def test_it_is_told_for_each_end(self, pair, tmp_path):
        report = transplant(*pair, tmp_path / "out", "report.hidden=20")
        assert 0 < report.hidden.tokens <= 20
        assert [off.tensor for off in report.hidden.errors] == ["model.embed_tokens.weight", "lm_head.weight"]
        assert all(off.weighted > 0 for off in report.hidden.errors)
        assert "made again" in (tmp_path / "out" / "report.html").read_text()

    def test_a_better_method_is_told_to_be_better(self, pair, tmp_path):
        errors = [
            transplant(*pair, tmp_path / name, f"method={name}", "report.hidden=40").hidden.errors[0].weighted
            for name in ("affine", "stb")
        ]
        # Rows of two random models have nothing in common: whoever says least is least wrong.
        assert errors[0] < errors[1]

    def test_a_few_of_many_are_hidden_too(self, pair, tmp_path):
        assert 0 < transplant(*pair, tmp_path / "out", "report.hidden=2").hidden.tokens <= 2

    def test_none_is_hidden_where_that_is_not_asked_for(self, pair, tmp_path):
        assert transplant(*pair, tmp_path / "none", "report.hidden=0").hidden is None
        assert transplant(*pair, tmp_path / "pieces", "method=pieces").hidden is None

    def test_none_is_hidden_where_too_few_anchors_would_be_left(self, pair, tmp_path):
        report = transplant(*pair, tmp_path / "out", "anchors.minimum=360", "report.hidden=40")
        assert 360 < report.anchors.count < 400
        assert report.hidden is None


@pytest.mark.parametrize("base_kind", ["llama", "gemma3"])
@pytest.mark.parametrize("donor_kind", ["llama", "llama-tied"])
def test_tied_and_untied_bases_take_tied_and_untied_donors(
    base_kind, donor_kind, make_model, sentencepiece, byte_level, tmp_path
):
    base = make_model(base_kind, sentencepiece)
    donor = make_model(donor_kind, byte_level, seed=1, hidden_size=24)
    report = transplant(base, donor, tmp_path / "out")
    old, new = tensors(base), tensors(tmp_path / "out")
    assert report.passed
    assert old.keys() == new.keys()
    rows = tensors(donor)["model.embed_tokens.weight"].shape[0]
    vocabulary = {"model.embed_tokens.weight", "lm_head.weight"}
    for name in old:
        if name in vocabulary:
            assert new[name].shape == (rows, old[name].shape[1])
        else:
            assert same_bits(old[name], new[name])


def test_shards_without_vocabulary_tensors_stay_byte_identical(
    make_model, sentencepiece, byte_level, tmp_path
):
    base = make_model("llama", sentencepiece, shard="12KB")
    donor = make_model("llama", byte_level, seed=1)
    transplant(base, donor, tmp_path / "out")
    index = json.loads((base / "model.safetensors.index.json").read_text())
    new_index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    touched = {index["weight_map"][name] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    assert len(shards - touched) >= 2
    assert new_index["weight_map"] == index["weight_map"]
    for shard in shards:
        same = filecmp.cmp(base / shard, tmp_path / "out" / shard, shallow=False)
        assert same is (shard not in touched)
    written = tensors(tmp_path / "out").values()
    assert new_index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in written)


def test_two_runs_write_byte_identical_directories(make_model, sentencepiece, byte_level, tmp_path):
    base = make_model("llama", sentencepiece)
    donor = make_model("llama", byte_level, seed=1)
    for name in ("one", "two"):
        transplant(base, donor, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    _, different, errors = filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", files, shallow=False)
    assert not different
    assert not errors


def test_matched_rows_are_the_bases_and_ids_follow_their_tokens(
    make_model, sentencepiece, byte_level, tmp_path
):
    base = make_model("llama", sentencepiece)
    donor = make_model("llama", byte_level, seed=1)
    report = transplant(base, donor, tmp_path / "out")
    ours = json.loads((byte_level / "tokenizer.json").read_text())["model"]["vocab"]
    theirs = json.loads((sentencepiece / "tokenizer.json").read_text())["model"]["vocab"]
    old, new = tensors(base), tensors(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        for target, source in (("Ġthe", "▁the"), ("Ċ", "\n"), ("<|im_end|>", "<eos>"), ("ã", "<0xE3>")):
            assert same_bits(new[name][ours[target]], old[name][theirs[source]])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert config["vocab_size"] == new["lm_head.weight"].shape[0]
    assert config["eos_token_id"] == generation["eos_token_id"] == ours["<|im_end|>"]
    assert report.matching.false_matches == 0
    assert "TS019" in {warning.code for warning in report.warnings}
    assert {row.token: row.base_tokens for row in report.specials}["<|im_start|>"] == ["<bos>"]
    # The output has the donor's tokenizer and rows, so it could be its draft; nobody asked for that.
    assert (report.draft.model, report.draft.asked) == (str(donor), False)
    verdicts = {verdict.rule: verdict.result for verdict in report.draft.verdicts}
    assert (verdicts["every draft"], verdicts["tensorrt-llm"]) == ("passes", "not checked")


def test_the_report_tells_what_every_made_row_is_made_of(
    make_model, sentencepiece, byte_level, tmp_path, monkeypatch
):
    base = make_model("llama", sentencepiece)
    donor = make_model("llama", byte_level, seed=1)
    report = transplant(base, donor, tmp_path / "out", "verify.forward=false")
    vocabulary = json.loads((byte_level / "tokenizer.json").read_text())["model"]["vocab"]
    for tensor in report.tensors:
        rows = tensor.rows
        assert rows.made == len(rows.ids) == tensor.made
        assert rows.ids == sorted(rows.ids)
        at = rows.ids.index(vocabulary["<file_sep>"])
        assert rows.tokens[at] == "<file_sep>"
        assert all(rows.source_tokens[source] for sources in rows.sources for source in sources)
        weights = [abs(weight) for weight in rows.weights[at]]
        assert weights == sorted(weights, reverse=True)
    # A worst row is the same in both places.
    worst = report.tensors[0].worst[0]
    at = report.tensors[0].rows.ids.index(worst.id)
    rows = report.tensors[0].rows
    assert [part.token for part in worst.made_of] == [rows.source_tokens[i] for i in rows.sources[at]]
    monkeypatch.setattr("tokensurgeon.quality._MOST_ROWS", 5)
    few = transplant(base, donor, tmp_path / "few", "report.hidden=0", "verify.forward=false").tensors[0].rows
    text = [index for index in rows.ids if index not in (0, 1, 2, 3)]
    assert (few.made, few.ids) == (rows.made, text[:5])


def test_what_the_bases_card_says_of_its_licence_is_in_the_outputs(
    make_model, sentencepiece, byte_level, tmp_path
):
    base = make_model("llama", sentencepiece)
    (base / "README.md").write_text("---\nlicense: apache-2.0\ntags: [secret]\n---\nAn old card.\n")
    transplant(base, byte_level, tmp_path / "out", "method=pieces", "verify.forward=false")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "secret" not in card
    assert "base_model" not in card  # a folder
    assert "An old card" not in card


def test_no_tokenizer_file_of_the_base_survives(make_model, sentencepiece, byte_level, tmp_path):
    base = make_model("llama", sentencepiece)
    (base / "tokenizer.model").write_bytes(b"stale")
    (base / "special_tokens_map.json").write_text("{}")
    (base / "LICENSE").write_text("terms")
    transplant(base, make_model("llama", byte_level, seed=1), tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert not files & {"tokenizer.model", "special_tokens_map.json"}
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert filecmp.cmp(byte_level / name, tmp_path / "out" / name, shallow=False)


@pytest.mark.parametrize("method", ["pieces", "mean", "gaussian", "zero"])
def test_methods_without_a_donor_need_only_a_tokenizer(
    method, make_model, sentencepiece, byte_level, tmp_path
):
    base = make_model("llama", sentencepiece)
    recipe = build_recipe(
        {"base": str(base), "target": str(byte_level), "output": str(tmp_path / "out"), "method": method}
    )
    report = run(recipe).report
    assert report.passed
    assert report.draft is None  # of a tokenizer there are no drafts


@pytest.mark.parametrize(
    ("policy", "rows"), [("exact", 420), ("multiple: 64", 448), ("multiple: 42", 420), ("500", 500)]
)
def test_row_policies_pad_with_the_mean_row(policy, rows, make_model, sentencepiece, byte_level, tmp_path):
    base = make_model("llama", sentencepiece)
    override = f"rows={{{policy}}}" if ":" in policy else f"rows={policy}"
    report = transplant(base, byte_level, tmp_path / "out", "method=pieces", override)
    new = tensors(tmp_path / "out")["lm_head.weight"]
    assert new.shape[0] == report.vocabulary.rows == rows
    assert (new != 0).any(dim=1).all()
    assert report.vocabulary.padding == rows - 420


def test_the_donors_padding_is_kept_by_default(make_model, sentencepiece, byte_level, tmp_path):
    base = make_model("llama", sentencepiece)
    donor = make_model("llama", byte_level, seed=1, vocab_size=512)
    assert transplant(base, donor, tmp_path / "out").vocabulary.rows == 512


def test_a_token_past_the_donors_rows_gets_a_row_and_a_warning(
    make_model, sentencepiece, byte_level, tmp_path
):
    base = make_model("llama", sentencepiece)
    donor = make_model("llama", byte_level, seed=1, vocab_size=400)
    report = transplant(base, donor, tmp_path / "out", "rows=exact")
    assert report.vocabulary.rows == 420
    assert "TS003" in {warning.code for warning in report.warnings}
    assert report.passed


def test_a_factorised_table_is_written_beside_the_dense_one(make_model, sentencepiece, byte_level, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The quick brown fox jumps over the lazy dog.\n" * 20)
    base = make_model("llama", sentencepiece)
    report = transplant(
        base, byte_level, tmp_path / "out", "method={name: ofa, rank: 5}", f"resources.corpus=[{corpus}]"
    )
    assert report.passed
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert report.files[f"factors/{name}.safetensors"] == "rebuilt"
        with safe_open(tmp_path / "out" / "factors" / f"{name}.safetensors", "pt") as file:
            coordinates, primitives = (file.get_tensor(part) for part in ("coordinates", "primitives"))
        dense = tensors(tmp_path / "out")[name].float()
        assert (coordinates.shape, primitives.shape) == ((420, 5), (5, dense.shape[1]))
        # The nearest table in the span of the primitives leaves a rest that is orthogonal to them.
        rest = dense - coordinates @ primitives
        assert (rest @ primitives.T).abs().max() < 1e-3 * dense.norm()


def test_a_head_bias_follows_its_head(make_model, sentencepiece, byte_level, tmp_path):
    base = make_model("phi", sentencepiece)
    report = transplant(base, byte_level, tmp_path / "out", "method=pieces")
    old, new = tensors(base)["lm_head.bias"], tensors(tmp_path / "out")["lm_head.bias"]
    ours = json.loads((byte_level / "tokenizer.json").read_text())["model"]["vocab"]
    theirs = json.loads((sentencepiece / "tokenizer.json").read_text())["model"]["vocab"]
    assert new.shape == (420,)
    assert new[ours["Ġthe"]] == old[theirs["▁the"]]
    assert report.passed


@pytest.mark.parametrize("method", ["omp", "affknn"])
def test_the_bias_of_a_made_row_is_its_combination_or_the_mean_where_that_only_corrects(
    make_model, sentencepiece, byte_level, tmp_path, method
):
    base = make_model("phi", sentencepiece)
    stored = tensors(base)
    stored["lm_head.bias"] = torch.arange(len(stored["lm_head.bias"])).bfloat16()
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    donor = make_model("llama", byte_level, seed=1)
    transplant(base, donor, tmp_path / "out", f"method={method}")
    old, new = stored["lm_head.bias"].float(), tensors(tmp_path / "out")["lm_head.bias"].float()
    source = json.loads((tmp_path / "out" / "provenance.json").read_text())["vocab"]["lm_head.bias"]["source"]
    made = torch.tensor([index for index, origin in enumerate(source) if origin == -1])
    is_mean = (new[made] - old.mean()).abs() < 1
    assert is_mean.all() if method == "affknn" else is_mean.sum() < len(made) / 2


def test_a_declared_tie_with_another_head_asks_for_a_decision(
    make_model, sentencepiece, byte_level, tmp_path
):
    from tokensurgeon.errors import PolicyError

    base = make_model("llama", sentencepiece)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    donor = make_model("llama", byte_level, seed=1)
    with pytest.raises(PolicyError, match=r"tie_word_embeddings.*lm_head.weight differs"):
        transplant(base, donor, tmp_path / "out")
    transplant(base, donor, tmp_path / "keep", "tie_policy=keep-head")
    assert json.loads((tmp_path / "keep" / "config.json").read_text())["tie_word_embeddings"] is False
    transplant(base, donor, tmp_path / "drop", "tie_policy=drop-head")
    dropped = tensors(tmp_path / "drop")
    assert same_bits(dropped["lm_head.weight"], dropped["model.embed_tokens.weight"])


def test_a_reader_that_takes_the_tokenizer_for_another_fails_the_run(
    make_model, sentencepiece, byte_level, tmp_path
):
    from tokensurgeon.errors import VerificationError

    base = make_model("llama", byte_level)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**config, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})
    )
    with pytest.raises(VerificationError, match=r"AutoTokenizer reads this tokenizer as .*qwen2"):
        transplant(base, sentencepiece, tmp_path / "out", "method=pieces", "verify.forward=false")
    assert not (tmp_path / "out").exists()
    report = transplant(
        base,
        sentencepiece,
        tmp_path / "out",
        "method=pieces",
        "verify.forward=false",
        "verify.allow_reader_mismatch=true",
    )
    assert "TS011" in {warning.code for warning in report.warnings}


def test_a_user_map_is_obeyed(make_model, sentencepiece, byte_level, tmp_path):
    base = make_model("llama", sentencepiece)
    donor = make_model("llama", byte_level, seed=1)
    override = 'anchors.map={"<|endoftext|>": "<eos>", "<file_sep>": "the fox"}'
    report = transplant(base, donor, tmp_path / "out", override)
    ours = {row.token: row for row in report.specials}
    assert ours["<|endoftext|>"].base_tokens == ["<eos>"]
    assert len(ours["<file_sep>"].base_tokens) > 1
    new, old = tensors(tmp_path / "out"), tensors(base)
    assert same_bits(new["lm_head.weight"][0], old["lm_head.weight"][1])


def test_a_donor_row_that_is_not_finite_is_no_anchor(make_model, sentencepiece, byte_level, tmp_path):
    from safetensors.torch import load_file, save_file

    base = make_model("llama", sentencepiece)
    donor = make_model("llama", byte_level, seed=1)
    weights = load_file(donor / "model.safetensors")
    shared = json.loads((byte_level / "tokenizer.json").read_text())["model"]["vocab"]["Ġ"]
    weights["model.embed_tokens.weight"][shared, 0] = torch.inf
    save_file(weights, donor / "model.safetensors", metadata={"format": "pt"})
    report = transplant(base, donor, tmp_path / "out", "verify.forward=false")
    assert {row.reason: row.tokens for row in report.anchors.excluded}["not finite (target)"] == 1
    assert report.tensors[0].residuals.median < 1


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


def test_a_base_that_leaves_sizes_and_ids_to_its_class_gets_them_written(
    make_model, sentencepiece, byte_level, tmp_path
):
    base = make_model("llama", sentencepiece)
    edit_config(base, vocab_size="absent", pad_token_id="absent", bos_token_id="absent", dtype="float32")
    (base / "generation_config.json").unlink()
    assert transplant(base, byte_level, tmp_path / "out", "method=pieces").passed
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"], config["pad_token_id"]) == (420, 1, 2)


def test_an_identity_swap_keeps_padding_rows_even_where_one_is_the_most_likely(
    make_model, byte_level, tmp_path
):
    base = make_model("llama", byte_level, vocab_size=512)
    report = transplant(base, base, tmp_path / "out")
    old, new = tensors(base), tensors(tmp_path / "out")
    assert all(same_bits(old[name], new[name]) for name in old)
    assert report.tensors[0].copied == 420
    assert report.tensors[0].padding == 92


def test_a_base_with_fewer_rows_than_tokens_still_works(make_model, sentencepiece, byte_level, tmp_path):
    base = make_model("llama", sentencepiece, vocab_size=450)
    report = transplant(base, byte_level, tmp_path / "out", "method=pieces", "verify.forward=false")
    assert report.passed
    assert "TS016" in {warning.code for warning in report.warnings}


def test_a_tie_stored_twice_is_treated_as_a_tie(make_model, sentencepiece, byte_level, tmp_path):
    from safetensors.torch import load_file, save_file

    base = make_model("llama", sentencepiece)
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    edit_config(base, tie_word_embeddings=True)
    method = "method={name: pieces, weighting: last_first}"
    report = transplant(base, byte_level, tmp_path / "out", method, "verify.forward=false")
    new = tensors(tmp_path / "out")
    assert same_bits(new["lm_head.weight"], new["model.embed_tokens.weight"])
    assert all(tensor.tied for tensor in report.tensors)


def test_the_report_takes_the_loss_apart_and_knows_which_rows_were_made(
    make_model, sentencepiece, byte_level, tmp_path
):
    base = make_model("llama", sentencepiece)
    text = tmp_path / "text.txt"
    text.write_text("The children's kettle: 日本語も少し。\n\n  return first 1234" * 3, encoding="utf-8")
    report = transplant(
        base, byte_level, tmp_path / "out", "method=pieces", f"report.texts=[{text}]", "rows={multiple: 64}"
    )
    [score] = report.scores
    anatomy = score.anatomy
    assert anatomy.excess == score.output - score.base
    for parts in (anatomy.by_cut, anatomy.by_script, anatomy.by_content, anatomy.by_new_rows):
        assert sum(part.excess for part in parts) == pytest.approx(anatomy.excess, abs=1e-12)
    missing = next(part for part in anatomy.by_cut if part.name == "missing")
    made = report.tensors[0].made
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))
    source = provenance["vocab"]["model.embed_tokens.weight"]["source"]
    assert made == source.count(-1)
    assert 0 < missing.chunks < anatomy.chunks
    assert load_expectation(tmp_path / "out").made == {index for index, row in enumerate(source) if row == -1}
    assert "Where the loss sits" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_texts_that_cannot_be_scored_cost_a_warning_not_the_output(
    make_model, sentencepiece, byte_level, tmp_path
):
    base = make_model("llama", sentencepiece, max_position_embeddings=64)
    text = tmp_path / "text.txt"
    text.write_text("Это проверка. " * 100, encoding="utf-8")
    report = transplant(base, byte_level, tmp_path / "out", "method=pieces", f"report.texts=[{text}]")
    assert "TS018" in {warning.code for warning in report.warnings}
    assert report.scores == []


def test_an_unknown_device_is_refused_before_the_work(make_model, sentencepiece, byte_level, tmp_path):
    from tokensurgeon.errors import RecipeError

    base = make_model("llama", sentencepiece)
    with pytest.raises(RecipeError, match="device 'nonsense'"):
        transplant(base, byte_level, tmp_path / "out", "runtime.device=nonsense")


def test_the_report_names_the_nearest_anchor_of_the_rows_to_look_at_first(
    make_model, sentencepiece, byte_level, tmp_path
):
    base = make_model("llama", sentencepiece)
    donor = make_model("llama", byte_level, seed=1)
    report = transplant(base, donor, tmp_path / "out")
    rows = tensors(donor)["model.embed_tokens.weight"].double()
    unit = rows / rows.norm(dim=1, keepdim=True)
    tokens = json.loads((donor / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    names = dict(zip(tokens.values(), tokens, strict=True))
    quality = report.tensors[0]
    assert quality.solver.mode == "exact"
    assert quality.similarities.count == quality.made
    for row in quality.worst:
        cosines = unit @ unit[row.id]
        at = int((cosines - row.nearest.weight).abs().nan_to_num(9).argmin())
        assert abs(float(cosines[at]) - row.nearest.weight) < 1e-6
        assert at != row.id
        assert at in names
