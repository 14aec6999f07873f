"""What a user's program finds is compared with what the raw tokenizer and the file say."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tokensurgeon.checkpoint import as_read, probe
from tokensurgeon.checkpoint.as_read import run_probe
from tokensurgeon.checkpoint.verify import verify_checkpoint
from tokensurgeon.child import child_command
from tokensurgeon.vocab.chat import MESSAGES
from tokensurgeon.vocab.probe import probe_chat, probe_ids
from tokensurgeon.vocab.vocabulary import load_vocabulary


@pytest.fixture
def seen(healthy):
    """What a process that reads the healthy output rightly would answer."""
    vocabulary = load_vocabulary(healthy)
    ids = {role: vocabulary.roles[role] for role in ("bos", "eos", "pad")}
    texts = probe_ids(vocabulary)
    return {
        "tokenizer_class": "TokenizersBackend",
        "ids": [own for _, own in texts],
        "framed": [vocabulary.encode(text, specials=True) for text, _ in texts],
        "chat": list(probe_chat(vocabulary)),
        "roles": ids,
        "warnings": [],
        "model": {
            "class": "LlamaForCausalLM",
            "problems": {},
            "embedding_as_stored": True,
            "head_as_stored": True,
            "positions_from_pad": False,
            "default_pad": None,
            "untied_alike": None,
            "config_ids": dict(ids),
            "generation_ids": dict(ids),
            "finite": True,
            "padding_margin": None,
            "answers": ["a"],
        },
    }


@pytest.fixture
def read_back(healthy, seen, monkeypatch):
    """Verify the healthy output as if a fresh process had answered ``seen``."""
    jobs = []
    monkeypatch.setattr(as_read, "run_probe", lambda job: jobs.append(job) or seen)

    def run(**options):
        result = verify_checkpoint(healthy, **options)
        failed = {check.name: check.detail for check in result.checks if not check.passed}
        return failed, {notice.code: notice.detail for notice in result.notices}

    run.jobs = jobs
    return run


def test_a_right_answer_passes(read_back):
    assert read_back() == ({}, {})


def test_the_process_is_asked_for_every_probe_text_and_a_chat(read_back, seen, healthy):
    read_back()
    (job,) = read_back.jobs
    assert len(job["texts"]) == len(seen["ids"])
    assert job["messages"] == MESSAGES
    assert (job["rows"], job["padding_ids"], job["forward"]) == (420, [], True)
    assert job["trust_remote_code"] is False
    assert job["directory"] == str(healthy.resolve())


def test_other_ids_fail_and_name_model_type_and_class(read_back, seen):
    seen["tokenizer_class"] = "Qwen2Tokenizer"
    seen["ids"][2] = [1, 2, 3]
    failed, _ = read_back()
    assert failed.keys() == {"AutoTokenizer"}
    assert "as Qwen2Tokenizer because of model_type 'llama': 1 of" in failed["AutoTokenizer"]
    assert "such as '1234567890 3.14159" in failed["AutoTokenizer"]


def test_an_allowed_mismatch_is_a_warning(read_back, seen):
    seen["tokenizer_class"] = "Qwen2Tokenizer"
    seen["ids"][2] = [1, 2, 3]
    failed, notices = read_back(allow_reader_mismatch=True)
    assert failed == {}
    assert notices.keys() == {"TS011"}
    assert notices["TS011"].startswith("allowed: AutoTokenizer reads this tokenizer as Qwen2Tokenizer")


def test_another_rendered_chat_fails(read_back, seen):
    seen["chat"] = ["<|im_start|>", [1]]
    assert read_back()[0] == {"AutoTokenizer": "the chat template renders other ids than the target's"}


def test_other_framing_is_a_warning(read_back, seen):
    seen["framed"][0] = [1, *seen["framed"][0]]
    failed, notices = read_back()
    assert failed == {}
    assert notices.keys() == {"TS011"}
    assert "by tokenizer.json, [1, " in notices["TS011"]


def test_warnings_of_the_libraries_are_passed_on_once(read_back, seen):
    seen["warnings"] = ["slow", "slow", "odd"]
    assert read_back() == ({}, {"TS012": "slow; odd"})


def test_without_a_forward_pass_the_model_is_not_judged(read_back, seen):
    del seen["model"]
    assert read_back(forward=False) == ({}, {"TS015": "verify.forward is off"})


@pytest.mark.parametrize(
    ("change", "name", "detail"),
    [
        ({"problems": {"missing_keys": ["a", "b"]}}, "loads in a fresh process", "missing_keys: a, b"),
        (
            {"embedding_as_stored": False},
            "loads in a fresh process",
            "the loaded input embedding differs from the file",
        ),
        ({"head_as_stored": False}, "loads in a fresh process", "the loaded lm_head differs from the file"),
        ({"untied_alike": False}, "untied", "LlamaForCausalLM computes other logits when it is not tied"),
        ({"finite": False}, "forward pass", "logits are not finite"),
        ({"padding_margin": -1.5}, "ids without a token", "an id without a token wins by 1.50 logits"),
        (
            {"generation_ids": {"bos": 1, "eos": [0, 3], "pad": 2}},
            "ids after loading",
            "eos: tokenizer 2, generation config [0, 3]",
        ),
    ],
)
def test_what_is_wrong_with_the_loaded_model_fails(change, name, detail, read_back, seen):
    seen["model"] |= change
    assert read_back()[0] == {name: detail}


@pytest.mark.parametrize(("declared", "default"), [(1, 1), (1, 0), (None, 1)])
def test_positions_that_are_counted_from_another_padding_id_fail(
    declared, default, output, seen, monkeypatch
):
    monkeypatch.setattr(as_read, "run_probe", lambda job: seen)
    output.change_json("provenance.json", base_pad=declared)
    seen["model"] |= {"positions_from_pad": True, "default_pad": default}
    seen["model"]["config_ids"]["pad"] = seen["model"]["generation_ids"]["pad"] = 2
    failed = {
        check.name: check.detail for check in verify_checkpoint(output.directory).checks if not check.passed
    }
    assert failed == {
        "positions": "LlamaForCausalLM counts positions from the padding id, 1 in the base and 2 here: "
        "every token would get another position's embedding"
    }
    seen["model"]["positions_from_pad"] = False
    assert verify_checkpoint(output.directory).passed


def test_padding_that_never_wins_passes(read_back, seen):
    seen["model"]["padding_margin"] = 0.5
    assert read_back()[0] == {}


def test_a_crash_fails_and_nothing_else_is_judged(read_back, seen):
    seen.clear()
    seen["error"] = "exit code 1: ValueError: bad"
    assert read_back() == ({"loads in a fresh process": "exit code 1: ValueError: bad"}, {})


@pytest.mark.parametrize(
    ("stderr", "message"),
    [("Traceback\nValueError: bad\n\n", "exit code 3: ValueError: bad"), ("", "exit code 3: no message")],
)
def test_a_crash_is_told_by_its_last_line(stderr, message, monkeypatch, tmp_path):
    done = subprocess.CompletedProcess([], 3, stdout="", stderr=stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert run_probe({"directory": str(tmp_path)}) == {"error": message}


def test_the_process_is_offline_and_speaks_utf8(monkeypatch, tmp_path):
    asked = {}

    def run(command, **options):
        asked.update(options, command=command)
        return subprocess.CompletedProcess(command, 0, stdout='{"ids": []}', stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert run_probe({"directory": str(tmp_path), "texts": ["é"]}) == {"ids": []}
    assert json.loads(asked["input"])["texts"] == ["é"]
    assert (asked["env"]["HF_HUB_OFFLINE"], asked["env"]["PYTHONUTF8"]) == ("1", "1")
    assert asked["command"] == child_command("tokensurgeon.checkpoint.probe")


def test_what_libraries_print_before_the_answer_is_no_part_of_it(monkeypatch, tmp_path):
    done = subprocess.CompletedProcess([], 0, stdout='Ignored unknown kwarg\n{"ids": []}\n', stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert run_probe({"directory": str(tmp_path)}) == {"ids": []}


def test_a_directory_that_takes_for_ever_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(as_read, "_SECONDS", 1)
    assert "more than 1 s of processor time" in run_probe({"directory": str(tmp_path)})["error"]


def test_what_is_in_the_current_folder_is_not_imported(monkeypatch, tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('an own json was imported')\n")
    monkeypatch.chdir(tmp_path)
    job = {"task": "ties", "directory": str(tmp_path), "trust_remote_code": False}
    assert "model_type" in run_probe(job)["error"]


# The process itself, without transformers.


def test_what_a_models_own_code_prints_does_not_reach_the_answer(monkeypatch):
    def read(_):
        sys.stdout.write("flash attention is missing\n")
        return {"ids": []}

    quiet = SimpleNamespace(
        disable_progress_bar=lambda: None, disable_default_handler=lambda: None, add_handler=lambda _: None
    )
    fake = SimpleNamespace(utils=SimpleNamespace(logging=quiet))
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"task": "read", "forward": false, "limits": {}}'))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(probe, "_read_tokenizer", read)
    monkeypatch.setattr(probe, "limit_self", lambda: None)
    probe.main()
    assert json.loads(out.getvalue()) == {"ids": [], "warnings": []}
    assert err.getvalue() == "flash attention is missing\n"


class FakeTokenizer:
    def __call__(self, text):
        return {"input_ids": [0, 1]}

    def convert_ids_to_tokens(self, ids):
        return [f"t{index}" for index in ids]


@pytest.mark.parametrize(
    ("row", "value", "stored"), [(1, 0.0, True), (1, 0.5, False), (2, 0.0, False), (None, 0.0, True)]
)
def test_a_class_may_zero_its_padding_and_nothing_else(row, value, stored, tmp_path):
    table = torch.randn(4, 3)
    save_file({"embed": table}, tmp_path / "file")
    module = torch.nn.Embedding(4, 3, padding_idx=1)
    module.weight.data = table.clone()
    if row is not None:
        module.weight.data[row] = value
    assert probe._is_stored(module, {"file": str(tmp_path / "file"), "name": "embed"}) == stored


def run_forward(scores, padding):
    def model(**_):
        return {"logits": torch.tensor([scores])}

    model.config = SimpleNamespace()
    job = {"prompts": ["one"], "padding_ids": padding, "rows": 3}
    return probe._forward(model, FakeTokenizer(), job)


def test_the_margin_is_that_of_the_worst_position():
    seen = run_forward([[5.0, 1.0, 2.0], [4.0, 1.0, 3.5]], [2])
    assert seen == {"finite": True, "padding_margin": 0.5, "answers": ["t0"]}


def test_a_padding_id_that_wins_has_a_negative_margin():
    assert run_forward([[1.0, 0.0, 3.0]], [1, 2])["padding_margin"] == -2.0


def test_without_padding_there_is_no_margin():
    assert run_forward([[1.0, 0.0, 3.0]], [])["padding_margin"] is None


def test_one_nan_logit_is_noticed():
    assert not run_forward([[1.0, float("nan"), 3.0]], [])["finite"]
