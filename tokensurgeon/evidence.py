"""Plan, rows, checks and scores -> the report. The last place that sees a tensor; the report sees numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from tokensurgeon import __version__
from tokensurgeon.checkpoint.expectation import row_digests
from tokensurgeon.checkpoint.layout import TensorRole
from tokensurgeon.checkpoint.sidefiles import ID_MAP, RECORD, read_card
from tokensurgeon.checkpoint.stream import hash_all, hash_file
from tokensurgeon.checkpoint.subject import Verification
from tokensurgeon.choice import Choice
from tokensurgeon.console import progress
from tokensurgeon.edits.chain import EditedTokenizer
from tokensurgeon.edits.lossless import compare, unreachable
from tokensurgeon.evaluation.texts import read_texts
from tokensurgeon.healing import Healing
from tokensurgeon.hidden_anchors import Hidden, row_errors
from tokensurgeon.notices import Notice, some_tokens
from tokensurgeon.plan import Plan
from tokensurgeon.quality import judge_rows
from tokensurgeon.report import model as r
from tokensurgeon.rows import NewTensor
from tokensurgeon.training.heal import Healed
from tokensurgeon.vocab.canonical import Kind
from tokensurgeon.vocab.chat import render_chat
from tokensurgeon.vocab.scripts import count_scripts
from tokensurgeon.vocab.traits import read_traits
from tokensurgeon.vocab.vocabulary import Vocabulary

_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")


def gather_evidence(
    plan: Plan,
    healing: Healing,
    verification: Verification,
    scores: list[r.TextScore],
    choice: Choice | None = None,
    hidden: tuple[Hidden, list[NewTensor]] | None = None,
    draft: r.DraftSummary | None = None,
) -> r.Report:
    """Write down everything that is known about a run.

    Args:
        plan: What was to be done.
        healing: What was done to the vocabulary tensors.
        verification: What was checked.
        scores: Bits per byte, if texts were scored.
        choice: How the method was chosen, if it was.
        hidden: Shared tokens that were hidden, and their rows as made again.
        draft: What engines say of the output as a draft model, if there is a model to be a draft of.

    Returns:
        The report.
    """
    tensors = healing.tensors
    main = tensors[0]
    traits = _traits(plan)
    notices = [*foresee_notices(plan), *_row_notices(plan, tensors), *verification.notices]
    return r.Report(
        tool_version=__version__,
        versions={name: version(name) for name in _LIBRARIES},
        recipe=plan.recipe.told(),
        inputs=_inputs(plan),
        vocabulary=_vocabulary(plan),
        matching=_matching(plan),
        origins=_origins(plan, main),
        anchors=_anchors(plan, main),
        specials=_specials(plan, main),
        tensors=[judge_rows(plan, tensor) for tensor in tensors],
        traits=traits,
        config_changes=[
            r.FieldChange(file=c.file, field=c.field, old=c.old, new=c.new) for c in plan.config_changes
        ],
        files=_files(plan, tensors),
        checks=[r.Check(name=c.name, passed=c.passed, detail=c.detail) for c in verification.checks],
        scores=scores,
        choice=_choice(plan, tensors, choice) if choice is not None else None,
        edits=_edits(plan, plan.edited) if plan.edited is not None else None,
        hidden=_hidden(plan, *hidden) if hidden is not None else None,
        heal=_heal(plan, healing, healing.told) if healing.told is not None else None,
        draft=draft,
        architectures=list(plan.config.get("architectures") or []),
        warnings=[r.Notice(code=notice.code, text=notice.text) for notice in notices],
    )


def _choice(plan: Plan, tensors: list[NewTensor], choice: Choice) -> r.ChoiceSummary:
    scale = next((new.head_scale for new in tensors if new.head_scale != 1.0), 1.0)
    recipe = plan.recipe.model_dump(mode="json", include={"method", "new_rows"})
    recipe["new_rows"]["head_scale"] = scale
    tokens = plan.match.target.tokens
    shares = next((new.last_pieces for new in tensors if new.last_pieces), {})
    recipe["new_rows"]["last_piece"] = {tokens[index].content: share for index, share in shares.items()}
    return r.ChoiceSummary(
        hidden=choice.hidden,
        share=choice.share,
        seed=choice.seed,
        bytes=choice.bytes,
        base_bits=choice.base_bits,
        tried=[
            r.Tried(
                method=tried.method.name,
                parameters=tried.method.model_dump(mode="json", exclude={"name"}),
                ends=tried.ends,
                row_error=tried.row_error,
                head_scale=tried.best,
                bits_per_byte=tried.bits[tried.best],
                chosen=tried.chosen,
            )
            for tried in choice.tried
        ],
        recipe=recipe,
    )


def _hidden(plan: Plan, hidden: Hidden, tensors: list[NewTensor]) -> r.HiddenSummary:
    found = []
    for new in tensors:
        if new.tensor.role is not TensorRole.BIAS and new.equal_to is None:
            off = row_errors(hidden, new)
            found.append(
                r.HiddenErrors(tensor=new.tensor.name, weighted=off.weighted, by_similarity=off.by_similarity)
            )
    return r.HiddenSummary(
        tokens=len(hidden.ids), seed=plan.recipe.runtime.seed, edges=hidden.edges, errors=found
    )


def _heal(plan: Plan, healing: Healing, told: Healed) -> r.HealSummary:
    rules = plan.recipe.heal
    assert rules is not None
    return r.HealSummary(
        objective=rules.objective,
        train=rules.train,
        corpus=list(rules.corpus),
        rows=healing.rows,
        layers=healing.layers,
        parameters=healing.parameters,
        texts=healing.texts,
        held_out_texts=healing.held_out,
        tokens=healing.tokens,
        tokens_read=told.tokens,
        steps=told.steps,
        best_step=told.best_step,
        ended=told.ended,
        losses=told.losses,
        held_out=[r.HeldOutScore(step=step, bits_per_byte=bits) for step, bits in told.held_out],
        before=told.before,
        after=told.after,
        base=healing.teacher_bits,
    )


def _edits(plan: Plan, edited: EditedTokenizer) -> r.EditSummary:
    rules = plan.recipe.report
    texts = read_texts([Path(text) for text in rules.texts], rules.max_bytes)
    cut = compare(edited.before, edited.after, edited.origins, texts)
    before, after = cut.bytes_per_token
    return r.EditSummary(
        steps=[
            r.EditStep(operation=s.params.operation, before=s.before, after=s.after, facts=s.facts)
            for s in edited.steps
        ],
        kept=len(edited.origins),
        keeps_ids=edited.keeps_ids,
        files=edited.files,
        lines=cut.lines,
        changed_lines=cut.changed_lines,
        changed_bytes=cut.changed_bytes,
        broken=cut.broken,
        bytes_per_token_before=before,
        bytes_per_token_after=after,
        unreachable=len(unreachable(edited.after)),
        unreachable_before=len(unreachable(edited.before)),
    )


def _inputs(plan: Plan) -> list[r.InputModel]:
    inputs = plan.inputs
    found = []
    for role, directory, ref in (
        ("base", inputs.base, plan.recipe.base),
        ("target", plan.edited.source if plan.edited else inputs.target, plan.recipe.target),
        ("donor", inputs.donor, plan.recipe.donor),
        ("teacher", inputs.teacher, plan.recipe.heal.teacher if plan.recipe.heal else None),
    ):
        if directory is None or ref is None:
            continue
        names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
        paths = {directory / name for name in names if (directory / name).is_file()}
        if role == "teacher":
            paths |= set(directory.glob("*.safetensors"))
        if role == "base":
            paths |= {shard.path for shard in inputs.base_index.shards}
        if role == "donor" and inputs.donor_layout is not None:
            paths |= {tensor.ref.path for tensor in inputs.donor_layout.tensors}
        ordered = sorted(paths)
        with progress(
            f"hashing the {role}", sum(path.stat().st_size for path in ordered), "bytes"
        ) as advance:
            digests = hash_all(hash_file, ordered, advance)
        hashes = {path.name: digest for path, digest in zip(ordered, digests, strict=True)}
        found.append(
            r.InputModel(
                role=role,
                source=ref.path,
                revision=ref.revision,
                from_hub=directory != Path(ref.path).expanduser(),
                files=hashes,
                card=read_card(directory) if role == "base" else {},
            )
        )
    return found


def _vocabulary(plan: Plan) -> r.VocabularySummary:
    target, base = plan.match.target, plan.match.base
    policy = plan.recipe.rows
    return r.VocabularySummary(
        base_tokens=len(base),
        base_rows=plan.inputs.layout.rows,
        target_tokens=len(target),
        target_bound=target.bound,
        rows=plan.rows,
        row_policy=str(policy) if isinstance(policy, int | str) else f"multiple: {policy.multiple}",
        holes=target.bound - len(target),
        padding=plan.rows - target.bound,
        parameters_before=plan.parameters_before,
        parameters_after=plan.parameters_after,
    )


def _matching(plan: Plan) -> r.Matching:
    match = plan.match
    sides = Counter(collision.side for collision in match.collisions)
    examples = [
        f"{c.side}: {c.data.decode(errors='backslashreplace')!r} is ids {', '.join(map(str, c.ids))}"
        for c in match.collisions[:5]
    ]
    return r.Matching(
        byte_equal=len(match.byte_equal),
        false_matches=len(match.false_matches),
        missing=len(match.missing),
        inexact_pieces=sum(not pieces.exact for pieces in plan.pieces),
        collisions_target=sides["target"],
        collisions_base=sides["base"],
        collision_examples=examples,
    )


def _origins(plan: Plan, main: NewTensor) -> list[r.OriginCount]:
    made_by = main.made_by
    match = plan.match
    origin_of = {
        index: f"method: {made_by[index]}"
        if index in made_by and made_by[index] != "map"
        else str(match.sources[index].origin)
        for index in match.target.tokens
    }
    counts = Counter(origin_of.values())
    rules = plan.recipe.report
    texts = read_texts([Path(text) for text in rules.texts], rules.max_bytes)
    seen = Counter(origin_of[index] for text in texts.values() for index in match.target.encode(text))
    return [
        r.OriginCount(
            origin=origin,
            tokens=count,
            share=count / len(match.target),
            text_share=seen[origin] / seen.total() if seen else None,
        )
        for origin, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _anchors(plan: Plan, main: NewTensor) -> r.AnchorSummary | None:
    if not plan.is_anchored:
        return None
    tokens = plan.match.target.tokens
    ruled_out = {index for ids in main.excluded.values() for index in ids}
    used = [tokens[index] for index in plan.anchors if index not in ruled_out]
    return r.AnchorSummary(
        count=len(used),
        by_script=count_scripts(used),
        excluded=[
            r.Exclusion(reason=reason, tokens=len(ids), examples=[tokens[i].text for i in ids[:8]])
            for reason, ids in {**plan.excluded, **main.excluded}.items()
        ],
    )


def _specials(plan: Plan, main: NewTensor) -> list[r.SpecialToken]:
    target, base = plan.match.target, plan.match.base
    made_by = main.made_by
    rows = []
    for token in target:
        if token.kind is not Kind.SPECIAL:
            continue
        source = plan.match.sources.get(token.id)
        rows.append(
            r.SpecialToken(
                token=token.content,
                id=token.id,
                roles=[role for role, index in target.roles.items() if index == token.id],
                base_tokens=[base.tokens[i].text for i in source.embedding] if source else [],
                decided_by=source.reason if source else f"method {made_by.get(token.id, plan.method_names)}",
            )
        )
    return rows


def _traits(plan: Plan) -> r.TokenizerTraits:
    target, base = read_traits(plan.match.target), read_traits(plan.match.base)
    return r.TokenizerTraits(
        digits_base=base.digits,
        digits_target=target.digits,
        bos_base=base.bos,
        bos_target=target.bos,
        bos_chat_target=target.bos_chat,
        normalizer_base=base.normalizer,
        normalizer_target=target.normalizer,
    )


def _files(plan: Plan, tensors: list[NewTensor]) -> dict[str, str]:
    files = {
        name: "target" if path.parent == plan.inputs.target or plan.inputs.target in path.parents else "base"
        for name, path in plan.copied_files.items()
    }
    if plan.edited is not None:
        files |= {name: "edited" for name, origin in files.items() if origin == "target"}
        files[ID_MAP] = "rebuilt"
    files |= dict.fromkeys(plan.rewritten, "rebuilt")
    files |= {shard.path.name: "rebuilt" for shard in plan.inputs.base_index.shards}
    files |= dict.fromkeys(
        (
            "config.json",
            "generation_config.json",
            "README.md",
            "report.json",
            "report.html",
            "provenance.json",
            RECORD,
        ),
        "rebuilt",
    )
    files |= {new.factors_file: "rebuilt" for new in tensors if new.factors_file is not None}
    return dict(sorted(files.items()))


def _made_by_fallback(plan: Plan, tensors: list[NewTensor]) -> set[int]:
    """Target ids that no method of the recipe served, for one tensor or another."""
    found: set[int] = set()
    for new in tensors:
        asked = plan.recipe.methods("lm_head" if new.tensor.role is TensorRole.HEAD else "embedding")
        names = {"map", *(params.name for params in asked)}
        found |= {index for index, name in new.made_by.items() if name not in names}
    return found


def foresee_notices(plan: Plan) -> list[Notice]:
    """Warnings that a run will have whatever its rows are.

    Args:
        plan: What is to be done.

    Returns:
        Those of the plan that are certain, and what a comparison of the two tokenizers shows.
    """
    # Whether a token is left to the fallback is known once all methods have been asked for its row.
    certain = [notice for notice in plan.notices if notice.code != "TS003"]
    return [*certain, *_tokenizer_notices(plan, _traits(plan))]


def _tokenizer_notices(plan: Plan, traits: r.TokenizerTraits) -> Iterable[Notice]:
    match = plan.match
    if traits.digits_base != traits.digits_target:
        yield Notice("TS001", f"{traits.digits_base} in the base, {traits.digits_target} in the target")
    if max(traits.bos_target, traits.bos_chat_target or 0) > 1:
        yield Notice("TS002", f"prompt {traits.bos_target}, chat {traits.bos_chat_target}")
    if traits.bos_base and not traits.bos_target and "bos" in match.target.roles:
        name = match.target.tokens[match.target.roles["bos"]].content
        yield Notice("TS019", f"put {name} in front yourself; without it the output rambles")
    if any(collision.side == "target" for collision in match.collisions):
        yield Notice("TS004", f"{sum(c.side == 'target' for c in match.collisions)} byte strings")
    lost = _lost_markers(plan)
    if lost:
        yield Notice("TS005", f"{', '.join(lost)}: rows made by {plan.method_names}")
    if _case_folding(match.target) != _case_folding(match.base):
        yield Notice(
            "TS008", f"{traits.normalizer_base} in the base, {traits.normalizer_target} in the target"
        )
    if "bos" in match.base.roles and "bos" not in match.target.roles:
        yield Notice("TS009", "texts now start without the token that the base's attention rests on")
    inexact = [
        match.target.tokens[i].text for i, p in zip(plan.wanted, plan.pieces, strict=True) if not p.exact
    ]
    if inexact:
        yield Notice("TS013", some_tokens(inexact))
    if "tokenizer.json" in plan.copied_files and "tekken.json" in plan.copied_files:
        yield Notice("TS014", "tokenizer.json and tekken.json; which one is used depends on the reader")


def _row_notices(plan: Plan, tensors: list[NewTensor]) -> Iterable[Notice]:
    main = tensors[0]
    fallback = sorted(_made_by_fallback(plan, tensors))
    if fallback:
        yield Notice("TS003", some_tokens([plan.match.target.tokens[index].text for index in fallback]))
    repeated = _repeated(main)
    if repeated:
        yield Notice("TS010", f"{repeated} of {len(main.made_by)} made rows repeat another")


def _repeated(main: NewTensor) -> int:
    if main.made is None:
        return 0
    return len(main.made.ids) - len(set(row_digests(main.data, main.made.ids)))


def _lost_markers(plan: Plan) -> list[str]:
    """Special tokens that a rendered chat uses and no base token stands behind."""
    text = render_chat(plan.match.target)
    if text is None:
        return []
    tokens = {plan.match.target.tokens[i] for i in plan.match.target.encode(text)}
    return sorted(t.content for t in tokens if t.kind is Kind.SPECIAL and t.id not in plan.match.sources)


def _case_folding(vocabulary: Vocabulary) -> str:
    """What a normaliser does to text beyond marking spaces."""
    normalizer = vocabulary.tokenizer.normalizer
    sample = "Ａé e\u0301 ﬁ ½"
    if normalizer is None:
        return sample
    return str(normalizer.normalize_str(sample)).replace("▁", " ").strip()
