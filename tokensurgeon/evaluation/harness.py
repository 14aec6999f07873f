"""Multiple choice through EleutherAI's lm-evaluation-harness, an optional extra: ``tokensurgeon[eval]``."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tokensurgeon.errors import InputError, PolicyError, RecipeError
from tokensurgeon.evaluation.loading import silent_loading
from tokensurgeon.evaluation.windows import find_bos

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_INSTALL = "pip install 'tokensurgeon[eval]'"
_SEED = 0
_RESAMPLED = 100  # for the standard errors of metrics that have no formula


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task.

    Attributes:
        task: Its name.
        metric: Such as ``acc``.
        value: As the harness gives it.
        stderr: Standard error of the value; None where the harness gives none.
        items: Questions asked.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    items: int


def find_tasks(names: Sequence[str], folder: Path | None) -> list[str | dict[str, Any]]:
    """Look tasks up, in a folder of task files first.

    Args:
        names: Of tasks.
        folder: Its ``*.yaml`` files are tasks in the harness's format; data files are named relative to it.
            None for the tasks that come with the harness, whose data it fetches from the hub.

    Returns:
        What the harness takes: a local task as its configuration, any other by its name.

    Raises:
        RecipeError: The harness is not installed, or there is no such task.
        InputError: A task file cannot be read.
        PolicyError: It runs code of its own.
    """
    if find_spec("lm_eval") is None:
        raise RecipeError("--tasks needs lm-evaluation-harness, which is not installed", next_step=_INSTALL)
    if folder is None:
        _check_names(names, _own_tasks(), "a task of lm-evaluation-harness, or --task-dir DIR with its file")
        return list(names)
    local = read_tasks(folder)
    _check_names(names, local, f"a task of {folder}: {', '.join(local) or 'it holds none'}")
    return [local[name] for name in names]


def read_tasks(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the task files of a folder.

    Args:
        folder: Of ``*.yaml`` files; one without a ``task`` is no task.

    Returns:
        Configuration by name of the task, with data files as full paths.

    Raises:
        InputError: There is no such folder, or a file in it cannot be read.
        PolicyError: A file runs code of its own.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", "a folder of task files")
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.constructor.ConstructorError as error:
            # The harness's own files may name functions of a module beside them.
            raise PolicyError(
                f"{path}: {error.problem}", "a task file that runs no code of its own"
            ) from error
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{path}: {error}", "a task file in YAML") from error
        if isinstance(config, dict) and isinstance(config.get("task"), str):
            found[config["task"]] = _with_full_paths(config, folder)
    return found


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[str | dict[str, Any]],
    limit: int | None = None,
) -> list[TaskScore]:
    """Put the questions of tasks to a model, each opened by one BOS.

    Args:
        model: Causal language model.
        tokenizer: Its own.
        tasks: As `find_tasks` gives them.
        limit: Questions of each task; None for all.

    Returns:
        Every metric of every task.

    Raises:
        InputError: The harness cannot run a task, or the tokenizer has no token to open a text with.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    bos = find_bos(tokenizer)
    if bos is None:
        raise InputError(f"{model.name_or_path}: no BOS, EOS or padding token", "a token that opens a text")

    opening = [bos]

    class Opened(HFLM):  # type: ignore[misc]
        """The harness leaves BOS to the tokenizer; a swapped one may not add what the body knows."""

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
            ids = self.tokenizer.encode(string, add_special_tokens=False)
            return ids if add_special_tokens is False else [*opening, *ids]

    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        # Its progress bars do not ask whether anybody watches.
        with silent_loading(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            results = simple_evaluate(
                model=Opened(
                    pretrained=model,
                    tokenizer=tokenizer,
                    backend="causal",
                    batch_size=8,
                    prefix_token_id=bos,
                ),
                tasks=list(tasks),
                task_manager=TaskManager(include_defaults=any(isinstance(task, str) for task in tasks)),
                limit=limit,
                bootstrap_iters=_RESAMPLED,
                log_samples=False,
                random_seed=_SEED,
                numpy_random_seed=_SEED,
                torch_random_seed=_SEED,
                fewshot_random_seed=_SEED,
            )
    except (ValueError, KeyError, TypeError, OSError, ConnectionError, NotImplementedError) as error:
        raise InputError(
            f"lm-evaluation-harness: {type(error).__name__}: {error}", "a task that it can run here"
        ) from error
    return list(_read_scores(results))


def _own_tasks() -> list[str]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    return sorted({*manager.all_tasks, *manager.all_groups, *manager.all_tags})


def _check_names(names: Sequence[str], known: Iterable[str], expected: str) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise RecipeError(
                f"--tasks: no task {name!r}", expected, f"did you mean {near[0]!r}?" if near else ""
            )


def _with_full_paths(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with data files as they lie relative to its folder."""
    options = config.get("dataset_kwargs")
    files = options.get("data_files") if isinstance(options, dict) else None
    if files is None:
        return config
    return {**config, "dataset_kwargs": {**config["dataset_kwargs"], "data_files": _full(files, folder)}}


def _full(files: Any, folder: Path) -> Any:  # noqa: ANN401 - one name, a list, or either by split
    if isinstance(files, dict):
        return {split: _full(names, folder) for split, names in files.items()}
    if isinstance(files, list):
        return [_full(name, folder) for name in files]
    return str(files) if "://" in str(files) else str((folder / str(files)).resolve())


def _read_scores(results: dict[str, Any]) -> Iterable[TaskScore]:
    counts = results["n-samples"]
    for task, metrics in sorted(results["results"].items()):
        for key, value in metrics.items():
            metric, _, variant = key.partition(",")
            if metric.endswith("_stderr") or not variant or not isinstance(value, int | float):
                continue
            stderr = metrics.get(f"{metric}_stderr,{variant}")
            yield TaskScore(
                task=task,
                metric=metric if variant == "none" else key,
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                items=int(counts[task]["effective"]) if task in counts else 0,
            )
