r"""Experiments behind the defaults that no recipe can express, with what they said.

Each can be run again::

    python scripts/experiments.py whitespace build/models/gemma3 build/models/smollm2 --text code.txt
    python scripts/experiments.py logits build/models/smollm2 build/models/gemma3 --text english.txt
    python scripts/experiments.py lessons build/models/smollm2 build/models/gemma3 --text english.txt
    python scripts/experiments.py donor-lessons build/models/smollm2 build/models/gemma3 --text rus.txt
    python scripts/experiments.py first-pieces build/models/gemma3 build/models/smollm2 --text english.txt
    python scripts/experiments.py last-pieces build/models/gemma3 build/models/smollm2 --text english.txt
    python scripts/experiments.py kernel build/models/gemma3 build/models/smollm2 --text english.txt
    python scripts/experiments.py reads build/models/gemma3 build/models/smollm2 --text english.txt

``whitespace``: rows of missing tokens that are white space, by affomp or from their pieces. Gemma 3 with
SmolLM2's tokenizer (129 such tokens), bits per byte of 4 kB of textwrap.py and of english.txt: affomp 1.396
and 0.977; mean of the pieces 1.369 and 0.975; last piece 1.428 and 1.000; first piece 1.532 and 1.062, no
better with an lm_head of its own. A newline followed by spaces takes the newline's probability as often as
there are such tokens; so the first piece's row, transplant-vocab's rule for lm_heads, needs a correction.

``logits``: instead of by least squares, affknn's map is refined by the divergence between the base's
predictions with true and made rows, over text that the base wrote; rows of anchors without themselves. The
divergence on anchors held out of the fit falls from 0.128 (scale 1.1) to 0.112 with a full matrix and to
0.117 with one factor for each principal direction of the states; on other text with 30 % of the anchors
hidden (SmolLM2, Gemma 3's rows) the loss falls from 0.046 to 0.039 and 0.044 on english.txt. The matrix fits
the anchors it sees almost twice as well as others: it learns frequent tokens by heart. head_fit gains as
much, and also where made rows compete with one another.

``lessons``: what fitting hidden anchors to more of the base's writing gains, with rows that share a move and
a factor by writing system, or not. Bits per byte lost on english, math, rus and code, seed 0, affomp with
k = 4, on an H200 (texts limited to a system had looser rules than now):

    Gemma 3, rows from SmolLM2       no fit .0437 .0297 .0840 .0883
    80 texts                                .0432 .0353 .0835 .0829
    400, and 24 for each system             .0405 .0287 .0746 .0791   shared .0412 .0301 .0549 .0749
    1,500, and 96                                                     shared .0370 .0245 .0511 .0676
    plain OMP, no fit                       .1107 .0713 .0547 .1457
    SmolLM2, rows from Gemma 3       no fit .0741 .0884 .7772 .1180
    80 texts                                .0550 .0631 .7775 .1054
    400, and 24 for each system             .0494 .0467 .6541 .0876   shared .0480 .0357 .5594 .0765
    1,500, and 96                                                     shared .0431 .0249 .4914 .0742
    plain OMP, no fit                       .0908 .0928 .8488 .1262

With affomp k = 8 and texts by the rules of today, 600 and 120 for each system, one run on an H200, seed 0;
the last lines fit what reads and what writes together, through the frozen body, by the same loss and prior
(four passes, 145,000 to 183,000 tokens; the first of the two was cut at nine tenths)::

    Gemma 3, no fit                         .0515 .0325 .0836 .0817
    rows that write fitted                  .0361 .0271 .0345 .0658   55 % of plain OMP's loss saved
    both ends together                      .0386 .0257 .0380 .0656   54 %
    SmolLM2, no fit                         .0655 .0786 .8057 .1018
    rows that write fitted                  .0449 .0314 .4465 .0877   49 %
    both ends together                      .0401 .0371 .4276 .0803   50 %
    the one, then the other                 .0434 .0280 .3589 .0844   53 %

On transplants (english, math, fra, rus, code, bits per byte): Gemma 3 .978 .856 1.525 2.036 1.344, together
.979 .850 1.515 1.922 1.344; SmolLM2 1.052 .849 1.675 1.586 1.382, together 1.039 .841 1.703 1.555 1.368, one
after the other 1.045 .846 1.674 1.527 1.372. Steps of 0.05 for 0.02 are no better.

Seeds 1 and 3 say the same. Half as many passes are as good (6 for 12), a prior of 0.5 or 0.7 of the base's
spread helps Russian and costs English and code, one of 10 on what is shared changes little.

Other texts to fit to, 600 as the base pleases and 120 for each system, affomp with k = 8, seed 0, an H200::

    Gemma 3     plain (by bench_hidden)               .0341 .0241 .0352 .0704
                from the likeliest 95 % (top-p)       .0329 .0240 .0344 .0671   57 %
                at temperature 0.8                    .0388 .0257 .0361 .0706   54 %
                each begins with any token            .0429 .0245 .0338 .0704   54 %
                each begins with a hidden one         .0405 .0238 .0340 .0675   55 %
    SmolLM2     from the likeliest 95 %               .0443 .0291 .4539 .0795   51 %
                at temperature 0.8                    .0482 .0357 .4499 .0810   48 %
                each begins with any token            .0480 .0342 .4429 .0864   47 %
                each begins with a hidden one         .0504 .0303 .4586 .0862   47 %

Programs, or passages that somebody wrote, for half of the 600; then the rows as they were made to read with,
and fitted ones to write with, as in a base that is not tied (``bench_hidden.py --untie`` also chooses their
methods apart). SmolLM2, scale 1.1, 120 texts for each system, english, math, rus, code and fra, one CPU::

    600 as it pleases                       .0471 .0332 .4803 .0849 .1995   47 %
    304 programs, after <|endoftext|>       .0487 .0313 .4904 .0743 .1956   48 %
      not tied                              .0403 .0326 .4020 .0743 .1883   52 %
      what reads a quarter of the way       .0416 .0322 .4023 .0735 .1890   52 %
      half                                  .0434 .0318 .4073 .0732 .1903   52 %
    152 passages of prose, 152 of Python    .0428 .0333 .4940 .0658 .1963   50 %
    the donor's (donor-lessons), not tied   .0393 .0413 .3313 .0708 .1557   55 %

    2,400 texts and programs, 95 %, not tied, three seeds on an H200: Gemma 3's rows 60, 58 and 57 %,
    SmolLM2's 55, 57 and 58 %; with a quarter of the texts SmolLM2's 52, 52 and 55 %

(Gemma 3's rows not tied lose .039 on Russian, where tied ones, which read as they write, lose .022.)

So the texts' own quality is not what is missing. In whole transplants programs help where the base can write
them (Gemma 3 with SmolLM2's tokens, affomp k = 8, 96 beside 240: code 1.172, where two runs without them had
1.190 and 1.198), and do no harm where it hardly can (SmolLM2 with Gemma 3's, affknn, 48 beside 240: english,
math, fra, rus, code 1.025 .882 1.630 1.555 1.241, without them 1.025 .883 1.633 1.549 1.242).

A text limited to one system was drawn from few tokens. With only those in the normaliser of its examples
the fit loses .0454 .0279 .3916 .0625 .1957 instead of .0462 .0286 .3884 .0727 .1978 (SmolLM2, not tied, 600
texts, seed 0: 54 for 52 %). With 2,400 texts, three seeds, an H200 (the mean on all five texts; on the four
without French)::

                                            Gemma 3         SmolLM2
    tied                                    63 %, 65 %      54 %, 57 %
    not tied                                59 %, 59 %      60 %, 62 %
    not tied, read with the fitted rows     63 %, 65 %      55 %, 58 %
    lessons of the likeliest 95 %, not tied 58 %, 58 %      60 %, 63 %
      without the limits' normaliser        58 %, 59 %      57 %, 59 %

In whole transplants many rows learn few texts by heart. SmolLM2 with Gemma 3's tokens, affknn at scale 0.85,
240 texts (58,042 tokens for 215,997 rows), no last pieces, no unigrams (english, math, fra, rus, code; text
of the base that judges, with the normaliser of limited texts)::

    as made                                 1.018  .893 1.749 1.712 1.252   1.698
    fitted, all tokens in the normaliser    1.025  .882 1.636 1.572 1.244   1.689
      0.7 of the way                        1.015  .875 1.614 1.507 1.233   1.647
      0.4 of the way                        1.013  .876 1.660 1.555 1.232   1.654
    fitted, what limited texts may hold     1.029  .884 1.684 1.588 1.261   1.695
      0.7 of the way                        1.015  .876 1.615 1.537 1.231   1.650
    limits of other systems than Latin only 1.029  .884 1.686 1.588 1.262   1.696
    and letters of systems that are foreign 1.029  .883 1.682 1.558 1.259   1.692

So other text tells how far to follow, and is read with the normaliser that it was drawn with: with all tokens
in it louder rows read limited texts better, whatever they do elsewhere. On whole transplants lessons from the
likeliest 95 % gained nothing (Gemma 3 .955 .886 1.430 1.832 1.193, SmolLM2 1.024 .881 1.625 1.551 1.244, all
the way and with all tokens in the normaliser).

Of SmolLM2's loss on Russian .33 to .39 are what the rows read (they alone put back), .22 what they write.

``donor-lessons``: the same with texts of the donor's. SmolLM2, rows from Gemma 3 as bench_hidden makes them
(scale 1.1), 600 texts and 120 for each system, one CPU; then Russian letters and words, in both ends, after
one pass through the frozen body over the 120 Russian ones (4.5 minutes; what they read alone .364 -> .279)::

    plain OMP, no fit                       .0909 .0927 .8489 .1262 .3606
    no fit                                  .0584 .0473 .7301 .0774 .2049   36 % of plain OMP's loss saved
    what they read alone                    .0070 .0044 .3341 .0263 .0731
    the base's texts                        .0471 .0332 .4803 .0849 .1995   47 %
    the donor's                             .0505 .0402 .3616 .0723 .1759   51 %
    240 of each                             .0492 .0333 .3879 .0820 .1836   50 %
    the donor's, then Russian in both ends  .0505 .0402 .2861 .0723 .1759   52 %

(English, math, rus, code, fra.) What Gemma 3 writes is Russian; what SmolLM2 writes is not. Yet of a
whole transplant, auto's, with half of its texts the donor's, only Russian gains, and French loses (english,
math, fra, rus, code): 1.025 .883 1.633 1.549 1.242, with the donor's 1.034 .880 1.702 1.516 1.238.

``first-pieces``: a word of the base that the target splits gives its probability to nobody. Rows that write
the first piece of such words are fitted, with made rows, to the base's predictions summed by the target token
that they begin with (6,000 places of the base's writing, moves of a fifth of the base's spread). Of the
distance to those predictions, 1.31 nats, a quarter goes. Yet of Gemma 3's excess with SmolLM2's tokens by
auto, on 8 kB of each text, next to nothing does: english .960 -> .958, math .891 -> .890, fra 1.438 -> 1.436,
rus 1.960 -> 1.984, code 1.186 -> 1.188; in both ends the same. The pieces that follow tell which word it is.

``last-pieces``: embedding rows of some kinds of tokens replaced by those of their last pieces, lm_head by
affomp at scale 1.05, not tied; bits per byte of 8 kB of each text, Gemma 3 with SmolLM2's tokens::

                                        english  math    fra     rus    code
    as made                             .9599   .8912  1.4318  2.0338  1.2074
    's 't 're 'll 've 'm 'd             .9500   .8867  1.4318  2.0338  1.2078
    words of ASCII letters (2,528)      .9618   .8912  1.4442  2.0338  1.2078
    white space (129)                   .9614   .8912  1.6790  2.1126  1.4140
    the rest (341)                      .9599   .8912  1.4378  2.1782  1.2068
    all                                 .9535   .8867  1.6981  2.2629  1.4109

So the lead of transplant-vocab's rows on English is seven tokens, and no other kind of token is better off.
Tied, with head_fit after it, as auto does (english in two parts, bytes from 8,192 to 24,576 second; judges is
text that the base wrote)::

                                        english         math    fra     rus    code   judges
    as made                             .9596   .9459   .8908  1.4369  1.9583  1.1859  2.4405
    the seven, whole                    .9512   .9186   .8862  1.4419  1.9583  1.1890  2.4385
    the seven, half                     .9530   .9285   .8845  1.4372  1.9583  1.1866  2.4384
    chosen on the base's writing        .9523   .9201   .8859  1.4388  1.9475  1.1895  2.3800
    the same, all of them half          .9546   .9310   .8844  1.4372  1.9509  1.1871  2.3862

Chosen are 68 tokens, half or whole: most are fragments of characters; of the seven, 's and 't, as the others
are too rare in what the base writes. Mixed after head_fit, the seven gain less: at 0.6 .9542 on english. Rows
fitted to write do not write when mixed: chosen then, by what they cost in both places, 's stays as it is.

``kernel``: other rows for hidden anchors, and other priors for the fit. Gemma 3's rows from SmolLM2's (30 %,
seed 0), used in the lm_head only; error of the rows, bits per byte lost on 4 kB of each text, and what that
saves of plain OMP's loss (in both ends, as above)::

                                    error   english math  rus   code  fra
    affomp, k = 8                   .666    .0451  .0341 .0841 .0667 .3611   24 %
    affknn                          .597    .0622  .0831 .0681 .0958 .4112    7 %
    kernel, 16,384 anchors          .602    .0659  .0676 .1299 .1220 .4765  -19 %
    affomp, fitted                          .0322  .0321 .0301 .0532 .2036   57 %
    systems and nearness share a move       .0337  .0321 .0323 .0536 .1985   56 %
    a prior of 0.7 for 0.35                 .0388  .0376 .0280 .0582 .1892   55 %
    a prior of 1.2                          .0547  .0482 .0281 .0699 .1934   47 %

(Fitted to six sevenths of the lessons.) Rows with a smaller error lose more: they are shrunk, and too quiet.
One factor and one shift along the mean state for each quarter of nearness, fitted to 6,000 places, bring
affomp to 33 %, affknn to 30 %, kernel to 8 % and its mean with affomp to 30 %. After the fit they bring
nothing, nor do factors by how often a token was seen (57 %), which were fitted to the last seventh; own moves
only for tokens that were seen do not either (56 %). So the fit is right for what the base writes, and what is
left is how other texts differ from that. A matrix that all rows share, fitted with the rest, learns frequent
tokens by heart: SmolLM2 with 240 texts, both ends, 44 % without it, 39 % with a prior of .03 and 9 % of .1.

``new_rows.unigrams``, on the output of auto for Gemma 3 with SmolLM2's tokens, bits per byte of 8 kB of each
text (english, math, fra, rus, code; then text of the base that judges)::

    as made                         .9556 .8848 1.4367 1.9447 1.1903   2.3973
    shifts by one pass              .9566 .8838 1.4369 1.8273 1.1860   2.2398
    by two                          .9557 .8833 1.4376 1.8186 1.1898   2.2159
    by one, rows that are kept only .9562 .8837 1.4367 1.8299 1.1873   2.2443
    by one, 3 for 10 unseen         .9566 .8840 1.4375 1.8234 1.1874   2.2377
    by steps, prior of 0.1          .9554 .8844 1.4372 1.8758 1.1888   2.2990
    by two, foreign tokens          .9554 .8848 1.4366 1.8307 1.1880

The same for SmolLM2 with Gemma 3's tokens. "Foreign" are bytes and letters of systems that the base does not
write in by itself; "masked" compares texts that are limited to a system with what they can hold::

    as made                         1.0277 .8828 1.6171 1.5947 1.2391   1.6101
    by two, all tokens              1.0284 .8893 1.6291 1.5749 1.2491   1.5707
    masked                          1.0278 .8840 1.6349 1.5773 1.2549
    masked, by one                  1.0277 .8816 1.6323 1.5884 1.2459
    texts without limits only       1.0274 .8874 1.6219 1.5910 1.2356
    foreign tokens                  1.0277 .8828 1.6171 1.5661 1.2391
    foreign tokens, masked          1.0277 .8828 1.6172 1.5660 1.2391

So what a base likes to write in its own system is no guide to other text in it. Most of what moves are bytes
and single letters, of which the base writes few and the other tokenizer makes many.

``reads``: a tied row also reads, and a fit to what it writes alone moves it where it reads worse. What moves
cost there is known to second order: slopes by one pass back through the body over the same texts, and the
mean product of a place's slope with itself for the curvature. affmix, 240 texts, 30 % hidden, both ends, one
CPU (by a driver that did the same); english, math, rus, code, and what that saves of plain OMP's loss::

                                SmolLM2, seed 1, scale 1.1          Gemma 3, seed 2
    as made                     .0503 .0639 .3979 .1051   48 %      .0754 .0451 .0309 .0961   29 %
    what they write             .0510 .0504 .3307 .0971   54 %      .0530 .0265 .0197 .0697   53 %
    curvature                   .0500 .0503 .3016 .0952   56 %      .0520 .0254 .0202 .0718   53 %
    slopes by free texts        .0468 .0437 .3003 .0879   59 %      .0518 .0272 .0182 .0672   55 %
      half of them              .0472 .0456 .3008 .0903
    slopes by all texts         .0456 .0436 .4293 .0922   53 %      .0531 .0277 .0143 .0731   57 %
    curvatures by limit         .0458 .0437 .2438 .0891   61 %      .0532 .0270 .0126 .0680   60 %
      prior of 0.5 for 0.35     .0513 .0427 .2317 .0894   61 %

A text limited to one system is read by steeper slopes: with the curvature of other texts rows go too far.
A second pass over the same texts, traced and fitted from where the first left the rows, learns them by heart:
.0527 .0535 .2934 .0969 (SmolLM2, seed 1); half of it .0471 .0464 .2303 .0909.

What is best as made need not be after the fit. Gemma 3, seed 0, bits lost on english, math, rus, code, fra::

    affomp, k = 8               .0515 .0325 .0836 .0818 .3086   fitted .0405 .0275 .0438 .0652         50 %
    affmix                      .0490 .0387 .0864 .0881 .3292          .0353 .0273 .0389 .0617 .1893   54 %

(What the base wrote took 1.0448 and 1.0463 bits per byte before the fit.)

Other rows of the same two, as made (scale 1.1; 1), with residuals of the anchors next to where the map takes
a token (m) beside matching pursuit's (o) and those of its neighbours (n); error of the rows, then bits lost::

    o/2 + n/2 (affmix)          .698  .0503 .0639 .3979 .1051       .561  .0754 .0451 .0309 .0961
    o/2 + n/4 + m/4             .692  .0567 .0706 .4133 .1148       .553  .0802 .0487 .0330 .1000
    .4 o + .3 n + .3 m          .685  .0607 .0755 .4162 .1218       .547  .0871 .0557 .0333 .1032
    the mean of all three       .681  .0678 .0834 .4335 .1336       .544  .0974 .0669 .0347 .1101
    o/2 + m/2                   .696  .0667 .0807 .4396 .1350
    affmix, 8 neighbours        .708  .0486 .0618 .3953 .1015
    affmix, temperature .05     .709  .0515 .0641 .4150 .1016
    .6 o + .6 n                 .716  .0516 .0639 .3962 .1021
    o/2 of k = 16, + n/2        .711  .0487 .0584 .4085 .1078

The nearer to the true rows on average, the quieter they are, and the more they lose. (The mean of all three:
32 neighbours for n and m.) Features of a token's pieces in the map make errors larger (.561 -> .607, .698 ->
.746).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from tokensurgeon import console
from tokensurgeon.batches import Batches
from tokensurgeon.checkpoint.layout import TensorRole
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.choice import HEAD_FIT
from tokensurgeon.evaluation.bits_per_byte import score_texts
from tokensurgeon.evaluation.boundaries import shared_ends, token_ends
from tokensurgeon.evaluation.loading import load_tokenizer
from tokensurgeon.evaluation.states import read_states
from tokensurgeon.evaluation.texts import read_texts
from tokensurgeon.evaluation.windows import encode, find_bos
from tokensurgeon.hidden_anchors import Ends, hide_anchors, make_hidden, put_back, row_errors
from tokensurgeon.last_pieces import mix_last_pieces
from tokensurgeon.lessons import judging_texts, lesson_texts, main_script
from tokensurgeon.methods.params import AffknnParams, AffmixParams, AffompParams, AnyMethod
from tokensurgeon.parallel import Processes
from tokensurgeon.pipeline import find_resources
from tokensurgeon.plan import Plan, make_plan
from tokensurgeon.reading import (
    PASSES,
    fit_rows,
    group_by_limit,
    group_by_script,
    read_examples,
    trace_written,
)
from tokensurgeon.recipe.load import build_recipe
from tokensurgeon.recipe.schema import NewRowRules
from tokensurgeon.rows import spread_root
from tokensurgeon.solvers.linear import ridge
from tokensurgeon.solvers.nearest import build_index
from tokensurgeon.solvers.softmax import Reads, fit_softmax_rows
from tokensurgeon.sourcing import donor_counterpart
from tokensurgeon.surgery import operate
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.decompose import decompose
from tokensurgeon.vocab.scripts import script_of, script_of_text


def whitespace(plan: Plan, texts: dict[str, str]) -> None:
    """Score the transplant with other rows for tokens of white space."""
    resources = find_resources(plan)
    new = operate(plan, Batches(Processes()), resources)[0]
    base = map_tensor(plan.inputs.layout.embedding.ref).float()
    pieces = dict(zip(plan.wanted, plan.pieces, strict=True))
    assert new.made is not None
    tokens = plan.match.target.tokens
    ids = [i for i in new.made.ids if script_of(tokens[i]) == "Whitespace" and pieces[i].ids]
    model = resources.load_body()
    tokenizer = load_tokenizer(str(plan.inputs.target), False)

    def rows(rule: Callable[[Tensor], Tensor] | None) -> torch.nn.Parameter:
        data = new.data.float()
        for index in ids if rule else ():
            data[index] = rule(base[list(pieces[index].ids)]) if rule else data[index]
        return torch.nn.Parameter(data, requires_grad=False)

    first, mean, last = (lambda p: p[0]), (lambda p: p.mean(dim=0)), (lambda p: p[-1])
    for name, reads, writes in (
        ("affomp", None, None),
        ("mean", mean, mean),
        ("first", first, first),
        ("last", last, last),
        ("reads last, writes first", last, first),
    ):
        model.get_input_embeddings().weight = rows(reads)
        model.get_input_embeddings().padding_idx = None
        model.get_output_embeddings().weight = rows(writes)
        model.config.get_text_config().vocab_size = len(new.data)
        scores = score_texts(model, tokenizer, texts).scores
        print(name, *(f"{score.text} {score.bits_per_byte:.4f}" for score in scores), flush=True)


def logits(plan: Plan, texts: dict[str, str]) -> None:
    """Refine affknn's predictions of anchors by the base's predictions, and judge by held-out anchors."""
    del texts
    resources = find_resources(plan)
    states, _ = read_states(
        resources.load_body(), resources.load_base_tokenizer(), judging_texts(plan, resources)
    )
    donor_rows = donor_counterpart(plan, plan.inputs.layout.embedding)
    assert donor_rows is not None
    donor = donor_rows[torch.tensor(list(plan.anchors))].float()
    true = map_tensor(plan.inputs.layout.embedding.ref)[torch.tensor(list(plan.anchors.values()))].float()
    mean = true.mean(dim=0)
    donor, centred = donor - donor.mean(dim=0), true - mean
    mapped = donor @ ridge(donor, centred, 0.01)
    made, missed, index = mapped.clone(), centred - mapped, build_index(donor)
    for span in torch.arange(len(donor)).split(4096):
        near = index.search(donor[span], 17)
        own = near.indices == span[:, None]
        weights = torch.softmax((near.similarities / 0.1).masked_fill(own, -torch.inf), dim=1)
        made[span] += (missed[near.indices] * weights[:, :, None]).sum(dim=1)
    held = torch.rand(len(true), generator=torch.Generator().manual_seed(0)) < 0.2
    _, directions = torch.linalg.eigh(states.mT @ states / len(states))
    factor = torch.full((1, true.shape[1]), 1.1, requires_grad=True)
    matrix = (1.1 * torch.eye(true.shape[1])).requires_grad_()
    print(f"scale 1: {_divergence(states[::7], true, mean + made, held):.4f}")
    print(f"scale 1.1: {_divergence(states[::7], true, mean + 1.1 * made, held):.4f}")
    for name, tensor, rate, rows in (
        ("directions", factor, 1e-2, lambda: mean + (made @ directions * factor) @ directions.mT),
        ("matrix", matrix, 3e-4, lambda: mean + made @ matrix),
    ):
        search = torch.optim.Adam([tensor], lr=rate)
        generator = torch.Generator().manual_seed(1)
        for _ in range(100):
            some = torch.randint(len(states), (256,), generator=generator)
            hidden = (torch.rand(len(true), generator=generator) < 0.5) & ~held
            loss = _divergence(states[some], true, rows(), hidden)
            search.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            search.step()
        with torch.no_grad():
            print(f"{name}: {_divergence(states[::7], true, rows(), held):.4f}", flush=True)


class _HiddenRows:
    """Hidden anchors made again, what it costs to use them, and their fit to texts.

    Args:
        plan: A transplant.
        texts: What the base reads with them.
        method: Makes them.
    """

    def __init__(self, plan: Plan, texts: dict[str, str], method: AnyMethod) -> None:
        self.plan, self.texts, self.resources = plan, texts, find_resources(plan)
        self.hidden = hide_anchors(plan, 0.3, 0)
        self.made = make_hidden(self.hidden, method, self.resources, Batches(Processes()))[0]
        self.model, self.tokenizer = self.resources.load_body(), self.resources.load_base_tokenizer()
        self.start = self.made.data[torch.tensor(self.hidden.ids)].to(self.model.device)
        self.twins = torch.tensor(self.hidden.twins, device=self.model.device)
        self.table = self.model.get_output_embeddings().weight.detach().clone()
        self.table[self.twins] = self.start.to(self.table)
        left = torch.tensor([i for i in self.hidden.plan.match.base.tokens if i < len(self.table)])
        self.root = (HEAD_FIT * spread_root(self.table.cpu(), left)).to(self.table)
        self.tokens = [plan.match.target.tokens[i] for i in self.hidden.ids]
        self.scripts = [script_of(token) for token in self.tokens]
        self.systems = group_by_script(self.tokens).to(self.table.device)

    def put_back(self, rows: Tensor, ends: Ends = "both") -> AbstractContextManager[None]:
        """Let the body use rows until the block ends."""
        data = self.made.data.clone()
        data[torch.tensor(self.hidden.ids)] = rows.to(data)
        return put_back(self.model, self.hidden, [replace(self.made, data=data)], ends)

    def tell(self, name: str, rows: Tensor) -> None:
        """Print bits per byte of the texts, rows in both ends and in the embedding alone."""
        for ends in ("both", "embedding"):
            with self.put_back(rows, ends):
                scores = score_texts(self.model, self.tokenizer, self.texts).scores
            print(name, ends, *(f"{score.text} {score.bits_per_byte:.4f}" for score in scores), flush=True)

    def read(self, lessons: dict[str, str]) -> tuple[Tensor, Tensor]:
        """What the lm_head sees over lessons that the rows read, and what follows."""
        with self.put_back(self.start, "embedding"):
            return read_states(self.model, self.tokenizer, lessons)

    def fit(self, states: Tensor, following: Tensor, groups: Tensor | None) -> Tensor:
        """The rows after a fit of what they write to what lessons say."""
        return fit_softmax_rows(
            states, following, self.table, self.twins, self.root, groups=groups, passes=PASSES
        )


def lessons(plan: Plan, texts: dict[str, str]) -> None:
    """Fit hidden anchors to different amounts of the base's writing."""
    rows = _HiddenRows(plan, texts, AffompParams(k=4))
    rows.tell("no fit", rows.start)
    for count in (80, 240, 800):
        rules = plan.recipe.new_rows.model_copy(update={"head_texts": count})
        mine = replace(plan, recipe=plan.recipe.model_copy(update={"new_rows": rules}))
        learnt = rows.read(lesson_texts(mine, rows.resources))
        for name, groups in (("alone", None), ("shared", rows.systems)):
            rows.tell(f"{count} texts, {name}", rows.fit(*learnt, groups))


def donor_lessons(plan: Plan, texts: dict[str, str]) -> None:
    """Fit hidden anchors to what the donor writes; then what they read, in systems foreign to the base."""
    rows = _HiddenRows(plan, texts, AffompParams())
    rows.tell("no fit", rows.start)
    ours = lesson_texts(plan, rows.resources)
    names = {"base": plan.recipe.donor.path, "donor": plan.recipe.base.path, "output": "nowhere"}
    turned = make_plan(build_recipe({**names, "new_rows": plan.recipe.new_rows.model_dump()}))
    written = lesson_texts(turned, find_resources(turned))
    own, theirs = rows.read(ours), rows.read(written)
    both = [torch.cat(parts) for parts in zip(own, theirs, strict=True)]
    for name, learnt in (("base's", own), ("both", both), ("donor's", theirs)):
        fitted = rows.fit(*learnt, rows.systems)
        rows.tell(f"{name} texts", fitted)
    for script in sorted({script_of_text(text) for text in texts.values()} - {main_script(ours)}):
        some = [text for name, text in written.items() if name.startswith(script)]
        if some:
            fitted = _train_both_ends(rows, fitted, torch.tensor([s == script for s in rows.scripts]), some)
            rows.tell(f"{script}, both ends", fitted)


def _train_both_ends(rows: _HiddenRows, start: Tensor, free: Tensor, lessons: list[str]) -> Tensor:
    """Some rows of a tied base, moved alone and together, after one pass over texts through its body."""
    body = rows.resources.load_fast_body().requires_grad_(False)
    opening = [] if (bos := find_bos(rows.tokenizer)) is None else [bos]
    read = ([*opening, *encode(rows.tokenizer, "lesson", text).ids] for text in lessons)
    texts = sorted(map(torch.tensor, read), key=len)
    batches = [texts[place : place + 8] for place in range(0, len(texts), 8)]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
    total = sum(len(text) - 1 for text in texts)
    own = torch.zeros_like(start[free], requires_grad=True)
    shared = torch.zeros_like(start[:1], requires_grad=True)
    search = torch.optim.Adam([own, shared], lr=0.02, betas=(0.9, 0.99), eps=0.1)
    table = rows.table.index_copy(0, rows.twins, start.to(rows.table)).to(body.dtype)
    (name,) = (
        name for name, weight in body.named_parameters() if weight is body.get_input_embeddings().weight
    )
    for number in order:
        ids = pad_sequence(batches[number], batch_first=True, padding_value=-100).to(body.device)
        moved = table.index_copy(0, rows.twins[free], (start[free] + (own + shared) @ rows.root).to(table))
        logits = functional_call(body, {name: moved}, (ids.clamp(min=0),), {"use_cache": False}).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        search.zero_grad()
        (total * loss + (own.square().sum() + shared.square().sum()) / 2).backward()
        search.step()
        console.logger.info("%d texts: %.4f nats", len(batches[number]), loss.item())
    trained = start.clone()
    trained[free] = (start[free] + (own + shared) @ rows.root).detach()
    return trained


def first_pieces(plan: Plan, texts: dict[str, str]) -> None:
    """Fit rows that begin what the base writes as one token to the base's own predictions."""
    resources = find_resources(plan)
    model, own = resources.load_body(), resources.load_base_tokenizer()
    tokenizer = load_tokenizer(str(plan.inputs.target), False)
    lessons = lesson_texts(plan, resources)
    base, target = plan.match.base, plan.match.target
    table = model.get_output_embeddings().weight.detach().clone()
    new = operate(plan, Batches(Processes()), resources)[0]
    assert new.made is not None
    # The target token that each base token begins with, itself where both have it.
    begins = torch.full((len(table),), -1)
    for index, token in base.tokens.items():
        if token.kind is not Kind.SPECIAL and (ids := decompose(token.data, target).ids):
            begins[index] = ids[0]
    # Made tokens that begin with a base token take their part of what that one begins with.
    group = torch.arange(len(new.data))
    for index, pieces in zip(plan.wanted, plan.pieces, strict=True):
        if pieces.ids and begins[pieces.ids[0]] >= 0:
            group[group == group[index].item()] = group[begins[pieces.ids[0]]].item()
    names, group = group.unique(return_inverse=True)

    def states(speaker: PreTrainedTokenizerFast, places: dict[str, NDArray[np.int64]]) -> Tensor:
        """What the lm_head sees just after these places of each text."""
        found = []
        for name, text in lessons.items():
            encoded = encode(speaker, name, text)
            ends = token_ends(speaker, encoded, text.encode())
            seen, _ = read_states(model, speaker, {name: text})
            opened = find_bos(speaker) is not None
            found.append(seen[np.searchsorted(ends, places[name], side="right") - 1 + opened])
        return torch.cat(found)

    places = {}
    for name, text in lessons.items():
        data = text.encode()
        both = (token_ends(some, encode(some, name, text), data) for some in (own, tokenizer))
        places[name] = shared_ends(*both)[:-1]
    wanted = []
    for part in states(own, places).split(256):
        whole = (part @ table.mT).softmax(dim=1)
        by_group = torch.zeros((len(part), len(names) + 1))
        by_group.index_add_(1, torch.where(begins < 0, len(names), group[begins.clamp(min=0)]), whole)
        wanted.append(by_group[:, :-1] / by_group[:, :-1].sum(dim=1, keepdim=True))
    expected = torch.cat(wanted)
    rows = torch.nn.Parameter(new.data.float(), requires_grad=False)
    model.get_input_embeddings().weight = model.get_output_embeddings().weight = rows
    model.get_input_embeddings().padding_idx = None
    model.config.get_text_config().vocab_size = len(rows)
    seen = states(tokenizer, places)
    root = 0.2 * spread_root(table, torch.tensor(sorted(base.tokens))).float()
    moves = torch.zeros_like(rows, requires_grad=True)
    free = torch.zeros(len(rows), 1)
    split = [
        begins[index]
        for index, token in base.tokens.items()
        if begins[index] >= 0 and target.tokens[int(begins[index])].data != token.data
    ]
    free[[*split, *new.made.ids]] = 1
    search = torch.optim.Adam([moves], lr=0.02)
    for some in [part for _ in range(PASSES) for part in torch.randperm(len(seen)).split(1024)]:
        logits = (seen[some] @ (rows + (moves * free) @ root).mT).log_softmax(dim=1)
        found = torch.zeros((len(some), len(names))).index_add_(1, group, logits.exp())
        loss = (torch.special.xlogy(expected[some], expected[some] / found.clamp(min=1e-9))).sum(dim=1).mean()
        search.zero_grad()
        (len(seen) * loss + moves.square().sum() / 2).backward()  # type: ignore[no-untyped-call]
        search.step()
        print(f"{float(loss):.4f} nats", flush=True)
    fitted = torch.nn.Parameter((rows + (moves * free) @ root).detach(), requires_grad=False)
    for name, end in (("lm_head", model.get_output_embeddings()), ("both", model.get_input_embeddings())):
        end.weight = fitted
        scores = score_texts(model, tokenizer, texts).scores
        print(name, *(f"{score.text} {score.bits_per_byte:.4f}" for score in scores), flush=True)


def last_pieces(plan: Plan, texts: dict[str, str]) -> None:
    """Score the transplant, not tied, with rows of last pieces in the embedding for some kinds of tokens."""
    document = {**plan.recipe.told(), "output": "nowhere", "untie": True, "new_rows": {"head_scale": 1.05}}
    plan = make_plan(build_recipe({**document, "method": {"name": "affomp", "k": 8}}))
    resources = find_resources(plan)
    made = operate(plan, Batches(Processes()), resources)
    spelt = [index for index, pieces in zip(plan.wanted, plan.pieces, strict=True) if pieces.ids]

    def kind(index: int) -> str:
        text = plan.match.target.tokens[index].text
        if re.fullmatch("'[a-z]+", text):
            return "contractions"
        return "white space" if text.isspace() else "words" if re.fullmatch(" ?[A-Za-z]+", text) else "rest"

    model, tokenizer = resources.load_body(), load_tokenizer(str(plan.inputs.target), False)
    head = next(new for new in made if new.tensor.role is TensorRole.HEAD)
    model.get_output_embeddings().weight = torch.nn.Parameter(head.data.float(), requires_grad=False)
    model.get_input_embeddings().padding_idx = None
    model.config.get_text_config().vocab_size = len(head.data)
    for name in ("none", "contractions", "words", "white space", "rest", "all"):
        shares = {index: 1.0 for index in spelt if name in ("all", kind(index))}
        mixed = mix_last_pieces(plan, made, shares)
        reads = next(new for new in mixed if new.tensor.role is TensorRole.EMBEDDING)
        model.get_input_embeddings().weight = torch.nn.Parameter(reads.data.float(), requires_grad=False)
        scores = score_texts(model, tokenizer, texts).scores
        told = (f"{score.text} {score.bits_per_byte:.4f}" for score in scores)
        print(name, len(shares), *told, flush=True)


def kernel(plan: Plan, texts: dict[str, str]) -> None:
    """Make hidden anchors by kernel ridge regression, and let rows of one nearness share a move."""
    resources = find_resources(plan)
    model, tokenizer = resources.load_fast_body(), resources.load_base_tokenizer()
    hidden = hide_anchors(plan, 0.3, 0)
    ids = torch.tensor(hidden.ids)
    affomp, affknn = (
        make_hidden(hidden, method, resources, Batches(Processes()))[0]
        for method in (AffompParams(), AffknnParams())
    )

    def tell(name: str, rows: Tensor) -> None:
        data = affomp.data.clone()
        data[ids] = rows.to(data)
        new = replace(affomp, data=data)
        with put_back(model, hidden, [new], "lm_head"):
            scores = score_texts(model, tokenizer, texts).scores
        told = (f"{score.text} {score.bits_per_byte:.4f}" for score in scores)
        print(name, f"row error {row_errors(hidden, new).weighted:.3f}", *told, flush=True)

    ours = _kernel_rows(hidden.plan, ids)
    for name, rows in (("affomp", affomp.data[ids]), ("affknn", affknn.data[ids]), ("kernel", ours)):
        tell(name, rows)
    tell("affomp and kernel, mean", (affomp.data[ids] + ours) / 2)
    lessons = lesson_texts(plan, resources)
    with put_back(model, hidden, [affomp], "embedding"):
        states, following = read_states(model, tokenizer, lessons)
    table = map_tensor(affomp.tensor.ref).float().clone()
    left = torch.tensor([i for i in hidden.plan.match.base.tokens if i < len(table)])
    spread = spread_root(table, left).float()
    twins = torch.tensor(hidden.twins)
    table[twins] = affomp.data[ids].float()
    systems = group_by_script([plan.match.target.tokens[i] for i in hidden.ids])
    for name, share, groups in (
        ("fitted", HEAD_FIT, systems),
        ("fitted, systems and nearness", HEAD_FIT, 4 * systems + hidden.bins),
        ("fitted, 0.7", 0.7, systems),
        ("fitted, 1.2", 1.2, systems),
    ):
        tell(
            name,
            fit_softmax_rows(states, following, table, twins, share * spread, groups=groups, passes=PASSES),
        )


def _kernel_rows(plan: Plan, ids: Tensor) -> Tensor:
    """What a ridge map misses, by kernel ridge regression (Nyström) on directions of centred donor rows."""
    tensor = plan.inputs.layout.embedding
    donor_rows = donor_counterpart(plan, tensor)
    assert donor_rows is not None
    donor = donor_rows[torch.tensor(list(plan.anchors))].float()
    true = map_tensor(tensor.ref)[torch.tensor(list(plan.anchors.values()))].float()
    centre, mean = donor.mean(dim=0), true.mean(dim=0)
    wanted, donor = donor_rows[ids].float() - centre, donor - centre
    into_base = ridge(donor, true - mean, 0.01)
    missed = true - mean - donor @ into_base
    anchors, directions = normalize(donor), normalize(wanted)
    some = torch.randperm(len(anchors), generator=torch.Generator().manual_seed(0))[:16_384]

    def compare(rows: Tensor) -> Tensor:
        return ((rows @ anchors[some].mT - 1) / 0.4).exp()

    system = 0.03 * compare(anchors[some])
    aim = torch.zeros(len(some), missed.shape[1])
    for span in torch.arange(len(anchors)).split(4096):
        alike = compare(anchors[span])
        system += alike.mT @ alike
        aim += alike.mT @ missed[span]
    system.diagonal().add_(1e-4 * system.diagonal().mean())
    return mean + wanted @ into_base + compare(directions) @ torch.linalg.solve(system, aim)


def _divergence(states: Tensor, true: Tensor, made: Tensor, hidden: Tensor) -> Tensor:
    """Mean divergence, in nats, of predictions over the anchors after some got other rows."""
    expected = (states @ true.mT).log_softmax(dim=1)
    found = (states @ torch.where(hidden[:, None], made, true).mT).log_softmax(dim=1)
    return (expected.exp() * (expected - found)).sum(dim=1).mean()


def reads(plan: Plan, texts: dict[str, str]) -> None:
    """Fit hidden anchors to what they write, and to different parts of what they read."""
    rows = _HiddenRows(plan, texts, AffmixParams())
    rows.tell("as made", rows.start)
    lessons = lesson_texts(plan, rows.resources)
    written = group_by_limit(rows.tokenizer, lessons, plan.match.base.tokens)
    with rows.put_back(rows.start):
        examples = read_examples(rows.model, rows.tokenizer, written)
        traced = [trace_written(rows.model, rows.tokenizer, [some]) for some in written]
    # Texts without a limit come first.
    free, every = traced[0].slopes, sum(some.slopes for some in traced[1:]) + traced[0].slopes
    own = torch.cat([some.curvatures for some in traced])
    one = own[:1].expand_as(own)
    for name, cost in (
        ("what they write", None),
        ("curvature", Reads(torch.zeros_like(free), one)),
        ("slopes by free texts", Reads(free, one)),
        ("slopes by all", Reads(every, one)),
        ("curvatures by limit", Reads(every, own)),
    ):
        fitted = fit_rows(examples, rows.table, rows.twins.tolist(), rows.tokens, rows.root, reads=cost)
        rows.tell(name, fitted)


EXPERIMENTS = {
    "whitespace": whitespace,
    "logits": logits,
    "lessons": lessons,
    "donor-lessons": donor_lessons,
    "first-pieces": first_pieces,
    "last-pieces": last_pieces,
    "kernel": kernel,
    "reads": reads,
}


def main(arguments: list[str]) -> None:
    """Run one experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=[*EXPERIMENTS])
    parser.add_argument("models", nargs=2, metavar="MODEL", type=Path)
    parser.add_argument("--text", action="append", required=True, type=Path, metavar="FILE")
    parser.add_argument("--max-bytes", type=int, default=4096)
    parser.add_argument("--head-texts", type=int, default=NewRowRules().head_texts)
    parser.add_argument("--head-scale", type=float, default=1.0)
    options = parser.parse_args(arguments)
    console.setup_logging()
    base, donor = map(str, options.models)
    document = {"base": base, "donor": donor, "output": "nowhere", "method": "affomp"}
    document |= {"new_rows": {"head_texts": options.head_texts, "head_scale": options.head_scale}}
    experiment = EXPERIMENTS[options.name]
    experiment(make_plan(build_recipe(document)), read_texts(options.text, options.max_bytes))


if __name__ == "__main__":
    main(sys.argv[1:])
