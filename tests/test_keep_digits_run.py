"""A run with keep_digits: what was planned is written, read back and measured with."""

from __future__ import annotations

import json
import shutil

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from tokensurgeon import adjust
from tokensurgeon.batches import Batches
from tokensurgeon.checkpoint.verify import verify_checkpoint
from tokensurgeon.errors import InputError
from tokensurgeon.parallel import Processes
from tokensurgeon.pipeline import find_resources, run
from tokensurgeon.plan import make_plan
from tokensurgeon.recipe.load import build_recipe
from tokensurgeon.surgery import operate
from tokensurgeon.vocab.digits import digit_scheme
from tokensurgeon.vocab.vocabulary import load_vocabulary

SENTENCE = "In 2026 and 333 and 4444."


@pytest.fixture(scope="module")
def single(sentencepiece, tmp_path_factory):
    """The SentencePiece tokenizer with single digits."""
    directory = shutil.copytree(sentencepiece, tmp_path_factory.mktemp("single") / "tokenizer")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, tokenizer.pre_tokenizer])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def learnt(byte_level, tmp_path_factory):
    """The byte-level tokenizer with frequent numbers as tokens."""
    directory = shutil.copytree(byte_level, tmp_path_factory.mktemp("learnt") / "tokenizer")
    spec = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = spec["model"]["vocab"]
    for pair in (("7", "3"), ("25", "04"), ("2", "5"), ("0", "4"), ("2", "0"), ("20", "2"), ("202", "6")):
        vocab.setdefault("".join(pair), len(vocab))
        spec["model"]["merges"].append(list(pair))
    (directory / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    assert digit_scheme(load_vocabulary(directory)) == "learnt groups"
    return directory


@pytest.fixture
def recipe(make_model, single, tmp_path):
    def recipe(target, base=None, **changes):
        document = {"base": str(base or make_model("llama", single)), "target": str(target)}
        document |= {"output": str(tmp_path / "out"), "method": "pieces", "keep_digits": True}
        return build_recipe({**document, **changes})

    return recipe


def test_the_output_cuts_numbers_like_the_base_and_its_readers_agree(recipe, learnt, single, tmp_path):
    report, out = run(recipe(learnt)).report, tmp_path / "out"
    written, raw = load_vocabulary(out), load_vocabulary(learnt)
    assert digit_scheme(written) == digit_scheme(load_vocabulary(single)) == "single digits"
    assert written.encode(SENTENCE) != raw.encode(SENTENCE)
    assert written.encode("no digits here") == raw.encode("no digits here")
    codes = {warning.code: warning.text for warning in report.warnings}
    assert "TS001" not in codes
    assert codes["TS022"] == (
        "ids of texts with numbers differ from those of the raw target's tokenizer: "
        "single digits as in the base, not learnt groups"
    )
    checks = {check.name: check for check in report.checks}
    assert checks["AutoTokenizer"].passed
    assert "1 equal to the target's byte for byte, tokenizer.json as it was rewritten" in (
        checks["tokenizer files"].detail
    )
    assert report.files["tokenizer.json"] == "rebuilt"
    assert report.traits.digits_target == "single digits"
    assert verify_checkpoint(out, forward=False).passed
    shutil.copy(learnt / "tokenizer.json", out)
    failed = {c.name: c.detail for c in verify_checkpoint(out, forward=False).checks if not c.passed}
    assert failed["tokenizer files"] == "tokenizer.json is not what was written"
    assert "AutoTokenizer" in failed


def test_files_that_are_not_patched_are_named(recipe, learnt, tmp_path):
    target = shutil.copytree(learnt, tmp_path / "target")
    (target / "tokenizer.model").write_bytes(b"sentencepiece")
    (notice,) = [notice for notice in make_plan(recipe(target)).notices if notice.code == "TS022"]
    assert "readers of tokenizer.model still cut them the old way" in notice.text


def test_a_target_that_agrees_is_copied_as_it_is(recipe, single, tmp_path):
    report = run(recipe(single, verify={"forward": False})).report
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (single / "tokenizer.json").read_bytes()
    assert "both cut numbers into single digits" in next(w.text for w in report.warnings if w.code == "TS023")
    assert report.files["tokenizer.json"] == "target"


def test_a_base_that_follows_no_rule_is_refused_before_anything_is_written(
    recipe, make_model, learnt, single, tmp_path
):
    with pytest.raises(InputError, match="keep_digits: the base cuts numbers into learnt groups"):
        run(recipe(single, base=make_model("llama", learnt)))
    assert not (tmp_path / "out").exists()


def test_a_scale_is_chosen_by_the_tokenizer_that_is_written(recipe, learnt, monkeypatch):
    seen = []

    class SeenError(Exception):
        pass

    def score(model, tokenizer, *_):
        seen.append(tokenizer(SENTENCE, add_special_tokens=False)["input_ids"])
        raise SeenError

    monkeypatch.setattr(adjust, "score_written", score)
    plan = make_plan(recipe(learnt, new_rows={"head_scale": "auto"}))
    with pytest.raises(SeenError):
        operate(plan, Batches(Processes()), find_resources(plan))
    assert seen == [plan.match.target.encode(SENTENCE)]
    assert seen != [load_vocabulary(learnt).encode(SENTENCE)]


def test_kept_batches_are_not_taken_over_from_a_run_with_other_digits(recipe, learnt):
    from tokensurgeon.pipeline import _digest

    digests = set()
    for keep in (True, False):
        plan = make_plan(recipe(learnt, keep_digits=keep))
        digests.add(_digest(plan, find_resources(plan)))
    assert len(digests) == 2
