"""Every token id in the configs follows its token; every vocabulary size is the number of rows."""

from __future__ import annotations

import json

import pytest

from tokensurgeon.checkpoint.configs import (
    IdRemap,
    as_ids,
    complete_config,
    dump_config,
    read_config,
    remaining_ids,
    rewrite_config,
    rewrite_generation_config,
    text_levels,
)
from tokensurgeon.errors import InputError

OLD, NEW = 1000, 640


def make_remap(successors=None, *, roles=None, stops=(), rows=NEW) -> IdRemap:
    """Base ids 10 to 99 go to their double; the others to nothing, unless a test says where."""
    table = {index: [2 * index] for index in range(10, 100)} | (successors or {})
    return IdRemap(lambda index: table.get(index, []), roles or {}, list(stops), rows, frozenset({OLD}))


def identity(**roles: int) -> IdRemap:
    stops = [roles["eos"]] if "eos" in roles else []
    successors = lambda index: [index] if 0 <= index < OLD else []  # noqa: E731
    return IdRemap(successors, roles, stops, OLD, frozenset({OLD}), identity=True)


def test_vocabulary_size_changes_at_every_text_level():
    levels = ("text_config", "language_config", "llm_config", "decoder", "encoder")
    config = {"vocab_size": OLD} | {name: {"vocab_size": OLD} for name in levels}
    new, changes = rewrite_config(config, make_remap())
    assert new == {"vocab_size": NEW} | {name: {"vocab_size": NEW} for name in levels}
    assert [(change.field, change.old, change.new) for change in changes] == [
        ("vocab_size", OLD, NEW),
        *((f"{name}.vocab_size", OLD, NEW) for name in levels),
    ]


def test_vocabulary_size_of_another_modality_stays():
    config = {"vision_config": {"vocab_size": 128}, "audio_config": {"vocab_size": 256}}
    new, changes = rewrite_config(config, make_remap())
    assert new == config
    assert changes == []


def test_a_text_level_inside_another_level_is_found():
    new, _ = rewrite_config({"thinker_config": {"text_config": {"vocab_size": OLD}}}, make_remap())
    assert new == {"thinker_config": {"text_config": {"vocab_size": NEW}}}


def test_a_wrong_vocabulary_size_is_set_right():
    assert rewrite_config({"vocab_size": -1}, make_remap())[0] == {"vocab_size": NEW}


@pytest.mark.parametrize("key", ["decoder_vocab_size", "n_vocab", "padded_vocab_size", "embedding_size"])
def test_other_spellings_of_the_size_change_only_where_they_mean_it(key):
    assert rewrite_config({key: OLD}, make_remap())[0] == {key: NEW}
    assert rewrite_config({key: 128}, make_remap())[0] == {key: 128}


def test_the_target_tokenizer_decides_roles():
    config = {"bos_token_id": 10, "pad_token_id": None, "sep_token_id": 11, "unk_token_id": 12}
    new, _ = rewrite_config(config, make_remap(roles={"bos": 1, "pad": 2, "unk": 3}))
    assert new == {"bos_token_id": 1, "pad_token_id": 2, "sep_token_id": 22, "unk_token_id": 3}


def test_roles_reach_nested_text_configs():
    config = {"text_config": {"bos_token_id": 10, "eos_token_id": 11, "pad_token_id": 12}}
    new, changes = rewrite_config(config, make_remap(roles={"bos": 1, "eos": 2}, stops=[2]))
    assert new == {"text_config": {"bos_token_id": 1, "eos_token_id": [2, 22], "pad_token_id": 24}}
    assert {change.field for change in changes} == {
        "text_config.bos_token_id",
        "text_config.eos_token_id",
        "text_config.pad_token_id",
    }


def test_in_another_modality_a_role_field_follows_its_token():
    new, _ = rewrite_config({"vision_config": {"bos_token_id": 10}}, make_remap(roles={"bos": 1}))
    assert new == {"vision_config": {"bos_token_id": 20}}


def test_no_role_field_is_invented():
    assert rewrite_config({}, make_remap(roles={"bos": 1, "eos": 2}, stops=[2])) == ({}, [])


def test_stops_of_target_and_base_are_united():
    generation, _ = rewrite_generation_config({"eos_token_id": [10, 11]}, {}, make_remap(stops=[2, 20]))
    assert generation["eos_token_id"] == [2, 20, 22]


@pytest.mark.parametrize(
    ("model_type", "stops"), [("llama", [5, 41]), ("nomic_bert", 5), ("of-its-own-code", [5, 41])]
)
def test_a_class_that_takes_one_stop_gets_the_tokenizers(model_type, stops):
    remap = make_remap({1: [41]}, roles={"eos": 5}, stops=[5])
    new, _ = rewrite_config({"model_type": model_type, "eos_token_id": 1}, remap)
    assert new["eos_token_id"] == stops


def test_a_single_stop_is_a_number():
    generation, _ = rewrite_generation_config({"eos_token_id": 10}, {}, make_remap(stops=[20]))
    assert generation["eos_token_id"] == 20


def test_a_base_stop_that_became_two_target_tokens_stops_at_both():
    generation, _ = rewrite_generation_config({"eos_token_id": 10}, {}, make_remap({10: [5, 6]}, stops=[5]))
    assert generation["eos_token_id"] == [5, 6]


def test_stops_that_only_the_model_config_names_are_kept():
    model = {"eos_token_id": 10, "text_config": {"eos_token_id": [11]}}
    generation, _ = rewrite_generation_config({}, model, make_remap(stops=[2]))
    assert generation["eos_token_id"] == [2, 20, 22]


def test_a_missing_generation_config_is_made_from_the_model_config():
    model = {"bos_token_id": 10, "eos_token_id": 11, "pad_token_id": 12, "hidden_size": 8}
    generation, changes = rewrite_generation_config({}, model, make_remap(roles={"bos": 1}, stops=[2]))
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 22], "pad_token_id": 24}
    assert all(change.file == "generation_config.json" and change.old is None for change in changes)


def test_the_outer_level_decides_where_levels_disagree():
    model = {"bos_token_id": 10, "text_config": {"bos_token_id": 11}}
    assert rewrite_generation_config({}, model, make_remap())[0] == {"bos_token_id": 20}


def test_a_generation_config_gains_the_roles_of_the_target():
    generation, _ = rewrite_generation_config({}, {}, make_remap(roles={"bos": 1, "pad": 2}, stops=[3]))
    assert generation == {"eos_token_id": 3, "bos_token_id": 1, "pad_token_id": 2}


def test_a_model_that_never_stops_gets_no_stop():
    assert rewrite_generation_config({}, {"hidden_size": 8}, make_remap()) == ({}, [])


def test_sampling_settings_of_the_base_stay():
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096}
    generation, changes = rewrite_generation_config(
        {**settings, "eos_token_id": 10}, {}, make_remap(stops=[2])
    )
    assert generation == {**settings, "eos_token_id": [2, 20]}
    assert [change.field for change in changes] == ["eos_token_id"]


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("decoder_start_token_id", 10, 20),
        ("forced_bos_token_id", 10, 20),
        ("image_token_index", 11, 22),
        ("image_token_id", 12, 24),
        ("eoi_token_index", 13, 26),
        ("suppress_tokens", [10, 5, 11], [20, 22]),
        ("begin_suppress_tokens", [5, 6], None),
        ("bad_words_ids", [[10], [11, 5], [12, 13]], [[20], [24, 26]]),
        ("bad_words_ids", [[5]], None),
        ("forced_decoder_ids", [[1, 10], [2, 5], [3, 11]], [[1, 20], [3, 22]]),
        ("forced_decoder_ids", [[1, None], [2, 10]], [[1, None], [2, 20]]),
        ("forced_decoder_ids", [[1, 5]], None),
        ("decoder_start_token_id", 5, None),
        ("pad_token_id", -1, None),
    ],
)
def test_an_id_follows_its_token_or_becomes_null(key, old, new):
    rewritten, changes = rewrite_config({key: old}, make_remap())
    assert rewritten == {key: new}
    assert [(change.field, change.old, change.new) for change in changes] == [(key, old, new)]


def test_a_suppressed_token_that_became_two_is_suppressed_twice():
    assert rewrite_config({"suppress_tokens": [10]}, make_remap({10: [5, 6]}))[0] == {
        "suppress_tokens": [5, 6]
    }


def test_numbers_that_are_no_ids_stay():
    config = {
        "hidden_size": 12,
        "max_length": 20,
        "num_labels": 10,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    assert rewrite_config(config, make_remap(roles={"eos": 2}, stops=[2])) == (config, [])


WHISPER = {
    "vocab_size": OLD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "decoder_start_token_id": 4,
    "suppress_tokens": [],
    "begin_suppress_tokens": [220, 257],
    "forced_decoder_ids": [[1, None], [2, 359]],
    "bad_words_ids": [],
    "vision_config": {"image_token_id": 9, "layers": {"a": [1, 2]}},
    "text_config": {"vocab_size": OLD, "eos_token_id": [7, 2]},
}


def test_a_model_given_its_own_tokenizer_keeps_its_config():
    assert rewrite_config(WHISPER, identity(bos=1, eos=2, pad=3)) == (WHISPER, [])


@pytest.mark.parametrize("stops", [2, [2], [7, 2], [2, 7]])
def test_a_model_given_its_own_tokenizer_keeps_its_generation_config(stops):
    config = {"bos_token_id": 1, "eos_token_id": stops, "pad_token_id": 3, "suppress_tokens": []}
    assert rewrite_generation_config(config, WHISPER, identity(bos=1, eos=2, pad=3)) == (config, [])


def test_keys_keep_their_order():
    config = {"z": 1, "vocab_size": OLD, "a": {"y": 1, "image_token_id": 10, "b": 2}, "eos_token_id": 10}
    new, _ = rewrite_config(config, make_remap(stops=[2]))
    assert list(new) == ["z", "vocab_size", "a", "eos_token_id"]
    assert list(new["a"]) == ["y", "image_token_id", "b"]


def test_the_given_config_is_not_changed():
    config = {"vocab_size": OLD, "text_config": {"eos_token_id": 10}}
    before = json.dumps(config)
    rewrite_config(config, make_remap(stops=[2]))
    assert json.dumps(config) == before


def test_remaining_ids_are_listed_by_path():
    config = {
        "vocab_size": OLD,
        "pad_token_id": None,
        "eos_token_id": [1, 2],
        "image_token_index": 7,
        "text_config": {"bos_token_id": 3, "inner": {"sep_token_id": -1}},
        "bad_words_ids": [[4], [5, 6]],
        "forced_decoder_ids": [[1, None], [2, 8]],
    }
    assert remaining_ids(config) == {
        "pad_token_id": [],
        "eos_token_id": [1, 2],
        "image_token_index": [7],
        "text_config.bos_token_id": [3],
        "text_config.inner.sep_token_id": [],
        "bad_words_ids": [4, 5, 6],
        "forced_decoder_ids": [8],
    }


def test_no_rewritten_id_is_past_the_rows():
    config = {"image_token_id": OLD - 1, "suppress_tokens": list(range(OLD)), "eos_token_id": OLD + 5}
    new, _ = rewrite_config(config, make_remap(stops=[2]))
    assert [index for ids in remaining_ids(new).values() for index in ids if index >= NEW] == []
    assert len(new["suppress_tokens"]) == 90


@pytest.mark.parametrize(("value", "ids"), [(None, []), (0, [0]), ([1, 2], [1, 2]), ([], [])])
def test_an_id_a_list_and_null_all_read_as_a_list(value, ids):
    assert as_ids(value) == ids


def test_text_levels_leave_out_other_modalities():
    text, vision = {"vocab_size": 5}, {"vocab_size": 6}
    config = {"text_config": text, "vision_config": vision, "decoder": None}
    assert text_levels(config) == [config, text]


def test_a_config_survives_being_written_and_read(tmp_path):
    config = {"b": "é▁日", "a": [1, {"c": None}]}
    (tmp_path / "config.json").write_text(dump_config(config), encoding="utf-8")
    assert list(read_config(tmp_path).items()) == list(config.items())
    assert "é▁日" in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_a_missing_config_is_empty_only_where_it_is_optional(tmp_path):
    assert read_config(tmp_path, "generation_config.json", optional=True) == {}
    with pytest.raises(InputError, match=r"no config\.json\nexpected: a Hugging Face checkpoint directory"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "a JSON document"),
        (b"[]", r"list\nexpected: a JSON object"),
        (b'{"a": "\xff"}', "a JSON document"),
        (b"[" * 100_000, "a JSON document"),
    ],
)
def test_a_damaged_config_is_refused_by_name(raw, message, tmp_path):
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(InputError, match=rf"config\.json: (.|\n)*{message}"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eos_token_id", "x"),
        ("eos_token_id", [[1]]),
        ("eos_token_id", {"a": 1}),
        ("pad_token_id", True),
        ("image_token_index", 1.5),
        ("suppress_tokens", [None]),
        ("bad_words_ids", [1]),
        ("bad_words_ids", [["x"]]),
        ("forced_decoder_ids", [[1]]),
        ("forced_decoder_ids", 7),
    ],
)
def test_what_is_no_token_id_is_refused(field, value):
    said = rf"json: text_config\.{field} is (.|\n)*expected: a token id"
    with pytest.raises(InputError, match=said):
        rewrite_config({"text_config": {field: value}}, make_remap())
    with pytest.raises(InputError, match=said):
        rewrite_generation_config({"text_config": {field: value}}, {}, make_remap())
    with pytest.raises(InputError, match=field):
        remaining_ids({field: value})


def test_what_is_left_to_class_defaults_is_written_down():
    config, _ = rewrite_config({"model_type": "llama", "eos_token_id": 10}, make_remap(stops=[2]))
    new, added = complete_config(config, make_remap(roles={"bos": 1}, stops=[2]))
    assert new["vocab_size"] == NEW
    assert new["bos_token_id"] == 1
    assert new["pad_token_id"] is None
    assert {change.field for change in added} == {"vocab_size", "bos_token_id", "pad_token_id"}


def test_what_a_nested_text_model_leaves_out_is_written_at_its_level():
    new, _ = complete_config({"text_config": {"model_type": "gemma3_text"}}, make_remap(stops=[2]))
    assert new["text_config"]["vocab_size"] == NEW
    assert list(new) == ["text_config"]
