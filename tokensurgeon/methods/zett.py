"""What a hypernetwork, trained over sampled tokenizers, reads out of a token's pieces.

B. Minixhofer et al., "Zero-Shot Tokenizer Transfer", arXiv:2405.07883. The network is trained on
``LM loss + lexical_weight * lexical loss``, each step with a tokenizer that was sampled from the corpus. The
paper samples Unigram tokenizers and predicts every row; here a sampled token is a run of base tokens, so its
pieces are exact and a run of one keeps its row, and the loss is over the batch's tokens and random others,
not over a whole vocabulary. One network is trained per vocabulary tensor: the other end of an untied model
holds the mean of the pieces meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tokensurgeon.errors import InputError
from tokensurgeon.methods.base import InitRows, MethodContext, run_batches
from tokensurgeon.methods.params import ZettParams
from tokensurgeon.training.hypernetwork import FrozenBody, Hypernetwork, lexical_loss, train
from tokensurgeon.training.sampling import Batch, Run, Sizes, TokenizerSampler

_EXAMPLES = 256
_FITTED = 2**15
_RIDGE = 0.03


class Zett:
    """Train the network, or take up a trained one, and ask it for every wanted token."""

    def __init__(self, params: ZettParams) -> None:
        self.params = params

    def __call__(self, context: MethodContext) -> InitRows:
        """Predict; a token without pieces is not served."""
        network = self.network(context)
        network.eval()

        @torch.no_grad()
        def solve(span: slice) -> InitRows:
            ids, present = self.padded(context.pieces[span])
            served = present.any(dim=1).to(context.device)
            rows = network(context.base(ids), present.to(context.device))
            return InitRows(torch.where(served[:, None], rows, context.base_mean), served=served)

        # Asking is quick, and what was trained meanwhile is not known to kept batches.
        return run_batches(len(context.wanted), context.batch_size, solve, context.advance)

    def padded(self, runs: Sequence[Run]) -> tuple[Tensor, Tensor]:
        """Pieces as a table, cut to as many as the network reads: the first ones and the last.

        Args:
            runs: Base ids of each token.

        Returns:
            ``(n, p)`` int64 ids, and ``(n, p)`` bool where there is one.
        """
        longest = min(max(map(len, runs), default=1) or 1, self.params.pieces)
        runs = [run if len(run) <= longest else (*run[: longest - 1], run[-1]) for run in runs]
        ids = [[*run, *[-1] * (longest - len(run))] for run in runs]
        table = torch.tensor(ids, dtype=torch.int64).reshape(len(runs), longest)
        return table.clamp(min=0), table >= 0

    def network(self, context: MethodContext) -> Hypernetwork:
        """A trained network for the context's vocabulary tensor.

        Args:
            context: What to train it on.

        Returns:
            One that was kept, if there is one; else a new one, which is then kept.

        Raises:
            InputError: The one that was kept does not fit.
        """
        network = Hypernetwork(
            context.base_mean,
            spread(context),
            pieces=self.params.pieces,
            hidden=self.params.hidden,
            layers=self.params.layers,
            seed=context.generator.initial_seed(),
        )
        prefix = f"{context.side}-{context.base_rows.shape[1]}."
        kept = context.resources.load_hypernetwork() or {}
        weights = {name.removeprefix(prefix): part for name, part in kept.items() if name.startswith(prefix)}
        if fits(network, weights):
            network.load_state_dict(weights)
            return network
        if weights:
            raise InputError(
                "resources.hypernetwork: trained for another base, or with other sizes",
                "a hypernetwork of this base and these parameters",
                "name another file to train a new one",
            )
        self.train(context, network)
        learnt = {prefix + name: part.cpu().clone() for name, part in network.state_dict().items()}
        others = {name: part for name, part in kept.items() if not name.startswith(prefix)}
        context.resources.save_hypernetwork(others | learnt)
        return network

    def train(self, context: MethodContext, network: Hypernetwork) -> None:
        """Train on the base's own tokens, then on sampled tokenizers as well.

        Args:
            context: What to train on.
            network: Changed in place.
        """
        generator = torch.Generator().manual_seed(context.generator.initial_seed())
        lexical = self.lexical(context, network, generator)
        if lexical is not None:
            train(network, self.params.warmup, self.params.learning_rate, lexical)
        sampler = self.sampler(context, generator)
        if not sampler.has_words:
            return
        model = context.resources.load_body()
        if model.get_input_embeddings().weight.shape[1] != context.base_rows.shape[1]:
            # A per-layer table, which no text is made of alone.
            return
        start = model.config.get_text_config().bos_token_id
        body = FrozenBody(model)

        def loss_of(step: int) -> Tensor:
            runs, batch = sampler.batch(start if isinstance(start, int) else None)
            loss = self.language_loss(context, network, body, runs, batch)
            if lexical is not None and self.params.lexical_weight:
                loss = loss + self.params.lexical_weight * lexical(step)
            return loss

        train(network, self.params.steps, self.params.learning_rate, loss_of)

    def sampler(self, context: MethodContext, generator: torch.Generator) -> TokenizerSampler:
        """What draws a tokenizer and texts for a step.

        Args:
            context: The corpus, and how the base cuts it.
            generator: For all draws.

        Returns:
            It.
        """
        lexicon, usable = context.lexicon, set(context.base_ids.tolist())
        return TokenizerSampler(
            context.resources.corpus,
            lambda text: lexicon.segment_base(text).ids,
            {token: data for token, data in lexicon.base.items() if token in usable},
            Sizes(self.params.batch, self.params.block, self.params.pieces, self.params.sampled_tokens),
            generator,
        )

    def lexical(
        self, context: MethodContext, network: Hypernetwork, generator: torch.Generator
    ) -> Callable[[int], Tensor] | None:
        """The distance of predictions to the rows of the base's own tokens, from the best linear ones on.

        Args:
            context: Where the tokens are.
            network: Predicts them.
            generator: Draws a sample each step.

        Returns:
            The loss of a step, or None if no token is spelt by others.
        """
        usable = set(context.base_ids.tolist())
        known = {
            token: parts
            for token, parts in context.lexicon.base_parts.items()
            if token in usable and usable.issuperset(parts)
        }
        if not known:
            return None
        tokens = torch.tensor(list(known))
        ids, present = self.padded(list(known.values()))

        some = torch.randperm(len(tokens), generator=generator)[:_FITTED]
        network.start_from(
            context.base(ids[some]), present[some].to(context.device), context.base(tokens[some]), _RIDGE
        )

        def loss_of(step: int) -> Tensor:
            drawn = torch.randint(len(tokens), (_EXAMPLES,), generator=generator)
            predicted = network(context.base(ids[drawn]), present[drawn].to(context.device))
            return lexical_loss(predicted, context.base(tokens[drawn]), network.scale)

        return loss_of

    def language_loss(
        self, context: MethodContext, network: Hypernetwork, body: FrozenBody, runs: list[Run], batch: Batch
    ) -> Tensor:
        """How badly the base predicts texts made of predicted tokens.

        Args:
            context: Which end of the model the network predicts.
            network: Predicts its rows.
            body: Reads and writes.
            runs: The vocabulary of the texts.
            batch: The texts.

        Returns:
            Mean cross entropy.
        """
        ids, present = (part.to(context.device) for part in self.padded(runs))
        weights = present / present.sum(dim=1, keepdim=True)
        predicted = network(context.base(ids), present)
        embedding, head = (
            predicted if context.side in (end, "tied") else (rows[ids] * weights[:, :, None]).sum(dim=1)
            for end, rows in (("embedding", body.embedding), ("lm_head", body.head))
        )
        bias = None if body.bias is None else (body.bias[ids] * weights).sum(dim=1)
        here = Batch(batch.ids.to(context.device), batch.labels.to(context.device))
        return body.loss(here, embedding, head, bias)


def spread(context: MethodContext) -> Tensor:
    """Standard deviation of the base's own rows in each dimension.

    Args:
        context: Where they are.

    Returns:
        ``(d_base,)`` float32.
    """
    deviations: Tensor = context.base_covariance.diagonal().sqrt()
    return deviations.to(torch.float32)


def fits(network: Hypernetwork, weights: dict[str, Tensor]) -> bool:
    """Whether weights are of this network, and were trained on this base.

    Args:
        network: With the mean and spread of the base.
        weights: Kept from before.

    Returns:
        True if they can be loaded and mean the same.
    """
    own = network.state_dict()
    if own.keys() != weights.keys() or any(own[name].shape != part.shape for name, part in weights.items()):
        return False
    near = [
        ((own[name] - weights[name].to(own[name])).abs() <= 1e-3 * network.scale).all()
        for name in ("mean", "scale")
    ]
    return bool(torch.stack(near).all())
