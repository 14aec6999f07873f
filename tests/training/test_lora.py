"""Adapters start as nothing, end as the weights that a file will hold, and leave the model alone."""

import copy
import threading

import pytest
import torch
from small_heal import NAMES, NEW, make_table, make_teacher, make_texts, settings
from test_heal import Together
from transformers import GPT2Config, GPT2LMHeadModel

from tokensurgeon.errors import RecipeError
from tokensurgeon.training.heal import Healer, fingerprint
from tokensurgeon.training.lora import Adapters, inject_adapters
from tokensurgeon.training.objectives import Body, ChunkLikelihood, NextToken

TRAIN, HELD_OUT = make_texts(30), make_texts(20, start=60)


def adapt(body, rank=2, targets=(), seed=0, stored=None, learning_rate=0.02):
    layers = inject_adapters(body.model, rank, 2.0 * rank, targets, seed)
    weights = {
        name: (stored or (lambda weight: weight))(layer.weight.detach()) for name, layer in layers.items()
    }
    return Adapters(layers, weights, learning_rate)


def shake(adapters):
    torch.manual_seed(1)
    with torch.no_grad():
        for leaf in adapters.leaves:
            leaf += 0.1 * torch.randn_like(leaf)


def make_gpt2():
    config = GPT2Config(
        vocab_size=40, n_embd=12, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Body(GPT2LMHeadModel(config))


class Run:
    """One healing of the tiny student with its row and its body."""

    def __init__(
        self, *, objective=ChunkLikelihood, processes=None, folder=None, rows=True, seed=0, **changes
    ):
        self.body = make_teacher()
        self.tables = [make_table(self.body)] if rows else []
        self.adapters = adapt(self.body, seed=seed)
        self.healer = Healer(
            self.body,
            self.tables,
            {} if rows else dict.fromkeys(NAMES, make_table(self.body).full().detach()),
            objective(self.body),
            settings(seed=seed, **changes),
            processes,
            folder,
            adapters=self.adapters,
        )

    def train(self):
        self.told = self.healer.train(TRAIN, HELD_OUT)
        return self

    @property
    def leaves(self):
        return [leaf.detach() for leaf in [*self.adapters.leaves, *(table.moves for table in self.tables)]]

    def equals(self, other):
        return all(mine.equal(theirs) for mine, theirs in zip(self.leaves, other.leaves, strict=True))


@pytest.mark.parametrize("make", [make_teacher, make_gpt2])
def test_an_adapted_model_reads_as_before_and_then_as_its_merged_weights_do(make):
    body, plain = make(), make()
    texts = [text.teacher_ids for text in make_texts(3)]
    before = plain.logits(texts, {})
    adapters = adapt(body)
    assert len(adapters.leaves) == 2 * (14 if make is make_teacher else 8)
    assert body.logits(texts, {}).equal(before)
    assert body.logits(texts, adapters.parameters()).equal(before)
    shake(adapters)
    adapted = body.logits(texts, adapters.parameters())
    assert not torch.allclose(adapted, before, atol=1e-2)
    torch.testing.assert_close(body.logits(texts, adapters.as_written()), adapted, rtol=1e-3, atol=1e-4)
    assert body.logits(texts, {}).equal(before)


def test_merged_weights_are_what_peft_merges():
    body = make_gpt2()
    adapters = adapt(body)
    shake(adapters)
    merged = adapters.as_written()
    body.model.load_state_dict(adapters.parameters(), strict=False)
    for name, layer in adapters._layers.items():
        layer.merge()
        torch.testing.assert_close(merged[f"{name}.base_layer.weight"], layer.weight.detach())


def test_merged_weights_have_the_dtype_of_the_file():
    adapters = adapt(make_teacher(), stored=lambda weight: weight.bfloat16())
    shake(adapters)
    assert {weight.dtype for weight in adapters.as_written().values()} == {torch.bfloat16}


def test_targets_choose_layers():
    adapters = adapt(make_teacher(), targets=["q_proj", "down_proj"])
    assert {name.rsplit(".", 1)[1] for name in adapters._layers} == {"q_proj", "down_proj"}
    assert len(adapters.leaves) == 2 * 2 * 2
    with pytest.raises(RecipeError, match=r"heal\.lora\.targets: p_proj"):
        adapt(make_teacher(), targets=["p_proj"])


def test_the_lm_head_is_no_target():
    assert not any("lm_head" in name for name in adapt(make_teacher(tied=False))._layers)


def test_the_seed_decides_and_nothing_else_random_moves():
    state = torch.random.get_rng_state()
    one, again, other = (adapt(make_teacher(), seed=seed) for seed in (0, 0, 1))
    assert torch.random.get_rng_state().equal(state)
    assert all(mine.equal(theirs) for mine, theirs in zip(one.leaves, again.leaves, strict=True))
    assert not all(mine.equal(theirs) for mine, theirs in zip(one.leaves, other.leaves, strict=True))
    table = make_table(make_teacher())
    names = [fingerprint([table], TRAIN, "facts", adapters) for adapters in (one, again, other, None)]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_the_body_learns_and_the_model_itself_never_moves():
    run = Run()
    frozen = copy.deepcopy(run.body.model.state_dict())
    run.train()
    assert run.told.best_step > 0
    assert run.told.after < run.told.before
    assert all(leaf.any() for leaf in run.leaves)
    assert all(part.equal(frozen[name]) for name, part in run.body.model.state_dict().items())
    assert all(part.grad is None for part in run.body.model.parameters())


def test_the_body_may_learn_alone():
    run = Run(rows=False).train()
    assert run.told.after < run.told.before
    assert all(leaf.any() for leaf in run.leaves)


def test_the_body_helps_rows():
    with_body = Run(learning_rate=0.02).train().told.after
    body = make_teacher()
    rows = Healer(body, [make_table(body)], {}, ChunkLikelihood(body), settings()).train(TRAIN, HELD_OUT)
    assert with_body < rows.after


def test_held_out_text_is_read_with_the_weights_that_will_be_written():
    run = Run()
    run.adapters._stored = {name: weight.bfloat16() for name, weight in run.adapters._stored.items()}
    run.train()
    tables = dict.fromkeys(NAMES, run.tables[0].as_written()) | run.adapters.as_written()
    nats = float(NextToken().loss(run.body, tables, HELD_OUT).detach())
    assert run.told.after == pytest.approx(nats / 0.6931472 / sum(text.bytes for text in HELD_OUT), rel=1e-5)


def test_a_killed_run_ends_where_one_that_was_not_ends(tmp_path):
    whole = Run().train()
    killed = Run(folder=tmp_path)
    made = killed.healer._step

    def die(batch, total):
        if killed.healer._told.steps == 11:
            raise KeyboardInterrupt
        return made(batch, total)

    killed.healer._step = die
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    again = Run(folder=tmp_path).train()
    assert again.equals(whole)
    assert again.told.losses == whole.told.losses
    assert again.told.held_out == whole.told.held_out


def test_the_best_adapters_stay():
    class Worse(NextToken):
        def __init__(self, _):
            self.calls = 0

        def loss(self, *given):
            self.calls += 1
            return super().loss(*given) * (-1 if self.calls > 4 else 1)

    run = Run(objective=Worse, patience=2, batch_tokens=150, part_tokens=150)
    kept = {}
    judge = run.healer._judge

    def keep(held_out):
        kept[run.healer._told.steps] = [leaf.clone() for leaf in run.leaves]
        judge(held_out)

    run.healer._judge = keep
    run.train()
    assert run.told.ended == "patience"
    best = kept[run.told.best_step]
    assert run.told.best_step > 0
    assert all(mine.equal(theirs) for mine, theirs in zip(run.leaves, best, strict=True))


def test_two_processes_learn_what_one_with_as_many_parts_learns(tmp_path):
    rules = {"batch_tokens": 120, "part_tokens": 30, "steps": 6}
    one = Run(**rules).train()
    barrier, board = threading.Barrier(2), [None, None]
    runs = [Run(processes=Together(rank, 2, barrier, board), folder=tmp_path, **rules) for rank in range(2)]
    threads = [threading.Thread(target=run.train) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs[0].told.losses == pytest.approx(one.told.losses, rel=1e-4)
    assert runs[0].told.losses == runs[1].told.losses
    assert runs[0].equals(runs[1])
    for mine, theirs in zip(runs[0].leaves, one.leaves, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_the_state_of_the_optimiser_is_as_small_as_what_trains():
    run = Run().train()
    held = sum(part.numel() for state in run.healer._optimizer.state.values() for part in state.values())
    trained = [*run.adapters.leaves, *(table.moves for table in run.tables)]
    assert held == sum(2 * leaf.numel() + 1 for leaf in trained)
    assert run.tables[0].free.tolist() == [NEW]
