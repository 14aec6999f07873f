"""The page in headless Chromium: no complaint, no request, nothing past the edge, and a search that finds."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tokensurgeon.pipeline import run
from tokensurgeon.recipe.load import build_recipe
from tokensurgeon.report.html import render_comparison, render_html

ROOT = Path(__file__).parents[2]


def load_chromium():
    spec = importlib.util.spec_from_file_location("chromium", ROOT / "scripts" / "chromium.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["chromium"] = module
    spec.loader.exec_module(module)
    return module


chromium = load_chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.find_chromium() is None, reason="no Chromium is installed"),
]

# Elements that reach past the window, but for those in a box that scrolls by itself.
PAST_THE_EDGE = """
[...document.body.querySelectorAll("*")]
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5 && !one.closest(".scroll, pre, svg"))
  .map((one) => one.outerHTML.slice(0, 80))
"""
SEEN = """
(() => {
  const finder = document.querySelector(".finder");
  return {
    said: finder.querySelector(".said").textContent,
    tokens: [...finder.querySelectorAll("tbody tr td:nth-child(2)")].map((cell) => cell.textContent),
  };
})()
"""


@pytest.fixture
def page():
    with chromium.open_browser(chromium.find_chromium()) as page:
        yield page


@pytest.fixture
def file(whole_report, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render_html(whole_report), encoding="utf-8")
    return path


def type_in(page, text):
    page.value(
        "(() => { const box = document.querySelector('input[type=search]');"
        f"box.value = {json.dumps(text)}; box.dispatchEvent(new Event('input')); }})()"
    )
    return page.value(SEEN)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [380, 1400])
def test_a_page_of_nasty_tokens_is_quiet_and_fits(page, file, width, dark):
    page.look_like(width, dark=dark)
    page.open(file)
    assert page.value("innerWidth") == width
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value(PAST_THE_EDGE) == []
    linked = page.value("[...document.querySelectorAll('nav a')].map((link) => link.hash.slice(1))")
    assert {"choice", "edits", "heal", "draft", "hidden", "anatomy", "tensor-2"} <= set(linked)
    background = page.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 22, 26)" if dark else "rgb(246, 247, 249)")
    assert page.complaints == []
    assert page.requests == [file.as_uri()]


def test_the_page_of_a_run_with_nasty_tokens_is_quiet_fits_and_finds_them(
    page, make_model, sentencepiece, byte_level, tmp_path
):
    tokenizer = Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    tokenizer.add_tokens(
        ["<script>alert(1)</script>", "[/INST]", "\u202e\u0627\u0644\u0639\u0631\u0628\u064a\u0629"]
    )
    target = Path(shutil.copytree(byte_level, tmp_path / "target"))
    tokenizer.save(str(target / "tokenizer.json"))
    base = make_model("llama", sentencepiece)
    output = tmp_path / "out"
    recipe = {"base": str(base), "target": str(target), "output": str(output), "method": "pieces"}
    run(build_recipe({**recipe, "verify": {"forward": False}}))
    for width in (380, 1400):
        page.look_like(width)
        page.open(output / "report.html")
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value(PAST_THE_EDGE) == []
    assert type_in(page, "alert")["tokens"] == ["<script>alert(1)</script>"]
    assert type_in(page, "[/INST]")["tokens"] == ["[/INST]"]
    [arabic] = type_in(page, "\u0627\u0644\u0639\u0631")["tokens"]
    assert arabic.startswith("\\u202e")
    assert page.complaints == []
    assert set(page.requests) == {(output / "report.html").as_uri()}


def test_the_checks_would_notice_what_is_wrong(page, file):
    text = file.read_text(encoding="utf-8")
    wrong = '<p style="min-width: 3000px">wide</p><img src="x.png">'
    wrong += '<script>console.log("loud"); missing()</script>'
    file.write_text(text.replace("</header>", f"{wrong}</header>"), encoding="utf-8")
    page.look_like(1400)
    page.open(file)
    assert page.value("document.documentElement.scrollWidth") > 1400
    assert page.value(PAST_THE_EDGE) != []
    # The policy of the page keeps the picture from being asked for, and the browser says so.
    for complaint in ("loud", "missing is not defined", "Content Security Policy"):
        assert any(complaint in told for told in page.complaints)


def test_the_search_finds_rows_and_shows_tokens_as_text(page, file, report):
    page.look_like(1400)
    page.open(file)
    table = report.tensors[0].rows
    sample = page.value(SEEN)
    assert len(sample["tokens"]) == 24
    assert type_in(page, "WORD1")["said"] == f"111 of {len(table.ids)} rows."
    assert type_in(page, "word299")["tokens"] == ["word299"]
    assert type_in(page, str(table.ids[5]))["tokens"] == ["\u23ce", "word105"]
    assert type_in(page, "\\n")["tokens"] == ["\u23ce"]
    assert type_in(page, "<script>")["tokens"] == ["<script>alert(1)</script>"]
    assert type_in(page, "onerror")["tokens"] == ["</script><img src=x onerror=alert(1)>"]
    many = type_in(page, "o")
    assert (len(many["tokens"]), "the first 200 of them here" in many["said"]) == (200, True)
    assert type_in(page, "nothing like it") == {"said": f"0 of {len(table.ids)} rows.", "tokens": []}
    assert type_in(page, "") == sample
    page.value("document.querySelector('input[type=checkbox]').click()")
    assert page.value(SEEN)["tokens"][:2] == ["word298", "word297"]
    assert page.complaints == []
    assert page.value("document.querySelectorAll('img').length") == 0


def test_without_scripts_there_is_a_table_and_no_box_to_type_in(page, file):
    page.ask("Emulation.setScriptExecutionDisabled", value=True)
    page.look_like(380)
    page.open(file)
    assert page.value("getComputedStyle(document.querySelector('.search')).display") == "none"
    assert len(page.value(SEEN)["tokens"]) == 24


def test_text_from_right_to_left_keeps_its_cell_to_itself(page, file):
    page.look_like(1400)
    page.open(file)
    assert type_in(page, "\u05e9\u05dc\u05d5\u05dd")["tokens"] == ["\u05e9\u05dc\u05d5\u05dd"]
    code = "document.querySelector('.finder tbody td:nth-child(2) code')"
    assert page.value(f"getComputedStyle({code}).direction") == "rtl"
    assert page.value(f"getComputedStyle({code}.closest('td')).direction") == "ltr"
    assert page.value(f"getComputedStyle({code}).unicodeBidi") in ("isolate", "plaintext")


def test_a_printed_page_shows_every_table_whole_and_in_black(page, file):
    page.look_like(700, dark=True, media="print")
    page.open(file)
    assert page.value("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.value("getComputedStyle(document.querySelector('.tall')).maxHeight") == "none"
    assert page.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.value("document.documentElement.scrollWidth") <= 700


@pytest.mark.parametrize("width", [380, 1400])
def test_a_comparison_is_quiet_and_fits(page, report, tmp_path, width):
    path = tmp_path / "compared.html"
    path.write_text(
        render_comparison({"one": report, "/a/very/long/path/" + "x" * 90: report}), encoding="utf-8"
    )
    page.look_like(width)
    page.open(path)
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value(PAST_THE_EDGE) == []
    assert page.complaints == []
    assert page.requests == [path.as_uri()]
