r"""Time the streaming of a large checkpoint against ``cp -r``, and measure the peak memory of whole runs.

The checkpoint is made here: a Llama of random bytes with a real tokenizer. Both ways write the same bytes,
turn by turn; medians count. Needs twice the size as free disk, and a machine that does nothing else::

    python scripts/bench_stream.py --size-gb 8 --memory-gb 2 --memory-gb 8 --json bench_stream.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokensurgeon import console
from tokensurgeon.checkpoint.index import INDEX_NAME, read_index
from tokensurgeon.checkpoint.reader import map_tensor, raw_bytes
from tokensurgeon.checkpoint.sidefiles import tokenizer_files
from tokensurgeon.checkpoint.writer import staged_directory, write_weights
from tokensurgeon.errors import TokensurgeonError
from tokensurgeon.plan import make_plan
from tokensurgeon.recipe.schema import Recipe
from tokensurgeon.vocab.vocabulary import load_vocabulary

WIDTH, INNER, HEADS = 2048, 8192, 16
EMBEDDING = "model.embed_tokens.weight"
SHARD_BYTES = 2_000_000_000
SLACK_BYTES = 700_000_000
# A process starts with the peak of the one it was spawned from as its own; this one in between is small.
WATCH = """
import os, sys
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-gb", type=float, default=8, help="body of the checkpoint that is timed")
    parser.add_argument("--memory-gb", type=float, action="append", help="bodies of whole runs (2 and 8)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench/stream"), help="folder that is deleted"
    )
    parser.add_argument("--base-tokenizer", type=Path, default=Path("build/models/gemma3"))
    parser.add_argument("--donor", type=Path, default=Path("build/models/smollm2"))
    parser.add_argument("--keep", action="store_true", help="leave the work folder")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    options.memory_gb = options.memory_gb or [2, 8]
    return options


def make_checkpoint(directory: Path, body_bytes: float, tokenizer: Path) -> Path:
    """A sharded Llama of bfloat16 noise with the rows that a tokenizer needs."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for path in tokenizer_files(tokenizer):
        shutil.copyfile(tokenizer / path, directory / path)
    vocabulary = load_vocabulary(directory)
    layer = {
        **{f"self_attn.{part}_proj.weight": [WIDTH, WIDTH] for part in "qkvo"},
        **{f"mlp.{part}_proj.weight": [INNER, WIDTH] for part in ("gate", "up")},
        "mlp.down_proj.weight": [WIDTH, INNER],
        **{f"{part}_layernorm.weight": [WIDTH] for part in ("input", "post_attention")},
    }
    layers = max(1, round(body_bytes / 2 / sum(map(math.prod, layer.values()))))
    shapes = {EMBEDDING: [vocabulary.bound, WIDTH], "model.norm.weight": [WIDTH]}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": vocabulary.bound,
        "tie_word_embeddings": True,
        **{f"{role}_token_id": index for role, index in vocabulary.roles.items()},
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    write_shards(directory, shapes)
    return directory


def make_noise(name: str, shape: list[int]) -> Tensor:
    """Rows that a method can work with for the embedding, random bytes for everything else."""
    if name == EMBEDDING:
        return torch.randn(shape, dtype=torch.bfloat16)
    return torch.empty(math.prod(shape) // 4, dtype=torch.int64).random_()


def write_shards(directory: Path, shapes: dict[str, list[int]]) -> None:
    """Write noise by hand, a tensor at a time: a library would hold a shard in memory."""
    parts: list[dict[str, list[int]]] = [{}]
    for name, shape in shapes.items():
        if 2 * sum(map(math.prod, parts[-1].values())) > SHARD_BYTES:
            parts.append({})
        parts[-1][name] = shape
    weight_map = {}
    for number, part in enumerate(parts, 1):
        path = directory / f"model-{number:05}-of-{len(parts):05}.safetensors"
        ends = [0]
        for shape in part.values():
            ends.append(ends[-1] + 2 * math.prod(shape))
        header = {
            name: {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
            for (name, shape), start, end in zip(part.items(), ends[:-1], ends[1:], strict=True)
        }
        raw = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for name, shape in part.items():
                file.write(raw_bytes(make_noise(name, shape)))
        weight_map |= dict.fromkeys(part, path.name)
    total = 2 * sum(map(math.prod, shapes.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX_NAME).write_text(json.dumps(index, indent=2))


def time_copying(base: Path, work: Path) -> dict[str, float]:
    """Seconds for ``cp -r``, and until its files are on disk as well."""
    copy = work / "copy"
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(base), str(copy)], check=True)
    copied = time.perf_counter() - started
    subprocess.run(["sync", *map(str, copy.iterdir()), str(copy)], check=True)
    return {"cp": copied, "cp_sync": time.perf_counter() - started}


def time_streaming(base: Path, work: Path) -> dict[str, float]:
    """Seconds to write and hash the same files, and until they are on disk under their final name."""
    index = read_index(base)
    replaced = {EMBEDDING: map_tensor(index.tensors[EMBEDDING]).clone()}
    started = time.perf_counter()
    with staged_directory(work / "stream") as stage:
        for path in (*tokenizer_files(base), "config.json"):
            shutil.copyfile(base / path, stage / path)
        write_weights(index, replaced, stage)
        written = time.perf_counter() - started
    return {"stream": written, "stream_publish": time.perf_counter() - started}


def compare(base: Path, work: Path, rounds: int) -> dict[str, list[float]]:
    """Time both, turn by turn; who begins alternates."""
    seconds: dict[str, list[float]] = {}
    for number in range(rounds):
        turns = [(time_copying, work / "copy"), (time_streaming, work / "stream")]
        for measure, output in turns[:: -1 if number % 2 else 1]:
            # Whoever comes second would find more of the base in memory.
            subprocess.run(["cat", *base.glob("*.safetensors")], check=True, stdout=subprocess.DEVNULL)
            for name, value in measure(base, work).items():
                seconds.setdefault(name, []).append(value)
            shutil.rmtree(output)
            os.sync()  # what a deletion costs is nobody's
        console.logger.info("round %d: %s", number + 1, {n: round(v[-1], 2) for n, v in seconds.items()})
    return seconds


def measure_run(base: Path, donor: Path, work: Path) -> dict[str, float]:
    """Peak memory of a whole run in a process of its own, its child processes included."""
    recipe = {
        "base": str(base),
        "target": str(donor),
        "output": str(work / "run"),
        "method": {"name": "omp", "k": 8},
        "verify": {"forward": False},
    }
    path = work / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    plan = make_plan(Recipe.model_validate(recipe))
    donor_layout = plan.inputs.donor_layout
    tensors = [*plan.inputs.layout.tensors, *(donor_layout.tensors if donor_layout else ())]
    batch = plan.batch_size * plan.cost.bytes_per_token
    started = time.perf_counter()
    peak = peak_bytes([sys.executable, "-m", "tokensurgeon", "run", str(path)])
    seconds = time.perf_counter() - started
    shutil.rmtree(work / "run")
    return {
        "body": sum(ref.nbytes for ref in plan.inputs.base_index.tensors.values() if ref.name != EMBEDDING),
        "peak": peak,
        "bound": sum(4 * math.prod(t.ref.shape) for t in tensors) + batch + SLACK_BYTES,
        "seconds": seconds,
    }


def peak_bytes(command: list[str]) -> int:
    """Largest resident memory of a command and its child processes."""
    watcher = [sys.executable, "-S", "-c", WATCH, *command]
    done = subprocess.run(watcher, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.splitlines()[-1])


def print_report(report: dict[str, Any]) -> None:
    """Print what was measured as two tables."""
    seconds = report["seconds"]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        [
            title,
            f"{medians[name]:.2f}",
            f"{min(seconds[name]):.2f}",
            f"{max(seconds[name]):.2f}",
            f"{report['bytes'] / medians[name] / 1e9:.2f}",
            f"{medians[name] / medians[rival]:.2f}",
        ]
        for name, title, rival in (
            ("cp", "cp -r", "cp"),
            ("stream", "streaming: copied and hashed", "cp"),
            ("cp_sync", "cp -r, then sync", "cp_sync"),
            ("stream_publish", "streaming, then fsync and rename", "cp_sync"),
        )
    ]
    title = f"{report['bytes'] / 1e9:.1f} GB, {report['rounds']} rounds"
    console.print_table(title, ["what", "median s", "min s", "max s", "GB/s", "ratio"], rows)
    rows = [
        [
            f"{run['body'] / 1e9:.1f}",
            f"{run['peak'] / 1e6:.0f}",
            f"{run['bound'] / 1e6:.0f}",
            f"{run['seconds']:.0f}",
        ]
        for run in report["runs"]
    ]
    floor = f"peak memory of a run, omp with k=8; an empty Python: {report['empty'] / 1e6:.0f} MB"
    console.print_table(floor, ["body GB", "peak MB", "bound MB", "seconds"], rows)


def main(arguments: list[str]) -> None:
    """Make checkpoints, measure, clean up, print."""
    options = parse_arguments(arguments)
    console.setup_logging()
    work, base = options.work, options.work / "base"
    report: dict[str, Any] = {"rounds": options.rounds, "runs": []}
    try:
        make_checkpoint(base, options.size_gb * 1e9, options.base_tokenizer)
        report["bytes"] = sum(path.stat().st_size for path in base.iterdir())
        report["seconds"] = compare(base, work, options.rounds)
        report["empty"] = peak_bytes([sys.executable, "-c", ""])
        for size in options.memory_gb:
            make_checkpoint(base, size * 1e9, options.base_tokenizer)
            report["runs"].append(measure_run(base, options.donor, work))
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        main(sys.argv[1:])
    except TokensurgeonError as error:
        console.print_error(error.code, str(error))
        sys.exit(error.exit_code)
