"""Tiny real tokenizers of every kind, written to disk as a checkpoint has them, and read back."""

import itertools
import json
from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokensurgeon.vocab.canonical import CHAR_OF_BYTE
from tokensurgeon.vocab.vocabulary import load_vocabulary

WORDS = [" the", " cat", " running", "ing", "naï", "é", "日本", "\n", "\n\n", "\t", "  ", "    ", "</", "."]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TIKTOKEN = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] }}<end_of_turn>\n{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
)


def chain(words):
    """Merges that build each word from its left end, and the pieces they make."""
    merges = []
    for word in words:
        for end in range(1, len(word)):
            pair = ("".join(word[:end]), word[end])
            if pair not in merges:
                merges.append(pair)
    return merges, list(dict.fromkeys(left + right for left, right in merges))


def number(pieces):
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}


def printed(text):
    return "".join(CHAR_OF_BYTE[byte] for byte in text.encode())


def byte_level(words=WORDS, specials=("<|endoftext|>",), added=(), pre_tokenizer=None, **model):
    """Like GPT-2: specials first, then the 256 bytes, then merges."""
    merges, pieces = chain(list(printed(word)) for word in words)
    tokenizer = Tokenizer(
        models.BPE(vocab=number([*specials, *CHAR_OF_BYTE.values(), *pieces]), merges=merges, **model)
    )
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    tokenizer.add_tokens(list(added))
    return tokenizer


def tiktoken(words=WORDS, specials=("<|begin_of_text|>", "<|end_of_text|>"), **options):
    """Like Llama 3: a regex, bytes, whole words looked up before merges, specials last."""
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TIKTOKEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = byte_level(words, (), pre_tokenizer=pre_tokenizer, ignore_merges=True, **options)
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def sentencepiece(words=WORDS, specials=("<pad>", "<eos>", "<bos>", "<unk>"), added=("\n\n", "▁▁")):
    """Like Gemma: characters, all byte pieces, and runs of white space among the added tokens."""
    spelt = [word.replace(" ", "▁") for word in words]
    merges, pieces = chain(list(word) for word in spelt)
    letters = sorted(set("".join(spelt)) | {"▁", "a"})
    tokenizer = Tokenizer(
        models.BPE(
            vocab=number([*specials, *BYTES, *pieces, *letters]),
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(list(specials))
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in added])
    return tokenizer


def unigram(words=WORDS, specials=("<pad>", "</s>", "<unk>"), byte_fallback=False):
    """Like T5: pieces with scores, spaces as Metaspace."""
    spelt = [word.replace(" ", "▁") for word in words]
    letters = sorted({*"".join(spelt), "▁", "a"})
    pieces = [*specials, *(BYTES if byte_fallback else ()), *spelt, *letters]
    scored = [(piece, -2.0 - len(letters) / (1 + len(piece))) for piece in dict.fromkeys(pieces)]
    tokenizer = Tokenizer(
        models.Unigram(scored, unk_id=list(specials).index("<unk>"), byte_fallback=byte_fallback)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def wordpiece(lowercase=True, pieces=()):
    """Like BERT."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]"]
    learnt = ["the", "cat", "run", "ing", ".", ",", "日", "本", "é", "a", "to"]
    learnt += ["##the", "##n", "##ing", "##s", "##é", "##a", "##."]
    learnt += [] if lowercase else ["The", "Cat", "##A"]
    tokenizer = Tokenizer(models.WordPiece(vocab=number([*specials, *learnt, *pieces]), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(specials[:5])
    return tokenizer


BERT_ROLES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
T5_ROLES = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
KINDS = {
    "byte-level": lambda: (byte_level(), {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "tiktoken": lambda: (
        tiktoken([*WORDS, " the cat"]),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    ),
    "sentencepiece": lambda: (
        sentencepiece(),
        {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
    ),
    "unigram": lambda: (unigram(), T5_ROLES),
    "unigram-bytes": lambda: (unigram(byte_fallback=True), T5_ROLES),
    "wordpiece-uncased": lambda: (wordpiece(), BERT_ROLES),
    "wordpiece-cased": lambda: (wordpiece(lowercase=False), BERT_ROLES),
}


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Builders, and ``load``: a tokenizer and its config -> the vocabulary read back from disk."""

    def write(tokenizer, **config):
        directory = tmp_path_factory.mktemp("tokenizer")
        tokenizer.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return directory

    return SimpleNamespace(
        byte_level=byte_level,
        tiktoken=tiktoken,
        sentencepiece=sentencepiece,
        unigram=unigram,
        wordpiece=wordpiece,
        write=write,
        load=lambda tokenizer, **config: load_vocabulary(write(tokenizer, **config)),
        chatml=CHATML,
        gemma=GEMMA,
        llama3=LLAMA3,
    )


@pytest.fixture(scope="session")
def vocabularies(build):
    """One vocabulary of each kind, by name."""
    made = {}
    for kind, make in KINDS.items():
        tokenizer, config = make()
        made[kind] = build.load(tokenizer, **config)
    return made


@pytest.fixture(params=KINDS)
def vocabulary(request, vocabularies):
    """Each kind in turn."""
    return vocabularies[request.param]


@pytest.fixture(params=itertools.permutations(KINDS, 2), ids="->".join)
def pair(request, vocabularies):
    """Each ordered pair of different kinds in turn: target, base."""
    return tuple(vocabularies[kind] for kind in request.param)
