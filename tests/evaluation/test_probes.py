"""Fixed texts of numbers and white space."""

import pytest

from tokensurgeon.evaluation.probes import CUTS, probe_texts, show_cut


def test_probes_hold_what_they_are_named_after():
    texts = probe_texts()
    assert all(250 < len(text) < 1500 for text in texts.values())
    assert all(eval(line.split(" = ")[0]) == int(line.split(" = ")[1]) for line in texts["sums"].splitlines())
    assert "    " in texts["columns"]
    assert "\n\n" in texts["paragraphs"]
    assert "\n        " in texts["indentation"]
    assert texts["tabs"].replace("\t", "    ") == texts["indentation"]
    compile(texts["indentation"], "probe", "exec")


@pytest.mark.parametrize("kind", ["byte-level", "bytes", "byte-fallback"])
@pytest.mark.parametrize("text", [*CUTS, "é東"])
def test_the_pieces_of_a_cut_spell_the_text(tokenizers, kind, text):
    pieces = show_cut(tokenizers[kind], text)
    spelt = b"".join(piece.encode() if "\\x" not in piece else eval(f"b'{piece}'") for piece in pieces)
    assert spelt == text.encode()
    if kind == "bytes":
        assert len(pieces) == len(text.encode())
