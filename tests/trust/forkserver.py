"""Processes that are as good as fresh: forked from one that has imported the libraries and done nothing else.

A job a line on stdin, an answer a line on stdout. ``probe`` is what tokensurgeon asks a process of its own;
``compare`` loads base and output as a user would, without tokensurgeon; ``commands`` runs its command line
several times at once, each under the faults that its entry names; ``know`` imports a class for later jobs.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny

_SERVER = os.getpid()
TEXTS = (
    "It was 1987, and the children's 12 kettles cost $3.50 each.",
    "\tdef f(x):\n        return x ** 2\n\n\n",
    "déjà vu, Ελλάδα, Привет, 日本語, 한국어, हिन्दी, 👩‍👩‍👧‍👦",
    "  two  spaces   and three <|im_start|>user\nhi<|im_end|> <start_of_turn> [SEP]",
    "x" * 40,
)


def _load(directory: str) -> tuple[Any, dict[str, list[str]]]:
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory)
    kind = getattr(transformers, config.architectures[0])
    model, info = kind.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    return model.eval(), {key: sorted(map(str, names)) for key, names in dict(info).items() if names}


def compare(job: dict[str, Any]) -> dict[str, Any]:
    """Read a tokenizer through AutoTokenizer and raw, and run base and output on the same copied tokens."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    output = Path(job["output"])
    read, raw = AutoTokenizer.from_pretrained(output), Tokenizer.from_file(str(output / "tokenizer.json"))
    ids = [
        [read(text, add_special_tokens=False)["input_ids"], raw.encode(text, add_special_tokens=False).ids]
        for text in TEXTS
    ]
    vocab = json.loads((output / "provenance.json").read_text(encoding="utf-8"))["vocab"]
    sources = [entry["source"] for entry in vocab.values() if entry["axis"] == 0 and len(entry["shape"]) == 2]
    kept = [i for i, old in enumerate(sources[0]) if old >= 0 and all(s[i] == old for s in sources)]
    kept = [i for i in kept if i >= job["past_specials"] and sources[0][i] >= job["past_specials"]]
    origins = [sources[0][i] for i in kept]
    new, found = _load(job["output"])
    old, known = _load(job["base"])
    after, before = tiny.run(new, kept[:20])[:, kept], tiny.run(old, origins[:20])[:, origins]
    return {
        "reader": type(read).__name__,
        "ids_equal": all(one == other for one, other in ids),
        "kept": len(kept),
        "new_problems": {key: names for key, names in found.items() if names != known.get(key)},
        "bits_equal": torch.equal(after, before),
        "logits_close": torch.allclose(after, before, atol=1e-3, rtol=1e-3),
        "largest": float((after - before).abs().max()),
        "finite": bool(torch.isfinite(after).all()),
    }


def _run_module(name: str, job: str) -> None:
    sys.stdin = io.StringIO(job)
    importlib.import_module(name).main()


def _run_child(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Stand in for ``subprocess.run`` where tokensurgeon runs a module of its own."""
    answer = _wait(*_fork(lambda: _run_module(command[-1], options["input"])))
    return subprocess.CompletedProcess(command, answer["returncode"], answer["stdout"], answer["stderr"])


def _command(entry: dict[str, Any]) -> None:
    """The command line under the faults of an entry."""
    from tokensurgeon.checkpoint import as_read
    from tokensurgeon.cli.app import main
    from tokensurgeon.vocab import chat

    as_read.subprocess = chat.subprocess = SimpleNamespace(run=_run_child)
    if "file_bytes" in entry:
        resource.setrlimit(resource.RLIMIT_FSIZE, (entry["file_bytes"], entry["file_bytes"]))
    if "user" in entry:
        os.setgroups([])
        os.setgid(entry["user"])
        os.setuid(entry["user"])
    if entry.get("offline"):

        def refuse(*_: object) -> None:
            raise AssertionError("a socket was opened")

        socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
        socket.getaddrinfo = refuse
    os.environ.update(entry.get("environment", {}))
    sys.argv = ["tokensurgeon", *entry["arguments"]]
    main()


def _fork(work: Callable[[], None]) -> tuple[int, int]:
    """Do something in a process of its own, the first of a group; its id and the pipe of its answer."""
    reading, writing = os.pipe()
    child = os.fork()
    # What it starts itself is killed with it. Both say so: a kill may come before the child runs at all.
    if child:
        if os.getpid() == _SERVER:
            os.setpgid(child, child)
        os.close(writing)
        return child, reading
    os.close(reading)
    if os.getppid() == _SERVER:
        os.setpgid(0, 0)
    import torch

    # Here, or threads that load weights race to set up what a fork has lost.
    torch.set_num_threads(1)
    out, err = io.StringIO(), io.StringIO()
    sys.stdout, sys.stderr = out, err
    code = 0
    try:
        work()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - what ends a process ends this one with its traceback, too
        traceback.print_exc()
        code = 1
    try:
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            json.dump({"returncode": code, "stdout": out.getvalue(), "stderr": err.getvalue()}, pipe)
    finally:
        os._exit(0)


def _wait(child: int, reading: int, kill_after: float | None = None) -> dict[str, Any]:
    started = time.monotonic()
    killed = False
    if kill_after is not None:
        time.sleep(max(0.0, kill_after - (time.monotonic() - started)))
        # No waiting before: the process may be over, but its id is still its own.
        os.killpg(child, signal.SIGKILL)
        killed = True
    with os.fdopen(reading, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    if text:
        answer: dict[str, Any] = json.loads(text)
        return {**answer, "seconds": time.monotonic() - started}
    return {"returncode": -9 if killed else 1, "stdout": "", "stderr": "" if killed else "the process died"}


def _answer(job: dict[str, Any]) -> Any:
    if "know" in job:
        import transformers

        return getattr(transformers, job["know"]).__name__
    if "probe" in job:
        return _wait(*_fork(lambda: _run_module("tokensurgeon.checkpoint.probe", job["probe"])))
    if "compare" in job:
        return _wait(*_fork(lambda: json.dump(compare(job["compare"]), sys.stdout)))
    begun = [
        (_fork(lambda entry=entry: _command(entry)), entry.get("kill_after")) for entry in job["commands"]
    ]
    return [_wait(*started, kill_after) for started, kill_after in begun]


def main() -> None:
    """Serve until stdin ends."""
    import jinja2  # noqa: F401
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import transformers
    import transformers.utils.chat_template_utils

    import tokensurgeon.checkpoint.probe
    import tokensurgeon.pipeline
    import tokensurgeon.report.plots
    import tokensurgeon.vocab.chat  # noqa: F401

    # What libraries print below Python does not get among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    # The library imports most of itself where it is first used; here, or in every fork again.
    config = transformers.LlamaConfig(vocab_size=8, hidden_size=32, intermediate_size=8, num_hidden_layers=1)
    transformers.LlamaForCausalLM(config)
    _ = transformers.AutoTokenizer, transformers.AutoModelForCausalLM, transformers.PreTrainedTokenizerFast
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
