"""A trimmed tokenizer cuts a text as before wherever all tokens of the text are kept."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import (
    BYTES,
    EVERY_TEXT,
    SPACES,
    bpe,
    byte_level,
    framed,
    load,
    merge_lists,
    number,
    sentencepiece,
    special,
    unigram,
    unigrams,
    wordpiece,
    wordpieces,
)

from tokensurgeon.edits.document import learnt_ids, open_tokenizer, read_merges
from tokensurgeon.edits.params import TrimParams
from tokensurgeon.edits.trim import count_tokens, trim
from tokensurgeon.errors import InputError, RecipeError
from tokensurgeon.vocab.canonical import BYTE_OF_CHAR, Kind
from tokensurgeon.vocab.scripts import script_of
from tokensurgeon.vocab.vocabulary import load_vocabulary

VOCABULARIES = {
    "byte-level": merge_lists("abcĠ").map(byte_level),
    "ignore-merges": merge_lists("abcĠ").map(lambda merges: byte_level(merges, ignore_merges=True)),
    "sentencepiece": merge_lists("▁abc").map(sentencepiece),
    "a-letter-without-token": merge_lists("▁ab").map(lambda merges: sentencepiece(merges, "▁ab")),
    "merges-of-bytes": merge_lists(["a", "▁", "<0x62>", "<0xC3>", "<0xA9>"]).map(
        lambda merges: sentencepiece(merges, "▁a")
    ),
    "no-unknown": merge_lists("abc").map(lambda merges: load(bpe("abc", merges))),
    "unigram": unigrams(),
    "wordpiece": wordpieces(),
}
every_kind = pytest.mark.parametrize("kind", VOCABULARIES)


def keep(vocabulary, contents=(), **asked):
    """Trim to these tokens, by printed form."""
    counts = {vocabulary.by_content[content].id: 1 for content in contents}
    return trim(vocabulary, TrimParams(corpus=("any",), **asked), counts)


def pieces_of(edited):
    return list(learnt_ids(edited.spec))


def changed(vocabulary, edited, texts=EVERY_TEXT, specials=False):
    """Texts whose tokens are all kept, and that are cut otherwise now."""
    tokenizer, kept = open_tokenizer(edited.spec), set(edited.origins.values())
    wrong = []
    for text in texts:
        before = vocabulary.encode(text, specials=specials)
        after = tokenizer.encode(text, add_special_tokens=specials).ids
        if kept.issuperset(before) and [edited.origins[index] for index in after] != before:
            wrong.append(text)
    return wrong


@st.composite
def trimmed(draw, kind):
    vocabulary = draw(VOCABULARIES[kind])
    counts = {index: 1 for index in draw(st.sets(st.sampled_from(list(vocabulary.tokens)), max_size=12))}
    for text in draw(st.lists(st.sampled_from(EVERY_TEXT), max_size=3)):
        counts |= {index: 1 for index in vocabulary.encode(text)}
    return vocabulary, counts, trim(vocabulary, TrimParams(corpus=("any",)), counts)


@every_kind
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_text_whose_tokens_are_all_kept_is_cut_as_before(kind, data):
    vocabulary, counts, edited = data.draw(trimmed(kind))
    assert counts.keys() <= set(edited.origins.values())
    assert changed(vocabulary, edited) == []
    assert changed(vocabulary, edited, EVERY_TEXT[-8:], specials=True) == []


@every_kind
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_was_produced_from_its_own_text_still_is(kind, data):
    vocabulary, _, edited = data.draw(trimmed(kind))
    model = open_tokenizer(edited.spec).model
    for new, old in edited.origins.items():
        content = vocabulary.tokens[old].content
        if vocabulary.run_model(content) == [old]:
            assert [token.id for token in model.tokenize(content)] == [new], content


@every_kind
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_merge_has_its_parts_and_its_product(kind, data):
    vocabulary, _, edited = data.draw(trimmed(kind))
    merges, pieces = read_merges(edited.spec), set(pieces_of(edited))
    assert {piece for pair in merges for piece in (*pair, "".join(pair))} <= pieces
    assert merges == [pair for pair in read_merges(vocabulary.spec) if pair in merges]


@every_kind
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_ids_are_consecutive_and_in_the_old_order(kind, data):
    vocabulary, _, edited = data.draw(trimmed(kind))
    assert list(edited.origins) == list(range(len(edited.origins)))
    assert list(edited.origins.values()) == sorted(edited.origins.values())
    tokenizer = open_tokenizer(edited.spec)
    assert tokenizer.get_vocab_size() == len(edited.origins)
    for new, old in edited.origins.items():
        assert tokenizer.id_to_token(new) == vocabulary.tokens[old].content


@settings(max_examples=50, deadline=None)
@given(vocabulary=wordpieces(spelt=False), data=st.data())
def test_wordpieces_without_letters_cut_known_words_as_before(vocabulary, data):
    asked = data.draw(st.sets(st.sampled_from(list(vocabulary.tokens))))
    edited = trim(vocabulary, TrimParams(corpus=("any",)), dict.fromkeys(asked, 1))
    known = [text for text in EVERY_TEXT if vocabulary.unknown not in vocabulary.encode(text)]
    assert changed(vocabulary, edited, known) == []
    assert changed(vocabulary, edited) == [] or edited.facts["unspelt"]


def test_a_word_that_was_unknown_may_become_known_where_a_piece_has_no_letters():
    vocabulary = wordpiece(["ab", "a", "##bc"])
    edited = keep(vocabulary, ["a", "##bc"])
    assert vocabulary.encode("abc") == [vocabulary.unknown]
    assert open_tokenizer(edited.spec).encode("abc", add_special_tokens=False).tokens == ["a", "##bc"]
    assert edited.facts["unspelt"] == 1
    # With a piece for "c" it was known before.
    vocabulary = wordpiece(["ab", "a", "##bc", "##b", "##c"])
    edited = keep(vocabulary, ["a", "##bc"])
    assert vocabulary.unknown not in vocabulary.encode("abc")
    assert "unspelt" not in edited.facts


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_no_text_that_the_letters_of_longer_pieces_can_write_becomes_unknown(kind, data):
    vocabulary, _, edited = data.draw(trimmed(kind))
    contents = [vocabulary.tokens[old].content.removeprefix("##") for old in edited.origins.values()]
    letters = {letter for content in contents if len(content) > 1 for letter in content}
    letters &= {content for content in learnt_ids(vocabulary.spec) if len(content) == 1}
    start = "▁" if kind == "unigram" else ""
    tokenizer = open_tokenizer(edited.spec)
    for text in EVERY_TEXT:
        # A WordPiece model takes no longer words.
        if letters.issuperset(start + text) and len(text) <= 8:
            assert vocabulary.unknown not in vocabulary.encode(text)
            encoding = tokenizer.encode(text, add_special_tokens=False)
            assert vocabulary.unknown not in {edited.origins[index] for index in encoding.ids}


def test_the_merges_that_make_a_token_stay_and_no_others():
    # "abc" is listed as two products, of which the first merge to fire decides: bc, then a bc.
    vocabulary = sentencepiece([("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc"), ("c", "c")])
    edited = keep(vocabulary, ["abc"])
    assert read_merges(edited.spec) == [("b", "c"), ("a", "bc")]
    assert edited.facts["why"] == {"mandatory": 259, "used": 1, "ancestors": 4}
    assert (edited.facts["merges"], edited.facts["merges_kept"]) == (5, 2)


def test_a_token_that_is_never_made_needs_nothing():
    vocabulary = byte_level([("b", "c"), ("a", "b"), ("ab", "c")])
    assert "ab" not in pieces_of(keep(vocabulary, ["abc"]))


def test_what_a_token_is_made_of_may_go_if_that_is_asked_for_and_then_it_is_never_made():
    vocabulary = byte_level([("a", "b"), ("ab", "c")])
    edited = keep(vocabulary, ["abc"], allow_unreachable=True)
    assert "ab" not in pieces_of(edited)
    assert read_merges(edited.spec) == []
    assert open_tokenizer(edited.spec).encode("abc", add_special_tokens=False).tokens == ["a", "b", "c"]


@pytest.mark.parametrize("written", ["pairs", "strings"])
def test_merges_are_written_as_they_were(written):
    model = bpe("abc", [("a", "b"), ("b", "c")])
    if written == "strings":
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
    edited = keep(load(model), ["ab"])
    assert edited.spec["model"]["merges"] == model["merges"][:1]


def test_whole_words_are_still_looked_up_first():
    # The merges make "bc" of "abc" first, so only the look-up finds it.
    vocabulary = byte_level([("b", "c"), ("a", "b"), ("ab", "c")], ignore_merges=True)
    edited = keep(vocabulary, ["abc"])
    assert edited.spec["model"]["ignore_merges"] is True
    assert open_tokenizer(edited.spec).encode("abc", add_special_tokens=False).tokens == ["abc"]


def test_bytes_specials_roles_and_the_unknown_stay():
    edited = keep(sentencepiece([("a", "b")]))
    assert pieces_of(edited) == ["<unk>", "<s>", "</s>", *BYTES]
    alphabet = [piece for piece in pieces_of(keep(byte_level([("a", "b")]))) if piece in BYTE_OF_CHAR]
    assert len(alphabet) == 256
    vocabulary = load(bpe("!ab", [("a", "b")]), config={"pad_token": "!"})
    assert pieces_of(keep(vocabulary)) == ["!"]


class TestIdsInsideTheFile:
    """After 'y' is gone, each id behind it is one lower, wherever the file has it."""

    vocab = number(["x", "y", "<s>", "</s>", "<pad>"])
    names = (("<s>", 2), ("</s>", 3))

    def trimmed(self, **parts):
        model = {"type": "WordLevel", "vocab": self.vocab, "unk_token": "<pad>"}
        return keep(load(model, self.names, **parts), ["x"]).spec

    def test_template(self):
        processor = self.trimmed()["post_processor"]
        assert processor["special_tokens"]["</s>"] == {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
        assert [entry["id"] for entry in self.trimmed()["added_tokens"]] == [1, 2]

    @pytest.mark.parametrize("kind", ["BertProcessing", "RobertaProcessing"])
    def test_pairs(self, kind):
        node = {"type": kind, "sep": ["</s>", 3], "cls": ["<s>", 2]}
        node |= {"trim_offsets": True, "add_prefix_space": False} if kind == "RobertaProcessing" else {}
        processor = self.trimmed(post_processor=node)["post_processor"]
        assert processor == {**node, "sep": ["</s>", 2], "cls": ["<s>", 1]}

    def test_sequence(self):
        node = {"type": "BertProcessing", "sep": ["</s>", 3], "cls": ["<s>", 2]}
        processor = self.trimmed(post_processor={"type": "Sequence", "processors": [node]})["post_processor"]
        assert processor["processors"][0]["cls"] == ["<s>", 1]

    def test_padding(self):
        padding = {
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 4,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        }
        assert self.trimmed(padding=padding)["padding"] == {**padding, "pad_id": 3}

    def test_the_rest_is_as_it_was(self):
        truncation = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
        spec = self.trimmed(truncation=truncation, pre_tokenizer={"type": "Whitespace"})
        assert (spec["truncation"], spec["pre_tokenizer"]) == (truncation, {"type": "Whitespace"})
        assert spec["model"] == {
            "type": "WordLevel",
            "vocab": {"x": 0, "<s>": 1, "</s>": 2, "<pad>": 3},
            "unk_token": "<pad>",
        }

    def test_an_id_that_no_token_has(self):
        node = {"type": "BertProcessing", "sep": ["</s>", 3], "cls": ["<s>", 77]}
        with pytest.raises(InputError, match="uses id 77"):
            self.trimmed(post_processor=node)


class TestUnigram:
    def test_scores_and_the_unknown_move_together(self):
        pieces = [["▁", -0.1234567890123], ["a", -2.5], ["b", -3.0], ["▁ab", -4.125], ["c", -99.0]]
        model = {"type": "Unigram", "vocab": [*pieces, ["<unk>", 0.0]], "unk_id": 5, "byte_fallback": False}
        edited = keep(load(model, pre_tokenizer=SPACES, decoder=SPACES), ["a"])
        assert edited.spec["model"] == {
            **model,
            "vocab": [["a", -2.5], ["c", -99.0], ["<unk>", 0.0]],
            "unk_id": 2,
        }

    def test_the_price_of_the_unknown_stays(self):
        # "a" has no piece. With "z" gone it would cost less to leave "a" unknown than three dear pieces.
        pieces = [["▁", -1.0], ["ab", -50.0], ["b", -50.0], ["bbb", -1.0], ["z", -200.0]]
        vocabulary = unigram(pieces)
        assert changed(vocabulary, keep(vocabulary, ["▁", "ab", "b", "bbb"]), ["abbb"]) == []

    def test_a_piece_brings_its_letters(self):
        vocabulary = unigram([["▁", -1.0], ["a", -50.0], ["b", -1.0], ["ab", -60.0], ["c", -2.0]])
        assert pieces_of(keep(vocabulary, ["ab"]))[3:] == ["a", "b", "ab"]


def test_a_wordpiece_brings_its_letters_for_either_place():
    pieces = ["ab", "a", "##a", "b", "##b", "c", "##c"]
    assert pieces_of(keep(wordpiece(pieces), ["ab"]))[4:] == pieces[:5]
    assert pieces_of(keep(wordpiece(pieces), ["##a"]))[4:] == ["##a"]


def test_language_codes_behind_a_hole_close_up():
    # As in mBART-50: the model's pieces, a hole, then the codes.
    vocab = {"<s>": 0, "</s>": 1, "<unk>": 2, "x": 3, "y": 4, "en_XX": 9, "de_DE": 12}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    specials = [("</s>", 1), ("en_XX", 9), ("de_DE", 12)]
    vocabulary = load(model, specials)
    edited = keep(vocabulary, ["x"])
    assert edited.origins == {0: 1, 1: 2, 2: 3, 3: 9, 4: 12}
    assert [(entry["content"], entry["id"]) for entry in edited.spec["added_tokens"]] == [
        ("</s>", 0),
        ("en_XX", 3),
        ("de_DE", 4),
    ]
    assert open_tokenizer(edited.spec).token_to_id("de_DE") == 4


def test_added_tokens_that_the_model_does_not_have_come_last():
    model = {"type": "WordLevel", "vocab": {"<unk>": 0, "x": 1, "y": 2}, "unk_token": "<unk>"}
    vocabulary = load(model, added_tokens=[special(3, "<one>"), special(4, "<two>")])
    edited = keep(vocabulary, ["y"])
    assert open_tokenizer(edited.spec).get_vocab() == {"<unk>": 0, "y": 1, "<one>": 2, "<two>": 3}


def test_added_tokens_in_a_hole_of_the_model_come_last_too():
    # The library counts 3 pieces, and so numbers the added tokens from 3 on.
    model = {"type": "WordLevel", "vocab": {"<unk>": 0, "x": 1, "y": 20}, "unk_token": "<unk>"}
    vocabulary = load(model, added_tokens=[special(3, "<one>"), special(4, "<two>")])
    assert vocabulary.tokenizer.token_to_id("<one>") == 3
    edited = keep(vocabulary, ["y"])
    assert open_tokenizer(edited.spec).get_vocab() == {"<unk>": 0, "y": 1, "<one>": 2, "<two>": 3}
    assert edited.origins == {0: 0, 1: 20, 2: 3, 3: 4}


def test_reserved_tokens_go_if_that_is_asked_for_and_those_in_use_do_not():
    vocab = number(["<unk>", "x", "<unused0>", "<unused1>", "<s>", "</s>"])
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    names = [("<unused0>", 2), ("<unused1>", 3), ("<s>", 4), ("</s>", 5)]
    frame = framed([("<unused1>", 3), ("</s>", 5)])
    vocabulary = load(model, names, post_processor=frame)
    assert pieces_of(keep(vocabulary, ["x"])) == list(vocab)
    edited = keep(vocabulary, ["x"], drop_reserved=True)
    assert pieces_of(edited) == ["<unk>", "x", "<unused1>", "<s>", "</s>"]
    assert open_tokenizer(edited.spec).encode("x").ids == [2, 1, 4]


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece", "wordpiece"])
def learnt(request):
    """A tokenizer that was trained, of some hundred tokens."""
    return load_vocabulary(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def gpt2(byte_level):
    return load_vocabulary(byte_level)


CORPUS = ["The quick brown fox; the children", "де la rivière", "été 日本 123\n\n  x"]


class TestOptions:
    def test_corpus_is_what_has_to_be_cut_as_before(self, learnt):
        counts = count_tokens(learnt, CORPUS)
        edited = trim(learnt, TrimParams(corpus=("any",)), counts)
        assert counts.keys() <= set(edited.origins.values())
        assert changed(learnt, edited, CORPUS, specials=True) == []
        assert edited.facts["kept"] == len(edited.origins) < edited.facts["tokens"] == len(learnt)
        assert sum(edited.facts["why"].values()) == edited.facts["kept"]

    def test_least(self, gpt2):
        counts = count_tokens(gpt2, CORPUS)
        once = trim(gpt2, TrimParams(corpus=("any",)), counts)
        twice = trim(gpt2, TrimParams(corpus=("any",), least=2), counts)
        assert set(twice.origins.values()) < set(once.origins.values())
        assert {index for index, count in counts.items() if count > 1} <= set(twice.origins.values())

    def test_scripts(self, learnt):
        edited = trim(learnt, TrimParams(scripts=("Latin",)), {})
        kept = {learnt.tokens[old] for old in edited.origins.values()}
        scripts = {script_of(token) for token in learnt if token in kept and token.kind is Kind.TEXT}
        assert {"Latin", "Digits", "Symbols"} <= scripts
        assert not scripts & {"Cyrillic", "Kana", "CJK"}
        assert {token for token in learnt if script_of(token) in ("Latin", "Digits", "Whitespace")} <= kept

    def test_an_unknown_script_is_named_with_those_there_are(self, learnt):
        with pytest.raises(RecipeError, match=r"'Klingon'(.|\n)*Cyrillic, (.|\n)*Latin"):
            trim(learnt, TrimParams(scripts=("Klingon",)), {})

    def test_keep(self, learnt, tmp_path):
        (tmp_path / "words.txt").write_text(" the\r\nthe\n\nMaß\n", encoding="utf-8")
        edited = trim(learnt, TrimParams(keep=(str(tmp_path / "words.txt"),)), {})
        kept = set(edited.origins.values())
        word = b" the"
        assert learnt.by_bytes[word][0].id in kept
        assert set(learnt.encode("Maß")) <= kept
        assert len(kept) < len(learnt)

    def test_size_takes_away_the_least_used_that_none_needs(self):
        # "abc" needs "ab", which is used less than "bb".
        vocabulary = byte_level([("a", "b"), ("ab", "c"), ("b", "b"), ("c", "c")])
        uses = {"abc": 9, "ab": 1, "bb": 5, "cc": 2}
        counts = {vocabulary.by_content[piece].id: count for piece, count in uses.items()}
        kept = [
            pieces_of(trim(vocabulary, TrimParams(corpus=("any",), size=size), counts))[257:-1]
            for size in (262, 261, 260, 259, 258)
        ]
        assert kept == [["ab", "abc", "bb", "cc"], ["ab", "abc", "bb"], ["ab", "abc"], ["ab"], []]

    def test_what_nobody_asked_for_goes_once_nobody_needs_it(self):
        vocabulary = byte_level([("a", "b"), ("ab", "c"), ("b", "b")])
        uses = {"abc": 5, "bb": 6, "ab": 4}
        counts = {vocabulary.by_content[piece].id: count for piece, count in uses.items()}
        edited = trim(vocabulary, TrimParams(corpus=("any",), least=5, size=260), counts)
        assert pieces_of(edited)[257:-1] == ["bb"]

    def test_of_the_equally_used_the_highest_ids_go(self, gpt2):
        edited = trim(gpt2, TrimParams(size=300), {})
        assert list(edited.origins.values()) == list(range(300))

    def test_size_below_what_has_to_stay(self, gpt2):
        with pytest.raises(RecipeError, match=r"trim\.size: 100, and 260 tokens have to stay"):
            trim(gpt2, TrimParams(size=100), {})

    def test_the_list_stays_whatever_the_size(self, gpt2, tmp_path):
        (tmp_path / "words.txt").write_text("токен\n", encoding="utf-8")
        counts = count_tokens(gpt2, CORPUS)
        params = TrimParams(corpus=("any",), keep=(str(tmp_path / "words.txt"),), size=275)
        edited = trim(gpt2, params, counts)
        assert len(edited.origins) == 275
        assert set(gpt2.encode("токен")) <= set(edited.origins.values())

    def test_size_alone_is_an_upper_bound(self, gpt2):
        counts = count_tokens(gpt2, CORPUS)
        assert len(trim(gpt2, TrimParams(corpus=("any",), size=400), counts).origins) < 400

    def test_exact_size_fills_up(self, learnt):
        counts = count_tokens(learnt, CORPUS)
        size = len(learnt) - 7
        edited = trim(learnt, TrimParams(corpus=("any",), size=size, exact_size=True), counts)
        assert len(edited.origins) == size
        assert edited.facts["why"]["filled"] == size - len(
            trim(learnt, TrimParams(corpus=("any",)), counts).origins
        )
        assert changed(learnt, edited, CORPUS) == []

    def test_exact_size_takes_the_lowest_ids(self):
        vocabulary = byte_level([("a", "b"), ("b", "b"), ("c", "c")])
        edited = trim(vocabulary, TrimParams(corpus=("any",), size=260, exact_size=True), {})
        assert pieces_of(edited)[257:-1] == ["ab", "bb"]

    def test_exact_size_takes_what_fits_with_all_it_needs(self):
        # "abc" has the lowest id, and needs two more.
        model = bpe("abc", [("b", "c"), ("a", "bc"), ("a", "a")])
        model["vocab"] = number(["abc", "bc", "a", "b", "c", "aa"])
        for size in range(1, 7):
            assert (
                len(trim(load(model), TrimParams(corpus=("x",), size=size, exact_size=True), {}).origins)
                == size
            )

    def test_multiple_of_keeps_more(self, learnt):
        counts = count_tokens(learnt, CORPUS)
        least = len(trim(learnt, TrimParams(corpus=("any",)), counts).origins)
        edited = trim(learnt, TrimParams(corpus=("any",), multiple_of=10), counts)
        assert least <= len(edited.origins) < least + 10
        assert len(edited.origins) % 10 == 0

    def test_multiple_of_stays_below_size(self, gpt2):
        assert len(trim(gpt2, TrimParams(size=330, multiple_of=64), {}).origins) == 320

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({}, "nothing says what to keep"),
            ({"multiple_of": 8}, "nothing says what to keep"),
            ({"scripts": ("Latin",), "exact_size": True}, "there is no size"),
            ({"size": 300, "exact_size": True, "multiple_of": 64}, "300 is no multiple of 64"),
            ({"size": 5000, "exact_size": True}, "5000 tokens asked for, and the tokenizer has 420"),
            ({"size": 5000, "multiple_of": 8, "exact_size": True}, "the tokenizer has 420"),
        ],
    )
    def test_what_contradicts_itself(self, gpt2, asked, message):
        with pytest.raises(RecipeError, match=message):
            trim(gpt2, TrimParams(**asked), {})


@settings(max_examples=30, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["sentencepiece", "unigram", "wordpiece"])
def test_any_size_is_kept_and_changes_nothing(kind, data):
    vocabulary = data.draw(VOCABULARIES[kind])
    counts = data.draw(
        st.dictionaries(st.sampled_from(list(vocabulary.tokens)), st.integers(1, 9), min_size=3)
    )
    firm = len(keep(vocabulary).origins)
    size = data.draw(st.integers(firm, len(vocabulary)))
    exact = data.draw(st.booleans())
    edited = trim(vocabulary, TrimParams(corpus=("any",), size=size, exact_size=exact), counts)
    assert len(edited.origins) <= size
    assert not exact or len(edited.origins) == size
    assert changed(vocabulary, edited) == []


def test_tokens_are_counted_over_line_ends_and_in_long_texts(gpt2):
    line = "The quick brown fox\n\n\n    x\n"
    assert count_tokens(gpt2, [line])[gpt2.encode("\n\n\n ")[0]] > 0
    long = line * 3000
    assert count_tokens(gpt2, [long]) == {index: 3000 * n for index, n in count_tokens(gpt2, [line]).items()}


def test_every_byte_piece_or_none(learnt):
    pieces = [token.content for token in learnt if token.kind is Kind.BYTE]
    kept = pieces_of(trim(learnt, TrimParams(scripts=("Latin",)), {}))
    assert [piece for piece in kept if piece in BYTES] == pieces


def test_specials_around_pairs_of_texts_are_the_old_ones(learnt):
    edited = trim(learnt, TrimParams(corpus=("any",)), count_tokens(learnt, CORPUS))
    tokenizer = open_tokenizer(edited.spec)
    for one, two in itertools.pairwise(CORPUS):
        before = learnt.tokenizer.encode(one, two)
        after = tokenizer.encode(one, two)
        assert [edited.origins[index] for index in after.ids] == before.ids
        assert after.type_ids == before.type_ids
