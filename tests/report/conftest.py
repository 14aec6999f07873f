"""A report with the tokens that break pages, tables and terminals."""

import pytest

from tokensurgeon.report.model import (
    AnchorSummary,
    Check,
    ChoiceSummary,
    DraftSummary,
    DraftVerdict,
    EditStep,
    EditSummary,
    Exclusion,
    FieldChange,
    HealSummary,
    HeldOutScore,
    HiddenErrors,
    HiddenSummary,
    Ingredient,
    InputModel,
    LossAnatomy,
    LossClass,
    Matching,
    Notice,
    OriginCount,
    Quantiles,
    Report,
    RowTable,
    SpecialToken,
    TensorQuality,
    TextScore,
    TokenizerTraits,
    TokenRow,
    Tried,
    VocabularySummary,
)

NASTY = [
    "<script>alert(1)</script>",
    "[/INST]",
    "a|b",
    "`",
    "``",
    "\n",
    "\u202etxt",
    "$x$",
    "  ",
    "\x00",
    "*_~#",
    "\u0301",
    "</script><img src=x onerror=alert(1)>",
    "<!--",
    "\u05e9\u05dc\u05d5\u05dd",  # from right to left
    " \u0627\u0644\u0639\u0631\u0628\u064a\u0629 (1)",
    "\\xe2\\x80",  # how bytes that are no text are told
    "\ufeff\u200d\u2028",
    "\U0001f469\u200d\U0001f467",
    "=" * 300,
]


def quantiles(low: float, high: float, histogram: list[int]) -> Quantiles:
    step = (high - low) / 100
    points = [low + step * at for at in (0, 1, 25, 50, 75, 99, 100)]
    names = ("minimum", "q01", "q25", "median", "q75", "q99", "maximum")
    return Quantiles(count=sum(histogram), **dict(zip(names, points, strict=True)), histogram=histogram)


def tensor(name: str, role: str) -> TensorQuality:
    worst = [
        TokenRow(
            id=100 + at,
            token=token,
            method="omp",
            residual=0.9 - at / 100,
            norm=1.25,
            made_of=[Ingredient(token=token, weight=0.5), Ingredient(token=" the", weight=-0.25)],
        )
        for at, token in enumerate(NASTY)
    ]
    return TensorQuality(
        name=name,
        role=role,
        tied=False,
        dtype="bfloat16",
        old_shape=[1000, 64],
        new_shape=[2048, 64],
        copied=1500,
        made=500,
        padding=48,
        equal_to=None,
        kept_norms=quantiles(0.5, 2.5, [5, 300, 1000, 180, 15]),
        new_norms=quantiles(0.4, 1.4, [10, 200, 250, 30, 10]),
        residuals=quantiles(0.1, 0.9, [50, 150, 200, 80, 20]),
        worst=worst,
        rows=row_table(),
        note="",
    )


def row_table() -> RowTable:
    """All nasty tokens and some plain ones, made of nasty ones; more were made than the table holds."""
    tokens = [*NASTY, *(f"word{at}" for at in range(300))]
    return RowTable(
        made=500,
        ids=list(range(100, 100 + len(tokens))),
        tokens=tokens,
        methods=["omp"] * (len(tokens) - 1) + ["mean"],
        residuals=[0.25 + at / 1000 for at in range(len(tokens) - 1)] + [None],
        sources=[[at % len(NASTY), (at + 1) % len(NASTY)] for at in range(len(tokens) - 1)] + [[]],
        weights=[[0.75, -0.25]] * (len(tokens) - 1) + [[]],
        source_tokens=dict(enumerate(NASTY)),
    )


ANATOMY = LossAnatomy(
    chunks=700,
    excess=0.1,
    by_cut=[
        LossClass(name="same token", chunks=600, byte_share=0.9, base=0.8, output=0.79996, excess=-0.00004),
        LossClass(name="split", chunks=100, byte_share=0.1, base=0.2, output=0.30004, excess=0.10004),
        LossClass(name="merged", chunks=0, byte_share=0.0, base=0.0, output=0.0, excess=0.0),
    ],
    by_script=[
        LossClass(name="Latin", chunks=650, byte_share=0.95, base=0.9, output=1.02, excess=0.12),
        LossClass(name="Whitespace", chunks=50, byte_share=0.05, base=0.1, output=0.08, excess=-0.02),
    ],
    by_content=[
        LossClass(name="numbers", chunks=20, byte_share=0.05, base=0.1, output=0.17, excess=0.07),
        LossClass(name="other", chunks=680, byte_share=0.95, base=0.9, output=0.93, excess=0.03),
    ],
    by_new_rows=[
        LossClass(name="neither", chunks=700, byte_share=1.0, base=1.0, output=1.1, excess=0.1),
    ],
)


@pytest.fixture
def whole_report(report) -> Report:
    """One with every section that a page can have."""
    tried = {"parameters": {"k": 64, "tolerance": 0.0001, "mode": "auto"}, "ends": "both", "row_error": 0.9}
    tried |= {"head_scale": 1.05, "bits_per_byte": 1.1}
    return report.model_copy(
        update={
            "choice": ChoiceSummary(
                hidden=14_244,
                share=0.3,
                seed=0,
                bytes=37_315,
                base_bits=0.95,
                tried=[Tried(method="omp", chosen=at == 1, **tried) for at in range(3)],
                recipe={"method": {"name": "omp"}, "new_rows": {"note": "long " * 60}},
            ),
            "edits": EditSummary(
                steps=[
                    EditStep(operation="trim", before=1000, after=500, facts={"dropped": NASTY, "size": 500}),
                    EditStep(operation="extend", before=500, after=520, facts={"added": {"tokens": NASTY}}),
                ],
                kept=500,
                keeps_ids=False,
                files={"tokenizer.json": "rewritten", "a_very_long_name_of_a_file" * 5: "[/INST]"},
                lines=100,
                changed_lines=0.1,
                changed_bytes=0.01,
                broken=0,
                bytes_per_token_before=4.0,
                bytes_per_token_after=4.2,
                unreachable=3,
                unreachable_before=0,
            ),
            "heal": HealSummary(
                objective="chunk_likelihood",
                train="new",
                corpus=["a/very/long/path/" * 12 + "corpus.txt"],
                rows=500,
                texts=480,
                held_out_texts=48,
                tokens=10_000,
                tokens_read=40_000,
                steps=3,
                best_step=2,
                ended="steps",
                losses=[3.0, 2.0, 2.5],
                held_out=[HeldOutScore(step=at, bits_per_byte=1 - at / 100) for at in range(3)],
                before=1.0,
                after=0.98,
                base=0.9,
            ),
        }
    )


@pytest.fixture
def report() -> Report:
    return Report(
        tool_version="0.1.0",
        versions={"torch": "2.6.0", "transformers": "5.17.0"},
        recipe={"schema_version": 1, "base": {"path": "org/base-1b"}, "anchors": {"map": {"`": "```"}}},
        inputs=[
            InputModel(
                role="base", source="org/base-1b", revision="abc123", files={"model.safetensors": "0" * 64}
            ),
            InputModel(
                role="target", source="org/target|2b", revision=None, files={"tokenizer.json": "1" * 64}
            ),
            InputModel(
                role="donor", source="org/target|2b", revision=None, files={"model.safetensors": "2" * 64}
            ),
        ],
        vocabulary=VocabularySummary(
            base_tokens=998,
            base_rows=1000,
            target_tokens=2000,
            target_bound=2001,
            rows=2048,
            row_policy="multiple of 64",
            holes=1,
            padding=47,
            parameters_before=1_000_000,
            parameters_after=1_134_144,
        ),
        matching=Matching(
            byte_equal=1490,
            false_matches=0,
            missing=500,
            inexact_pieces=3,
            collisions_target=1,
            collisions_base=0,
            collision_examples=["[/INST]", "\n"],
        ),
        origins=[
            OriginCount(origin="matched", tokens=1490, share=0.745),
            OriginCount(origin="method: omp", tokens=480, share=0.24),
            OriginCount(origin="method: mean", tokens=20, share=0.01),
            OriginCount(origin="role", tokens=10, share=0.005),
        ],
        anchors=AnchorSummary(
            count=1400,
            by_script={"Latin": 1300, "Han": 100},
            excluded=[Exclusion(reason="near_zero (donor)", tokens=90, examples=NASTY)],
        ),
        specials=[
            SpecialToken(token="[/INST]", id=3, roles=[], base_tokens=[], decided_by="method"),
            SpecialToken(token="</s>", id=2, roles=["eos"], base_tokens=["<|end|>"], decided_by="role eos"),
        ],
        tensors=[
            tensor("model.embed_tokens.weight", "embedding"),
            tensor("lm_head.weight", "lm_head"),
        ],
        traits=TokenizerTraits(
            digits_base="single digits",
            digits_target="groups of up to 3",
            bos_base=0,
            bos_target=1,
            bos_chat_target=None,
            normalizer_base="none",
            normalizer_target="NFC",
        ),
        config_changes=[FieldChange(file="config.json", field="vocab_size", old=1000, new=2048)],
        files={"config.json": "written", "model.safetensors": "base, rows replaced"},
        checks=[
            Check(name="shapes", passed=True, detail="2 tensors as planned"),
            Check(name="body", passed=True, detail="140 tensors equal"),
        ],
        scores=[
            TextScore(
                text="prose.txt",
                bytes=3000,
                base=1.0,
                output=1.1,
                base_bytes_per_token=4.0,
                output_bytes_per_token=4.4,
                anatomy=ANATOMY,
            ),
            TextScore(
                text="$co$de.py",
                bytes=1000,
                base=0.5,
                output=0.7,
                base_bytes_per_token=3.0,
                output_bytes_per_token=3.3,
            ),
        ],
        hidden=HiddenSummary(
            tokens=495,
            seed=0,
            edges=[0.5, 0.6, 0.7],
            errors=[
                HiddenErrors(tensor=name, weighted=0.924, by_similarity=[1.0, 0.9, 0.8, None])
                for name in ("model.embed_tokens.weight", "lm_head.weight")
            ],
        ),
        draft=DraftSummary(
            model="org/target|2b",
            asked=False,
            verdicts=[
                DraftVerdict(rule="every draft", result="passes", reason="same tokens"),
                DraftVerdict(
                    rule="vllm",
                    result="fails",
                    reason="vocab_size is 3 in the target; id 2 is '[/INST]<b>' in the target",
                ),
                DraftVerdict(rule="tensorrt-llm", result="not checked", reason="nothing was found"),
            ],
        ),
        architectures=["LlamaForCausalLM"],
        warnings=[Notice(code="TS001", text="the token ``[/INST]`` | has <no> counterpart")],
    )
