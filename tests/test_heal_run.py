"""A run that heals: what moves, what may not, and what the output and its report say of it."""

import filecmp
import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokensurgeon import healing
from tokensurgeon.batches import Batches
from tokensurgeon.checkpoint.expectation import MADE, load_expectation
from tokensurgeon.checkpoint.verify import verify_checkpoint
from tokensurgeon.cli.app import main
from tokensurgeon.errors import InputError, RecipeError, ResourceError
from tokensurgeon.healing import heal_rows
from tokensurgeon.parallel import Processes
from tokensurgeon.pipeline import find_resources, preflight, run
from tokensurgeon.plan import make_plan
from tokensurgeon.recipe.load import build_recipe
from tokensurgeon.recipe.schema import HealRules
from tokensurgeon.report.html import render_html
from tokensurgeon.report.model import load_report
from tokensurgeon.report.summary import summary_rows
from tokensurgeon.surgery import operate
from tokensurgeon.training.heal import Healer
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.decompose import decompose

TEXT = (
    "The quick brown fox jumps over the lazy dog; the dog sleeps under the old oak tree. 1 22 333 4444. été\n"
)
QUICK = {"objective": "ntp", "steps": 4, "batch_tokens": 400, "learning_rate": 0.2, "held_out": 0.3}
NAMES = ["model.embed_tokens.weight", "lm_head.weight"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    lines = [json.dumps({"text": TEXT[place:] + TEXT[:place]}) for place in range(0, 96, 4)]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def document(make_model, sentencepiece, byte_level, corpus):
    """A recipe with rules of healing, or none."""

    @cache
    def model(kind):
        return str(make_model(kind, sentencepiece, initializer_range=0.3))

    def document(output, kind="llama", heal=None, **changes):
        found = {"base": model(kind), "target": str(byte_level), "method": "gaussian", "output": str(output)}
        rules = {} if heal is None else {"heal": {**QUICK, "corpus": [corpus], **heal}}
        return {**found, "verify": {"forward": False}, **rules, **changes}

    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def plain(document, folder):
    return run(build_recipe(document(folder / "plain")))


@pytest.fixture(scope="module")
def healed(document, folder):
    return run(build_recipe(document(folder / "healed", heal={})))


def call(monkeypatch, *words):
    """Run the tool's command line; its exit code."""
    monkeypatch.setattr(sys, "argv", ["tokensurgeon", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def weights(outcome):
    return load_file(outcome.output / "model.safetensors")


def made_rows(outcome, name):
    source = load_expectation(outcome.output).vocab[name].source
    return torch.tensor([origin == MADE for origin in source])


class TestNewRows:
    def test_only_made_rows_move(self, plain, healed):
        before, after = weights(plain), weights(healed)
        assert before.keys() == after.keys()
        for name in before.keys() - set(NAMES):
            assert before[name].equal(after[name])
        for name in NAMES:
            moved = (before[name] != after[name]).any(dim=1)
            assert moved.any()
            assert not (moved & ~made_rows(plain, name)).any()
            assert made_rows(healed, name).equal(made_rows(plain, name))

    def test_the_report_tells_what_was_gained(self, healed):
        told = healed.report.heal
        assert (told.objective, told.train, told.ended, told.steps) == ("ntp", "new", "steps", 4)
        assert told.after < told.before
        assert 0 < told.base != told.before
        assert (told.held_out[0].bits_per_byte, told.held_out[0].step) == (told.before, 0)
        assert len(told.losses) == 4
        assert told.texts + told.held_out_texts == 24
        assert told.rows == sum(tensor.made for tensor in healed.report.tensors)
        assert "seconds" not in healed.report.model_dump_json()
        assert dict(summary_rows(healed.report))["heal"].startswith("ntp, 4 steps, ")
        page = render_html(healed.report)
        assert 'aria-label="Held-out text and training loss by step"' in page
        assert "How rows were healed" in page

    def test_a_run_without_it_says_nothing_of_it(self, plain):
        assert plain.report.heal is None
        assert "heal" not in dict(summary_rows(plain.report))
        assert "How rows were healed" not in render_html(plain.report)

    def test_a_killed_run_writes_what_a_whole_one_writes(self, document, healed, tmp_path, monkeypatch):
        changes = {"runtime": {"work_dir": str(tmp_path / "work")}}
        recipe = build_recipe(document(tmp_path / "out", heal={}, **changes))
        save = Healer._save

        def die(self):
            save(self)
            if self._told.steps == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(Healer, "_save", die)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
        assert len(list((tmp_path / "work").rglob("heal.safetensors"))) == 1
        monkeypatch.setattr(Healer, "_save", save)
        again = run(recipe)
        assert not (tmp_path / "work").exists()
        names = [path.name for path in healed.output.iterdir()]
        _, different, errors = filecmp.cmpfiles(healed.output, again.output, names, shallow=False)
        assert (different, errors) == ([], [])


def test_all_rows_that_train_and_move_are_copies_no_more(document, plain, tmp_path):
    outcome = run(build_recipe(document(tmp_path / "out", heal={"train": "vocabulary"})))
    before, after = weights(plain), weights(outcome)
    for name in NAMES:
        moved = (before[name] != after[name]).any(dim=1)
        assert (moved & ~made_rows(plain, name)).any()
        assert made_rows(outcome, name).equal(moved | made_rows(plain, name))
    for old, new in zip(plain.report.tensors, outcome.report.tensors, strict=True):
        assert new.made == old.made
        assert new.healed > new.made
        assert new.copied < old.copied
    assert all(check.passed for check in verify_checkpoint(outcome.output, forward=False).checks)


LORA = {"rank": 2, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def adapted(document, folder):
    return run(build_recipe(document(folder / "adapted", heal={"lora": LORA})))


class TestLora:
    def test_the_tensors_that_change_are_the_ones_that_are_told(self, plain, adapted):
        before, after = weights(plain), weights(adapted)
        trained = load_expectation(adapted.output).trained
        assert len(trained) == 14
        assert all("proj" in name for name in trained)
        assert {name for name in before if not before[name].equal(after[name])} == {*trained, *NAMES}
        assert all(before[name].dtype == after[name].dtype for name in before)
        assert load_expectation(plain.output).trained == []

    def test_the_files_read_as_training_said(self, document, adapted, tmp_path):
        plan = make_plan(build_recipe(document(tmp_path / "none", heal={})))
        resources = find_resources(plan)
        texts = healing._Texts(plan, resources, [], 4096).read()
        _, held_out = healing._divide(texts, plan.recipe.heal, 0)
        body = healing._body(resources.of_model(adapted.output).load_body(), HealRules())
        nats = sum(float(healing.NextToken().loss(body, {}, [text])) for text in held_out)
        found = nats / sum(text.bytes for text in held_out) / 0.6931472
        assert adapted.report.heal.after == pytest.approx(found, rel=2e-3)

    def test_any_other_change_of_the_body_is_found(self, adapted, tmp_path):
        expected = load_expectation(adapted.output)
        checks = verify_checkpoint(adapted.output, forward=False).checks
        assert all(check.passed for check in checks)
        details = {check.name: check.detail for check in checks}
        assert details["body"].endswith("tensors byte-identical to the base, 14 as they were trained")
        kept = next(name for name in expected.body if name not in expected.trained)
        for name, wanted in ((kept, "in the base"), (expected.trained[0], "training gave it")):
            copy = tmp_path / name
            shutil.copytree(adapted.output, copy)
            tensors = load_file(copy / "model.safetensors")
            tensors[name][0] += 1
            save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
            found = {check.name: check.detail for check in verify_checkpoint(copy, forward=False).checks}
            assert f"{name} has other bytes than {wanted}" in found["body"]

    def test_the_report_tells_what_trained(self, adapted, healed):
        told = adapted.report.heal
        assert (told.layers, healed.report.heal.layers) == (14, 0)
        assert told.parameters > 14
        assert "rows and 14 layers of the body" in dict(summary_rows(adapted.report))["heal"]
        assert "14 layers by changes of low rank" in render_html(adapted.report)
        assert told.losses != healed.report.heal.losses

    def test_a_killed_run_writes_what_a_whole_one_writes(self, document, adapted, tmp_path, monkeypatch):
        recipe = document(tmp_path / "out", heal={"lora": LORA}, runtime={"work_dir": str(tmp_path / "work")})
        save = Healer._save

        def die(self):
            save(self)
            if self._told.steps == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(Healer, "_save", die)
        with pytest.raises(KeyboardInterrupt):
            run(build_recipe(recipe))
        monkeypatch.setattr(Healer, "_save", save)
        again = run(build_recipe(recipe))
        names = ["model.safetensors", "provenance.json", "report.json", "README.md"]
        _, different, errors = filecmp.cmpfiles(adapted.output, again.output, names, shallow=False)
        assert (different, errors) == ([], [])

    def test_the_verb_trains_a_body_whose_teacher_is_another_model(
        self, document, plain, corpus, tmp_path, monkeypatch
    ):
        words = ["heal", plain.output, document("nowhere")["base"], tmp_path / "out", "--lora", 2]
        words += ["--corpus", corpus, "--steps", 3, "--json", "--set", "verify.forward=false"]
        words += ["--set", "heal.lora.learning_rate=0.02"]
        assert call(monkeypatch, *words) == 0
        trained = load_expectation(tmp_path / "out").trained
        before, after = weights(plain), load_file(tmp_path / "out" / "model.safetensors")
        assert len(trained) == 14
        assert {name for name in before if not before[name].equal(after[name])} == {*trained, *NAMES}

    def test_a_trimmed_model_learns_from_its_base(self, document, corpus, tmp_path, monkeypatch):
        base, trimmed, out = document("nowhere")["base"], tmp_path / "trimmed", tmp_path / "out"
        (tmp_path / "few.txt").write_text(TEXT[:30])
        quiet = ["--set", "verify.forward=false"]
        words = ["heal", trimmed, base, out, "--lora", 2, "--corpus", corpus, "--steps", 8, *quiet]
        words += ["--set", "heal.batch_tokens=400", "--set", "heal.lora.learning_rate=0.02"]
        assert call(monkeypatch, "trim", base, trimmed, "--corpus", tmp_path / "few.txt", *quiet) == 0
        assert call(monkeypatch, *words) == 0
        told = load_report(out).heal
        assert (told.objective, told.rows, told.layers) == ("chunk_likelihood", 0, 14)
        assert told.after < told.before
        before, after = load_file(trimmed / "model.safetensors"), load_file(out / "model.safetensors")
        trained = load_expectation(out).trained
        assert {name for name in before if not before[name].equal(after[name])} == set(trained)

    def test_a_body_that_gains_nothing_stays(self, made):
        _, _, found = made("llama", learning_rate=1e4, lora=LORA)
        assert found.told.best_step == 0
        assert found.body == {}

    @pytest.mark.parametrize(
        "option", [{"rank": 3}, {"alpha": 1.0}, {"targets": ["q_proj"]}, {"learning_rate": 0.1}]
    )
    def test_no_option_is_ignored(self, option, made):
        assert outcome_of(made("llama", lora={**LORA, **option})) != outcome_of(made("llama", lora=LORA))

    @pytest.mark.parametrize("kind", ["gemma3", "gpt2", "phi"])
    def test_layers_of_every_kind_of_model_are_found_in_its_files(self, kind, made):
        _, _, found = made(kind, lora=LORA)
        assert len(found.body) == found.layers > 3

    def test_a_base_without_new_rows_may_train_its_body(self, document, tmp_path):
        given = document(tmp_path / "out", heal={"lora": LORA})
        given["target"] = given["base"]
        outcome = run(build_recipe({**given, "method": "pieces"}))
        assert outcome.report.heal.rows == 0
        assert len(load_expectation(outcome.output).trained) == 14

    def test_a_layer_that_is_not_stored_as_it_is_used_is_refused(self, made):
        plan, _, _ = made("llama")
        name, ref = next(
            (name, ref)
            for name, ref in plan.inputs.base_index.tensors.items()
            if name.endswith("q_proj.weight")
        )
        layer, weight = name.removesuffix(".weight"), healing.map_tensor(ref)
        assert healing._stored_as(layer, weight.bfloat16(), {name: ref}) is ref
        assert healing._stored_as(f"wrapped.{layer}", weight, {name: ref}) is ref
        for other, changed in ((layer, weight + 1), (layer.replace("q_proj", "p_proj"), weight)):
            with pytest.raises(RecipeError, match=r"is no tensor of the checkpoint"):
                healing._stored_as(other, changed, {name: ref})

    def test_peft_is_asked_for_before_anything_is_made(self, document, tmp_path, monkeypatch):
        monkeypatch.setattr(healing, "find_spec", lambda name: None)
        with pytest.raises(RecipeError, match=r"pip install 'tokensurgeon\[lora\]'"):
            preflight(build_recipe(document(tmp_path / "out", heal={"lora": LORA})), False)


class TestVerb:
    def heal(self, monkeypatch, *words):
        return call(monkeypatch, "heal", *words)

    def test_it_heals_what_was_made_before(self, document, plain, corpus, tmp_path, monkeypatch, capsys):
        base = document("nowhere")["base"]
        options = ["--objective", "ntp", "--corpus", corpus, "--steps", 3, "--minutes", 5, "--json"]
        options += ["--set", "heal.learning_rate=0.2", "--set", "verify.forward=false"]
        assert self.heal(monkeypatch, plain.output, base, tmp_path / "out", *options) == 0
        report = json.loads(capsys.readouterr().out)["report"]
        before, after = weights(plain), load_file(tmp_path / "out" / "model.safetensors")
        for name in NAMES:
            moved = (before[name] != after[name]).any(dim=1)
            assert moved.any()
            assert not (moved & ~made_rows(plain, name)).any()
        told = report["heal"]
        assert (told["objective"], told["steps"], told["corpus"]) == ("ntp", 3, [corpus])
        assert report["recipe"]["heal"]["minutes"] == 5
        assert {model["role"] for model in report["inputs"]} == {"base", "target", "teacher"}
        expected = load_expectation(tmp_path / "out")
        assert expected.made
        assert expected.made <= load_expectation(plain.output).made

    def test_a_directory_that_tells_nothing_of_its_rows_is_bad_input(
        self, document, tmp_path, monkeypatch, capsys
    ):
        base = document("nowhere")["base"]
        assert self.heal(monkeypatch, base, base, tmp_path / "out") == 3
        told = capsys.readouterr().err
        assert "no provenance.json" in told
        assert "next: " in told

    def test_nothing_is_healed_and_changed_at_once(self, document, plain, tmp_path):
        heal = {"teacher": document("nowhere")["base"]}
        recipe = build_recipe(document(tmp_path / "out", heal=heal))
        with pytest.raises(RecipeError, match="healed as it is"):
            preflight(recipe, False)
        recipe = build_recipe(document(tmp_path / "out", heal={"corpus": [str(tmp_path / "gone.txt")]}))
        with pytest.raises(InputError, match=r"gone\.txt"):
            preflight(recipe, False)


@pytest.fixture(scope="module")
def made(document, folder):
    """A function from rules of healing to its outcome, on rows that are made once."""
    known = {}

    def made(kind="llama-tied", **rules):
        if kind not in known:
            plan = make_plan(build_recipe(document(folder / "made", kind, heal={})))
            resources = find_resources(plan)
            known[kind] = plan, operate(plan, Batches(Processes()), resources), resources
        plan, tensors, resources = known[kind]
        heal = HealRules.model_validate(plan.recipe.heal.model_dump() | rules)
        plan = replace(plan, recipe=plan.recipe.model_copy(update={"heal": heal}), notices=[])
        return plan, tensors, heal_rows(plan, tensors, resources, Batches(Processes()), Processes())

    return made


OPTIONS = {
    "objective": "chunk_likelihood",
    "train": "vocabulary",
    "steps": 3,
    "minutes": 1e-9,
    "batch_tokens": 100,
    "learning_rate": 0.1,
    "prior": 0.1,
    "held_out": 0.5,
}
DISTIL = {"alpha": 0.0, "layer": 2}
# These have tests of their own.
OTHERS = {"copied", "corpus", "texts", "patience", "checkpointing", "teacher", "lora", "expected"}


def outcome_of(given):
    return [given[2].told.losses, given[2].told.held_out]


def test_every_option_has_a_test():
    assert set(HealRules.model_fields) == {*OPTIONS, *DISTIL, *OTHERS}


@pytest.mark.parametrize("option", OPTIONS)
def test_no_option_is_ignored(option, made):
    assert outcome_of(made(**{option: OPTIONS[option]})) != outcome_of(made())


def test_copied_rows_move_as_little_as_they_are_thought_to_be_off(made):
    def distances(copied):
        _, tensors, found = made("llama", train="vocabulary", copied=copied, steps=1)
        new, healed = tensors[0], found.tensors[0]
        moved = (healed.data.float() - new.data.float()).norm(dim=1)
        is_made = torch.tensor([index in new.made_by for index in range(len(moved))])
        return moved[is_made].mean(), moved[~is_made].mean()

    (made_far, copied_far), (made_near, copied_near) = distances(1.0), distances(0.1)
    assert made_far == pytest.approx(made_near)
    assert copied_near < 0.3 * copied_far


@pytest.mark.parametrize("option", DISTIL)
def test_no_option_of_token_distillation_is_ignored(option, made):
    distil = {"objective": "token_distillation"}
    assert outcome_of(made(**distil, **{option: DISTIL[option]})) != outcome_of(made(**distil))


def test_the_next_token_counts_beside_chunks_as_much_as_it_is_told_to(made):
    found = [outcome_of(made(objective="chunk_likelihood", alpha=weight)) for weight in (0.0, 0.5, 1.0)]
    assert found[0] != found[1] != found[2]


def test_what_the_base_expects_counts_as_much_as_it_is_told_to(made):
    rules = {"objective": "chunk_likelihood"}
    found = [outcome_of(made(**rules, expected=weight)) for weight in (0.0, 0.5, 1.0)]
    assert found[0] != found[1] != found[2]


def test_first_pieces_begin_the_tokens_of_the_base_and_hide_no_frequent_token(made):
    plan, _, _ = made()
    texts = healing._Texts(plan, find_resources(plan), [], 4096).read()
    firsts = healing._first_pieces(plan, plan.match.base.bound, texts)
    target, base = plan.match.target.tokens, plan.match.base.tokens
    known = [
        (base[index].data, target[first].data) for index, first in enumerate(firsts.tolist()) if first >= 0
    ]
    assert len(known) > 100
    assert all(data.startswith(piece) and piece.strip() for data, piece in known)
    # What is read where the base expects another piece is rare among what is left.
    used = Counter(index for text in texts for index in text.ids.tolist())
    for index in used.keys() - set(firsts.tolist()):
        if target[index].kind is Kind.SPECIAL:
            continue
        pieces = decompose(target[index].data, plan.match.base).ids
        piece = int(firsts[pieces[0]]) if pieces else -1
        assert piece < 0 or used[index] <= 0.02 * used[piece]


def test_checkpointing_changes_no_figure(made, monkeypatch):
    called = []
    checkpoint = healing.Body.checkpoint
    monkeypatch.setattr(healing.Body, "checkpoint", lambda self: called.append(0) or checkpoint(self))
    rules = {"objective": "chunk_likelihood"}
    whole, again = outcome_of(made(**rules)), outcome_of(made(**rules, checkpointing=True))
    assert called == [0]
    assert whole == again


@pytest.mark.parametrize("kind", ["llama-tied", "gemma3", "gpt2", "phi", "granite"])
def test_every_kind_of_model_reads_as_its_files_will(kind, made):
    from tokensurgeon.adjust import _install
    from tokensurgeon.training.objectives import NextToken

    plan, _, found = made(kind)
    model = find_resources(plan).load_body()
    _install(model, found.tensors)
    if model.get_output_embeddings().bias is not None:
        assert kind == "phi"
    body = healing._body(model, HealRules())
    texts = healing._Texts(plan, find_resources(plan), [], 4096).read()
    _, held_out = healing._divide(texts, plan.recipe.heal, 0)
    nats = sum(float(NextToken().loss(body, {}, [text])) for text in held_out)
    size = sum(text.bytes for text in held_out)
    # Texts beside each other round otherwise than alone.
    assert found.told.after == pytest.approx(nats / size / 0.6931472, rel=2e-3)


SAMPLE = "It's the children's kettle, the dog sleeps under 22 trees. Привет, été passait déjà; 日本語."


@pytest.mark.parametrize("opened", [(True, True), (False, True), (True, False), (False, False)])
def test_chunks_are_the_same_bytes_to_both(opened, made, monkeypatch):
    plan, tensors, _ = made()
    texts = healing._Texts(plan, find_resources(plan), sorted(tensors[0].made_by), 4096)
    find = healing.find_bos
    theirs = texts._teachers.load_base_tokenizer()
    monkeypatch.setattr(healing, "find_bos", lambda found: find(found) if opened[found is theirs] else None)
    text = texts._example("sample", SAMPLE)
    spelt = []
    for ids, chunks, vocabulary in (
        (text.ids, text.chunks, plan.match.target),
        (text.teacher_ids, text.teacher_chunks, plan.match.base),
    ):
        parts = {}
        for index, chunk in zip(ids[1:].tolist(), chunks.tolist(), strict=True):
            parts[chunk] = parts.get(chunk, b"") + vocabulary.tokens[index].data
        parts.pop(-1, None)
        spelt.append(parts)
    assert spelt[0] == spelt[1]
    assert list(spelt[0]) == list(range(len(spelt[0])))
    assert len(spelt[0]) > 15
    whole = b"".join(spelt[0].values())
    assert SAMPLE.encode().endswith(whole)
    assert (whole == SAMPLE.encode()) == all(opened)
    unread = b"" if opened[0] else plan.match.target.tokens[int(text.ids[0])].data
    assert text.bytes == len(SAMPLE.encode()) - len(unread)


def test_states_are_compared_where_both_have_read_the_same_from_a_new_token_on(made):
    plan, tensors, _ = made()
    new = sorted(tensors[0].made_by)
    text = healing._Texts(plan, find_resources(plan), new, 4096)._example("sample", SAMPLE)
    assert len(text.places) > 5
    for ours, theirs in zip(text.places.tolist(), text.teacher_places.tolist(), strict=True):
        read = b"".join(plan.match.target.tokens[index].data for index in text.ids[1 : ours + 1].tolist())
        same = b"".join(plan.match.base.tokens[i].data for i in text.teacher_ids[1 : theirs + 1].tolist())
        assert read == same
        assert set(text.ids[: ours + 1].tolist()) & set(new)


def test_tokens_are_learnt_from_and_judged_by_texts_that_have_them(made, tmp_path):
    plan, tensors, _ = made()
    new = sorted(tensors[0].made_by)
    without, within = "a a a a.", SAMPLE
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in [without, within] * 4))
    rules = {"objective": "token_distillation", "corpus": (str(path),)}
    heal = plan.recipe.heal.model_copy(update=rules)
    plan = replace(plan, recipe=plan.recipe.model_copy(update={"heal": heal}))
    texts = healing._Texts(plan, find_resources(plan), new, 4096).read()
    assert [set(text.ids.tolist()) & set(new) != set() for text in texts] == [True] * 4


def test_the_base_writes_where_there_is_no_corpus(made):
    # Batches so large that no text is left over, and as many steps as are due, whatever the base writes here.
    rules = {"corpus": (), "batch_tokens": 2000, "patience": 100}
    few, more = (made(texts=count, **rules)[2] for count in (4, 24))
    assert few.texts + few.held_out < more.texts + more.held_out
    assert few.told.steps == 4


def test_held_out_text_is_no_more_than_four_batches(made):
    long = {"held_out": 0.5, "steps": 100, "minutes": 1e-9}
    few, many = (made(batch_tokens=size, **long)[2] for size in (10, 400))
    assert (few.texts, few.held_out) == (23, 1)
    assert (many.texts, many.held_out) == (12, 12)


def test_rows_that_gain_nothing_stay_and_the_notice_says_why(made):
    plan, tensors, found = made(learning_rate=1e4)
    assert [new.data.equal(old.data) for new, old in zip(found.tensors, tensors, strict=True)] == [True]
    assert [notice.code for notice in plan.notices] == ["TS025", "TS026"]
    assert "heal left rows as they were: held-out text takes" in found.tensors[0].note
    assert found.tensors[0].source == tensors[0].source


def test_a_layer_that_is_not_there_is_refused(made):
    with pytest.raises(RecipeError, match=r"heal\.layer: 3\n.*0 to 2"):
        made(objective="token_distillation", layer=3)


def test_too_little_memory_is_told(made, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Healer, "train", fail)
    with pytest.raises(ResourceError, match=r"heal\.checkpointing"):
        made()


def test_where_no_row_was_made_there_is_nothing_to_heal(document, tmp_path):
    given = document(tmp_path / "out", heal={})
    given["target"] = given["base"]
    plan = make_plan(build_recipe({**given, "method": "pieces"}))
    resources = find_resources(plan)
    tensors = operate(plan, Batches(Processes()), resources)
    found = heal_rows(plan, tensors, resources, Batches(Processes()), Processes())
    assert found.told is None
    assert [notice.text for notice in plan.notices] == ["healing changed nothing: no row was made"]


def test_rows_that_the_user_spelt_out_stay(document, tmp_path):
    given = document(tmp_path / "out", "llama-tied", heal={}, anchors={"map": {"<file_sep>": "the dog"}})
    plan = make_plan(build_recipe(given))
    index = next(token.id for token in plan.match.target if token.content == "<file_sep>")
    resources = find_resources(plan)
    tensors = operate(plan, Batches(Processes()), resources)
    found = heal_rows(plan, tensors, resources, Batches(Processes()), Processes())
    assert found.told.best_step
    assert tensors[0].made_by[index] == "map"
    assert found.tensors[0].data[index].equal(tensors[0].data[index])
    assert index not in found.tensors[0].healed


def test_rows_that_were_alike_may_stay_alike(document, tmp_path):
    given = document(tmp_path / "out", "llama-tied", heal={}, method="mean")
    plan = make_plan(build_recipe(given))
    resources = find_resources(plan)
    tensors = operate(plan, Batches(Processes()), resources)
    found = heal_rows(plan, tensors, resources, Batches(Processes()), Processes())
    assert found.tensors[0].repeats == tensors[0].made.ids


def test_tokens_that_an_edit_added_are_learnt_from_the_states_after_their_pieces(document, tmp_path):
    rules = {"objective": "token_distillation", "learning_rate": 0.05, "alpha": 0.0}
    given = document(tmp_path / "out", heal=rules)
    text = tmp_path / "text.txt"
    text.write_text(20 * TEXT)
    edit = {"operation": "extend", "corpus": [str(text)], "count": 8}
    plan = make_plan(build_recipe({**given, "target": given["base"], "method": "pieces", "edits": [edit]}))
    resources = find_resources(plan)
    tensors = operate(plan, Batches(Processes()), resources)
    found = heal_rows(plan, tensors, resources, Batches(Processes()), Processes())
    assert plan.wanted
    assert found.told.losses[-1] < found.told.losses[0]
    for new, old in zip(found.tensors, tensors, strict=True):
        moved = (new.data != old.data).any(dim=1).nonzero()[:, 0].tolist()
        assert set(moved) <= set(plan.wanted)
