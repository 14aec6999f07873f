"""Every way in which an output can differ from its provenance is found by the check that is named for it."""

from __future__ import annotations

import json

import pytest
import torch

from tokensurgeon.checkpoint import verify
from tokensurgeon.checkpoint.expectation import load_expectation
from tokensurgeon.checkpoint.index import read_shard
from tokensurgeon.checkpoint.verify import verify_checkpoint
from tokensurgeon.errors import InputError, PolicyError

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
COPIED, MADE = 7, 310

OFFLINE_CHECKS = [
    "weights",
    "tokenizer files",
    "body",
    "rows",
    "copied rows",
    "finite",
    "no zero rows",
    "no repeated rows",
    "ids in configs",
]
LOADING_CHECKS = ["AutoTokenizer", "loads in a fresh process", "forward pass", "ids after loading"]


@pytest.fixture
def failures(output, monkeypatch):
    """Names and details of the checks that fail; nothing is loaded in another process."""
    monkeypatch.setattr(verify, "check_as_read", lambda *_: None)

    def run() -> dict[str, str]:
        checks = verify_checkpoint(output.directory).checks
        return {check.name: check.detail for check in checks if not check.passed}

    return run


def test_a_healthy_output_passes_all_checks_in_a_fresh_process(healthy):
    result = verify_checkpoint(healthy)
    assert result.passed, [check for check in result.checks if not check.passed]
    assert [check.name for check in result.checks] == OFFLINE_CHECKS + LOADING_CHECKS
    assert result.notices == []


def test_without_a_fresh_process_a_healthy_output_has_no_failures(failures):
    assert failures() == {}


def test_a_changed_body_byte_is_found(output, failures):
    path = output.directory / "model.safetensors"
    place = next(ref.start for ref in read_shard(path).tensors if ref.name == NORM)
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    assert failures() == {"body": f"{NORM} has other bytes than in the base"}


def test_a_cast_body_tensor_is_found(output, failures):
    output.change_tensors(lambda tensors: tensors.update({NORM: tensors[NORM].float()}))
    assert failures() == {"body": f"{NORM} is F32 [16]"}


def test_a_missing_body_tensor_is_found(output, failures):
    output.change_tensors(lambda tensors: tensors.pop(NORM))
    assert failures() == {"body": f"{NORM} missing"}


def test_an_unexpected_tensor_is_found(output, failures):
    output.change_tensors(lambda tensors: tensors.update({"extra": torch.ones(2)}))
    assert failures() == {"body": "extra unexpected"}


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_a_changed_copied_row_is_found(name, output, failures):
    output.change_tensors(lambda tensors: tensors[name][COPIED, 3].add_(1))
    assert failures() == {"copied rows": f"{name}: copied rows differ from the base's"}


def test_swapped_copied_rows_are_found(output, failures):
    output.change_tensors(lambda tensors: tensors.update({HEAD: tensors[HEAD][[1, 0, *range(2, 420)]]}))
    assert failures() == {"copied rows": f"{HEAD}: copied rows differ from the base's"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_is_found(value, output, failures):
    output.change_tensors(lambda tensors: tensors[HEAD][MADE, 0].fill_(value))
    assert failures() == {"finite": f"{HEAD}[{MADE}] is not finite"}


def test_a_zero_made_row_is_found(output, failures):
    output.change_tensors(lambda tensors: tensors[EMBEDDING][MADE].zero_())
    assert failures() == {"no zero rows": f"{EMBEDDING}[{MADE}] is zero"}


def test_a_zero_padding_row_is_found(output, failures):
    output.change_tensors(lambda tensors: tensors[HEAD][-1].zero_())
    assert failures() == {"no zero rows": f"{HEAD}[419] is zero"}


def test_zero_rows_by_design_are_allowed(output, failures):
    output.change_tensors(lambda tensors: tensors[EMBEDDING][MADE].zero_())
    output.change_expected_rows(HEAD, may_vanish=True)
    assert failures().keys() == {"no zero rows"}
    output.change_expected_rows(EMBEDDING, may_vanish=True)
    assert failures() == {}


def test_a_repeated_made_row_is_found(output, failures):
    output.change_tensors(lambda tensors: tensors[HEAD][MADE + 5].copy_(tensors[HEAD][MADE]))
    assert failures() == {"no repeated rows": f"{HEAD}[{MADE + 5}] equals {HEAD}[{MADE}]"}


def test_repeated_rows_by_design_are_allowed_only_among_themselves(output, failures):
    output.change_tensors(lambda tensors: tensors[HEAD][MADE + 5].copy_(tensors[HEAD][MADE]))
    output.change_expected_rows(HEAD, may_repeat=[MADE, MADE + 5])
    assert failures() == {}
    output.change_expected_rows(HEAD, may_repeat=[MADE])
    assert failures().keys() == {"no repeated rows"}
    output.change_expected_rows(EMBEDDING, may_repeat=[MADE, MADE + 5])
    assert failures().keys() == {"no repeated rows"}


def test_a_tensor_that_should_equal_another_and_does_not_is_found(output, failures):
    output.change_expected_rows(HEAD, equal_to=EMBEDDING)
    assert failures() == {"copied rows": f"{HEAD} no longer equals {EMBEDDING}"}


def test_a_twin_that_is_gone_is_found(output, failures):
    output.change_expected_rows(EMBEDDING, equal_to=HEAD)
    output.change_tensors(lambda tensors: tensors.pop(HEAD))
    found = failures()
    assert found["body"] == f"{HEAD} missing"
    assert found["copied rows"] == f"{EMBEDDING} no longer equals {HEAD}; {HEAD} missing"


def test_a_wrong_vocabulary_size_is_found(output, failures):
    output.change_json("config.json", vocab_size=421)
    assert failures() == {"rows": "config says vocab_size 421, the embedding has 420 rows"}


def test_a_wrong_nested_vocabulary_size_is_found(output, failures):
    output.change_json("config.json", text_config={"vocab_size": 400})
    assert failures() == {"rows": "config says vocab_size 400, the embedding has 420 rows"}


@pytest.mark.parametrize("count", [200, 350, 430])
def test_another_number_of_rows_is_found(count, output, failures):
    def resize(tensors):
        for name in (EMBEDDING, HEAD):
            tensors[name] = torch.cat([tensors[name], torch.zeros(10, 16, dtype=torch.bfloat16)])[:count]

    output.change_tensors(resize)
    output.change_json("config.json", vocab_size=count)
    detail = f"{EMBEDDING} is BF16 [{count}, 16], not BF16 [420, 16]"
    assert detail in failures()["rows"]


def test_fewer_rows_than_ids_are_found(output, failures):
    output.change_tensors(lambda tensors: tensors.update({n: tensors[n][:419] for n in (EMBEDDING, HEAD)}))
    output.change_json("config.json", vocab_size=419)
    assert failures()["rows"].startswith("419 rows for ids up to 419; ")


@pytest.mark.parametrize(
    ("file", "field", "value", "path"),
    [
        ("config.json", "pad_token_id", 420, "pad_token_id"),
        ("config.json", "text_config", {"image_token_id": 420}, "text_config.image_token_id"),
        ("generation_config.json", "suppress_tokens", [1, 420], "suppress_tokens"),
        ("generation_config.json", "forced_decoder_ids", [[1, None], [2, 420]], "forced_decoder_ids"),
    ],
)
def test_an_id_past_the_rows_is_found(file, field, value, path, output, failures):
    output.change_json(file, **{field: value})
    assert failures() == {"ids in configs": f"{file}: {path} is 420, past 420 rows"}


def test_a_generation_config_that_never_stops_at_the_tokenizers_eos_is_found(output, failures):
    output.change_json("generation_config.json", eos_token_id=[5])
    assert failures() == {"ids in configs": "generation_config.json stops at [5], the tokenizer's EOS is 2"}


def test_a_changed_tokenizer_file_is_found(output, failures):
    path = output.directory / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    assert failures() == {"tokenizer files": "tokenizer.json is not the target's"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model-00001-of-00002.safetensors"])
def test_stray_weights_are_found(name, output, failures):
    (output.directory / name).touch()
    assert failures() == {"weights": f"stray {name}"}


def test_tensors_that_a_recipe_named_by_hand_are_found_again(output, failures):
    names = {EMBEDDING: "transformer.tokens", HEAD: "transformer.ff_out.weight"}
    output.change_tensors(lambda t: t.update({new: t.pop(old) for old, new in names.items()}))
    vocab = json.loads((output.directory / "provenance.json").read_text())["vocab"]
    output.change_json("provenance.json", vocab={names[name]: rows for name, rows in vocab.items()})
    assert failures() == {}
    output.change_tensors(lambda tensors: tensors[names[HEAD]][COPIED].add_(1))
    assert failures().keys() == {"copied rows"}


def test_a_directory_that_is_no_output_is_checked_for_health_only(output, failures):
    (output.directory / "provenance.json").unlink()
    output.change_tensors(lambda tensors: tensors[EMBEDDING][MADE].zero_())
    assert failures() == {}
    output.change_tensors(lambda tensors: tensors[EMBEDDING][MADE].fill_(float("nan")))
    assert failures() == {"finite": f"{EMBEDDING}[{MADE}] is not finite"}
    names = [check.name for check in verify_checkpoint(output.directory).checks]
    assert names == ["weights", "rows", "finite", "ids in configs"]


def test_an_expectation_survives_being_written_and_read(healthy, tmp_path):
    expected = load_expectation(healthy)
    expected.save(tmp_path)
    assert load_expectation(tmp_path) == expected


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b'{"rows": "many"}'])
def test_a_damaged_provenance_is_refused(raw, output):
    (output.directory / "provenance.json").write_bytes(raw)
    with pytest.raises(InputError, match=r"provenance\.json: \d+ errors"):
        verify_checkpoint(output.directory)


def test_a_model_that_brings_code_is_refused_before_anything_is_loaded(output):
    output.change_json("config.json", auto_map={"AutoModel": "modeling_x.Model"})
    with pytest.raises(PolicyError, match=r"config\.json: auto_map asks to run code"):
        verify_checkpoint(output.directory)
