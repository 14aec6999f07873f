"""Imports point one way, and looking for help costs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tokensurgeon

PACKAGE = Path(tokensurgeon.__file__).parent

# Room -> rooms it may import, besides itself. Anyone may use errors, console, notices, child and the version.
ARROWS = {
    "errors": set(),
    "console": set(),
    "notices": set(),
    "codes": set(),
    "child": set(),
    "recipe": {"methods", "edits"},
    "edits": {"vocab", "checkpoint", "evaluation"},
    "lexicon": {"vocab", "methods"},
    "resources": {"recipe", "evaluation", "methods", "solvers"},
    "lessons": {"plan", "resources", "vocab"},
    "reading": {"lessons", "evaluation", "solvers", "vocab"},
    "vocab": set(),
    "checkpoint": {"vocab", "device"},
    "solvers": set(),
    "methods": {"solvers", "training"},
    "training": {"solvers", "parallel"},
    "evaluation": {"vocab", "device", "checkpoint"},
    "report": set(),
    "device": set(),
    "inputs": {"recipe", "checkpoint", "methods", "evaluation"},
    "plan": {"inputs", "device", "recipe", "vocab", "edits", "checkpoint", "methods", "evaluation"},
    "parallel": set(),
    "batches": {"parallel", "checkpoint", "methods"},
    "sourcing": {"plan", "checkpoint", "methods", "vocab"},
    "rows": {"checkpoint", "methods"},
    "last_pieces": {"plan", "rows", "checkpoint", "evaluation"},
    "adjust": {"plan", "rows", "resources", "lessons", "reading", "last_pieces", "checkpoint", "evaluation"}
    | {"solvers", "vocab"},
    "healing": {"plan", "rows", "resources", "lessons", "adjust", "batches", "parallel", "recipe", "training"}
    | {"checkpoint", "evaluation", "solvers", "vocab"},
    "surgery": {"plan", "sourcing", "device", "checkpoint", "methods", "batches", "solvers"}
    | {"lexicon", "resources", "rows", "adjust"},
    "quality": {"plan", "sourcing", "rows", "checkpoint", "solvers", "vocab", "report"},
    "evidence": {"plan", "rows", "quality", "choice", "healing", "training", "edits", "hidden_anchors"}
    | {"checkpoint", "vocab", "evaluation", "report"},
    "hidden_anchors": {"plan", "recipe", "surgery", "rows", "batches", "resources", "lexicon", "sourcing"}
    | {"checkpoint"}
    | {"methods", "solvers", "vocab"},
    "choice": {"hidden_anchors", "adjust", "rows", "plan", "batches", "parallel", "recipe", "resources"}
    | {"lessons", "reading", "checkpoint", "methods"},
    "calibration": {"hidden_anchors", "pipeline", "plan", "rows", "batches", "parallel", "recipe"}
    | {"checkpoint", "methods", "evaluation"},
    "limits": {"recipe", "report"},
    "record": {"recipe", "checkpoint"},
    "pipeline": {"plan", "hidden_anchors", "choice", "surgery", "healing", "edits", "batches", "parallel"}
    | {"last_pieces"}
    | {
        "evidence",
        "limits",
        "record",
        "device",
        "recipe",
        "vocab",
        "resources",
        "rows",
        "checkpoint",
        "methods",
        "report",
    }
    | {"evaluation"},
    "cli": {
        "calibration",
        "pipeline",
        "record",
        "plan",
        "device",
        "recipe",
        "vocab",
        "edits",
        "checkpoint",
        "methods",
        "solvers",
        "evaluation",
    }
    | {"report"},
}
EVERYWHERE = {"errors", "console", "notices", "codes", "child", ""}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "tokensurgeon":
                names = [
                    f"tokensurgeon.{alias.name}" for alias in node.names if not alias.name.startswith("__")
                ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("tokensurgeon.")}
    return rooms


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or "__" not in path.name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    room = room_of(path)
    assert imported_rooms(path) <= ARROWS[room] | EVERYWHERE | {room}


def test_a_recipe_takes_parameters_from_methods_and_edits_and_nothing_else():
    for path in (PACKAGE / "recipe").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for room in ("methods", "edits"):
            assert text.count(f"tokensurgeon.{room}") == text.count(f"tokensurgeon.{room}.params")


def test_solvers_import_torch_only():
    for path in (PACKAGE / "solvers").glob("*.py"):
        modules = {
            alias.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        outside = {name.split(".")[0] for name in modules} - {*sys.stdlib_module_names, "tokensurgeon"}
        assert outside <= ({"torch", "faiss"} if path.name == "nearest.py" else {"torch"})


def test_the_nearest_solver_loads_faiss_only_for_its_own_back_ends():
    done = run_python("import tokensurgeon.solvers.nearest, sys; print('faiss' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_the_package_loads_no_torch():
    done = run_python("import tokensurgeon, sys; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


VERBS = (
    "run transplant heal apply-to-finetune trim extend supertokens merge train-tokenizer remap-ids plan "
    "verify calibrate eval"
)


@pytest.mark.parametrize(
    "verb", ["", *VERBS.split(), "check-draft", "inspect", "methods", "recipes", "report", "push"]
)
def test_help_loads_no_torch(verb):
    arguments = ["tokensurgeon", *([verb] if verb else []), "--help"]
    done = run_python(
        f"import sys\nsys.argv = {arguments}\nfrom tokensurgeon.cli.app import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert done.stdout.endswith("False False\n"), done.stderr
    assert "Usage:" in done.stdout


def test_the_check_for_torch_would_notice_it():
    done = run_python("import tokensurgeon.solvers.omp, sys; print('torch' in sys.modules)")
    assert done.stdout == "True\n"
