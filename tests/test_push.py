"""``push``: only what was verified, and still is what it was, is uploaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tokensurgeon.pipeline import run
from tokensurgeon.recipe.load import build_recipe


@pytest.fixture(scope="module")
def output(make_model, sentencepiece, byte_level, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("push") / "out"
    base = make_model("llama", sentencepiece)
    run(
        build_recipe(
            {
                "base": str(base),
                "target": str(byte_level),
                "output": str(place),
                "method": "pieces",
                "verify": {"forward": False},
            }
        )
    )
    return place


@pytest.fixture
def uploads(monkeypatch):
    """What would go to the hub; nothing does."""
    asked = []

    def push(directory: Path, repository: str, **options: object) -> str:
        asked.append({"directory": directory, **options})
        return f"https://hub/{repository}"

    monkeypatch.setattr("tokensurgeon.checkpoint.hub.push_directory", push)
    return asked


def test_a_verified_output_is_uploaded(call, uploads, output):
    code, out, err = call("push", output, "me/model", "--json")
    assert (code, json.loads(out)["url"]) == (0, "https://hub/me/model"), err
    [asked] = uploads
    assert (asked["directory"], asked["public"]) == (output, False)
    assert asked["message"].startswith("Output of tokensurgeon ")
    assert "name paths of this machine" in err


def test_what_has_no_report_or_did_not_pass_is_not_uploaded(call, uploads, output, tmp_path):
    assert call("push", tmp_path, "me/model")[0] == 3
    document = json.loads((output / "report.json").read_text())
    failed = Path(shutil.copytree(output, tmp_path / "failed"))
    for checks, said in (
        ([], "It was not verified."),
        ([{**document["checks"][0], "passed": False}], "Verification FAILED: 1 of 1 checks."),
    ):
        (failed / "report.json").write_text(json.dumps({**document, "checks": checks}))
        code, _, err = call("push", failed, "me/model")
        assert (code, said in err) == (5, True)
    assert uploads == []


def test_files_that_changed_since_are_not_uploaded(call, uploads, output, tmp_path):
    changed = Path(shutil.copytree(output, tmp_path / "changed"))
    path = changed / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, _, err = call("push", changed, "me/model")
    assert (code, uploads) == (5, [])
    assert "body" in err or "copied rows" in err
