import pytest

from tokensurgeon.report.model import HealSummary, Solver
from tokensurgeon.report.summary import (
    change,
    headline,
    heal_sentence,
    overall_bits,
    percent,
    show_token,
    solver_sentence,
    summary_rows,
    summary_sentence,
)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "␣the"),
        ("a b ", "a b␣"),
        ("   ", "␣␣␣"),
        ("\n\t\r", "⏎⇥␍"),
        ("\x00\x1b[0m", "\\x00\\x1b[0m"),
        ("\u202eabc", "\\u202eabc"),
        ("\u00a0", "\\xa0"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud83d", "\\ud83d"),
        ("\u0301", "◌\u0301"),
        ("", "∅"),
        ("naïve 中文", "naïve 中文"),
    ],
)
def test_invisible_characters_of_a_token_become_visible(token, shown):
    assert show_token(token) == shown


def test_a_share_is_never_rounded_to_all_or_nothing():
    assert [percent(share) for share in (0, 1e-6, 0.25, 0.99999, 1)] == [
        "0.0 %",
        "<0.1 %",
        "25.0 %",
        ">99.9 %",
        "100.0 %",
    ]


def test_a_change_has_a_sign_and_no_negative_zero():
    assert [change(1, 1.1), change(1, 0.5), change(1, 0.99999), change(0, 1)] == [
        "+10.0 %",
        "-50.0 %",
        "+0.0 %",
        "n/a",
    ]


def test_healing_tells_what_it_gained_or_that_it_did_not():
    facts = {"objective": "ntp", "train": "new", "corpus": [], "rows": 9, "texts": 8, "held_out_texts": 2}
    facts |= {"tokens": 700, "tokens_read": 1400, "steps": 20, "ended": "steps", "losses": [3.0] * 20}
    facts |= {"held_out": [{"step": 0, "bits_per_byte": 1.0}], "before": 1.0, "base": 0.8}
    gained = HealSummary(**facts, best_step=10, after=0.9)
    told = "ntp, 20 steps, 1,400 tokens: held-out text 1.000 -> 0.900 bits per byte (-10.0 %), the base 0.800"
    assert heal_sentence(gained) == told
    assert "rows are as they were made" in heal_sentence(HealSummary(**facts, best_step=0, after=1.0))


def test_every_byte_counts_the_same_in_the_overall_bits_per_byte(report):
    assert overall_bits(report.scores) == pytest.approx(((3000 * 1.0 + 1000 * 0.5) / 4000, 1.0))


def test_summary_rows_show_the_numbers_of_the_report(report):
    assert dict(summary_rows(report)) == {
        "base": "org/base-1b @ abc123",
        "target": "org/target|2b",
        "method": "omp, mean",
        "rows": "1,000 -> 2,048 (1 without a token, 47 padding)",
        "byte-equal matches": "1,490 of 2,000",
        "false matches": "0",
        "missing tokens": "500 (omp 480, mean 20)",
        "anchors": "1,400 used, 90 left out",
        "residual, embedding": "median 0.5, 99 % 0.892",
        "error, embedding": "0.924 of the mean row's, on 495 shared tokens made again",
        "median norm, embedding": "kept 1.5, new 0.9",
        "residual, lm_head": "median 0.5, 99 % 0.892",
        "error, lm_head": "0.924 of the mean row's, on 495 shared tokens made again",
        "median norm, lm_head": "kept 1.5, new 0.9",
        "bits per byte, prose.txt": "1.000 -> 1.100 (+10.0 %)",
        "bits per byte, $co$de.py": "0.500 -> 0.700 (+40.0 %)",
        "as a draft of the target": "passes: every draft; fails: vllm; not checked: tensorrt-llm",
        "checks": "2 of 2 passed",
        "warnings": "1 (TS001)",
    }


def test_a_screened_solver_is_shown_beside_the_exact_one(report):
    solver = Solver(mode="screened", sample=256, residual=0.2806, exact_residual=0.28, shared_anchors=0.4)
    tensors = [report.tensors[0].model_copy(update={"solver": solver}), *report.tensors[1:]]
    rows = dict(summary_rows(report.model_copy(update={"tensors": tensors})))
    assert rows["solver, embedding"] == "screened: residual 0.2806, exact 0.28 (+0.2 %) on 256 tokens"
    assert solver_sentence(Solver(mode="exact")) == "exact"


def test_a_tensor_equal_to_another_is_not_summed_up_twice(report):
    first, second = report.tensors
    twin = second.model_copy(update={"equal_to": first.name})
    labels = [label for label, _ in summary_rows(report.model_copy(update={"tensors": [first, twin]}))]
    assert "residual, embedding" in labels
    assert "residual, lm_head" not in labels


def test_two_tensors_of_one_role_are_told_apart_by_name(report):
    first, second = report.tensors
    pair = [first, second.model_copy(update={"role": "embedding"})]
    labels = [label for label, _ in summary_rows(report.model_copy(update={"tensors": pair}))]
    assert {"residual, model.embed_tokens.weight", "residual, lm_head.weight"} <= set(labels)


def test_the_sentence_says_what_was_done_what_it_cost_and_whether_it_holds(report):
    assert summary_sentence(report) == (
        "org/base-1b now speaks the tokenizer of org/target|2b: 1,500 of 2,000 tokens have a base row, "
        "copied byte for byte; 500 rows were made by omp and mean. "
        "The output needs 1.000 bits per byte where the base needs 0.875 (+14.3 %); "
        "worst on $co$de.py (+40.0 %). Verification passed: 2 of 2 checks."
    )


def test_the_one_number_is_what_text_costs_or_else_what_was_kept(report):
    assert headline(report) == ("+14.3 %", "bits per byte against the base: 0.875 → 1.000 on 2 texts")
    number, label = headline(report.model_copy(update={"scores": []}))
    assert (number, "no text was scored" in label) == ("75.0 %", True)
    empty = report.vocabulary.model_copy(update={"target_tokens": 0})
    assert (
        headline(report.model_copy(update={"scores": [], "vocabulary": empty, "tensors": []}))[0] == "0.0 %"
    )


def test_the_sentence_names_a_failed_verification(report):
    checks = [report.checks[0], report.checks[1].model_copy(update={"passed": False})]
    sentence = summary_sentence(report.model_copy(update={"checks": checks}))
    assert sentence.endswith("Verification FAILED: 1 of 2 checks.")


def test_a_run_without_checks_does_not_count_as_verified(report):
    assert summary_sentence(report.model_copy(update={"checks": []})).endswith("It was not verified.")
