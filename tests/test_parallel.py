"""Two processes, joined by gloo: the same bytes as one, and one failure is everybody's."""

from __future__ import annotations

import filecmp
import os
import socket
import subprocess
import sys

import pytest

from tokensurgeon.parallel import Processes, connect
from tokensurgeon.pipeline import run
from tokensurgeon.recipe.load import load_recipe
from tokensurgeon.report.model import load_report

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Without a GPU --multi_gpu still starts several processes; --cpu would want MPI.
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port"]


def launch(*arguments: object, launcher: list[str] = TORCHRUN) -> subprocess.CompletedProcess[str]:
    """Start two processes of a program, or of ``-m module``."""
    command = [sys.executable, "-m", *launcher, *([free_port()] if launcher is ACCELERATE else [])]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def recipe(make_model, sentencepiece, byte_level, tmp_path_factory):
    """A recipe with about 150 missing tokens in batches of 64, but for its output."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(
        f"base: {make_model('llama', sentencepiece)}\ndonor: {make_model('llama', byte_level, seed=1)}\n"
        "output: out\nmethod: {name: omp, k: 8}\nanchors: {minimum: 8}\nruntime: {batch_size: 20}\n"
        "verify: {forward: false}\n"
    )
    return path


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_write_what_one_writes(launcher, recipe, tmp_path):
    command = ["-m", "tokensurgeon", "run", recipe, "--set", f"output={tmp_path / 'two'}"]
    done = launch(*command, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Done and verified") == 1
    run(load_recipe(recipe, [f"output={tmp_path / 'one'}"]))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    _, different, errors = filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False)
    assert (different, errors) == ([], [])


@pytest.mark.parametrize("more", [{}, {"lora": {"rank": 2}}], ids=["rows", "rows and body"])
def test_two_processes_heal_as_one_does(more, recipe, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, 22 times or 333. " * 100)
    rules = {"corpus": [str(text)], "steps": 3, "batch_tokens": 2048, "learning_rate": 0.2, **more}
    changes = [f"heal={rules}", "runtime.memory_gb=0.0001", "method=gaussian"]
    options = [word for change in [*changes, f"output={tmp_path / 'two'}"] for word in ("--set", change)]
    done = launch("-m", "tokensurgeon", "run", recipe, *options)
    assert done.returncode == 0, done.stderr
    two = load_report(tmp_path / "two").heal
    one = run(load_recipe(recipe, [*changes, f"output={tmp_path / 'one'}"])).report.heal
    assert one.steps == two.steps == 3
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert two.after == pytest.approx(one.after, rel=1e-5)


PROGRAM = """
import os, sys
from tokensurgeon.cli.app import main
from tokensurgeon.errors import InputError
from tokensurgeon import pipeline
from tokensurgeon.methods.omp import Omp

def fail(*arguments, **options):
    {failure}

if os.environ["RANK"] == "{rank}":
    {place} = fail
main()
"""


@pytest.mark.parametrize(
    ("rank", "place", "failure", "message"),
    [
        (1, "Omp.solve", "raise InputError('the donor broke')", "error TE3: the donor broke"),
        (1, "pipeline.preflight", "raise InputError('no such file here')", "error TE3: no such file here"),
        (0, "pipeline.verify_checkpoint", "raise InputError('not as planned')", "error TE3: not as planned"),
        (1, "Omp.solve", "raise ZeroDivisionError('a bug')", "ZeroDivisionError: a bug"),
    ],
)
def test_a_failing_process_fails_all_with_one_message(rank, place, failure, message, recipe, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(rank=rank, place=place, failure=failure))
    done = launch(program, "run", recipe, "--set", f"output={tmp_path / 'out'}")
    assert done.returncode != 0
    assert done.stderr.count(message) == 1, done.stderr
    assert done.stderr.count("error TE") == ("error" in message)
    assert not list(tmp_path.glob("*out*"))


def test_a_killed_process_ends_all(recipe, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(rank=1, place="Omp.solve", failure="os.kill(os.getpid(), 9)"))
    done = launch(program, "run", recipe, "--set", f"output={tmp_path / 'out'}")
    assert done.returncode != 0
    assert not (tmp_path / "out").exists()


LEFT = """
import atexit, os
from pathlib import Path

def count():  # after all that was registered later
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    os._exit(sum("gloo" in name for name in names))

atexit.register(count)
from tokensurgeon.parallel import connect
connect("cpu").exchange(1)
import torch.distributed.nn
"""


def test_no_thread_of_the_processes_outlives_the_interpreter(tmp_path):
    # An optimizer imports torch.distributed.nn; with threads left, a heal ended with an abort now and then.
    program = tmp_path / "left.py"
    program.write_text(LEFT)
    done = launch(program)
    assert done.returncode == 0, done.stderr


def test_alone_a_process_exchanges_with_itself(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = connect("auto")
    assert (processes.rank, processes.count, processes.is_main) == (0, 1, True)
    assert processes.exchange("mine") == ["mine"]
    with pytest.raises(ValueError, match="as it was"), processes.together():
        raise ValueError("as it was")


def test_only_the_main_process_writes():
    assert Processes(0, 2).is_main
    assert not Processes(1, 2).is_main


def test_a_run_that_is_killed_goes_on_from_its_work_folder(recipe, tmp_path):
    output, work = tmp_path / "out", tmp_path / "work"
    program = tmp_path / "program.py"
    program.write_text(
        "from tokensurgeon.cli.app import main\nfrom tokensurgeon.methods.omp import Omp\n"
        "import os\nsolve, calls = Omp.solve, []\n"
        "def some(self, *rest):\n    calls.append(0)\n"
        "    if len(calls) > 3: os.kill(os.getpid(), 9)\n    return solve(self, *rest)\n"
        "Omp.solve = some\nmain()\n"
    )
    command = [sys.executable, program, "run", recipe, "--work-dir", work, "--set", f"output={output}"]
    killed = subprocess.run(list(map(str, command)), capture_output=True, check=False)
    assert killed.returncode == -9
    assert not output.exists()
    kept = sorted(path.name for path in work.rglob("*.safetensors"))
    assert kept == ["0.safetensors", "20.safetensors", "40.safetensors"]
    stamps = {path.name: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    assert stamps
    finished = subprocess.run(
        [sys.executable, "-m", "tokensurgeon", *map(str, command[2:])], capture_output=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert not work.exists()
    run(load_recipe(recipe, [f"output={tmp_path / 'whole'}"]))
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    _, different, errors = filecmp.cmpfiles(tmp_path / "whole", output, names, shallow=False)
    assert (different, errors) == ([], [])
