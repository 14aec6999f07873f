import copy
import inspect
import math

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from tokensurgeon.errors import InputError, PolicyError, RecipeError
from tokensurgeon.evaluation import bits_per_byte
from tokensurgeon.evaluation.bits_per_byte import load_model, read_texts, score_texts
from tokensurgeon.evaluation.measure import Asked, measure

ROWS = 320  # of the models in conftest.py

ENGLISH = "the quick brown fox jumps over the lazy dog. and the cat, too, sat on the mat all day"
MIXED = "a🙂🙂b 東京都 the fox\u0301 Ünïcode — 한국어 \u200d👩\u200d🚀 " * 3 + "\n\n\tend"
WINDOWS = {"stride_bytes": 24, "context_bytes": 16}


def naive(model, tokenizer, text, stride, context):
    """One window at a time, everything spelled out."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [len(text[:start].encode()) for start, _ in encoding["offset_mapping"]]
    bits = 0.0
    for begin in range(0, len(text.encode()), stride):
        scored = [i for i, at in enumerate(starts) if begin <= at < begin + stride]
        before = [i for i, at in enumerate(starts) if begin - context <= at < begin]
        ids = [tokenizer.bos_token_id] + [encoding["input_ids"][i] for i in before + scored]
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for position in range(1 + len(before), len(ids)):
            bits -= logs[position - 1, ids[position]].item() / math.log(2)
    return bits


def uniform(model):
    flat = copy.deepcopy(model)
    torch.nn.init.zeros_(flat.get_output_embeddings().weight)
    return flat


def budget(positions):
    return positions * ROWS * 4


@pytest.mark.parametrize("text", [ENGLISH, MIXED], ids=["english", "mixed"])
@pytest.mark.parametrize("kind", ["byte-level", "bytes", "byte-fallback"])
@pytest.mark.parametrize("body", ["llama", "gemma"])
def test_equals_a_naive_loop(request, tokenizers, body, kind, text):
    model = request.getfixturevalue(body)
    [score] = score_texts(model, tokenizers[kind], {"t": text}, **WINDOWS).scores
    expected = naive(model, tokenizers[kind], text, 24, 16)
    assert score.bits == pytest.approx(expected, rel=1e-5)
    assert score.bits_per_byte == score.bits / len(text.encode())


def test_tokens_that_are_not_allowed_take_no_probability(llama, tokenizers):
    tokenizer = tokenizers["bytes"]
    ids = sorted({*tokenizer(ENGLISH, add_special_tokens=False)["input_ids"]})
    allowed = torch.zeros(ROWS, dtype=torch.bool)
    allowed[ids] = True
    [score] = score_texts(uniform(llama), tokenizer, {"t": ENGLISH}, allowed=allowed).scores
    assert score.bits == pytest.approx(score.tokens * math.log2(len(ids)))
    [every] = score_texts(llama, tokenizer, {"t": ENGLISH}, allowed=allowed | True).scores
    assert every.bits == score_texts(llama, tokenizer, {"t": ENGLISH}).scores[0].bits
    allowed[ids[0]] = False
    with pytest.raises(InputError, match="not finite"):
        score_texts(llama, tokenizer, {"t": ENGLISH}, allowed=allowed)


@pytest.mark.parametrize("text", [ENGLISH, MIXED, "🙂", "x"])
@pytest.mark.parametrize("stride", [1, 3, 24, 5000])
@pytest.mark.parametrize("kind", ["byte-level", "bytes", "byte-fallback"])
def test_every_byte_and_token_is_scored_once(llama, tokenizers, kind, stride, text):
    seen = []
    [score] = score_texts(
        llama,
        tokenizers[kind],
        {"t": text},
        stride_bytes=stride,
        context_bytes=4,
        advance=seen.append,
    ).scores
    assert score.bytes == sum(seen) == len(text.encode())
    assert score.tokens == len(tokenizers[kind](text, add_special_tokens=False)["input_ids"])
    assert score.bytes_per_token == score.bytes / score.tokens


@pytest.mark.parametrize("body", ["llama", "gemma"])
def test_batch_size_makes_no_difference(request, monkeypatch, tokenizers, body):
    model = request.getfixturevalue(body)
    sizes = []
    run = bits_per_byte.score_windows
    monkeypatch.setattr(
        bits_per_byte,
        "score_windows",
        lambda m, batch, *rest: sizes.append(len(batch)) or run(m, batch, *rest),
    )
    figures, largest = [], []
    # 1 position: windows in pieces of one token. 24: one window a batch. 120: about four.
    for positions in (1, 24, 120):
        sizes.clear()
        scores = score_texts(
            model, tokenizers["bytes"], {"t": MIXED}, **WINDOWS, logits_bytes=budget(positions)
        )
        figures.append(scores.scores[0].bits_per_byte)
        largest.append(max(sizes))
    assert largest[0] == largest[1] == 1
    assert largest[2] >= 4
    assert figures == pytest.approx([figures[0]] * 3, abs=1e-5)


def test_every_token_keeps_its_own_loss_when_asked(llama, tokenizers):
    tokenizer = tokenizers["bytes"]
    options = {**WINDOWS, "logits_bytes": budget(50)}  # windows of a batch come out of order
    [score] = score_texts(llama, tokenizer, {"t": MIXED}, **options, keep_losses=True).scores
    assert math.fsum(score.losses.bits) == score.bits
    assert score.losses.ids.tolist() == tokenizer(MIXED, add_special_tokens=False)["input_ids"]
    ids = [tokenizer.bos_token_id, *score.losses.ids[:24].tolist()]
    with torch.no_grad():
        logs = llama(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    expected = [-logs[place, index].item() / math.log(2) for place, index in enumerate(ids[1:])]
    assert score.losses.bits[:24].tolist() == pytest.approx(expected, rel=1e-4)
    assert score_texts(llama, tokenizer, {"t": MIXED}, **options).scores[0].losses is None


def test_logits_are_scored_in_chunks(monkeypatch, llama, tokenizers):
    whole = score_texts(llama, tokenizers["bytes"], {"t": MIXED}).scores[0]
    monkeypatch.setattr(bits_per_byte, "_CHUNK_LOGITS", 7 * ROWS)
    assert score_texts(llama, tokenizers["bytes"], {"t": MIXED}).scores[0].bits == pytest.approx(whole.bits)


def test_a_model_that_cannot_leave_logits_out_scores_the_same(monkeypatch, llama, tokenizers):
    expected = score_texts(llama, tokenizers["bytes"], {"t": MIXED}, **WINDOWS).scores[0]
    forward = llama.forward

    def plain(input_ids, attention_mask, use_cache):
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    assert "logits_to_keep" in inspect.signature(forward).parameters
    monkeypatch.setattr(llama, "forward", plain)
    found = score_texts(llama, tokenizers["bytes"], {"t": MIXED}, **WINDOWS, logits_bytes=budget(90)).scores[
        0
    ]
    assert found.bits == pytest.approx(expected.bits, rel=1e-6)


@pytest.mark.parametrize("kind", ["byte-level", "bytes", "byte-fallback"])
def test_a_uniform_model_pays_log2_of_the_rows_a_token(llama, tokenizers, kind):
    [score] = score_texts(uniform(llama), tokenizers[kind], {"t": MIXED}, **WINDOWS).scores
    assert score.bits_per_byte == pytest.approx(math.log2(ROWS) * score.tokens / score.bytes, rel=1e-6)


def test_a_uniform_model_ranks_tokenizers_by_bytes_per_token(llama, tokenizers):
    flat = uniform(llama)
    fine, coarse = (
        score_texts(flat, tokenizers[kind], {"t": ENGLISH}).scores[0] for kind in ("bytes", "byte-level")
    )
    assert fine.bytes == coarse.bytes
    assert fine.bits / coarse.bits == pytest.approx(fine.tokens / coarse.tokens, rel=1e-6)
    assert fine.bits_per_byte > coarse.bits_per_byte


def test_context_is_seen_and_later_text_is_not(llama, tokenizers):
    tokenizer = tokenizers["bytes"]
    base = score_texts(llama, tokenizer, {"t": "a" * 40}, stride_bytes=20, context_bytes=0).scores[0]
    half = score_texts(llama, tokenizer, {"t": "a" * 20}, stride_bytes=20, context_bytes=0).scores[0]
    assert base.bits == pytest.approx(2 * half.bits, rel=1e-5)
    seen = score_texts(llama, tokenizer, {"t": "a" * 40}, stride_bytes=20, context_bytes=10).scores[0]
    assert abs(seen.bits - base.bits) > 1e-3


@pytest.mark.parametrize(
    ("roles", "label"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, "<s>"),
        ({"eos_token": "</s>"}, "</s>"),
        ({"pad_token": "<s>"}, "<s>"),
    ],
)
def test_the_record_names_the_token_windows_open_with(llama, byte_level, roles, label):
    scores = score_texts(llama, byte_level(258, **roles), {"t": ENGLISH})
    assert scores.bos == label
    assert scores.scores[0].bytes == len(ENGLISH)


@pytest.mark.parametrize("context", [0, 16])
def test_without_any_bos_the_first_character_is_left_out(llama, byte_level, context):
    tokenizer = byte_level(258)
    scores = score_texts(llama, tokenizer, {"t": MIXED}, stride_bytes=24, context_bytes=context)
    assert scores.bos is None
    assert scores.scores[0].bytes == len(MIXED.encode()) - 1
    assert scores.scores[0].tokens == len(MIXED.encode()) - 1
    emoji = score_texts(llama, tokenizer, {"t": "🙂ab"}).scores[0]
    assert (emoji.bytes, emoji.tokens) == (2, 2)
    with pytest.raises(InputError, match="no BOS before it"):
        score_texts(llama, tokenizer, {"t": "a"})


def test_a_tokenizer_that_adds_its_own_bos_changes_nothing(llama, tokenizers):
    from tokenizers.processors import TemplateProcessing

    adds = copy.deepcopy(tokenizers["byte-level"])
    adds.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert adds("a")["input_ids"][0] == 0
    plain = score_texts(llama, tokenizers["byte-level"], {"t": ENGLISH})
    assert score_texts(llama, adds, {"t": ENGLISH}).scores == plain.scores


def test_names_of_special_tokens_in_a_text_are_text(llama, tokenizers):
    [score] = score_texts(llama, tokenizers["bytes"], {"t": "a</s>b"}).scores
    assert score.tokens == 6


def test_bad_input_is_refused(llama, tokenizers):
    tokenizer = tokenizers["bytes"]
    with pytest.raises(InputError, match="t: empty text"):
        score_texts(llama, tokenizer, {"t": ""})
    with pytest.raises(InputError, match="character 1 has no UTF-8 form"):
        score_texts(llama, tokenizer, {"t": "a\ud800"})
    with pytest.raises(RecipeError, match="stride of 0 bytes"):
        score_texts(llama, tokenizer, {"t": "a"}, stride_bytes=0)
    with pytest.raises(InputError, match=r"(?s)window of 3000 tokens.*at most 2048"):
        score_texts(llama, tokenizer, {"t": "ab" * 1500}, stride_bytes=4096)


def test_a_model_that_does_not_fit_is_refused(llama, tokenizers):
    short = copy.deepcopy(llama)
    short.resize_token_embeddings(100)
    with pytest.raises(InputError, match="ids below 100"):
        score_texts(short, tokenizers["bytes"], {"t": MIXED})
    broken = uniform(llama)
    torch.nn.init.constant_(broken.get_output_embeddings().weight, math.nan)
    with pytest.raises(InputError, match="not finite"):
        score_texts(broken, tokenizers["bytes"], {"t": "abc"})


def test_measuring_loads_and_scores_in_silence(model_dir, llama, tokenizers, capfd):
    scores = measure(str(model_dir), {"a": ENGLISH, "b": MIXED}, Asked(**WINDOWS)).scores
    loaded = score_texts(llama, tokenizers["byte-level"], {"a": ENGLISH, "b": MIXED}, **WINDOWS)
    assert scores.model == str(model_dir)
    assert [score.text for score in scores.scores] == ["a", "b"]
    assert [s.bits for s in scores.scores] == pytest.approx([s.bits for s in loaded.scores], rel=1e-6)
    assert capfd.readouterr() == ("", "")


def test_dtype_is_float32_unless_asked(tmp_path, llama, tokenizers):
    copy.deepcopy(llama).bfloat16().save_pretrained(tmp_path)
    tokenizers["bytes"].save_pretrained(tmp_path)
    assert load_model(str(tmp_path))[0].dtype == torch.float32
    assert load_model(str(tmp_path), dtype="auto")[0].dtype == torch.bfloat16
    assert load_model(str(tmp_path), dtype="bfloat16")[0].dtype == torch.bfloat16


def test_what_is_no_causal_model_is_refused(tmp_path, model_dir, tokenizers):
    with pytest.raises(InputError, match=r"(?s)empty: .*expected: a causal language model"):
        (tmp_path / "empty").mkdir()
        load_model(str(tmp_path / "empty"))
    config = BertConfig(
        vocab_size=ROWS,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        architectures=["BertForMaskedLM"],
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tokenizers["bytes"].save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="BertForMaskedLM"):
        load_model(str(tmp_path / "bert"))


def test_random_weights_are_never_scored(tmp_path, llama, tokenizers):
    tokenizers["bytes"].save_pretrained(tmp_path)
    state = llama.state_dict()
    state.pop("lm_head.weight")
    llama.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(InputError, match="1 tensors missing or of another shape, the first lm_head"):
        load_model(str(tmp_path))
    llama.save_pretrained(tmp_path, state_dict={**llama.state_dict(), "lm_head.weight": torch.zeros(5, 32)})
    with pytest.raises(InputError, match="1 tensors missing or of another shape, the first lm_head"):
        load_model(str(tmp_path))


def test_own_code_is_refused_by_policy(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "own.Config"}}')
    with pytest.raises(PolicyError, match="needs code that comes with the checkpoint"):
        load_model(str(tmp_path))


def test_unknown_device_and_dtype_are_refused(model_dir):
    with pytest.raises(RecipeError, match="dtype 'int3'"):
        load_model(str(model_dir), dtype="int3")
    with pytest.raises(RecipeError, match="device 'abacus'"):
        load_model(str(model_dir), device="abacus")
    with pytest.raises(RecipeError, match=r"(?s)device 'cuda:99'.*next: use auto"):
        load_model(str(model_dir), device="cuda:99")


def test_texts_are_named_by_file_and_by_folder_where_names_clash(tmp_path):
    for name in ("x/a.txt", "y/a.txt", "y/b.txt", "z/x/c.txt", "w/x/c.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    paths = [tmp_path / name for name in ("x/a.txt", "y/a.txt", "y/b.txt", "y/b.txt")]
    assert read_texts(paths) == {"x/a.txt": "x/a.txt", "y/a.txt": "y/a.txt", "b.txt": "y/b.txt"}
    twins = [tmp_path / "z/x/c.txt", tmp_path / "w/x/c.txt"]
    assert list(read_texts(twins)) == [str(path) for path in twins]


@pytest.mark.parametrize(
    ("limit", "text"), [(None, "a🙂\r\n"), (7, "a🙂\r\n"), (5, "a🙂"), (4, "a"), (1, "a")]
)
def test_texts_are_cut_between_characters(tmp_path, limit, text):
    (tmp_path / "t").write_bytes("a🙂\r\n".encode())
    assert read_texts([tmp_path / "t"], limit) == {"t": text}


def test_unreadable_texts_are_refused(tmp_path):
    (tmp_path / "latin").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(InputError, match=r"(?s)byte 2 is not UTF-8.*next: iconv"):
        read_texts([tmp_path / "latin"])
    (tmp_path / "short").write_bytes("🙂".encode()[:3])
    with pytest.raises(InputError, match="byte 0 is not UTF-8"):
        read_texts([tmp_path / "short"])
    (tmp_path / "none").write_bytes(b"")
    with pytest.raises(InputError, match="none: empty text"):
        read_texts([tmp_path / "none"])
    with pytest.raises(InputError, match="absent: No such file"):
        read_texts([tmp_path / "absent"])
