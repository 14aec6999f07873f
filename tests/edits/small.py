"""Tokenizers of a few tokens, drawn or made by hand, as the vocabularies that are read from them."""

import itertools
import json
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from tokensurgeon.vocab.canonical import CHAR_OF_BYTE
from tokensurgeon.vocab.vocabulary import load_vocabulary

LETTERS = "abc"
EVERY_TEXT = [
    "".join(letters) for length in range(1, 6) for letters in itertools.product(LETTERS, repeat=length)
]
EVERY_TEXT += ["ab cab", " a  b", "ba d", "cd", "d", "éab", "abcabcabc", "ccccccc"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACES = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
TO_BLOCKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
FROM_BLOCKS = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def number(pieces):
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}


def special(index, content):
    options = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": content, **options}


def framed(names):
    """A post-processor that puts the first of these before a text, and the last behind it."""
    first, last = names[0][0], names[-1][0]
    frame = [
        {"SpecialToken": {"id": first, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": last, "type_id": 0}},
    ]
    known = {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in names}
    return {"type": "TemplateProcessing", "single": frame, "pair": [*frame, *frame], "special_tokens": known}


def load(model, specials=(), config=None, **parts):
    """Write a ``tokenizer.json``, and read it back."""
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special(index, content) for content, index in specials],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": framed(list(specials)) if specials else None,
        "decoder": None,
        **parts,
        "model": model,
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config or {}), encoding="utf-8")
        return load_vocabulary(Path(folder))


def bpe(pieces, merges, **options):
    made = ["".join(pair) for pair in merges]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": number([*pieces, *made]),
        "merges": [list(pair) for pair in merges],
        **options,
    }


def byte_level(merges, specials=("<s>", "</s>"), **options):
    """Like GPT-2, but that a token may be behind the bytes that its merges are made of, or before."""
    model = bpe([specials[0], *CHAR_OF_BYTE.values()], merges, **options)
    model["vocab"] |= {specials[1]: len(model["vocab"])}
    names = [(name, model["vocab"][name]) for name in specials]
    return load(model, names, pre_tokenizer=BYTE_LEVEL, decoder=BYTE_LEVEL)


def sentencepiece(merges, letters="▁abc", **options):
    """Like Gemma: no pre-tokenizer at all, byte pieces for all other letters."""
    parts = ["<unk>", "<s>", "</s>", *BYTES, *letters]
    model = bpe(parts, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True, **options)
    decoder = {"type": "Sequence", "decoders": [FROM_BLOCKS, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return load(model, [("<s>", 1), ("</s>", 2)], normalizer=TO_BLOCKS, decoder=decoder)


def unigram(pieces, byte_fallback=False):
    """Like T5: pieces with scores."""
    scored = [["<s>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]
    scored += [[piece, -9.0] for piece in BYTES] if byte_fallback else []
    model = {"type": "Unigram", "unk_id": 2, "vocab": [*scored, *pieces], "byte_fallback": byte_fallback}
    names = [("<s>", 0), ("</s>", 1), ("<unk>", 2)]
    return load(model, names, pre_tokenizer=SPACES, decoder=SPACES, config={"unk_token": "<unk>"})


def wordpiece(pieces):
    """Like BERT."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = number([*names, *pieces])
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 8,
        "vocab": vocab,
    }
    return load(
        model,
        [(name, vocab[name]) for name in names],
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        post_processor={"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
    )


@st.composite
def merge_lists(draw, letters=LETTERS):
    """Merges in any order, so that some lose to others, and some tokens are made in two ways or in none."""
    sizes, pairs = dict.fromkeys(letters, 1), []
    for _ in range(draw(st.integers(1, 12))):
        pair = (draw(st.sampled_from(list(sizes))), draw(st.sampled_from(list(sizes))))
        size = sum(sizes[piece] for piece in pair)
        if pair not in pairs and size < 7:
            pairs.append(pair)
            sizes["".join(pair)] = size
    return draw(st.permutations(pairs))


WORDS = st.text(LETTERS, min_size=1, max_size=4)
SCORES = st.sampled_from([-1.0, -1.5, -2.0, -3.0, -4.5, -30.0])


@st.composite
def unigrams(draw):
    """Pieces with scores, many of them equal; some letters have no piece of their own."""
    words = draw(st.lists(st.sampled_from(["", "▁"]).flatmap(lambda s: WORDS.map(s.__add__)), max_size=14))
    letters = draw(st.lists(st.sampled_from("▁abc"), max_size=4))
    pieces = [[piece, draw(SCORES)] for piece in dict.fromkeys([*words, *letters, "▁a"])]
    return unigram(pieces, draw(st.booleans()))


@st.composite
def wordpieces(draw, spelt=True):
    """Pieces of BERT's kind; each letter has its two pieces where it is to be spelt."""
    words = draw(st.lists(st.sampled_from(["", "##"]).flatmap(lambda s: WORDS.map(s.__add__)), max_size=14))
    letters = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return wordpiece([*words, *(letters if spelt else draw(st.lists(st.sampled_from(letters))))])
