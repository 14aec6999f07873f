"""Where to compute, and with how much memory."""

import pytest
import torch

from tokensurgeon.device import available_memory, find_device
from tokensurgeon.errors import RecipeError


def test_available_memory_is_what_linux_says(tmp_path):
    table = tmp_path / "meminfo"
    table.write_text("MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:    1000 kB\n")
    assert available_memory(table) == 1_024_000


def test_a_system_that_does_not_say_has_unknown_memory(tmp_path):
    assert available_memory(tmp_path / "missing") is None
    (tmp_path / "other").write_text("MemTotal: 5 kB\n")
    assert available_memory(tmp_path / "other") is None


def test_auto_is_the_cpu_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")


def test_every_process_of_a_run_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert find_device("auto") == torch.device("cuda", 3)


@pytest.mark.parametrize("name", ["tpu-of-mine", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(RecipeError, match=name):
        find_device(name)
