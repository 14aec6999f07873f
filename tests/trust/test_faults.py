"""Faults: kills, full disks, places that cannot be read or written, damaged files, two runs at once, locales.

Whatever happens, an output is whole or not there, what was there before is there still, and no traceback.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokensurgeon.errors import TokensurgeonError
from tokensurgeon.vocab.vocabulary import load_vocabulary

pytestmark = pytest.mark.trust

BAD_INPUT, POLICY, RESOURCES = 3, 4, 6
NOBODY = 65534
KILLS = 50


def digest(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


class Runs:
    """Transplants of one pair, and what a whole one writes."""

    def __init__(self, base: Path, donor: Path, server) -> None:
        self.base, self.donor, self.server = base, donor, server
        self.inputs = digest(base), digest(donor)

    def entry(self, output: Path, *options: str, **faults: object) -> dict[str, object]:
        arguments = [
            "transplant",
            str(self.base),
            str(self.donor),
            str(output),
            "--method",
            "pieces",
            *options,
        ]
        return {
            "arguments": [*arguments, "--set", "report.hidden=0", "--set", "verify.forward=false"],
            **faults,
        }

    def all(self, *entries: dict[str, object]) -> list[dict[str, object]]:
        answers = self.server.ask({"commands": list(entries)})
        for answer in answers:
            assert "Traceback" not in answer["stderr"], answer["stderr"]
            assert answer["returncode"] != 1, answer["stderr"]
        assert (digest(self.base), digest(self.donor)) == self.inputs
        return answers

    def one(self, output: Path, *options: str, **faults: object) -> dict[str, object]:
        return self.all(self.entry(output, *options, **faults))[0]


@pytest.fixture
def runs(make_model, sentencepiece, byte_level, fork_server, tmp_path):
    base = Path(shutil.copytree(make_model("llama", sentencepiece, shard="12KB"), tmp_path / "base"))
    donor = Path(shutil.copytree(make_model("llama", byte_level, seed=1), tmp_path / "donor"))
    return Runs(base, donor, fork_server)


def without_paths(found: dict[str, str]) -> dict[str, str]:
    """Files that do not name the output or the time."""
    return {
        name: value
        for name, value in found.items()
        if name not in ("report.json", "report.html", "README.md")
    }


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
def test_a_kill_at_any_moment_leaves_the_old_output_or_a_whole_new_one(force, runs, tally, tmp_path):
    output = tmp_path / "out"
    whole = runs.one(output)
    assert whole["returncode"] == 0, whole["stderr"]
    new = digest(output)
    randomness = random.Random(int(force))
    finished = lost = wrong = 0
    for _ in range(KILLS // 2):
        shutil.rmtree(output, ignore_errors=True)
        if force:
            output.mkdir()
            (output / "old").write_text("old")
        moment = randomness.uniform(0.0, 1.1) * whole["seconds"]
        runs.one(output, *["--force"] * force, kill_after=moment)
        tally("faults injected")
        if output.exists() and (output / "old").exists():
            continue
        if not output.exists():
            # A forced run may die between its two renames: the next run, or refusal, puts the old one back.
            if force and [*tmp_path.glob(".out.tokensurgeon-*/replaced")]:
                refused = runs.one(output)
                assert refused["returncode"] == POLICY
            lost += force and not (output / "old").exists()
            continue
        finished += 1
        wrong += digest(output) != new
    tally("inputs or old outputs lost", lost)
    tally("outputs that load and are wrong", wrong)
    assert (lost, wrong) == (0, 0)
    assert finished < KILLS // 2
    assert runs.one(output, "--force")["returncode"] == 0
    assert digest(output) == new
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


@pytest.mark.slow
def test_a_full_disk_ends_with_one_message_and_leaves_nothing(runs, tally, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    assert runs.one(tmp_path / "whole")["returncode"] == 0
    needed = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    full = 0
    for share in (0.05, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97):
        size = f"size={int(share * needed) // 4096 * 4096}"
        mount = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "none", place], capture_output=True, check=False
        )
        if mount.returncode:
            pytest.skip("no file system may be mounted here; see the limit on file sizes")
        try:
            ended = runs.one(place / "out")
            assert ended["returncode"] == RESOURCES, ended["stderr"]
            assert ended["stderr"].count("error TE") == 1
            assert not list(place.iterdir())
            full += 1
        finally:
            subprocess.run(["umount", place], check=True)
    tally("faults injected", full)


@pytest.mark.slow
def test_files_that_may_not_grow_end_with_one_message_and_leave_nothing(runs, tally, tmp_path):
    sizes = [2_000, 8_000, 20_000, 60_000]
    for size in sizes:
        ended = runs.one(tmp_path / "out", file_bytes=size)
        assert ended["returncode"] == RESOURCES, (size, ended["stderr"])
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))
    tally("faults injected", len(sizes))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_places_that_may_not_be_read_or_written(runs, tally):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        base, donor = (Path(shutil.copytree(old, place / old.name)) for old in (runs.base, runs.donor))
        for path in (base, donor, *base.iterdir(), *donor.iterdir()):
            path.chmod(0o755)
        there = Runs(base, donor, runs.server)
        ended = there.one(place / "out", user=NOBODY)
        assert (ended["returncode"], ended["stderr"].count("error TE")) == (RESOURCES, 1), ended["stderr"]
        assert "Permission denied" in ended["stderr"]
        (place / "open").mkdir()
        (place / "open").chmod(0o777)
        names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
        names += ["model.safetensors.index.json", next(base.glob("*-00001-of-*")).name]
        for name in names:
            (base / name).chmod(0)
            ended = there.one(place / "open" / "out", user=NOBODY)
            assert (ended["returncode"], ended["stderr"].count("error TE")) == (BAD_INPUT, 1), (
                name,
                ended["stderr"],
            )
            assert name in ended["stderr"]
            (base / name).chmod(0o644)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (donor / name).chmod(0)
            ended = there.one(place / "open" / "out", user=NOBODY)
            assert (ended["returncode"], ended["stderr"].count("error TE")) == (BAD_INPUT, 1), (
                name,
                ended["stderr"],
            )
            (donor / name).chmod(0o644)
        assert not list((place / "open").iterdir())
        tally("faults injected", 3 + len(names))


def test_a_shard_that_ends_anywhere_is_refused(
    make_model, sentencepiece, byte_level, refuses, tally, tmp_path
):
    base = Path(shutil.copytree(make_model("llama", sentencepiece, shard="12KB"), tmp_path / "base"))
    randomness = random.Random(0)
    shards = sorted(base.glob("*.safetensors"))
    for _ in range(30):
        shard = randomness.choice(shards)
        whole = shard.read_bytes()
        shard.write_bytes(whole[: randomness.randrange(len(whole))])
        message = refuses(BAD_INPUT, "transplant", base, byte_level, tmp_path / "out", "--method", "pieces")
        assert shard.name in message
        shard.write_bytes(whole)
    tally("faults injected", 30)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-3, 10**6), max_size=3),
    st.just({}),
    st.just([["a", "b"], []]),
)


def places(node: object, path: tuple = ()) -> list[tuple]:
    """Every place of a JSON document, long lists and maps by their first and last entries."""
    found = [path] if path else []
    items = (
        list(node.items())
        if isinstance(node, dict)
        else list(enumerate(node))
        if isinstance(node, list)
        else []
    )
    for key, value in items[:6] + items[6:][-3:]:
        found += places(value, (*path, key))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "wordpiece"])
def test_a_damaged_tokenizer_is_read_or_refused(kind, request, tally, tmp_path):
    source = request.getfixturevalue(kind)
    whole = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    spots = places(whole)
    shutil.copy(source / "tokenizer_config.json", tmp_path)
    tried = refused = 0

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(spot=st.sampled_from(spots), value=VALUES, remove=st.booleans())
    def damage(spot, value, remove):
        nonlocal tried, refused
        spec = copy.deepcopy(whole)
        node = spec
        for key in spot[:-1]:
            node = node[key]
        if remove:
            del node[spot[-1]]
        else:
            node[spot[-1]] = value
        (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
        tried += 1
        try:
            vocabulary = load_vocabulary(tmp_path)
            assert len(vocabulary) == len({token.id for token in vocabulary})
        except TokensurgeonError:
            refused += 1

    damage()
    tally("faults injected", tried)
    tally("inputs refused with one message", refused)


@pytest.mark.slow
def test_of_runs_into_one_output_at_once_one_writes_it_and_the_others_are_refused(runs, tally, tmp_path):
    assert runs.one(tmp_path / "out")["returncode"] == 0
    new = digest(tmp_path / "out")
    for force in (False, True):
        for _ in range(4):
            shutil.rmtree(tmp_path / "out")
            answers = runs.all(*[runs.entry(tmp_path / "out", *["--force"] * force) for _ in range(3)])
            codes = sorted(answer["returncode"] for answer in answers)
            assert codes[0] == 0
            assert set(codes) <= {0, POLICY}
            assert force or codes == [0, POLICY, POLICY]
            assert all(
                "another run is writing it" in a["stderr"] or "exists" in a["stderr"]
                for a in answers
                if a["returncode"]
            )
            assert digest(tmp_path / "out") == new
            tally("faults injected")
    assert not list(tmp_path.glob(".out*"))


def test_nothing_needs_a_network(runs, tally, tmp_path):
    ended = runs.one(tmp_path / "out", offline=True)
    assert ended["returncode"] == 0, ended["stderr"]
    tally("faults injected")


@pytest.mark.slow
def test_locale_and_time_zone_change_no_byte(runs, tally, tmp_path):
    (tmp_path / "é 日本").mkdir()
    outputs = [tmp_path / "é 日本" / "out", tmp_path / "out"]
    settings_of = [
        {"LC_ALL": "C", "LANG": "C", "TZ": "Asia/Kathmandu"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "America/St_Johns"},
    ]
    for output, environment in zip(outputs, settings_of, strict=True):
        command = [sys.executable, "-m", "tokensurgeon", *runs.entry(output)["arguments"]]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    one, two = (without_paths(digest(output)) for output in outputs)
    assert one == two
    tally("faults injected", 2)


def test_limits_of_this_machine_are_what_the_faults_assume():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
