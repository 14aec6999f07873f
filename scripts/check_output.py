"""Confirm an output against its base row by row, with safetensors and tokenizers only: BASE TARGET OUTPUT."""

import json
import sys
from pathlib import Path

from safetensors import safe_open
from tokenizers import Tokenizer


def read(folder: str) -> dict[str, tuple[list[int], str, bytes]]:
    """Shape, dtype and bytes of all tensors."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file, safe_open(path, "np") as names:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            start = file.tell()
            for name in names.keys():  # noqa: SIM118 - not a dict
                first, last = header[name]["data_offsets"]
                file.seek(start + first)
                found[name] = (header[name]["shape"], header[name]["dtype"], file.read(last - first))
    return found


def spell(folder: str) -> dict[int, bytes]:
    """Bytes of all learnt tokens; of a WordPiece tokenizer nothing, as its pieces have a place, too."""
    spec = json.loads(Tokenizer.from_file(f"{folder}/tokenizer.json").to_str())
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    byte_of = {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}
    level, vocab = "ByteLevel" in json.dumps(spec["decoder"]), spec["model"]["vocab"]
    pieces = vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    added = {token["id"] for token in spec["added_tokens"]}
    ordinary = (
        {} if spec["model"]["type"] == "WordPiece" else {p: i for p, i in pieces.items() if i not in added}
    )
    return {
        i: bytes(byte_of[c] for c in p)
        if level
        else bytes([int(p[3:5], 16)])
        if spec["model"].get("byte_fallback") and len(p) == 6 and p.startswith("<0x")
        else p.replace("▁", " ").encode()
        for p, i in ordinary.items()
    }


base, target, output = sys.argv[1:]
old, new, tokens = read(base), read(output), Tokenizer.from_file(f"{output}/tokenizer.json").get_vocab()
theirs, ours = spell(base), spell(output)
vocab = json.loads((Path(output) / "provenance.json").read_text())["vocab"]
assert old.keys() | vocab.keys() == new.keys(), "tensors were lost or invented"
assert all(old[name] == new[name] for name in new.keys() - vocab.keys()), "a body tensor changed"
assert tokens == Tokenizer.from_file(f"{target}/tokenizer.json").get_vocab(), (
    "another vocabulary than the target's"
)
for name, rows in vocab.items():
    (shape, kind, data), (was, _, origin) = new[name], old.get(name, next(iter(old.values())))
    width, step = len(data) // shape[rows["axis"]], len(origin) // was[rows["axis"]]
    assert width == step and kind == old[name][1] and max(tokens.values()) < shape[rows["axis"]], name
    copied = [(i, source) for i, source in enumerate(rows["source"]) if source >= 0]
    wrong = [i for i, s in copied if data[i * width : (i + 1) * width] != origin[s * step : (s + 1) * step]]
    false = [i for i, source in copied if i in ours and source in theirs and ours[i] != theirs[source]]
    zero = sum(not any(data[i * width : (i + 1) * width]) for i, s in enumerate(rows["source"]) if s < 0)
    made = len(rows["source"]) - len(copied)
    print(f"{name}: {len(copied)} rows are the base's, {made} made or padding, {zero} of them zero")
    assert not wrong, f"{name}: rows {wrong[:5]} are not the base's"
    assert not false, f"{name}: tokens {false[:5]} have rows of tokens of other bytes"
body = len(new) - len(vocab)
print(f"{output}: {body} other tensors are the base's, byte for byte; {len(tokens)} tokens as in {target}")
