"""A hundred random transplants: all verify, and a script that knows nothing of tokensurgeon confirms each."""

from __future__ import annotations

import json
import random
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_tokenizers import CORPUS, write_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tokensurgeon.pipeline import run
from tokensurgeon.recipe.load import build_recipe

pytestmark = [pytest.mark.trust, pytest.mark.slow]

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "check_output.py"
PARTS, EACH = 10, 10
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
METHODS = [
    "pieces",
    "mean",
    "gaussian",
    "zero",
    "piece_regression",
    "omp",
    "nearest",
    "affine",
    "affknn",
    "procrustes",
]
BASE_ONLY = 5


def random_tokenizer(randomness: random.Random, place: Path) -> Path:
    texts = randomness.sample(CORPUS, len(CORPUS) // 2)
    size = randomness.randrange(280, 600)
    names = ["<pad>", "<s>", "</s>", "<unk>"]
    randomness.shuffle(names)
    kind = randomness.choice(["byte_level", "unigram", "wordpiece"])
    if kind == "byte_level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=names, initial_alphabet=letters, show_progress=False
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=names, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=randomness.random() < 0.5)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return write_tokenizer(place, tokenizer, **roles)


def cast(directory: Path, dtype: torch.dtype) -> None:
    for path in directory.glob("*.safetensors"):
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    index = directory / "model.safetensors.index.json"
    if index.exists():
        document = json.loads(index.read_text())
        files = [load_file(path) for path in directory.glob("*.safetensors")]
        sizes = [t.numel() * t.element_size() for tensors in files for t in tensors.values()]
        index.write_text(json.dumps({**document, "metadata": {"total_size": sum(sizes)}}))
    config = directory / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "dtype": str(dtype).removeprefix("torch.")})
    )


@pytest.mark.parametrize("part", range(PARTS))
def test_random_transplants_are_confirmed(
    part, make_model, read_in_forks, monkeypatch, capsys, tally, tmp_path
):
    monkeypatch.setattr("tokensurgeon.pipeline.render_html", lambda report: "")
    randomness = random.Random(part)
    for number in range(EACH):
        place = tmp_path / str(number)
        tokenizers = [random_tokenizer(randomness, place / name) for name in ("old", "new")]
        kind = randomness.choice(["llama", "llama-tied", "gemma3", "granite", "gpt2", "phi"])
        width = {} if kind in ("gemma3", "gpt2") else {"hidden_size": randomness.choice([16, 32, 48])}
        spare = randomness.choice([0, 0, 7])
        shard = randomness.choice([None, "12KB"])
        bound = Tokenizer.from_file(str(tokenizers[0] / "tokenizer.json")).get_vocab_size()
        base = make_model(kind, tokenizers[0], shard=shard, seed=number, vocab_size=bound + spare, **width)
        cast(base, randomness.choice(DTYPES))
        method = randomness.choice(METHODS)
        donor = tokenizers[1]
        if METHODS.index(method) >= BASE_ONLY:
            donor = make_model(randomness.choice(["llama", "llama-tied"]), tokenizers[1], seed=number + 1)
        rows = randomness.choice(["target", "exact", {"multiple": 64}])
        if method == "zero":
            rows = "exact"  # where made rows are zero, padding may be as likely, which is refused
        document = {"base": str(base), "target": str(donor), "output": str(place / "out"), "rows": rows}
        document |= {"anchors": {"minimum": 4}, "report": {"hidden": 0}, "runtime": {"memory_gb": 0.2}}
        document["method"] = {"name": method, "k": 4} if method in ("omp", "nearest", "affknn") else method
        told = f"{part}.{number}: {kind} {json.dumps(document)}"
        try:
            report = run(build_recipe(document)).report
        except Exception as error:
            raise AssertionError(told) from error
        assert report.passed, told
        monkeypatch.setattr(sys, "argv", ["check_output.py", str(base), str(donor), str(place / "out")])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except AssertionError as error:
            tally("outputs that load and are wrong")
            raise AssertionError(told) from error
        tally("random transplants confirmed by a script of its own")


def test_the_script_notices_what_is_wrong(make_model, byte_level, sentencepiece, monkeypatch, tmp_path):
    base, out = make_model("llama", sentencepiece), tmp_path / "out"
    run(build_recipe({"base": str(base), "target": str(byte_level), "output": str(out), "method": "pieces"}))
    monkeypatch.setattr(sys, "argv", ["check_output.py", str(base), str(byte_level), str(out)])
    whole = load_file(out / "model.safetensors")
    runpy.run_path(str(SCRIPT), run_name="__main__")
    for name, row in (("model.embed_tokens.weight", 100), ("lm_head.weight", 200), ("model.norm.weight", 0)):
        wrong = {key: tensor.clone() for key, tensor in whole.items()}
        wrong[name][row] += 1
        save_file(wrong, out / "model.safetensors")
        with pytest.raises(AssertionError, match=r"not the base's|body tensor changed"):
            runpy.run_path(str(SCRIPT), run_name="__main__")
    save_file(
        {key: tensor for key, tensor in whole.items() if key != "model.norm.weight"},
        out / "model.safetensors",
    )
    with pytest.raises(AssertionError, match="lost or invented"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    save_file(whole, out / "model.safetensors")
    told = json.loads((out / "provenance.json").read_text())
    source = told["vocab"]["lm_head.weight"]["source"]
    one, two = [i for i, old in enumerate(source) if old >= 300][:2]
    source[one], source[two] = source[two], source[one]
    (out / "provenance.json").write_text(json.dumps(told))
    with pytest.raises(AssertionError):
        runpy.run_path(str(SCRIPT), run_name="__main__")
