"""Every model type of the library, three kinds of tokenizer: what a user's program reads is what was written.

Each output is loaded twice, in processes of their own: by tokensurgeon, which refuses what is read wrongly,
and by ``forkserver.compare``, which knows nothing of it. They must agree.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import tiny
from trust_suite import MODEL_TYPE

from tokensurgeon.errors import InputError, PolicyError, VerificationError
from tokensurgeon.pipeline import run
from tokensurgeon.recipe.load import build_recipe

pytestmark = [pytest.mark.trust, pytest.mark.slow]

PARTS = 16
PAST_SPECIALS = 7  # ids of the three tokenizers below this are special
# What a target has for BOS, EOS and the placeholder of the bases, which speak byte-level BPE.
COUNTERPARTS = {
    "byte_level": {},
    "sentencepiece": {"<unused0>": "<file_sep>"},
    "wordpiece": {"[MASK]": "<file_sep>", "[CLS]": "<|im_start|>", "[SEP]": "<|im_end|>"},
}
# transformers builds Qwen's own tokenizer for these whatever the files say (PITFALLS 33).
KNOWN_BAD = {
    "qwen2",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "qwen4_exp",
    "qwen4_exp_text",
}


def make_base(model_type: str, classes: list[str], tokenizer: Path, place: Path) -> str | None:
    """Write a tiny base; or tell why there is none."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    why = []
    for name in classes:
        try:
            ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "decoder_start_token_id": 1}
            model = tiny.make_model(model_type, name, 420, **ids)
            model.save_pretrained(place)
        except Exception as error:  # noqa: BLE001 - whatever keeps the library from making one is the reason
            shutil.rmtree(place, ignore_errors=True)
            why.append(f"{name}: {type(error).__name__}: {str(error).strip()[:120]}")
        else:
            for path in tokenizer.iterdir():
                shutil.copy(path, place)
            return None
    return "; ".join(why)


@pytest.mark.parametrize("part", range(PARTS))
def test_what_is_written_is_what_is_read(
    part, byte_level, sentencepiece, wordpiece, read_in_forks, tally, tmp_path, monkeypatch, record_property
):
    # The page of a report is drawn elsewhere; here it would take most of the time.
    monkeypatch.setattr("tokensurgeon.pipeline.render_html", lambda report: "")
    targets = {"byte_level": byte_level, "sentencepiece": sentencepiece, "wordpiece": wordpiece}
    wrong, outcomes = [], Counter()
    for model_type, classes in list(tiny.find_types().items())[part::PARTS]:
        base = tmp_path / model_type
        reason = make_base(model_type, classes, byte_level, base)
        if reason is not None:
            tally("model types that cannot be made tiny")
            record_property(MODEL_TYPE, [model_type, "any", f"not made tiny: {reason}"])
            continue
        tally("model types tried")
        read_in_forks.ask({"know": json.loads((base / "config.json").read_text())["architectures"][0]})
        for kind, target in targets.items():
            output = tmp_path / f"{model_type}-{kind}"
            outcome = swap(base, target, output, kind, read_in_forks)
            outcomes[outcome.partition(":")[0]] += 1
            record_property(MODEL_TYPE, [model_type, kind, outcome])
            if outcome.startswith("wrong"):
                wrong.append(f"{model_type} {kind} {outcome}")
            if outcome.startswith("reader") and model_type not in KNOWN_BAD:
                wrong.append(f"{model_type} {kind} {outcome}: a reader that was right before")
            shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(base)
    tally("outputs loaded by AutoTokenizer and AutoModel, ids and logits equal", outcomes["equal"])
    tally("known-bad readers refused (exit 5)", outcomes["reader"])
    tally("classes that count positions from the padding id refused (exit 5)", outcomes["positions"])
    tally("classes that cannot run the base either refused (exit 5)", outcomes["class"])
    tally("layouts that names do not tell refused by name (exit 3, 4)", outcomes["layout"])
    tally("outputs that load and are wrong", outcomes["wrong"])
    assert not wrong, "\n".join(wrong)
    assert outcomes["equal"]


def swap(base: Path, target: Path, output: Path, kind: str, server) -> str:
    recipe = build_recipe(
        {
            "base": str(base),
            "target": str(target),
            "output": str(output),
            "method": "pieces",
            "anchors": {"minimum": 1, "map": COUNTERPARTS[kind]},
            "report": {"hidden": 0},
            "runtime": {"memory_gb": 0.2},
        }
    )
    try:
        run(recipe)
    except (InputError, PolicyError) as error:
        return f"layout: {error.found[:200]}"
    except VerificationError as error:
        assert not output.exists()
        assert "next: nothing was written; " in str(error)
        assert "bug report" not in str(error)
        reasons = error.found.partition("\n")[2]
        kinds = {"AutoTokenizer reads this tokenizer as": "reader", "counts positions from": "positions"}
        found = next((kind for words, kind in kinds.items() if words in reasons), "class")
        return f"{found}: {reasons[:200]}"
    answer = server.ask(
        {"compare": {"base": str(base), "output": str(output), "past_specials": PAST_SPECIALS}}
    )
    if answer["returncode"]:
        return f"wrong: {answer['stderr'].strip()[-300:]}"
    seen = json.loads(answer["stdout"])
    identity = kind == "byte_level"
    right = seen["ids_equal"] and seen["finite"] and seen["kept"] > 50 and not seen["new_problems"]
    right = right and seen["bits_equal" if identity else "logits_close"]
    return "equal" if right else f"wrong: {seen}"
