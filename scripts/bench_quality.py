r"""Build the table of bits per byte in the README.

Rows are models, the first one the baseline; columns are texts. Finished scores are kept in a cache file,
so a long run can be stopped and continued::

    python scripts/bench_quality.py --model base=/models/base --model omp=/models/out \
        --text english.txt --text math.txt --max-bytes 50000 --markdown bench.md --readme README.md
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

from tokensurgeon import console
from tokensurgeon.errors import InputError, RecipeError, TokensurgeonError
from tokensurgeon.evaluation.bits_per_byte import (
    CONTEXT_BYTES,
    STRIDE_BYTES,
    load_model,
    read_texts,
    score_texts,
)
from tokensurgeon.evaluation.loading import DTYPES

START, END = "<!-- bench:start -->", "<!-- bench:end -->"


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--text", action="append", required=True, type=Path, metavar="FILE")
    parser.add_argument("--max-bytes", type=int)
    parser.add_argument("--stride-bytes", type=int, default=STRIDE_BYTES)
    parser.add_argument("--context-bytes", type=int, default=CONTEXT_BYTES)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, default=Path("bench_quality.json"))
    parser.add_argument("--markdown", type=Path, required=True, help="file to write")
    parser.add_argument("--readme", type=Path, help=f"file whose block {START} ... {END} is replaced")
    return parser.parse_args(arguments)


def parse_models(entries: list[str]) -> dict[str, Path]:
    """Split ``NAME=DIR`` entries, and refuse what is no local checkpoint."""
    models: dict[str, Path] = {}
    for entry in entries:
        name, _, directory = entry.partition("=")
        if not name or not directory or name in models:
            raise RecipeError(f"--model {entry}", "NAME=DIR, each name once")
        if not (Path(directory) / "config.json").is_file():
            raise InputError(f"--model {entry}: no config.json", "a local checkpoint directory")
        models[name] = Path(directory)
    return models


def cache_key(directory: Path, text: str, settings: dict[str, object]) -> str:
    """Name a score by what it depends on; sizes and times stand for the content of large files."""
    files = [*directory.glob("*.safetensors"), *directory.glob("tokenizer*.json"), directory / "config.json"]
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    digest = hashlib.sha256(text.encode()).hexdigest()
    state = json.dumps([str(directory.resolve()), stamps, digest, settings], sort_keys=True)
    return hashlib.sha256(state.encode()).hexdigest()


def score_model(
    directory: Path, texts: dict[str, str], arguments: argparse.Namespace, cache: dict[str, float]
) -> list[float]:
    """Bits per byte of one model, a text each; loads the model only if the cache lacks one."""
    windows = {"stride_bytes": arguments.stride_bytes, "context_bytes": arguments.context_bytes}
    settings = {**windows, "dtype": arguments.dtype}
    keys = {name: cache_key(directory, text, settings) for name, text in texts.items()}
    wanted = [name for name in texts if keys[name] not in cache]
    if wanted:
        model, tokenizer = load_model(str(directory), device=arguments.device, dtype=arguments.dtype)
        total = sum(len(texts[name].encode()) for name in wanted)
        with console.progress(directory.name, total) as advance:
            for name in wanted:
                result = score_texts(model, tokenizer, {name: texts[name]}, **windows, advance=advance)
                if result.bos is None:
                    console.logger.warning("%s: no BOS, first character not scored", directory)
                cache[keys[name]] = result.scores[0].bits_per_byte
                replace_file(arguments.cache, json.dumps(cache, indent=1))
    return [cache[key] for key in keys.values()]


def replace_file(path: Path, text: str) -> None:
    """Write a file whole: a kill leaves the old one or the new one."""
    part = path.with_name(path.name + ".tmp")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def make_table(scores: dict[str, list[float]], texts: dict[str, str], arguments: argparse.Namespace) -> str:
    """Markdown: a row a model, the best value of all but the first in bold, then the settings."""
    rows = {name: [f"{value:.3f}" for value in values] for name, values in scores.items()}
    first, *others = rows
    for column in range(len(texts)):
        # Compared as printed, so equal figures are all bold.
        best = min((float(rows[name][column]) for name in others), default=None)
        for name in others:
            if float(rows[name][column]) == best:
                rows[name][column] = f"**{rows[name][column]}**"
    sizes = ", ".join(f"`{name}` {len(text.encode()):,}" for name, text in texts.items())
    lines = [
        f"| model | {' | '.join(texts)} |",
        f"|---|{'---:|' * len(texts)}",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
        "",
        f"Bits per byte, lower is better; best after `{first}` in bold. Bytes of text: {sizes}. Windows of "
        f"{arguments.stride_bytes:,} bytes after {arguments.context_bytes:,} bytes of context, one BOS each, "
        f"{arguments.dtype}.",
    ]
    return "\n".join(lines) + "\n"


def fill_block(readme: Path, table: str) -> None:
    """Replace what stands between the two marks."""
    text = readme.read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise InputError(f"{readme}: no block {START} ... {END}", "both marks once, in this order")
    before, _, rest = text.partition(START)
    replace_file(readme, f"{before}{START}\n{table}{END}{rest.partition(END)[2]}")


def main(arguments: list[str]) -> None:
    """Score every model on every text and write the table."""
    options = parse_arguments(arguments)
    console.setup_logging()
    models, texts = parse_models(options.model), read_texts(options.text, options.max_bytes)
    cache = json.loads(options.cache.read_text(encoding="utf-8")) if options.cache.is_file() else {}
    scores = {name: score_model(directory, texts, options, cache) for name, directory in models.items()}
    table = make_table(scores, texts, options)
    replace_file(options.markdown, table)
    if options.readme:
        fill_block(options.readme, table)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        main(sys.argv[1:])
    except TokensurgeonError as error:
        console.print_error(str(error))
        sys.exit(error.exit_code)
