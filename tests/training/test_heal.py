"""Rows are led to where held-out text is read best, and nothing else moves."""

import copy
import threading

import pytest
import torch
from small_heal import NAMES, NEW, make_table, make_teacher, make_texts, settings

from tokensurgeon.errors import InputError, ResourceError
from tokensurgeon.parallel import Processes
from tokensurgeon.training.heal import Healer, Table, fingerprint
from tokensurgeon.training.objectives import ChunkLikelihood, NextToken, TokenDistillation

OBJECTIVES = {
    "ntp": lambda teacher: NextToken(),
    "chunk_likelihood": ChunkLikelihood,
    "token_distillation": lambda teacher: TokenDistillation(teacher, 1.0),
}
TRAIN, HELD_OUT = make_texts(30), make_texts(20, start=60)


class Run:
    """One healing of the tiny student."""

    def __init__(self, objective="ntp", *, root=0.3, processes=None, folder=None, clock=None, **changes):
        self.teacher = make_teacher()
        self.table = make_table(self.teacher, root=root)
        self.start = self.table.rows().detach().clone()
        made = objective if not isinstance(objective, str) else OBJECTIVES[objective](self.teacher)
        self.objective = made
        self.healer = Healer(
            self.teacher,
            [self.table],
            {},
            made,
            settings(**changes),
            processes,
            folder,
            **({} if clock is None else {"clock": clock}),
        )

    def train(self):
        self.told = self.healer.train(TRAIN, HELD_OUT)
        return self

    @property
    def row(self):
        return self.table.rows().detach()

    def held_out_loss(self):
        tables = dict.fromkeys(NAMES, self.table.full())
        return float(self.objective.loss(self.teacher, tables, HELD_OUT).detach())


class Counted(NextToken):
    """Does something else from some training step on; each step here is one part."""

    def __init__(self, step, act):
        self.calls, self.step, self.act = 0, step, act

    def loss(self, *given):
        self.calls += 1
        return self.act(super().loss(*given)) if self.calls > self.step else super().loss(*given)


ONE_PART = {"batch_tokens": 150, "part_tokens": 150}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_lowers_its_own_loss_of_held_out_text(objective):
    run = Run(objective)
    before = run.held_out_loss()
    run.train()
    assert run.told.best_step > 0
    assert run.held_out_loss() < before
    assert run.told.after < run.told.before


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_the_rows_that_train_move(objective):
    run = Run(objective)
    frozen, rows = copy.deepcopy(run.teacher.model.state_dict()), run.table.full().detach().clone()
    run.train()
    moved = (run.table.full() != rows).any(dim=1).nonzero()[:, 0].tolist()
    assert moved == [NEW]
    assert all(part.equal(frozen[name]) for name, part in run.teacher.model.state_dict().items())
    assert all(part.grad is None for part in run.teacher.model.parameters())


def test_the_state_of_the_optimiser_is_as_small_as_what_trains():
    run = Run().train()
    sizes = {part.shape for state in run.healer._optimizer.state.values() for part in state.values()}
    assert sizes == {torch.Size([]), torch.Size([1, 12])}


def test_the_seed_decides():
    one, again, other = Run().train(), Run().train(), Run(seed=1).train()
    assert one.row.equal(again.row)
    assert one.told.losses == again.told.losses
    assert one.told.losses != other.told.losses


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_killed_run_ends_where_one_that_was_not_ends(objective, tmp_path):
    whole = Run(objective).train()
    killed = Run(objective, folder=tmp_path)
    made = killed.healer._step

    def die(batch, total):
        if killed.healer._told.steps == 11:
            raise KeyboardInterrupt
        return made(batch, total)

    killed.healer._step = die
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert [path.name for path in tmp_path.iterdir()] == ["heal.safetensors"]
    again = Run(objective, folder=tmp_path)
    steps = []
    step = again.healer._step
    again.healer._step = lambda *given: steps.append(0) or step(*given)
    again.train()
    assert len(steps) == 10  # scored, and kept, every second step
    assert again.row.equal(whole.row)
    assert again.told.losses == whole.told.losses
    assert again.told.held_out == whole.told.held_out


def test_a_finished_run_is_not_made_again(tmp_path):
    first = Run(folder=tmp_path).train()
    again = Run(Counted(0, lambda _: pytest.fail("read again")), folder=tmp_path).train()
    assert again.row.equal(first.row)


def test_a_damaged_state_is_no_state(tmp_path):
    (tmp_path / "heal.safetensors").write_bytes(b"half of it")
    assert Run(folder=tmp_path).train().row.equal(Run().train().row)


def test_a_folder_that_is_gone_is_told(tmp_path):
    with pytest.raises(ResourceError, match=r"heal"):
        Run(folder=tmp_path / "gone").train()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_no_number_ends_it_and_the_best_rows_stay(bad):
    run = Run(Counted(7, lambda loss: loss * bad), **ONE_PART).train()
    assert (run.told.ended, run.told.steps) == ("diverged", 7)
    best = min(run.told.held_out, key=lambda score: score[1])[0]
    assert run.told.best_step == best > 0
    same = Run(Counted(7, lambda loss: loss), **ONE_PART)
    kept = []
    judge = same.healer._judge
    same.healer._judge = lambda held: (kept.append((same.healer._told.steps, same.row.clone())), judge(held))
    same.train()
    assert run.row.equal(dict(kept)[best])


def test_a_slope_that_is_no_number_moves_nothing():
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(_, loss):
            return loss.clone()

        @staticmethod
        def backward(_, slope):
            return slope * torch.nan

    run = Run(Counted(3, Steep.apply), **ONE_PART).train()
    assert (run.told.ended, run.told.steps) == ("diverged", 3)
    assert run.row.isfinite().all()


def test_text_that_is_read_much_worse_ends_it():
    run = Run(learning_rate=300.0).train()
    assert run.told.ended == "diverged"
    assert run.told.steps < 20
    assert (run.told.best_step, run.told.after) == (0, run.told.before)
    assert run.row.equal(run.start)


def test_it_ends_when_patience_does_and_keeps_the_best():
    worse = Run(Counted(2, lambda loss: -loss), patience=2, **ONE_PART).train()
    assert worse.told.ended == "patience"
    assert worse.told.steps == worse.told.best_step + 4 == worse.told.held_out[-1][0]
    assert worse.told.after == min(bits for _, bits in worse.told.held_out)
    assert Run(patience=20).train().told.ended == "steps"


def test_where_nothing_gets_better_rows_stay():
    run = Run(Counted(0, lambda loss: -loss), patience=3).train()
    assert (run.told.best_step, run.told.ended) == (0, "patience")
    assert run.row.equal(run.start)


def test_a_student_that_cannot_read_is_told():
    run = Run()
    run.table._all[3] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        run.train()


def test_it_ends_when_the_minutes_do_and_the_last_rows_are_judged():
    now = iter(range(0, 10000, 30))
    run = Run(clock=lambda: next(now), minutes=2.4).train()
    assert (run.told.ended, run.told.steps) == ("minutes", 5)
    assert run.told.held_out[-1][0] == 5


def test_a_text_is_read_again_only_after_all_others():
    texts = []

    class Seen(NextToken):
        def loss(self, student, tables, examples):
            texts.extend(examples)
            return super().loss(student, tables, examples)

    run = Run(Seen(), steps=12).train()
    seen = [id(text) for text in texts]
    rounds = [seen[at : at + len(TRAIN)] for at in range(0, len(seen), len(TRAIN))]
    assert len(rounds) > 3
    assert all(len(set(some)) == len(some) for some in rounds)
    assert rounds[0] != rounds[1]
    assert run.told.tokens == sum(len(text.ids) for text in texts)


def test_a_step_has_no_more_tokens_than_it_may():
    few, many = (Run(batch_tokens=size, steps=10).train().told.tokens for size in (30, 60))
    assert few <= 300
    assert 300 < many <= 600


def test_parts_of_a_step_add_up_to_it():
    whole, parts = (Run(batch_tokens=120, part_tokens=size, steps=6).train() for size in (120, 20))
    torch.testing.assert_close(whole.row, parts.row, rtol=1e-4, atol=1e-5)
    assert whole.told.losses == pytest.approx(parts.told.losses, rel=1e-5)


def test_a_prior_holds_rows_where_they_are():
    moves = {
        spread: float((run.row - run.start).norm())
        for spread in (0.01, 1.0)
        for run in [Run(root=spread * torch.eye(12)).train()]
    }
    assert 0 < moves[0.01] < moves[1.0] / 4


def test_moves_have_the_shape_of_the_prior():
    root = torch.zeros(12, 12)
    root[2, 2] = root[5, 5] = 0.3
    run = Run(root=root).train()
    assert (run.row != run.start)[0].nonzero()[:, 0].tolist() == [2, 5]


def test_a_row_of_short_reach_makes_short_steps():
    rows, moves = torch.zeros(4, 12), torch.arange(24.0).view(2, 12)
    free, root = torch.tensor([1, 3]), torch.diag(torch.arange(12.0))
    table = Table(NAMES, rows, free, root, reach=torch.tensor([1.0, 0.1]))
    with torch.no_grad():
        table.moves.copy_(moves)
    torch.testing.assert_close(table.full().detach()[free], moves @ root * torch.tensor([[1.0], [0.1]]))
    table.full().sum().backward()
    torch.testing.assert_close(table.moves.grad[1], 0.1 * table.moves.grad[0])


def test_held_out_text_is_read_with_the_rows_that_will_be_written():
    run = Run()
    run.table._dtype = torch.bfloat16
    written = run.table.as_written()
    assert written[:NEW].equal(run.table.full()[:NEW])
    assert written[NEW].equal(run.start[0].bfloat16().float())
    assert not written[NEW].equal(run.start[0])


class Together(Processes):
    """Processes that are threads."""

    def __init__(self, rank, count, barrier, board):
        super().__init__(rank, count)
        self._barrier, self._board = barrier, board

    def _gather(self, item):
        self._board[self.rank] = item
        self._barrier.wait(60)
        found = list(self._board)
        self._barrier.wait(60)
        return found


def test_two_processes_learn_what_one_with_as_many_parts_learns(tmp_path):
    one = Run("chunk_likelihood", batch_tokens=120, part_tokens=30, steps=6).train()
    barrier, board = threading.Barrier(2), [None, None]
    runs = [
        Run(
            "chunk_likelihood",
            processes=Together(rank, 2, barrier, board),
            folder=tmp_path,
            batch_tokens=120,
            part_tokens=30,
            steps=6,
        )
        for rank in range(2)
    ]
    threads = [threading.Thread(target=run.train) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs[0].told.losses == pytest.approx(one.told.losses, rel=1e-5)
    assert runs[0].told.losses == runs[1].told.losses
    assert runs[0].told.held_out == runs[1].told.held_out
    assert runs[0].row.equal(runs[1].row)
    torch.testing.assert_close(runs[0].row, one.row, rtol=1e-4, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_state_is_known_by_what_it_depends_on():
    teacher = make_teacher()
    table = make_table(teacher)
    names = [
        fingerprint([table], TRAIN, "facts"),
        fingerprint([table], TRAIN[1:], "facts"),
        fingerprint([table], TRAIN, "others"),
        fingerprint([make_table(make_teacher(tied=False), names=NAMES[1:])], TRAIN, "facts"),
    ]
    assert len(set(names)) == 4
    assert fingerprint([make_table(make_teacher())], make_texts(30), "facts") == names[0]
