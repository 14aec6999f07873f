"""Which control token of the base stands behind each control token of the target."""

import pytest

from tokensurgeon.errors import RecipeError
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.chat import render_chat
from tokensurgeon.vocab.match import match_vocabularies
from tokensurgeon.vocab.special import Origin, link_specials
from tokensurgeon.vocab.vocabulary import ROLES

ORDINARY = [" the", " cat", "ing", "\n", "<"]


@pytest.fixture(scope="module")
def chatml(build):
    return build.load(
        build.byte_level(ORDINARY, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=build.chatml,
    )


@pytest.fixture(scope="module")
def gemma(build):
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    return build.load(
        build.sentencepiece(ORDINARY, specials),
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        chat_template=build.gemma,
    )


@pytest.fixture(scope="module")
def llama3(build):
    specials = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    return build.load(
        build.tiktoken(ORDINARY, specials),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        chat_template=build.llama3,
    )


def simple(build, *specials, **roles):
    """A byte-level vocabulary with the given specials; roles by keyword, as in ``eos="</s>"``."""
    return build.load(
        build.byte_level(ORDINARY, specials), **{f"{role}_token": name for role, name in roles.items()}
    )


def links(target, base, user_map=None, **options):
    """Printed form of target -> (origin, printed form of base), through one row for both ends."""
    found = {}
    for index, source in link_specials(target, base, user_map or {}, **options).items():
        assert source.embedding == source.head
        (twin,) = source.embedding
        found[target.tokens[index].content] = (source.origin, base.tokens[twin].content)
    return found


def test_the_order_is_map_then_content_then_role(build):
    target = simple(build, "<s>", "</s>", "<end>", bos="<s>", eos="<end>")
    base = simple(build, "<s>", "</s>", "<first>", bos="<first>", eos="</s>")
    assert links(target, base) == {
        "<s>": (Origin.CONTENT, "<s>"),
        "</s>": (Origin.CONTENT, "</s>"),
        "<end>": (Origin.ROLE, "</s>"),
    }
    assert links(target, base, {"<s>": "<first>"})["<s>"] == (Origin.MAPPED, "<first>")
    assert links(target, base, {"<end>": "<first>"})["<end>"] == (Origin.MAPPED, "<first>")


def test_a_role_that_is_left_out_links_nothing(build):
    target, base = simple(build, "<a>", eos="<a>"), simple(build, "<b>", eos="<b>")
    assert links(target, base) == {"<a>": (Origin.ROLE, "<b>")}
    assert links(target, base, roles=("bos",)) == {}


def test_unk_is_linked_by_role_only_when_asked(build):
    target, base = simple(build, "<unknown>", unk="<unknown>"), simple(build, "<unk>", unk="<unk>")
    assert links(target, base) == {}
    assert links(target, base, roles=ROLES) == {"<unknown>": (Origin.ROLE, "<unk>")}


def test_unk_with_the_same_name_is_linked_by_content(build):
    target, base = simple(build, "<unk>", unk="<unk>"), simple(build, "<s>", "<unk>", unk="<unk>")
    assert links(target, base) == {"<unk>": (Origin.CONTENT, "<unk>")}


def test_eos_of_the_target_has_nothing_of_the_base_unk(build):
    # mergekit gives <|endoftext|>, which is also unk, the row of <unk>.
    target = simple(build, "<|endoftext|>", unk="<|endoftext|>", eos="<|endoftext|>")
    base = simple(build, "<unk>", "</s>", unk="<unk>", eos="</s>")
    assert links(target, base) == {"<|endoftext|>": (Origin.ROLE, "</s>")}


def test_a_token_that_is_bos_and_eos_is_read_as_bos_and_written_as_eos(build):
    target = simple(build, "<|endoftext|>", bos="<|endoftext|>", eos="<|endoftext|>")
    base = simple(build, "<s>", "</s>", bos="<s>", eos="</s>")
    (source,) = link_specials(target, base, {}).values()
    assert (source.embedding, source.head) == ((base.roles["bos"],), (base.roles["eos"],))
    assert base.roles["bos"] != base.roles["eos"]


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_a_token_that_is_bos_and_eos_takes_the_one_that_the_base_has(build, role):
    target = simple(build, "<|endoftext|>", bos="<|endoftext|>", eos="<|endoftext|>")
    base = simple(build, "<x>", **{role: "<x>"})
    assert links(target, base) == {"<|endoftext|>": (Origin.ROLE, "<x>")}


def test_a_token_that_is_eos_and_pad_is_eos(build):
    target = simple(build, "<end>", eos="<end>", pad="<end>")
    base = simple(build, "<pad>", "</s>", eos="</s>", pad="<pad>")
    assert links(target, base) == {"<end>": (Origin.ROLE, "</s>")}


def test_a_base_whose_eos_is_its_pad_makes_no_stop_of_the_targets_pad(build):
    target = simple(build, "<pad>", "</s>", eos="</s>", pad="<pad>")
    base = simple(build, "<end>", eos="<end>", pad="<end>")
    assert links(target, base) == {"</s>": (Origin.ROLE, "<end>")}


def test_without_roles_a_special_token_is_missing_and_not_id_0(build):
    target = simple(build, "<one>", "<pad>", "<unk>", pad="<pad>", unk="<unk>")
    base = simple(build, "<two>")
    match = match_vocabularies(target, base)
    assert [target.tokens[index].content for index in match.missing] == ["<one>", "<pad>", "<unk>"]


def test_an_ordinary_token_never_receives_a_control_row(pair):
    match = match_vocabularies(*pair, roles=ROLES)
    for index, source in match.sources.items():
        kinds = {match.target.tokens[index].kind, match.base.tokens[source.head[0]].kind}
        assert kinds == {Kind.SPECIAL} or Kind.SPECIAL not in kinds


def test_learnt_text_that_spells_a_control_token_is_not_linked_to_it(build):
    learnt, control = build.load(build.byte_level(["<s>"])), simple(build, "<s>", bos="<s>")
    for target, base in ((learnt, control), (control, learnt)):
        match = match_vocabularies(target, base, roles=ROLES)
        assert target.by_content["<s>"].id in match.missing


class TestChat:
    def test_chatml_markers_become_gemma_markers(self, chatml, gemma):
        found = links(chatml, gemma)
        assert found["<|im_start|>"] == (Origin.CHAT, "<start_of_turn>")
        assert found["<|im_end|>"] == (Origin.ROLE, "<eos>")

    def test_the_end_of_a_turn_is_linked_by_chat_when_it_is_no_eos(self, chatml, gemma):
        assert links(chatml, gemma, roles=())["<|im_end|>"] == (Origin.CHAT, "<end_of_turn>")
        assert links(gemma, chatml)["<end_of_turn>"] == (Origin.CHAT, "<|im_end|>")
        assert links(gemma, chatml)["<start_of_turn>"] == (Origin.CHAT, "<|im_start|>")

    def test_markers_beyond_the_other_templates_are_missing(self, llama3, chatml):
        found = links(llama3, chatml, roles=())
        assert found == {
            "<|eot_id|>": (Origin.CHAT, "<|im_end|>"),
            "<|start_header_id|>": (Origin.CHAT, "<|im_start|>"),
        }

    def test_chatml_markers_become_llama_3_markers(self, chatml, llama3):
        assert links(chatml, llama3, roles=()) == {
            "<|im_end|>": (Origin.CHAT, "<|eot_id|>"),
            "<|im_start|>": (Origin.CHAT, "<|start_header_id|>"),
        }

    def test_what_stands_before_the_first_turn_is_no_marker(self, llama3, gemma):
        assert "<|begin_of_text|>" not in links(llama3, gemma, roles=())

    def test_a_template_that_refuses_the_conversation_links_nothing(self, build, gemma):
        refusing = build.load(
            build.byte_level(ORDINARY, ["<a>", "<b>"]),
            chat_template="{{ raise_exception('one turn only') }}",
        )
        assert render_chat(refusing) is None
        assert links(refusing, gemma) == {}

    @pytest.mark.parametrize(
        "template",
        [
            "{% for m in messages %}<a>{{ m['content'] | upper }}<b>{% endfor %}",
            "{% for m in messages %}<a>{{ m['content'] }}{{ m['content'] }}<b>{% endfor %}",
            "<a>constant<b>",
            "{% for m in messages %}",
            "{{ messages[0]['content']['text'] }}<a>",
            "{{ messages + 1 }}<a>",
        ],
        ids=["changed", "doubled", "constant", "syntax error", "undefined", "type error"],
    )
    def test_a_template_that_does_not_show_the_turns_links_nothing(self, build, gemma, template):
        odd = build.load(build.byte_level(ORDINARY, ["<a>", "<b>"]), chat_template=template)
        assert links(odd, gemma) == {}

    def test_no_template_links_nothing(self, build, gemma):
        assert links(simple(build, "<|im_start|>", "<|im_end|>"), gemma) == {}

    def test_the_template_sees_the_names_of_the_special_tokens(self, gemma):
        assert render_chat(gemma).startswith("<bos><start_of_turn>user")


class TestMap:
    def test_a_token_may_stand_for_several_base_tokens(self, chatml, gemma):
        (source,) = [
            source
            for source in link_specials(chatml, gemma, {"<|im_start|>": " the cat"}).values()
            if source.origin is Origin.MAPPED
        ]
        assert [gemma.tokens[index].content for index in source.embedding] == ["▁the", "▁cat"]
        assert source.head == source.embedding

    def test_control_tokens_and_text_may_be_mixed(self, chatml, gemma):
        found = link_specials(chatml, gemma, {"<|im_start|>": "<start_of_turn>\n"})
        contents = [gemma.tokens[i].content for i in found[chatml.by_content["<|im_start|>"].id].head]
        assert contents == ["<start_of_turn>", "\n"]

    def test_an_ordinary_token_may_be_mapped(self, chatml, gemma):
        match = match_vocabularies(chatml, gemma, {" cat": " the"})
        source = match.sources[chatml.by_content["Ġcat"].id]
        assert (source.origin, source.head) == (Origin.MAPPED, (gemma.by_content["▁the"].id,))

    def test_unk_itself_may_be_mapped_to(self, chatml, gemma):
        assert links(chatml, gemma, {"<|endoftext|>": "<unk>"})["<|endoftext|>"] == (Origin.MAPPED, "<unk>")

    def test_a_target_that_is_no_single_token_is_an_error(self, chatml, gemma):
        with pytest.raises(RecipeError, match=r"anchors\.map: '<nope>' is 6 tokens of the target"):
            link_specials(chatml, gemma, {"<nope>": "<bos>"})

    @pytest.mark.parametrize("configured", [True, False], ids=["unk in the config", "unk in the model only"])
    def test_a_base_text_with_unknown_characters_is_an_error(self, build, chatml, configured):
        base = build.load(build.unigram(ORDINARY), **({"unk_token": "<unk>"} if configured else {}))
        with pytest.raises(RecipeError, match=r"anchors\.map: the base tokenizer has no token for 'the ☃'"):
            link_specials(chatml, base, {"<|im_start|>": "the ☃"})

    def test_an_empty_base_text_is_an_error(self, chatml, gemma):
        with pytest.raises(RecipeError, match=r"no token for '' \(mapped to '<\|im_start\|>'\)"):
            link_specials(chatml, gemma, {"<|im_start|>": ""})
