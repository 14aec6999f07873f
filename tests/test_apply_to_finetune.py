"""A fine-tune takes the vocabulary that was made, and healed, for its base."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokensurgeon.cli.app import main

EMBEDDING = "model.embed_tokens.weight"


def call(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tokensurgeon", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


@pytest.fixture(scope="module")
def models(make_model, sentencepiece, byte_level, tmp_path_factory):
    """A base, a transplant of it with rows that no fine-tune would make itself, and a fine-tune."""
    folder = tmp_path_factory.mktemp("finetune")
    base = make_model("llama-tied", sentencepiece)
    donor = make_model("llama-tied", byte_level, seed=1)
    words = (base, donor, folder / "transplant", "--method", "gaussian", "--set", "new_rows.norm=free")
    assert not call("transplant", *words)
    tuned = make_model("llama-tied", sentencepiece)
    weights = load_file(tuned / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name, rows in weights.items():
        move = 0.01 * torch.randn(rows.shape if name != EMBEDDING else rows.shape[1:], generator=generator)
        weights[name] = (rows.float() + move).to(rows.dtype)
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    return base, folder / "transplant", tuned


def made_rows(output):
    source = json.loads((output / "provenance.json").read_text())["vocab"][EMBEDDING]["source"]
    return torch.tensor([index for index, origin in enumerate(source) if origin == -1])


def test_the_base_itself_gets_the_transplant_back(models, tmp_path):
    base, transplant, _ = models
    assert not call("apply-to-finetune", transplant, base, tmp_path / "out")
    expected, found = (load_file(place / "model.safetensors") for place in (transplant, tmp_path / "out"))
    assert expected.keys() == found.keys()
    assert all(found[name].equal(rows) for name, rows in expected.items())


def test_rows_of_a_fine_tune_move_as_its_own_did(models, tmp_path):
    base, transplant, tuned = models
    assert not call("apply-to-finetune", transplant, tuned, tmp_path / "out")
    made = made_rows(transplant)
    assert len(made) > 10
    before, after = (load_file(place / "model.safetensors")[EMBEDDING] for place in (base, tuned))
    move = (after.float() - before.float()).mean(dim=0)
    carried = load_file(tmp_path / "out" / "model.safetensors")[EMBEDDING][made].float()
    expected = load_file(transplant / "model.safetensors")[EMBEDDING][made].float() + move
    torch.testing.assert_close(carried, expected, rtol=0, atol=2e-3)
    body = {name: rows for name, rows in load_file(tuned / "model.safetensors").items() if name != EMBEDDING}
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(written[name].equal(rows) for name, rows in body.items())


def test_a_model_that_is_no_output_is_refused_by_name(models, tmp_path, capsys):
    base, _, tuned = models
    assert call("apply-to-finetune", base, tuned, tmp_path / "out") == 3
    assert "provenance.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_that_the_body_was_trained_and_stays_behind_is_told(models, tmp_path, capsys):
    base, transplant, tuned = models
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog; 22 trees, été.\n" * 60)
    words = ["--corpus", text, "--steps", 2, "--lora", 2, "--set", "heal.held_out=0.5"]
    words += ["--set", "heal.lora.learning_rate=0.01", "--set", "heal.batch_tokens=300"]
    assert not call("heal", transplant, base, tmp_path / "healed", *words)
    trained = json.loads((tmp_path / "healed" / "provenance.json").read_text())["trained"]
    assert trained
    capsys.readouterr()
    assert not call("apply-to-finetune", tmp_path / "healed", tuned, tmp_path / "out")
    assert f"changed {len(trained)} tensors of its body" in capsys.readouterr().err
    written, own = (load_file(place / "model.safetensors") for place in (tmp_path / "out", tuned))
    assert all(written[name].equal(own[name]) for name in trained)
