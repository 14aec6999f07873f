"""Losses against slow transcriptions of their papers, and who reads what how often."""

import dataclasses
import math

import pytest
import torch
from small_heal import NAMES, NEW, make_table, make_teacher, make_text, make_texts, written

from tokensurgeon.training import objectives
from tokensurgeon.training.objectives import (
    ChunkLikelihood,
    NextToken,
    TokenDistillation,
    chunk_losses,
    log_shares,
    token_losses,
)


def tables_of(table):
    return dict.fromkeys(table.names, table.full())


@pytest.fixture
def teacher():
    return make_teacher()


@pytest.fixture
def tables(teacher):
    return tables_of(make_table(teacher))


def log_probabilities(body, ids, tables):
    """Of every token but the first, one by one."""
    logits = body.logits([ids], tables)[0]
    return [row.log_softmax(dim=0)[following].item() for row, following in zip(logits, ids[1:], strict=True)]


def test_the_next_token_loss_is_minus_the_log_probability_of_every_token(teacher, tables):
    texts = make_texts(3)
    slow = sum(-sum(log_probabilities(teacher, text.ids, tables)) for text in texts)
    assert float(NextToken().loss(teacher, tables, texts).detach()) == pytest.approx(slow, rel=1e-5)
    assert sum(map(NextToken().items, texts)) == sum(len(text.ids) - 1 for text in texts)


def test_nothing_is_lost_after_the_end_of_a_text():
    losses = token_losses(torch.randn(2, 3, 5), [torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2])])
    assert (losses[1, 1:] == 0).all()
    assert (losses[0] > 0).all()


def test_a_chunk_has_the_probability_of_its_tokens_in_a_row(teacher, tables):
    """Minixhofer et al. 2025, equation by equation: p ** (1 / tau), then binary cross-entropy."""
    texts, objective = make_texts(3), ChunkLikelihood(teacher)
    slow = 0.0
    for text in texts:
        ours = log_probabilities(teacher, text.ids, tables)
        theirs = log_probabilities(teacher, text.teacher_ids, {})
        for chunk in range(objective.items(text)):
            student, base = (
                math.exp(
                    sum(p for p, at in zip(some, places.tolist(), strict=True) if at == chunk) / 100 - 1e-6
                )
                for some, places in ((ours, text.chunks), (theirs, text.teacher_chunks))
            )
            cross = -(base * math.log(student) + (1 - base) * math.log(1 - student))
            least = -(base * math.log(base) + (1 - base) * math.log(1 - base))
            slow += 100 * (cross - least)
    assert float(objective.loss(teacher, tables, texts).detach()) == pytest.approx(slow, rel=1e-3)


def test_a_chunk_of_no_number_counts_on_neither_side(teacher, tables):
    text, objective = make_text(written()[0]), ChunkLikelihood(teacher)
    whole = float(objective.loss(teacher, tables, [text]).detach())
    changed = make_text(written()[0])
    changed.chunks[0] = changed.teacher_chunks[0] = -1
    part = float(ChunkLikelihood(teacher).loss(teacher, tables, [changed]).detach())
    assert part != pytest.approx(whole)
    assert part == pytest.approx(whole, abs=1e-3)  # both read that token alike


def test_equal_chunks_cost_nothing_and_no_probability_breaks_the_slope():
    hard = torch.tensor([0.0, -1e-12, -3.0, -1e3, -1e5], requires_grad=True)
    losses = chunk_losses(hard, hard.detach())
    assert losses.detach().abs().max() < 1e-3
    (chunk_losses(hard, hard.detach().flip(0)).sum()).backward()
    assert hard.grad.isfinite().all()


def test_the_slope_of_a_chunk_is_that_of_a_token_whatever_the_temperature():
    ours = torch.tensor([-4.0], requires_grad=True)
    chunk_losses(ours, torch.tensor([-2.0])).sum().backward()
    assert float(ours.grad) == pytest.approx(-1 + 2 / 4, abs=0.02)


def test_what_the_teacher_expects_is_its_next_token_by_first_pieces(teacher, tables):
    texts = make_texts(3)
    firsts = torch.arange(40)
    firsts[5], firsts[6], firsts[7] = 3, 3, -1  # two more begin as token 3 does, one has no place
    plain, both = ChunkLikelihood(teacher), ChunkLikelihood(teacher, firsts, 0.5)
    slow = 0.0
    for text in texts:
        theirs = teacher.logits([text.teacher_ids], {})[0].softmax(dim=1)
        ours = teacher.logits([text.ids], tables)[0].detach().softmax(dim=1)
        for chunk in range(both.items(text)):
            at = text.teacher_chunks.tolist().index(chunk)
            expected = torch.zeros(41)
            for token, share in enumerate(theirs[at].tolist()):
                expected[firsts[token]] += share if firsts[token] >= 0 else 0.0
            best = expected.topk(32).indices
            shares, student = expected[best], ours[chunk][best]
            slow += float((shares * (shares.clamp(min=1e-12) / student).log()).sum())
            rest, other = 1 - float(shares.sum()), 1 - float(student.sum())
            slow += max(rest, 1e-6) * math.log(max(rest, 1e-6) / max(other, 1e-6))
    gained = both.loss(teacher, tables, texts) - plain.loss(teacher, tables, texts)
    assert float(gained.detach()) == pytest.approx(0.5 * slow, rel=1e-3)


def test_who_expects_the_same_loses_nothing(teacher):
    text = make_text(written()[0])
    same = dataclasses.replace(
        text,
        ids=text.teacher_ids,
        chunks=torch.arange(len(text.teacher_ids) - 1),
        teacher_chunks=torch.arange(len(text.teacher_ids) - 1),
    )
    loss = ChunkLikelihood(teacher, torch.arange(40), 1.0).loss(teacher, {}, [same])
    assert abs(float(loss)) < 1e-3


def test_log_shares_have_the_value_and_slope_of_a_log_softmax(monkeypatch):
    monkeypatch.setattr(objectives, "_CACHED_LOGITS", 14)  # two places at a time
    logits = torch.randn(2, 3, 7, requires_grad=True)
    ids = torch.tensor([[[0, 3], [1, 1], [2, 6]], [[5, 5], [4, 0], [3, 2]]])
    slope = torch.randn(2, 3, 2)
    found = {}
    for name, make in (
        ("plain", lambda: logits.log_softmax(dim=2).gather(2, ids)),
        ("ours", lambda: log_shares(logits, ids)),
    ):
        logits.grad = None
        shares = make()
        shares.backward(slope)
        found[name] = shares.detach(), logits.grad
    for ours, plain in zip(found["ours"], found["plain"], strict=True):
        torch.testing.assert_close(ours, plain)
    half = log_shares(logits.detach().bfloat16(), ids)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, found["plain"][0], rtol=0.02, atol=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_change_a_loss(teacher, tables):
    there = make_teacher()
    there.model.to("cuda")
    for weight in (0.0, 1.0):
        found = []
        for body in (teacher, there):
            given = {name: rows.detach().to(body.device).requires_grad_() for name, rows in tables.items()}
            loss = ChunkLikelihood(body, torch.arange(40), weight, 1.0).loss(body, given, make_texts(5))
            loss.backward()
            found.append([loss.detach().cpu(), *(rows.grad.cpu() for rows in given.values())])
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_texts_that_are_read_together_are_settled_beforehand(teacher, tables):
    objective, texts = ChunkLikelihood(make_teacher()), make_texts(5)
    read = []
    objective._teacher.model.register_forward_pre_hook(
        lambda _, __, given: read.append(len(given["input_ids"])), with_kwargs=True
    )
    objective.group([texts[:3], texts[3:4]])
    losses = [float(objective.loss(teacher, tables, [text]).detach()) for text in texts]
    assert read == [3, 1, 1]
    alone = [float(ChunkLikelihood(teacher).loss(teacher, tables, [text]).detach()) for text in texts]
    assert losses == pytest.approx(alone, rel=1e-4)


def test_states_are_compared_after_the_new_token_only(teacher, tables):
    (text,) = make_texts(1)
    student = teacher.states([text.ids], tables, logits=False)[0][0]
    wanted = teacher.states([text.teacher_ids], {}, logits=False)[0][0]
    at = text.ids.tolist().index(NEW)
    theirs = text.teacher_places.tolist()
    assert theirs[0] == at + 1
    missed = sum((student[at + k] - wanted[place]).square().sum() for k, place in enumerate(theirs))
    slow = 10 * missed / wanted[theirs].square().sum(dim=1).mean()
    loss = TokenDistillation(teacher, 0.0).loss(teacher, tables, [text])
    assert float(loss.detach()) == pytest.approx(float(slow.detach()), rel=1e-4)


def test_alpha_is_the_weight_of_the_next_token_and_teaches_the_lm_head():
    teacher, texts = make_teacher(tied=False), make_texts(2)
    slopes = {}
    for alpha in (0.0, 0.5):
        ends = [make_table(teacher, names=(name,)) for name in NAMES]
        tables = {table.names[0]: table.full() for table in ends}
        loss = TokenDistillation(teacher, alpha).loss(teacher, tables, texts)
        loss.backward()
        slopes[alpha] = (float(loss.detach()), [table.moves.grad for table in ends])
    surprise = float(NextToken().loss(teacher, tables, texts).detach())
    assert slopes[0.5][0] == pytest.approx(slopes[0.0][0] + 0.5 * surprise, rel=1e-5)
    assert slopes[0.0][1][0].abs().sum() > 0
    assert slopes[0.0][1][1] is None
    assert slopes[0.5][1][1].abs().sum() > 0


def test_the_next_token_counts_beside_chunks(teacher, tables):
    texts = make_texts(2)
    plain, both = ChunkLikelihood(teacher), ChunkLikelihood(teacher, alpha=0.5)
    losses = [
        float(objective.loss(teacher, tables, texts).detach()) for objective in (plain, both, NextToken())
    ]
    assert losses[1] == pytest.approx(losses[0] + 0.5 * losses[2], rel=1e-5)


@pytest.mark.parametrize("kind", [ChunkLikelihood, lambda teacher: TokenDistillation(teacher, 1.0)])
def test_the_teacher_reads_every_text_once_and_alone(kind, teacher, tables):
    objective, texts = kind(make_teacher()), make_texts(5)
    read = []
    objective._teacher.model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].shape), with_kwargs=True
    )
    losses = [float(objective.loss(teacher, tables, some).detach()) for some in (texts[:3], texts[2:], texts)]
    assert losses[2] != losses[0]
    assert sorted(read) == sorted((1, len(text.teacher_ids) - (kind is ChunkLikelihood)) for text in texts)


@pytest.mark.parametrize(
    "objective", [lambda _: NextToken(), ChunkLikelihood, lambda teacher: TokenDistillation(teacher, 0.0)]
)
def test_texts_together_lose_what_they_lose_alone(objective, teacher, tables):
    texts = make_texts(4)
    together = objective(teacher).loss(teacher, tables, texts)
    alone = sum(objective(teacher).loss(teacher, tables, [text]) for text in texts)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_another_layer_is_another_distance(tables):
    losses = []
    for layer in (-1, 1):
        teacher = make_teacher(layer=layer)
        losses.append(float(TokenDistillation(teacher, 0.0).loss(teacher, tables, make_texts(2)).detach()))
    assert losses[0] != losses[1]


def test_checkpointed_layers_give_the_same_slopes_without_dropout():
    found = []
    for checkpointed in (False, True):
        teacher = make_teacher()
        layers = [layer for layer in teacher.model.modules() if type(layer).__name__ == "LlamaDecoderLayer"]
        calls = []
        layers[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(0))
        if checkpointed:
            teacher.checkpoint()
        table = make_table(teacher)
        NextToken().loss(teacher, tables_of(table), make_texts(2)).backward()
        found.append((len(calls), table.moves.grad))
        assert not any(module.training for module in teacher.model.modules())
    assert [calls for calls, _ in found] == [1, 2]
    assert found[0][1].equal(found[1][1])
