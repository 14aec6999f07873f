import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib
import pytest

from tokensurgeon.report import plots
from tokensurgeon.report.html import render_html
from tokensurgeon.report.model import Report, Solver, SpecialToken
from tokensurgeon.report.summary import show_token

_VOID = {"meta", "link", "br", "img", "hr", "input"}


class _Page(HTMLParser):
    """Tags, text and the texts of code elements; fails on tags that do not nest."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.codes, self.text = [], [], [], ""
        self.attributes = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "code":
            self.codes.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "code" in self.open:
            self.codes[-1] += data


def test_equal_reports_give_equal_pages(report):
    assert render_html(Report.model_validate_json(report.dump())) == render_html(report)


def test_token_text_never_becomes_markup(report):
    page = _Page(render_html(report))
    tables = [tensor.rows for tensor in report.tensors if tensor.rows]
    assert page.tags.count("script") == len(tables) + 1
    assert not {"no", "b>", "img"} & set(page.tags)
    assert {"<script>alert(1)</script>", "[/INST]", "a|b", "`", "$x$"} <= set(page.codes)


def test_invisible_tokens_are_shown_and_none_reaches_the_page(report):
    html = render_html(report)
    assert {"⏎", "\\u202etxt", "␣␣", "\\x00"} <= set(_Page(html).codes)
    assert "\u202e" not in html
    assert "\x00" not in html


def test_the_page_loads_nothing(report):
    page = _Page(render_html(report))
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert all(link.startswith("#") for link in links)
    assert "@import" not in page.text
    assert "url(http" not in render_html(report)


def row_data(html):
    """What the search of each tensor looks through."""
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', html)]


def test_every_made_row_can_be_found_and_its_data_is_safe_in_a_script_element(report):
    table = report.tensors[0].rows
    data, twin = row_data(render_html(report))
    assert data == twin
    assert [row[0] for row in data["rows"]] == table.ids
    assert [row[1] for row in data["rows"]] == [show_token(token) for token in table.tokens]
    assert [data["texts"][place] for place, _ in data["rows"][0][4]] == [
        "<script>alert(1)</script>",
        "[/INST]",
    ]
    assert data["rows"][-1] == [table.ids[-1], "word299", "mean", None, []]


def test_without_a_script_a_sample_of_made_rows_is_a_plain_table(report):
    html = render_html(report)
    assert "24 of 500 rows" in html
    assert f"The page and <code>report.json</code> hold {len(report.tensors[0].rows.ids)} of them" in html
    shown = re.search(r'<div class="finder">.*?<tbody>(.*?)</tbody>', html, flags=re.DOTALL)[1]
    assert shown.count("<tr>") == 24
    bare = [tensor.model_copy(update={"rows": None}) for tensor in report.tensors]
    assert "<script" not in render_html(report.model_copy(update={"tensors": bare}))


def test_the_one_number_and_every_section_stand_at_the_top(report):
    html = render_html(report)
    assert "<b>+14.3 %</b> bits per byte against the base: 0.875 → 1.000 on 2 texts" in html
    linked = re.findall(r'<a href="#([^"]+)">', html)
    assert linked == re.findall(r'<section id="([^"]+)"', html)
    assert {"warnings", "compared", "anatomy", "hidden", "draft", "tensor-1", "specials", "recipe"} <= set(
        linked
    )


def test_a_page_tells_what_each_engine_says_of_the_output_as_a_draft(report):
    html = render_html(report)
    assert '<td>vllm</td><td class="bad">fails</td>' in html
    assert "[/INST]&lt;b&gt;" in html
    assert "whose tokenizer it has" in html
    assert "As a draft model" not in render_html(report.model_copy(update={"draft": None}))


def test_ids_are_unique_in_a_page_with_many_plots(report):
    ids = [value for name, value in _Page(render_html(report)).attributes if name == "id"]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "part",
    [
        {"scores": []},
        {"anchors": None},
        {"warnings": []},
        {"checks": []},
        {"tensors": []},
        {"origins": []},
        {"specials": [], "config_changes": [], "files": {}, "inputs": []},
    ],
    ids=lambda part: next(iter(part)),
)
def test_a_page_renders_without_a_part(report, part):
    assert "Where the rows came from" in _Page(render_html(report.model_copy(update=part))).text


def test_a_tensor_without_new_rows_has_no_residual_plot(report):
    bare = report.tensors[0].model_copy(update={"new_norms": None, "residuals": None, "worst": []})
    html = render_html(report.model_copy(update={"tensors": [bare]}))
    assert "Norms of the rows of model.embed_tokens.weight" in html
    assert "Residuals of the new rows" not in html


def test_a_screened_solver_shows_how_near_it_came(report):
    solver = Solver(
        mode="screened", sample=9, residual=0.3, exact_residual=0.299, shared_anchors=0.4, proven=0.2
    )
    tensors = [report.tensors[0].model_copy(update={"solver": solver}), *report.tensors[1:]]
    page = render_html(report.model_copy(update={"tensors": tensors}))
    assert "screened: residual 0.3, exact 0.299" in page
    assert "anchors shared with exact" in page
    assert "anchors shared with exact" not in render_html(report)


def row_of(html, name):
    return re.search(rf"<tr><td>{name}</td>.*?</tr>", html)[0]


def test_the_anatomy_of_a_loss_has_a_row_a_class_and_a_bar_as_long_as_its_share(report):
    html = render_html(report)
    latin, whitespace = row_of(html, "Latin"), row_of(html, "Whitespace")
    assert '<td class="n">+0.120</td><td class="bar"><span class="loss" style="width: 100.0%">' in latin
    assert '<td class="n">-0.020</td><td class="bar"><span class="gain" style="width: 16.7%">' in whitespace
    assert "<td>neither</td>" in html


def test_a_class_without_chunks_has_no_row_and_nothing_has_no_sign_of_loss(report):
    html = render_html(report)
    assert "<td>merged</td>" not in html
    assert '<td class="n">+0.000</td>' in row_of(html, "same token")


def test_a_page_tells_no_anatomy_that_was_not_measured(report):
    bare = [score.model_copy(update={"anatomy": None}) for score in report.scores]
    assert "Where the loss sits" in render_html(report)
    assert "Where the loss sits" not in render_html(report.model_copy(update={"scores": bare}))
    unknown = report.scores[0].anatomy.model_copy(update={"by_new_rows": None})
    first = report.scores[0].model_copy(update={"anatomy": unknown})
    html = render_html(report.model_copy(update={"scores": [first]}))
    assert "<td>Latin</td>" in html
    assert "<td>numbers</td>" in html
    assert "<td>neither</td>" not in html


def test_a_failed_check_stands_out(report):
    checks = [report.checks[0].model_copy(update={"passed": False, "detail": "shape <b>off</b>"})]
    html = render_html(report.model_copy(update={"checks": checks}))
    assert '<td class="bad">FAILED</td>' in html
    assert "shape &lt;b&gt;off&lt;/b&gt;" in html


def test_special_tokens_with_a_role_come_before_thousands_of_unused_ones(report):
    unused = [
        SpecialToken(token=f"<unused{at}>", id=at, roles=[], base_tokens=[], decided_by="method")
        for at in range(10, 1000)
    ]
    text = _Page(render_html(report.model_copy(update={"specials": unused + report.specials}))).text
    assert text.index("role eos") < text.index("<unused10>")
    assert "200 of 992" in text
    assert "<unused999>" not in text


def test_a_plot_label_is_text_and_not_a_formula(report):
    svg = plots.scores_plot(report.scores)
    assert "$co$de.py" in "".join(ElementTree.fromstring(svg).itertext())


def test_a_plot_with_text_that_its_font_lacks_draws_without_a_warning(report):
    svg = plots.scores_plot([report.scores[0].model_copy(update={"text": "中文 ᚠ.txt"})])
    assert "中文 ᚠ.txt" in svg


def test_rows_that_all_have_one_norm_are_drawn(report):
    flat = report.tensors[0].new_norms.model_copy(update={"minimum": 1.0, "median": 1.0, "maximum": 1.0})
    svg = plots.norms_plot(report.tensors[0].model_copy(update={"kept_norms": None, "new_norms": flat}))
    assert "new (500)" in svg


def test_a_narrow_distribution_fits_into_the_plot_of_a_wide_one(report):
    wide, narrow = report.tensors[0].kept_norms, report.tensors[0].kept_norms
    narrow = narrow.model_copy(update={"minimum": 1.4, "maximum": 1.5})
    svg = plots.norms_plot(report.tensors[0].model_copy(update={"kept_norms": wide, "new_norms": narrow}))
    outline = re.findall(r'<path d="([^"]*)" clip-path', svg)[-1]
    assert min(float(y) for y in re.findall(r"[ML] [\d.-]+ ([\d.-]+)", outline)) > 0
    ticks = [float(text) for text in re.findall(r">([\d.]+)</text>", svg)]
    assert max(ticks) > 10


def test_plotting_leaves_the_settings_of_matplotlib_alone(report):
    before = dict(matplotlib.rcParams)
    plots.origins_plot(report.origins)
    assert dict(matplotlib.rcParams) == before


def test_a_plot_ignores_the_settings_of_matplotlib(report):
    plain = plots.origins_plot(report.origins)
    with matplotlib.rc_context({"axes.grid": True, "svg.fonttype": "path"}):
        assert plots.origins_plot(report.origins) == plain


def test_reading_a_report_does_not_import_matplotlib():
    code = (
        "import sys, tokensurgeon.report.html, tokensurgeon.report.card; print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
