"""Input made to do harm is refused with one message, or done right; it never runs, hangs, escapes or lies."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tokensurgeon.checkpoint.verify import verify_checkpoint

pytestmark = pytest.mark.trust

ROOT = Path(__file__).parent.parent.parent
BAD_INPUT, POLICY, VERIFICATION = 3, 4, 5
DEEP = "[" * 100_000 + "]" * 100_000
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture
def models(make_model, sentencepiece, byte_level, tmp_path):
    """Copies of a base and a donor that a test may damage."""
    base = make_model("llama", sentencepiece)
    donor = make_model("llama", byte_level, seed=1)
    return (
        Path(shutil.copytree(base, tmp_path / "base")),
        Path(shutil.copytree(donor, tmp_path / "donor")),
    )


@pytest.fixture
def transplant(models, tmp_path):
    command = ["transplant", *models, tmp_path / "out", "--method", "pieces", "--set", "report.hidden=0"]
    return [*command, "--set", "anchors.minimum=8", "--set", "runtime.memory_gb=0.2"]


@pytest.fixture
def survives(command_line, transplant, read_in_forks, tally, tmp_path, monkeypatch):
    """Run a transplant that must be refused with one message, or give an output that is right."""
    monkeypatch.setattr("tokensurgeon.pipeline.render_html", lambda report: "")  # takes most of the time

    def check() -> int:
        code, _, err = command_line(*transplant)
        output = tmp_path / "out"
        if code == 0:
            right = verify_checkpoint(output, forward=False).passed
            tally("odd inputs done right", int(right))
            tally("outputs that load and are wrong", int(not right))
            assert right
        else:
            assert code in (2, BAD_INPUT, POLICY, VERIFICATION), err
            assert err.count("error TE") == 1
            assert not output.exists()
            tally("inputs refused with one message")
        shutil.rmtree(output, ignore_errors=True)
        return code

    return check


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# Configs

NONSENSE = [None, -1, 10**18, 10**400, "abc", 1.5, True, [[1]], [None], {"a": {"b": [1]}}]


@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "eos_token_id",
        "pad_token_id",
        "image_token_id",
        "suppress_tokens",
        "bad_words_ids",
        "forced_decoder_ids",
        "text_config",
        "rope_parameters",
        "model_type",
        "architectures",
        "tie_word_embeddings",
        "num_attention_heads",
        "auto_map",
        "quantization_config",
    ],
)
@pytest.mark.slow
def test_nonsense_in_a_config(field, models, survives):
    base, _ = models
    whole = (base / "config.json").read_text()
    for value in NONSENSE:
        change(base / "config.json", **{field: value})
        survives()
        (base / "config.json").write_text(whole)


@pytest.mark.parametrize(
    "field", ["eos_token_id", "bos_token_id", "suppress_tokens", "bad_words_ids", "new_field"]
)
@pytest.mark.slow
def test_nonsense_in_a_generation_config(field, models, survives):
    base, _ = models
    whole = (base / "generation_config.json").read_text()
    for value in NONSENSE:
        change(base / "generation_config.json", **{field: value})
        survives()
        (base / "generation_config.json").write_text(whole)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    "field",
    ["eos_token", "bos_token", "chat_template", "added_tokens_decoder", "tokenizer_class", "auto_map"],
)
@pytest.mark.slow
def test_nonsense_in_a_tokenizer_config(field, side, models, survives):
    path = models[side] / "tokenizer_config.json"
    whole = path.read_text()
    for value in NONSENSE:
        change(path, **{field: value})
        survives()
        path.write_text(whole)


def test_a_document_is_one_whatever_libraries_print(models, tally, tmp_path):
    """The tokenizers library tells stdout of a field that it does not know."""
    base, _ = models
    change(base / "tokenizer_config.json", added_tokens_decoder={"a": {"b": [1]}})
    (tmp_path / "text.txt").write_text("some words")
    command = [sys.executable, "-m", "tokensurgeon", "eval", base, "--text", tmp_path / "text.txt", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "unknown kwarg" in done.stderr
    assert json.loads(done.stdout)["exit_code"] == done.returncode == BAD_INPUT
    tally("inputs refused with one message")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "README.md",
        "special_tokens_map.json",
        "model.safetensors.index.json",
        "chat_template.json",
        "chat_template.jinja",
    ],
)
@pytest.mark.slow
def test_files_that_are_not_what_their_name_says(name, models, survives):
    for directory in models:
        path = directory / name
        whole = path.read_bytes() if path.exists() else None
        for data in (DEEP.encode(), b"\xff\xfe{}", b"[1]", b"null", b'"x"', b"", b'{"a": NaN}', b"\0" * 64):
            path.write_bytes(data)
            survives()
        path.unlink()
        path.mkdir()
        survives()
        path.rmdir()
        if whole is not None:
            path.write_bytes(whole)


# Code


class Canary:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "adapter_model.bin", "model.safetensors"])
def test_a_malicious_pickle_is_not_opened(name, models, survives, tmp_path):
    for directory in models:
        weights = directory / "model.safetensors"
        whole = weights.read_bytes()
        weights.unlink()
        (directory / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
        code = survives()
        # A method without a donor does not look at its weights.
        assert code in (BAD_INPUT, POLICY) or directory == models[1]
        (directory / name).unlink()
        weights.write_bytes(whole)
    assert not (tmp_path / "canary").exists()


def test_a_shard_index_that_names_a_pickle(models, refuses, transplant, tmp_path):
    base, _ = models
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "pytorch_model.bin"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    refuses(BAD_INPUT, *transplant)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "verb", ["transplant", "inspect", "verify", "eval", "check-draft", "heal", "trim", "plan"]
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_no_verb_runs_code_that_comes_with_a_model(name, verb, models, command_line, tally, tmp_path):
    base, donor = models
    code = f"from pathlib import Path\nPath({str(tmp_path / 'canary')!r}).touch()\nclass Canary: ...\n"
    for directory in models:
        (directory / "canary.py").write_text(code)
        kinds = ("AutoConfig", "AutoModelForCausalLM", "AutoModel", "AutoTokenizer")
        found = {
            kind: ["canary.Canary"] * 2 if kind == "AutoTokenizer" else "canary.Canary" for kind in kinds
        }
        change(directory / name, auto_map=found, model_type="trust-canary", tokenizer_class="Canary")
    text, recipe = tmp_path / "text.txt", tmp_path / "recipe.yaml"
    text.write_text("some words\n")
    recipe.write_text(f"base: {base}\ntarget: {donor}\noutput: {tmp_path / 'out'}\nmethod: pieces\n")
    arguments = {
        "inspect": [base, donor],
        "verify": [base],
        "eval": [base, donor, "--text", text],
        "check-draft": [base, donor],
        "plan": [recipe],
        "trim": [base, tmp_path / "out", "--corpus", text],
        "heal": [donor, base, tmp_path / "out", "--corpus", text],
        "transplant": [base, donor, tmp_path / "out", "--method", "pieces"],
    }[verb]
    ended, _, err = command_line(verb, *arguments)
    # What is read as JSON alone needs no code; whatever would load it refuses.
    assert ended in (0, BAD_INPUT, POLICY, VERIFICATION), err
    assert ended == POLICY or verb in ("inspect", "check-draft", "heal", "verify"), err
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "out").exists()
    tally("inputs refused with one message", int(ended != 0))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
        "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{{ messages[9]['content'] }}{{ undefined.field }}",
        "{% for",
        "{{ 'x' * 'y' }}{{ messages.__class__ }}",
        "{{ messages | tojson(indent=10**9) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_a_chat_template_is_rendered_in_a_sandbox(template, models, survives, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, donor = models
    change(
        donor / "tokenizer_config.json", chat_template=template.replace("CANARY", str(tmp_path / "canary"))
    )
    survives()
    assert not (tmp_path / "canary").exists()


# Paths


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/../../secret.safetensors",
        "..",
        ".",
        "",
        "a\0b",
        "x" * 300,
        "\n",
    ],
)
def test_a_shard_name_does_not_lead_out_of_the_folder(shard, models, refuses, transplant, tmp_path):
    base, _ = models
    shutil.copy(base / "model.safetensors", tmp_path / "secret.safetensors")
    (base / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": shard}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    refuses(BAD_INPUT, *transplant)


@pytest.mark.parametrize(
    "name", ["LICENSE", "notes.txt", "folder/notes.txt", "tokenizer.model", "config.json"]
)
@pytest.mark.parametrize("side", [0, 1])
def test_a_link_does_not_bring_files_from_elsewhere(
    name, side, models, transplant, command_line, tmp_path, tally
):
    secret = tmp_path / "secret"
    secret.write_text('{"password": "hunter2"}')
    path = models[side] / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(Path("..") / ".." / "secret" if "/" in name else Path("..") / "secret")
    code, _, err = command_line(*transplant, "--set", "verify.forward=false")
    copied = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and b"hunter2" in p.read_bytes()]
    assert not copied
    if code:
        assert code in (BAD_INPUT, POLICY)
        assert err.count("error TE") == 1
        tally("inputs refused with one message")


def test_a_link_to_a_folder_elsewhere_brings_nothing(models, transplant, command_line, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key.txt").write_text("hunter2")
    (models[0] / "folder").symlink_to(tmp_path / "private")
    assert command_line(*transplant, "--set", "verify.forward=false")[0] in (0, POLICY)
    assert not list((tmp_path / "out").rglob("key.txt"))


def test_links_that_lead_nowhere_or_round(models, survives):
    for directory in models:
        (directory / "gone.txt").symlink_to("nowhere")
        (directory / "loop.txt").symlink_to("loop.txt")
        os.mkfifo(directory / "pipe.txt")
    started = time.monotonic()
    survives()
    assert time.monotonic() - started < 60


# Recipes


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        LAUGHS + "method: *i\n",
        "base: &a {path: *a}\n",
        "base: &a [*a]\ntarget: *a\noutput: *a\n",
        "base: !!python/object/apply:os.system ['touch CANARY']\n",
        "base: !!python/name:os.system\n",
        "base: !include /etc/passwd\n",
        "<<: [1]\n",
        "? {a: b}\n: c\n",
        "base: " + "[" * 5000 + "]" * 5000 + "\n",
        "base: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n",
        "method: {k: 0x" + "f" * 5000 + "}\n",
        "method: {k: 1" + "0" * 5000 + "}\n",
        "base: 2026-11-23\ntarget: .nan\noutput: .inf\n",
        "base: !!binary AAAA\ntarget: !!set {a}\noutput: !!timestamp 2026-01-01\n",
        'base: "a\\0b"\ntarget: "\\e[31m"\noutput: "\\n"\n',
        "%YAML 9.9\n---\nbase: a\n",
        "--- a\n--- b\n",
        "",
        "\x85\u2028: 1\n",
    ],
)
def test_tricks_of_yaml(text, refuses, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text.replace("CANARY", str(tmp_path / "canary")), encoding="utf-8")
    started = time.monotonic()
    message = refuses((2, BAD_INPUT), "run", recipe)
    assert time.monotonic() - started < 10
    assert len(message) < 20_000
    assert not (tmp_path / "canary").exists()


def test_tricks_of_yaml_in_an_override(refuses, models, transplant):
    for value in ("&a [*a]", "!!python/name:os.system", "[" * 5000, "*x", "{a: {b: {c: d}}}"):
        refuses(2, *transplant, "--set", f"anchors.map={value}")


def test_a_model_card_that_laughs(models, survives):
    base, _ = models
    for head in (LAUGHS, "license: &a [*a]\n", "license: " + "[" * 5000 + "\n"):
        (base / "README.md").write_text(f"---\n{head}---\ntext\n")
        started = time.monotonic()
        survives()
        assert time.monotonic() - started < 60


@pytest.mark.parametrize("output", ["a\0b", "x" * 300, "\n", "out\x1b[31m"])
def test_an_output_whose_name_is_odd(output, models, command_line, tally, tmp_path):
    command = [
        "transplant",
        *models,
        f"{tmp_path}/{output}",
        "--method",
        "pieces",
        "--set",
        "verify.forward=false",
    ]
    code, _, err = command_line(*command)
    assert code in (0, 2, BAD_INPUT, POLICY, 6), err
    tally("inputs refused with one message", int(code != 0))


# Tokens

NASTY = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\r\x08\x7f",
    "[bold red]x[/]",
    "[/INST]",
    "<script>alert(1)</script>",
]
NASTY += [
    "\u202eright\u202c",
    "\u2028",
    "\x9b31m",
    "</td></table>",
    "`code`|",
    "--",
    "\ud7ff\ufeff",
    "{{ 7 * 7 }}",
]


def test_tokens_of_control_characters_and_markup_reach_no_terminal_as_they_are(
    make_model, byte_level, command_line, tally, tmp_path
):
    target = Path(shutil.copytree(byte_level, tmp_path / "target"))
    spec = json.loads((target / "tokenizer.json").read_text())
    first = max(spec["model"]["vocab"].values()) + 1
    for index, content in enumerate(NASTY, first):
        options = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        spec["added_tokens"].append({"id": index, "content": content, **options, "special": index % 2 == 0})
    (target / "tokenizer.json").write_text(json.dumps(spec))
    base = make_model("llama", byte_level)
    out = tmp_path / "out"
    commands = [
        ["inspect", target, base],
        ["transplant", base, target, out, "--method", "pieces", "--set", "verify.forward=false"],
        ["report", out],
        ["verify", out, "--no-forward"],
        ["check-draft", base, out],
        ["transplant", base, target, tmp_path / "2", "--method", "pieces", "--map", f"{NASTY[0]}={NASTY[1]}"],
        ["inspect", out, "--token", NASTY[0]],
    ]
    for command in commands:
        _, printed, told = command_line(*command)
        for text in (printed, told):
            rest = [c for c in text if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]
            assert not rest, f"{command[0]}: {rest}"
    tally("odd inputs done right")


@pytest.mark.slow
def test_a_million_merges_take_minutes(
    make_model, byte_level, command_line, read_in_forks, tally, tmp_path, monkeypatch
):
    """Read, matched, spelt, written and read back in bounded time."""
    monkeypatch.setattr("tokensurgeon.pipeline.render_html", lambda report: "")
    import itertools

    target = Path(shutil.copytree(byte_level, tmp_path / "target"))
    spec = json.loads((target / "tokenizer.json").read_text())
    vocab, merges = spec["model"]["vocab"], list(spec["model"]["merges"])
    letters = [piece for piece in vocab if len(piece) == 1]
    known = set(vocab)
    for parts in itertools.product(letters, letters, letters):
        two, three = parts[0] + parts[1], "".join(parts)
        for pair, whole in (((parts[0], parts[1]), two), ((two, parts[2]), three)):
            if whole not in known:
                known.add(whole)
                vocab[whole] = len(vocab)
                merges.append(list(pair))
        if len(merges) >= 1_000_000:
            break
    spec["model"]["merges"] = merges
    (target / "tokenizer.json").write_text(json.dumps(spec))
    started = time.monotonic()
    command = ["transplant", make_model("llama", byte_level), target, tmp_path / "out", "--method", "pieces"]
    code, _, err = command_line(*command, "--set", "report.hidden=0")
    assert code == 0, err
    assert time.monotonic() - started < 600
    tally("odd inputs done right")
