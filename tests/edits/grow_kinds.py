"""A small trained tokenizer of each kind, and texts to edit them with."""

import functools
import json
import tempfile
from pathlib import Path

from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tokensurgeon.vocab.vocabulary import load_vocabulary

CORPUS = [
    "The quick brown fox jumps over the lazy dog; the dog sleeps under the old oak tree.",
    "It's the children's kettle, isn't it? She would have wanted the other one, they're sure.",
    "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n",
    "Привет, мир! Это проверка токенизатора. 日本語も少し。",
    "1 22 333 4444 55555 3.14159 2026-11-23 100% 678",
] * 4
FRENCH = (
    "Le château de la rivière était très élevé, où l'été passait déjà. La rivière passait sous le château, "
    "et de la rivière on voyait le vieux château.\nEn 1789, en 1830 et en 1848, le château était vieux.\n"
) * 6
ENGLISH = (
    "At the end of the day, the lazy dog and the quick fox sleep under the old oak tree.\n"
    "It was the end of the day, and the quick fox was at the end of the road. The dog's kettle was old.\n"
) * 6
TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def train_bpe(pre_tokenizer, size=420, specials=(), corpus=CORPUS):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def byte_level():
    """Like GPT-2, with one special token that the model itself does not list."""
    tokenizer = train_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), specials=["<|end|>", "<|start|>"])
    tokenizer.add_special_tokens(["<|late|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|late|> $A", pair="<|late|> $A $B", special_tokens=[("<|late|>", 420)]
    )
    return tokenizer


def tiktoken():
    """Like Llama 3."""
    split = pre_tokenizers.Split(Regex(TIKTOKEN), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = train_bpe(pre_tokenizers.Sequence([split, whole]))
    spec = json.loads(tokenizer.to_str())
    spec["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.add_special_tokens(["<|begin|>", "<|eot|>"])
    return tokenizer


def smollm():
    """Like SmolLM2 as its GGUF has it: digits stay single because no merge has them."""
    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer = train_bpe(digits, specials=["<|endoftext|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def sentencepiece(metaspace=None):
    """Like Gemma: nothing cuts words apart. Or with Metaspace that does, and prepends a space or not."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    split = pre_tokenizers.Split(Regex(r"▁?\p{L}+|▁|\p{N}|[^▁\p{L}\p{N}]"), "isolated")
    trained.pre_tokenizer = split
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=340, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<unused0>"]
    pieces = dict.fromkeys([*specials, *BYTES, *learnt["vocab"], "\n\n"])
    vocab = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(
        vocab=vocab,
        merges=[tuple(merge) for merge in learnt["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Metaspace(prepend_scheme=metaspace)
        if metaspace
        else pre_tokenizers.Split(" ", "isolated")
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(specials)
    tokenizer.add_tokens(["\n\n"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    return tokenizer


def llama2():
    """Like Llama 2: nothing cuts words apart, and a space is put before each text."""
    tokenizer = sentencepiece()
    spec = json.loads(tokenizer.to_str())
    spec["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def unigram():
    """Like T5: Metaspace that prepends a space, and a token behind the list of pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, "château rivière été où", "90"], trainer)
    tokenizer.add_special_tokens(["<extra_id_0>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def wordpiece():
    """Like BERT, cased."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=list("éèâùà"), show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, "déjà là où âgé zêè château rivière été voyait 0 10 90"], trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


MAKERS = {
    "byte-level": byte_level,
    "tiktoken": tiktoken,
    "smollm": smollm,
    "sentencepiece": sentencepiece,
    "metaspace": functools.partial(sentencepiece, metaspace="never"),
    "metaspace-first": functools.partial(sentencepiece, metaspace="first"),
    "llama2": llama2,
    "unigram": unigram,
    "wordpiece": wordpiece,
}
KINDS = list(MAKERS)
BPES = [kind for kind in KINDS if kind not in ("unigram", "wordpiece")]


def load(tokenizer, **config):
    """A vocabulary as it is read from disk."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "tokenizer.json").write_text(
            tokenizer if isinstance(tokenizer, str) else tokenizer.to_str(), encoding="utf-8"
        )
        (Path(name) / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return load_vocabulary(Path(name))


@functools.cache
def vocabulary(kind):
    return load(MAKERS[kind]())


def reread(edited):
    """What an edit made, as another program reads it from disk."""
    return load(json.dumps(edited.spec))


def new_ids(edited):
    """Ids of tokens that are not of the old tokenizer."""
    return set(reread(edited).tokens) - edited.origins.keys()


def expand(ids, edited, old):
    """Take new tokens of a BPE apart, each by the merge that made it, until only old tokens are left.

    New letters were bytes.
    """
    made = {}
    by_content = {token.content: token.id for token in old}
    for left, right in edited.spec["model"]["merges"][len(old.spec["model"]["merges"]) :]:
        made[edited.spec["model"]["vocab"][left + right]] = (left, right)
    vocab = {**edited.spec["model"]["vocab"], **by_content}
    parts = []
    stack = list(reversed(ids))
    while stack:
        index = stack.pop()
        if index in made:
            stack += [vocab[part] for part in reversed(made[index])]
        elif index not in old.tokens:
            letter = next(content for content, i in vocab.items() if i == index)
            parts += [by_content[f"<0x{byte:02X}>"] for byte in letter.encode()]
        else:
            parts.append(index)
    return parts


WORDS = [*{word for text in [*CORPUS, FRENCH, ENGLISH] for word in text.split(" ")}]
pieces = st.one_of(
    st.sampled_from(sorted(WORDS)),
    st.text(max_size=4),
    st.sampled_from(["\n", "\n\n", "  ", " ", "'s", ", ", ".", "1", "<|late|>", "<bos>"]),
)
texts = st.builds(
    lambda parts, joint: joint.join(parts), st.lists(pieces, max_size=12), st.sampled_from([" ", "", " "])
)
