"""Finished batches are kept, found again by what they depend on, and removed when they have served."""

import pytest
import torch

from tokensurgeon.batches import Batches
from tokensurgeon.errors import ResourceError
from tokensurgeon.methods.base import InitRows, MethodContext
from tokensurgeon.methods.omp import Omp
from tokensurgeon.methods.params import OmpParams
from tokensurgeon.parallel import Processes


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def told():
    """40 base tokens of width 12; 20 missing ones, whose donor rows have width 16."""
    return MethodContext(
        side="embedding",
        base_rows=random(1, 40, 12),
        base_ids=torch.arange(40),
        pieces=[(1, 2)] * 20,
        donor_rows=random(2, 50, 16),
        wanted=torch.arange(30, 50),
        anchor_targets=torch.arange(30),
        anchor_bases=torch.arange(10, 40),
        generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
        batch_size=6,
        advance=lambda count: None,
        lexicon=None,
        resources=None,
    )


def counting(context, solved):
    """A solver that notes which batches it was asked for."""

    def solve(span):
        solved.append(span.start)
        return InitRows(context.base_rows[span], residual=torch.full((span.stop - span.start,), span.start))

    return solve


def run(batches, context, solved):
    runner = batches.runner(OmpParams(), context)
    return runner(20, 6, counting(context, solved), context.advance)


def test_batches_are_put_together_in_order(told):
    solved, finished = [], []
    runner = Batches(Processes()).runner(OmpParams(), told)
    made = runner(20, 6, counting(told, solved), finished.append)
    assert solved == [0, 6, 12, 18]
    assert finished == [6, 6, 6, 2]
    assert made.rows.equal(told.base_rows[:20])
    assert made.residual.tolist() == [0] * 6 + [6] * 6 + [12] * 6 + [18] * 2


def test_a_run_that_was_stopped_goes_on_where_it_was(told, tmp_path):
    def stop(span):
        if span.start == 12:
            raise KeyboardInterrupt
        return counting(told, [])(span)

    runner = Batches(Processes(), tmp_path / "work").runner(OmpParams(), told)
    with pytest.raises(KeyboardInterrupt):
        runner(20, 6, stop, told.advance)
    solved = []
    made = run(Batches(Processes(), tmp_path / "work"), told, solved)
    assert solved == [12, 18]
    whole = run(Batches(Processes()), told, [])
    assert made.rows.equal(whole.rows)
    assert made.residual.equal(whole.residual)


@pytest.mark.parametrize(
    "change",
    [
        {"donor_rows": random(3, 50, 16)},
        {"base_rows": random(3, 40, 12)},
        {"wanted": torch.arange(29, 49)},
        {"anchor_bases": torch.arange(9, 39)},
        {"side": "lm_head"},
        {"pieces": [(1, 3)] * 20},
        {"batch_size": 7},
        {"generator": torch.Generator().manual_seed(1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_input_makes_kept_batches_useless(told, tmp_path, change):
    from dataclasses import replace

    run(Batches(Processes(), tmp_path), told, [])
    solved = []
    run(Batches(Processes(), tmp_path), replace(told, **change), solved)
    assert len(solved) == 4


def test_a_changed_parameter_makes_kept_batches_useless(told, tmp_path):
    run(Batches(Processes(), tmp_path), told, [])
    solved = []
    runner = Batches(Processes(), tmp_path).runner(OmpParams(k=63), told)
    runner(20, 6, counting(told, solved), told.advance)
    assert len(solved) == 4


def test_other_resources_make_kept_batches_useless(told, tmp_path):
    run(Batches(Processes(), tmp_path, resources="one corpus"), told, [])
    solved = []
    run(Batches(Processes(), tmp_path, resources="another"), told, solved)
    assert len(solved) == 4
    run(Batches(Processes(), tmp_path, resources="another"), told, solved)
    assert len(solved) == 4


@pytest.mark.parametrize("damage", [b"", b"not a batch", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_batch_is_solved_again(told, tmp_path, damage):
    batches = Batches(Processes(), tmp_path)
    whole = run(batches, told, [])
    next(tmp_path.rglob("6.safetensors")).write_bytes(damage)
    solved = []
    made = run(Batches(Processes(), tmp_path), told, solved)
    assert solved == [6]
    assert made.rows.equal(whole.rows)


def test_what_has_served_is_removed_and_what_is_not_ours_stays(told, tmp_path):
    batches = Batches(Processes(), tmp_path / "work")
    run(batches, told, [])
    (tmp_path / "work" / "notes.txt").write_text("mine")
    batches.clear()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["notes.txt"]
    (tmp_path / "work" / "notes.txt").unlink()
    batches = Batches(Processes(), tmp_path / "work")
    run(batches, told, [])
    batches.clear()
    assert not (tmp_path / "work").exists()


def test_a_folder_that_cannot_be_made_is_named(told, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file"):
        Batches(Processes(), tmp_path / "file").runner(OmpParams(), told)


def test_omp_gives_the_same_rows_with_and_without_kept_batches(told, tmp_path):
    from dataclasses import replace

    method = Omp(OmpParams(k=4))
    plain = method(told)
    for _ in range(2):
        runner = Batches(Processes(), tmp_path).runner(method.params, told)
        kept = method(replace(told, runner=runner))
        assert kept.rows.equal(plain.rows)
        assert kept.sources.equal(plain.sources)
