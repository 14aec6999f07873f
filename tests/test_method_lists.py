"""Which method makes which row: lists fall through, ends may differ, made rows may be scaled."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokensurgeon.batches import Batches
from tokensurgeon.checkpoint.subject import Verification
from tokensurgeon.errors import RecipeError
from tokensurgeon.evidence import gather_evidence
from tokensurgeon.healing import Healing
from tokensurgeon.parallel import Processes
from tokensurgeon.pipeline import find_resources, run
from tokensurgeon.plan import make_plan
from tokensurgeon.recipe.load import build_recipe
from tokensurgeon.report.summary import summary_rows
from tokensurgeon.surgery import operate


@pytest.fixture
def transplant(make_model, sentencepiece, byte_level, tmp_path):
    """Makes the rows of an untied base, with a donor that has rows for 400 of the 420 target tokens."""

    def transplant(method, base_kind="llama", **changes):
        recipe = build_recipe(
            {
                "base": str(make_model(base_kind, sentencepiece)),
                "donor": str(make_model("llama", byte_level, seed=1, vocab_size=400)),
                "output": str(tmp_path / "out"),
                "anchors": {"minimum": 8},
                "rows": "exact",
                "method": method,
                **changes,
            }
        )
        plan = make_plan(recipe)
        return plan, operate(plan, Batches(Processes()), find_resources(plan))

    return transplant


@pytest.fixture
def beyond(transplant):
    """Missing tokens that the donor has no row for."""
    plan, _ = transplant("zero")
    return [index for index in plan.wanted if index >= 400]


def made_by(tensors):
    return Counter(tensors[0].made.methods)


def report_of(plan, tensors):
    return gather_evidence(plan, Healing(tensors), Verification(checks=[], notices=[]), [])


def rows(tensors):
    """Rows of the embedding and of the lm_head, float32."""
    return [new.data.float() for new in tensors]


def test_the_next_method_of_a_list_makes_what_the_last_could_not(transplant, beyond):
    plan, tensors = transplant([{"k": 8}, "gaussian"], fallback="zero")
    assert set(made_by(tensors)) == {"omp", "gaussian"}
    assert made_by(tensors)["gaussian"] == len(beyond) > 0
    assert "TS003" not in {warning.code for warning in report_of(plan, tensors).warnings}


def test_the_fallback_makes_what_no_method_of_the_list_could_and_is_reported(transplant, beyond):
    plan, tensors = transplant([{"k": 8}, "nearest"])
    assert set(made_by(tensors)) == {"omp", "pieces"}
    report = report_of(plan, tensors)
    assert f": {len(beyond)} tokens, such as" in next(w.text for w in report.warnings if w.code == "TS003")
    counts = {part.origin: part.tokens for part in report.origins}
    assert counts["method: pieces"] == len(beyond)


def test_what_even_the_fallback_cannot_make_is_the_mean_row(transplant, beyond):
    _, tensors = transplant([{"k": 8}], fallback={"name": "omp", "k": 4})
    assert made_by(tensors)["mean"] == len(beyond)
    assert torch.unique(rows(tensors)[0][beyond], dim=0).shape[0] == 1


def test_both_ends_may_have_their_own_method(transplant):
    both = rows(transplant({"embedding": "pieces", "lm_head": "mean"})[1])
    pieces, mean = rows(transplant("pieces")[1]), rows(transplant("mean")[1])
    assert both[0].equal(pieces[0])
    assert both[1].equal(mean[1])
    assert not pieces[1].equal(mean[1])


def test_a_tied_base_has_one_method(transplant):
    ends = {"embedding": "pieces", "lm_head": "mean"}
    with pytest.raises(RecipeError, match=r"of a base that is tied\nexpected: one method"):
        transplant(ends, base_kind="llama-tied")
    transplant({"embedding": "pieces", "lm_head": "pieces"}, base_kind="llama-tied")


def test_a_head_scale_moves_made_lm_head_rows_from_the_mean_and_nothing_else(transplant):
    _, plain = transplant("pieces")
    _, scaled = transplant("pieces", new_rows={"head_scale": 1.5})
    (embedding, head), (same_embedding, new_head) = rows(plain), rows(scaled)
    assert same_embedding.equal(embedding)
    moved = (new_head != head).any(dim=1)
    assert moved.nonzero()[:, 0].tolist() == plain[1].made.ids
    # Every row moves along the line from one point, the mean, through itself.
    mean = head[moved] - 2 * (new_head[moved] - head[moved])
    torch.testing.assert_close(mean, mean[:1].expand_as(mean), rtol=1e-2, atol=2e-3)


def test_a_tied_base_takes_the_head_scale_for_its_one_set_of_rows(transplant):
    _, plain = transplant("pieces", base_kind="llama-tied")
    _, scaled = transplant("pieces", base_kind="llama-tied", new_rows={"head_scale": 1.5})
    assert not rows(scaled)[0].equal(rows(plain)[0])


def test_matched_norms_are_those_of_kept_rows(transplant):
    _, tensors = transplant("pieces", new_rows={"norm": "match"})
    for new in tensors:
        norms = new.data.float().norm(dim=1)
        kept = norms[torch.tensor(new.source) >= 0]
        made = norms[new.made.ids]
        torch.testing.assert_close(made, kept.median().expand_as(made), rtol=1e-2, atol=1e-3)


def test_rows_the_user_spelt_out_are_not_scaled(transplant):
    spelt = {"minimum": 8, "map": {"<file_sep>": "the fox"}}
    plan, plain = transplant("pieces", anchors=spelt)
    _, scaled = transplant("pieces", anchors=spelt, new_rows={"head_scale": 1.5, "norm": "match"})
    index = plan.match.target.by_content["<file_sep>"].id
    assert rows(scaled)[1][index].equal(rows(plain)[1][index])
    assert made_by(plain)["map"] == 1


def test_anchors_are_cleaned_for_methods_without_a_donor_too(transplant, byte_level):
    report = report_of(*transplant("unks_everywhere", donor=str(byte_level)))
    assert report.anchors.count > 100
    assert {row.reason for row in report.anchors.excluded} >= {"special"}
    everything = report_of(*transplant("unks_everywhere", donor=str(byte_level), anchors="all"))
    assert everything.anchors.count > report.anchors.count
    assert everything.anchors.excluded == []


def test_a_fallback_at_one_end_only_is_reported(transplant, beyond):
    report = report_of(*transplant({"embedding": "gaussian", "lm_head": {"name": "omp", "k": 4}}))
    assert "TS003" in {warning.code for warning in report.warnings}
    embedding, head = report.tensors
    assert set(embedding.made_by) == {"gaussian"}
    assert head.made_by["pieces"] == len(beyond)
    rows = dict(summary_rows(report))
    assert rows["made rows, lm_head"] == f"omp {head.made_by['omp']}, pieces {len(beyond)}"


def test_equal_rows_by_design_are_allowed_at_the_end_that_has_them(
    make_model, sentencepiece, byte_level, tmp_path
):
    document = {
        "base": str(make_model("llama", sentencepiece)),
        "donor": str(make_model("llama", byte_level, seed=1)),
        "output": str(tmp_path / "out"),
        "anchors": {"minimum": 8},
        "verify": {"forward": False},
        "method": {"embedding": {"k": 8}, "lm_head": "zero"},
    }
    assert run(build_recipe(document)).report.passed


def test_a_tie_stored_twice_has_the_eos_row_where_bos_and_eos_are_one(
    make_model, sentencepiece, byte_level, tmp_path
):
    base = Path(shutil.copytree(make_model("llama", sentencepiece), tmp_path / "base"))
    target = Path(shutil.copytree(byte_level, tmp_path / "target"))
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "tokenizer_config.json").read_text())
    config["bos_token"] = config["eos_token"] = "<|im_end|>"
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    plan = make_plan(
        build_recipe({"base": str(base), "target": str(target), "output": "out", "method": "pieces"})
    )
    new = operate(plan, Batches(Processes()), find_resources(plan))[0]
    index = plan.match.target.roles["eos"]
    assert new.source[index] == plan.match.base.roles["eos"]
