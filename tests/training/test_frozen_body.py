"""A body reads and writes with rows it is given, scaled as it always scales them."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from tokensurgeon.training.hypernetwork import FrozenBody
from tokensurgeon.training.sampling import Batch


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_body(kind=LlamaForCausalLM, tied=True, pad=None):
    config = (LlamaConfig if kind is LlamaForCausalLM else Gemma3TextConfig)(
        vocab_size=40,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=6,
        pad_token_id=pad,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


@pytest.mark.parametrize("kind", [LlamaForCausalLM, Gemma3ForCausalLM])
@pytest.mark.parametrize("tied", [True, False])
class TestFrozenBody:
    def test_with_its_own_rows_it_says_what_the_model_says(self, kind, tied):
        model = make_body(kind, tied)
        ids = torch.randint(40, (3, 9), generator=torch.Generator().manual_seed(0))
        labels = ids.roll(-1, 1)
        labels[:, -1] = -100
        body = FrozenBody(model)
        given = body.loss(Batch(ids, labels), body.embedding, body.head, None)
        torch.testing.assert_close(
            given, cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        )

    def test_rows_are_learnt_at_both_ends_and_the_body_is_not(self, kind, tied):
        # The padding token's id is beyond the small vocabulary.
        model = make_body(kind, tied, pad=39)
        before = copy.deepcopy(model.state_dict())
        embedding, head = (random(seed, 5, 12).requires_grad_() for seed in (1, 2))
        ids = torch.tensor([[0, 1, 2, 3, 4]])
        FrozenBody(model).loss(Batch(ids, ids), embedding, head, None).backward()
        assert (embedding.grad.abs().sum(dim=1) > 0).all()
        assert (head.grad.abs().sum(dim=1) > 0).all()
        assert all(part.grad is None for part in model.parameters())
        assert all(part.equal(before[name]) for name, part in model.state_dict().items())
        assert model.get_input_embeddings().padding_idx == 39
