"""Tasks of lm-evaluation-harness: what is read and refused without it, and one task run where it is there."""

import importlib.util
import json
from pathlib import Path

import pytest

from tokensurgeon.errors import InputError, PolicyError, RecipeError
from tokensurgeon.evaluation import harness
from tokensurgeon.evaluation.harness import TaskScore, find_tasks, read_tasks, run_tasks

SHIPPED = Path(__file__).parents[2] / "configs" / "eval"


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: name)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"(?s)not installed.*pip install 'tokensurgeon\[eval\]'"):
        find_tasks(["everyday"], SHIPPED)


def test_a_local_task_is_its_file_with_the_data_as_it_lies_beside_it(installed, tmp_path):
    (tmp_path / "one.yaml").write_text(
        "task: one\ndataset_path: json\n"
        "dataset_kwargs: {data_files: {test: [a.jsonl, https://x.org/b.jsonl]}, field: rows}\n"
    )
    (tmp_path / "shared.yaml").write_text("output_type: multiple_choice\n")
    [config] = find_tasks(["one"], tmp_path)
    assert config["dataset_kwargs"] == {
        "data_files": {"test": [str(tmp_path / "a.jsonl"), "https://x.org/b.jsonl"]},
        "field": "rows",
    }
    assert list(read_tasks(tmp_path)) == ["one"]


def test_a_task_that_is_not_there_gets_the_nearest_name(installed, tmp_path):
    with pytest.raises(RecipeError, match=r"(?s)no task 'everydya'.*did you mean 'everyday'"):
        find_tasks(["everydya"], SHIPPED)
    with pytest.raises(RecipeError, match="it holds none"):
        find_tasks(["everyday"], tmp_path)


def test_damaged_files_and_files_with_code_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_tasks(tmp_path / "none")
    path = tmp_path / "task.yaml"
    path.write_text("task: [")
    with pytest.raises(InputError, match="a task file in YAML"):
        read_tasks(tmp_path)
    path.write_text("task: one\nprocess_docs: !function utils.process\n")
    with pytest.raises(PolicyError, match="a task file that runs no code of its own"):
        read_tasks(tmp_path)


def test_the_shipped_task_is_whole():
    config = read_tasks(SHIPPED)["everyday"]
    lines = Path(config["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
    items = [json.loads(line) for line in lines]
    assert len(items) == len({item["question"] for item in items}) == 36
    assert all(len(set(item["choices"])) == 4 for item in items)
    assert {item["answer"] for item in items} == {0, 1, 2, 3}


def test_scores_are_read_with_their_errors_and_nothing_else():
    results = {
        "results": {
            "t": {
                "alias": "t",
                "acc,none": 0.5,
                "acc_stderr,none": 0.1,
                "em,strict": 1,
                "em_stderr,strict": "N/A",
            }
        },
        "n-samples": {"t": {"original": 9, "effective": 4}},
    }
    assert list(harness._read_scores(results)) == [
        TaskScore("t", "acc", 0.5, 0.1, 4),
        TaskScore("t", "em,strict", 1.0, None, 4),
    ]


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs tokensurgeon[eval]")
@pytest.mark.filterwarnings("ignore")
def test_the_shipped_task_runs(llama, tokenizers, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    scores = run_tasks(llama, tokenizers["byte-level"], find_tasks(["everyday"], SHIPPED), limit=8)
    assert [(score.task, score.metric, score.items) for score in scores] == [
        ("everyday", "acc", 8),
        ("everyday", "acc_norm", 8),
    ]
    assert all(0 <= score.value <= 1 for score in scores)
    assert capfd.readouterr() == ("", "")
