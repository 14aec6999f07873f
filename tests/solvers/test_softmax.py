"""Free rows move towards what examples say, as far as the prior lets them; the others stay."""

import subprocess
import sys

import pytest
import torch

from tokensurgeon.solvers.softmax import Reads, fit_softmax_rows, fit_unigrams, state_slopes


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(600, 6, generator=generator)
    true = torch.randn(12, 6, generator=generator)
    following = torch.multinomial((states @ true.T).softmax(dim=1), 1, generator=generator)[:, 0]
    free = torch.tensor([10, 3, 7])
    rows = true.clone()
    rows[free] += torch.randn(3, 6, generator=generator)
    return states, following, rows, free, true


def loss(states, following, rows):
    return float(torch.nn.functional.cross_entropy(states @ rows.T, following))


def put(rows, free, fitted):
    return rows.index_copy(0, free, fitted)


def test_fitted_rows_predict_better_and_come_nearer_to_the_true_ones(problem):
    states, following, rows, free, true = problem
    fitted = fit_softmax_rows(states, following, rows, free, torch.eye(6), passes=150)
    assert loss(states, following, put(rows, free, fitted)) < loss(states, following, rows) - 0.05
    assert (fitted - true[free]).norm() < 0.6 * (rows[free] - true[free]).norm()


def test_the_answer_is_the_posterior_mode(problem):
    states, following, rows, free, _ = problem
    root = 0.3 * torch.eye(6) + 0.05 * torch.ones(6, 6)
    fitted = fit_softmax_rows(states, following, rows, free, root, passes=600)
    moves = torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([moves], max_iter=500, line_search_fn="strong_wolfe")
    start, wide = rows[free].double(), root.double()

    def objective():
        search.zero_grad()
        table = rows.double().index_copy(0, free, start + moves @ wide)
        value = torch.nn.functional.cross_entropy(states.double() @ table.T, following, reduction="sum")
        value = value + moves.square().sum() / 2
        value.backward()
        return value

    search.step(objective)
    expected = (start + moves.detach() @ wide).float()
    torch.testing.assert_close(fitted, expected, rtol=0.02, atol=0.03)


def test_a_narrow_prior_holds_rows_where_they_were(problem):
    states, following, rows, free, _ = problem
    near, far = (
        (fit_softmax_rows(states, following, rows, free, width * torch.eye(6)) - rows[free]).norm()
        for width in (0.001, 0.5)
    )
    assert near < 0.01 < far


def test_rows_move_only_in_the_span_of_the_root(problem):
    states, following, rows, free, _ = problem
    root = torch.zeros(6, 6)
    root[0, 2] = 1.0
    moved = fit_softmax_rows(states, following, rows, free, root) - rows[free]
    assert moved[:, 2].abs().min() > 1e-3
    assert not moved[:, [0, 1, 3, 4, 5]].any()


def test_a_row_that_no_example_speaks_of_stays(problem):
    states, following, rows, _, _ = problem
    rows = torch.cat([rows, torch.full((1, 6), 0.0)])
    states = torch.cat([states, torch.ones(600, 1)], dim=1)
    rows = torch.cat([rows, torch.zeros(13, 1)], dim=1)
    rows[12, 6] = -40.0
    fitted = fit_softmax_rows(states, following, rows, torch.tensor([12, 3]), torch.eye(7))
    assert fitted[0].equal(rows[12])
    assert not fitted[1].equal(rows[3])


def test_nothing_to_fit_is_no_error(problem):
    states, following, rows, free, _ = problem
    none = torch.zeros(0, dtype=torch.int64)
    assert fit_softmax_rows(states, following, rows, none, torch.eye(6)).shape == (0, 6)
    assert fit_softmax_rows(states[:0], none, rows, free, torch.eye(6)).equal(rows[free])


def test_progress_counts_each_example_once_a_pass_and_once_before(problem):
    states, following, rows, free, _ = problem
    read = []
    fit_softmax_rows(states, following, rows, free, torch.eye(6), passes=4, advance=read.append)
    assert sum(read) == 5 * len(states)
    assert sum(read[: len(read) // 5]) == len(states)


def test_the_same_seed_gives_the_same_rows(problem):
    states, following, rows, free, _ = problem
    one, same, other = (
        fit_softmax_rows(states.repeat(3, 1), following.repeat(3), rows, free, torch.eye(6), seed=seed)
        for seed in (0, 0, 1)
    )
    assert one.equal(same)
    assert not one.equal(other)


class TestLimits:
    """Some examples were drawn from a few rows only."""

    @pytest.fixture
    def limited(self):
        """Of 4,000 draws half come from rows 0 to 3 only; rows 0, 1, 6 and 7 are unknown."""
        generator = torch.Generator().manual_seed(2)
        states = torch.randn(4000, 6, generator=generator)
        true = torch.randn(12, 6, generator=generator)
        limit = torch.arange(4000) % 2
        left = torch.ones(2, 12, dtype=torch.bool)
        left[1, 4:] = False
        logits = (states @ true.T).masked_fill(~left[limit], -torch.inf)
        following = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
        free = torch.tensor([7, 0, 6, 1])
        return states, following, true, free, (limit, left)

    def test_draws_from_a_few_rows_do_not_make_those_louder_than_they_are(self, limited):
        states, following, true, free, limits = limited
        ignored, told = (
            fit_softmax_rows(states, following, true, free, torch.eye(6), limits=some, passes=40) - true[free]
            for some in (None, limits)
        )
        assert told.norm() < 0.5 * ignored.norm()
        assert told.norm() < 0.2 * true[free].norm()

    def test_the_answer_is_that_of_the_tables_that_the_draws_were_made_from(self, limited):
        states, following, true, free, (limit, left) = limited
        order = torch.tensor([1, 0, 3, 2])
        rows = true.index_copy(0, free, true[free[order]])
        fitted = fit_softmax_rows(
            states, following, rows, free, torch.eye(6), limits=(limit, left), passes=150
        )
        table = put(rows, free, fitted)
        bars = torch.zeros(2, 12).masked_fill(~left, -torch.inf)[limit]
        for place, index in enumerate(free.tolist()):
            share = (states @ table.T + bars).softmax(dim=1)[:, index]
            slope = ((following == index).float() - share) @ states - (fitted - rows[free])[place]
            assert slope.norm() < 0.05 * (share @ states.abs()).norm()

    def test_examples_whose_limit_leaves_no_free_row_say_nothing_of_those(self, limited):
        states, following, true, _, (limit, left) = limited
        free, start, open_to_all = torch.tensor([7, 9]), 0.5 * true, limit == 0
        every, some = (
            fit_softmax_rows(
                states[which],
                following[which],
                start,
                free,
                torch.eye(6),
                limits=(limit[which], left),
                passes=80,
            )
            for which in (open_to_all | True, open_to_all)
        )
        torch.testing.assert_close(every, some, rtol=0.05, atol=0.05)
        assert not some.equal(start[free])

    def test_limits_that_leave_every_row_change_nothing(self, limited):
        states, following, true, free, (limit, left) = limited
        start = 0.5 * true
        plain = fit_softmax_rows(states, following, start, free, torch.eye(6))
        loose = fit_softmax_rows(
            states, following, start, free, torch.eye(6), limits=(limit, torch.ones_like(left))
        )
        torch.testing.assert_close(loose, plain, rtol=0.01, atol=0.01)


class TestGroups:
    @pytest.fixture
    def shared(self):
        """Twenty of forty rows are off by the same move and the same factor; few examples of each."""
        generator = torch.Generator().manual_seed(1)
        states = torch.randn(400, 6, generator=generator)
        true = torch.randn(40, 6, generator=generator)
        following = torch.multinomial((states @ true.T).softmax(dim=1), 1, generator=generator)[:, 0]
        rows = true.clone()
        rows[:20] = 1.3 * true[:20] + torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0, 0.5])
        return states, following, rows, torch.arange(20), true

    def test_rows_that_are_off_alike_are_found_with_fewer_examples(self, shared):
        states, following, rows, free, true = shared
        groups = torch.zeros(20, dtype=torch.int64)
        alone = fit_softmax_rows(states, following, rows, free, 0.3 * torch.eye(6), passes=150)
        together = fit_softmax_rows(
            states, following, rows, free, 0.3 * torch.eye(6), groups=groups, passes=150
        )
        assert (together - true[:20]).norm() < 0.7 * (alone - true[:20]).norm()

    @pytest.mark.parametrize("reached", [6, 4])
    def test_the_answer_is_the_posterior_mode(self, shared, reached):
        states, following, rows, free, _ = shared
        # Factors move rows in directions, too, that the root does not reach.
        root, groups = torch.diag(0.3 * (torch.arange(6) < reached)), torch.arange(20) % 2
        fitted = fit_softmax_rows(states, following, rows, free, root, groups=groups, passes=600)
        own, shared_moves, factors = (
            torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((20, 6), (2, 6), (2,))
        )
        search = torch.optim.LBFGS([own, shared_moves, factors], max_iter=900, line_search_fn="strong_wolfe")
        start, centred = rows[:20].double(), (rows[:20] - rows.mean(dim=0)).double()

        def moved():
            turned = (own + shared_moves[groups]) @ root.double()
            return start + turned + factors[groups, None] * centred

        def objective():
            search.zero_grad()
            table = rows.double().index_copy(0, free, moved())
            value = torch.nn.functional.cross_entropy(states.double() @ table.T, following, reduction="sum")
            for part, width in ((own, 1), (shared_moves, 1), (factors, 0.3)):
                value = value + part.square().sum() / width**2 / 2
            value.backward()
            return value

        search.step(objective)
        torch.testing.assert_close(fitted, moved().detach().float(), rtol=0.03, atol=0.04)

    def test_a_row_that_no_example_speaks_of_moves_with_its_group_only(self, shared):
        states, following, rows, free, _ = shared
        states = torch.cat([states, torch.ones(400, 1)], dim=1)
        rows = torch.cat([rows, torch.zeros(40, 1)], dim=1)
        # Two more, never likely: one beside the others, one in a group of its own.
        silent = torch.cat([rows[:2, :6], torch.full((2, 1), -40.0)], dim=1)
        rows, free = torch.cat([rows, silent]), torch.cat([free, torch.tensor([40, 41])])
        groups = torch.tensor([0] * 21 + [1])
        fitted = fit_softmax_rows(states, following, rows, free, 0.3 * torch.eye(7), groups=groups)
        assert not fitted[20].equal(rows[40])
        assert fitted[21].equal(rows[41])


class TestReads:
    """Rows that are read, too, where a move has a cost."""

    @pytest.fixture
    def reads(self, problem):
        generator = torch.Generator().manual_seed(2)
        factor = torch.randn(2, 6, 6, generator=generator)
        return Reads(5 * torch.randn(12, 6, generator=generator), 0.2 * factor @ factor.mT)

    @pytest.mark.parametrize("grouped", [False, True])
    def test_the_answer_is_the_posterior_mode_with_the_cost(self, problem, reads, grouped):
        states, following, rows, free, _ = problem
        root, groups = 0.3 * torch.eye(6) + 0.05 * torch.ones(6, 6), torch.zeros(3, dtype=torch.int64)
        limits = torch.arange(len(states)) % 2
        fitted = fit_softmax_rows(
            states,
            following,
            rows,
            free,
            root,
            groups=groups if grouped else None,
            limits=(limits, torch.ones((2, 12), dtype=torch.bool)),
            reads=reads,
            passes=600,
        )
        own, shared, factor = (
            torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 6), (1, 6), (1,))
        )
        sought = [own, shared, factor] if grouped else [own]
        search = torch.optim.LBFGS(sought, max_iter=900, line_search_fn="strong_wolfe")
        start, centred = rows[free].double(), (rows[free] - rows.mean(dim=0)).double()
        times = [torch.bincount(following[limits == one], minlength=12)[free].double() for one in (0, 1)]

        def moves():
            return (own + shared) @ root.double() + factor * centred

        def objective():
            search.zero_grad()
            moved = moves()
            table = rows.double().index_copy(0, free, start + moved)
            value = torch.nn.functional.cross_entropy(states.double() @ table.T, following, reduction="sum")
            value = value + (own.square().sum() + shared.square().sum() + (factor / 0.3).square().sum()) / 2
            value = value + (reads.slopes[free].double() * moved).sum()
            for some, curvature in zip(times, reads.curvatures.double(), strict=True):
                value = value + (some * (moved @ curvature * moved).sum(dim=1)).sum() / 2
            value.backward()
            return value

        search.step(objective)
        torch.testing.assert_close(fitted, (start + moves().detach()).float(), rtol=0.03, atol=0.04)

    def test_what_costs_much_to_read_otherwise_hardly_moves(self, problem):
        states, following, rows, free, _ = problem
        dear = Reads(torch.zeros(12, 6), 1e4 * torch.eye(6)[None])
        moved = fit_softmax_rows(states, following, rows, free, torch.eye(6), reads=dear) - rows[free]
        assert moved.abs().max() < 0.02


def test_slopes_by_states_are_those_of_the_loss(problem):
    states, following, rows, _, _ = problem
    leaf = states.clone().requires_grad_()
    torch.nn.functional.cross_entropy(leaf @ rows.T, following, reduction="sum").backward()
    # Products may be in bfloat16.
    torch.testing.assert_close(state_slopes(states, following, rows), leaf.grad, rtol=0.02, atol=0.03)


class TestUnigrams:
    """Shifts with which rows take as much probability as they are right."""

    @pytest.fixture
    def examples(self):
        generator = torch.Generator().manual_seed(0)
        # With a mean, as the states of language models have.
        states = torch.randn(6000, 6, generator=generator) + torch.tensor([4.0, 0, 0, 0, 0, 0])
        true = 0.5 * torch.randn(12, 6, generator=generator)
        following = torch.multinomial((states @ true.T).softmax(dim=1), 1, generator=generator)[:, 0]
        return states, following, true

    def common(self, examples):
        """Rows that are right often enough for chance not to matter."""
        return torch.bincount(examples[1], minlength=12) > 300

    def test_rows_that_are_as_often_right_as_they_are_likely_stay(self, examples):
        shifts, _ = fit_unigrams(*examples, passes=2)
        assert shifts[self.common(examples)].abs().max() < 0.1

    def test_what_was_lost_along_the_mean_state_comes_back(self, examples):
        states, following, true = examples
        mean = states.mean(dim=0)
        lost = torch.zeros(12)
        lost[[2, 5]] = torch.tensor([1.5, -1.0])
        rows = true - lost[:, None] * mean / mean.square().sum()
        shifts, along = fit_unigrams(states, following, rows, passes=4)
        back = rows + shifts[:, None] * along
        # Logits may all be off by the same.
        off = (shifts - lost)[self.common(examples)]
        assert (off - off.mean()).abs().max() < 0.2
        counts = torch.bincount(following, minlength=12)
        taken = (states @ back.T).softmax(dim=1).sum(dim=0)
        assert ((taken + 10) / (counts + 10)).log().abs().max() < 0.05
        assert loss(states, following, back) < loss(states, following, rows) - 0.02

    def test_a_token_that_hardly_occurs_and_is_hardly_expected_stays(self, examples):
        states, following, true = examples
        rare = torch.cat([true, torch.tensor([[-5.0, 0, 0, 0, 0, 0]])])
        shifts, _ = fit_unigrams(states, following, rare, passes=2)
        assert abs(shifts[12]) < 0.02


def test_memory_does_not_grow_with_the_number_of_examples():
    # Small tensors that were kept between large ones once held on to 2.6 MB for every 16 of these.
    look = """
import resource, sys, torch
from tokensurgeon.solvers.softmax import fit_softmax_rows
states, rows = torch.randn(int(sys.argv[1]), 8), torch.randn(40_000, 8)
right = torch.zeros(len(states), dtype=torch.int64)
fit_softmax_rows(states, right, rows, torch.arange(9), torch.eye(8), passes=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

    def peak(examples):
        command = [sys.executable, "-c", look, str(examples)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert peak(8192) < peak(2048) + 200_000, "kilobytes"
