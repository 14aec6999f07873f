"""The order of things: plan, make rows, write beside the output, verify, report, publish."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from tokensurgeon.batches import Batches
from tokensurgeon.checkpoint.configs import dump_config, find_pad
from tokensurgeon.checkpoint.expectation import (
    BodyTensor,
    Expectation,
    VocabRows,
    hash_rows,
    token_rows,
)
from tokensurgeon.checkpoint.reader import map_tensor
from tokensurgeon.checkpoint.sidefiles import ID_MAP, is_tokenizer_file
from tokensurgeon.checkpoint.source import resolve_checkpoint
from tokensurgeon.checkpoint.stream import hash_file
from tokensurgeon.checkpoint.subject import Verification
from tokensurgeon.checkpoint.verify import verify_checkpoint
from tokensurgeon.checkpoint.writer import free_bytes, refuse_existing, staged_directory, write_weights
from tokensurgeon.child import child_command
from tokensurgeon.choice import Choice, choose_method, settle
from tokensurgeon.console import hear_child, logger, progress
from tokensurgeon.device import available_memory, find_device
from tokensurgeon.edits.chain import EditedTokenizer, dump_id_map, edit_tokenizer
from tokensurgeon.errors import (
    InputError,
    PolicyError,
    ResourceError,
    TokensurgeonError,
    VerificationError,
)
from tokensurgeon.evaluation.draft import Verdict, judge_draft, load_side, refuse_unfit
from tokensurgeon.evaluation.loading import check_architecture
from tokensurgeon.evaluation.texts import read_texts
from tokensurgeon.evidence import foresee_notices, gather_evidence
from tokensurgeon.healing import Healing, check_healing, heal_rows
from tokensurgeon.hidden_anchors import Hidden, hide_anchors, make_hidden
from tokensurgeon.last_pieces import told_shares
from tokensurgeon.limits import refuse_costly, refuse_warned
from tokensurgeon.methods.registry import find_method
from tokensurgeon.notices import Notice
from tokensurgeon.parallel import Processes, connect
from tokensurgeon.plan import Plan, make_plan
from tokensurgeon.recipe.schema import Auto, Recipe
from tokensurgeon.record import model_name, write_record
from tokensurgeon.report.card import render_card
from tokensurgeon.report.html import render_html
from tokensurgeon.report.model import DraftSummary, DraftVerdict, LossAnatomy, Report, TextScore
from tokensurgeon.resources import FileResources
from tokensurgeon.rows import NewTensor
from tokensurgeon.surgery import operate
from tokensurgeon.vocab.probe import probe_chat, probe_ids

_MOST_HIDDEN = 0.3


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        output: The published directory.
        report: What is in its ``report.json``.
    """

    output: Path
    report: Report


def run(recipe: Recipe, *, force: bool = False) -> Outcome:
    """Do a transplant from a recipe to a published, verified directory.

    Args:
        recipe: What to do.
        force: Replace an existing output, once the new one is verified.

    Returns:
        Where the output is, and its report.

    Raises:
        TokensurgeonError: The run is impossible, refused, or its output is not what it should be; nothing
            is left behind.
    """
    processes = connect(recipe.runtime.device)
    with processes.together():
        logger.info("Reading tokenizers and headers")
        plan = replace(preflight(recipe, force), asked=recipe)
        work_dir = recipe.runtime.work_dir
        resources = find_resources(plan)
        plan, choice = settle_method(plan, resources, processes)
        kept = Path(work_dir).expanduser() if work_dir else None
        batches = Batches(processes, kept, _digest(plan, resources) if kept else "")
        if processes.is_main:
            report = _produce(plan, batches, resources, force, choice, processes)
        else:
            heal_rows(plan, operate(plan, batches, resources), resources, batches, processes)
            report = None
        # Whoever is not the main process waits here for its report, or its error.
        report = processes.exchange(report)[0]
    assert report is not None
    return Outcome(Path(recipe.output).expanduser(), report)


def _choose(plan: Plan, resources: FileResources) -> Choice | None:
    """What auto measured; None, and a notice, for a base that turns out to write nothing."""
    try:
        choice = choose_method(plan, resources)
    except InputError as error:
        if not plan.recipe.may_choose_blindly:
            raise
        reason = str(error).splitlines()[0]
        plan.notices.append(Notice("TS024", f"{reason}; {plan.recipe.methods('embedding')[0].name} as it is"))
        return None
    wanted = plan.recipe.new_rows.head_texts
    if choice.untried or (choice.lessons is not None and choice.lessons < wanted):
        untried = ", ".join(method.name for method in choice.untried) or "no candidate"
        left = f"{untried} left out, time to fit rows to {choice.lessons} texts, not {wanted}"
        plan.notices.append(Notice("TS027", left))
    return choice


def _produce(
    plan: Plan,
    batches: Batches,
    resources: FileResources,
    force: bool,
    choice: Choice | None,
    processes: Processes,
) -> Report:
    recipe = plan.recipe
    with staged_directory(plan.output, force) as stage:
        if plan.wanted:
            logger.info("Making %d rows with %s", len(plan.wanted), plan.method_names)
        healing = heal_rows(plan, operate(plan, batches, resources), resources, batches, processes)
        _write(plan, healing, stage)
        logger.info("Verifying")
        verification = verify_checkpoint(
            stage,
            forward=recipe.verify.forward,
            trust_remote_code=recipe.trust_remote_code,
            allow_reader_mismatch=recipe.verify.allow_reader_mismatch,
        )
        _refuse_failed(verification, plan)
        draft = _judge(plan, stage)
        scores = _score(plan, stage, verification)
        refuse_costly(recipe.verify, scores, verification.notices)
        hidden = _hide(plan, resources) if choice is None else None
        report = gather_evidence(plan, healing, verification, scores, choice, hidden, draft)
        refuse_warned(recipe.verify, report.warnings)
        (stage / "report.json").write_text(report.dump(), encoding="utf-8")
        (stage / "report.html").write_text(render_html(report), encoding="utf-8")
        (stage / "README.md").write_text(render_card(report), encoding="utf-8")
        write_record(plan.asked or recipe, stage, _known_digests(report))
    batches.clear()
    return report


def _known_digests(report: Report) -> dict[str, str]:
    """What the report has hashed, by the names that a record has for it."""
    return {
        f"{model_name(read.source, read.revision)}/{name}": digest
        for read in report.inputs
        for name, digest in read.files.items()
    }


def _hide(plan: Plan, resources: FileResources) -> tuple[Hidden, list[NewTensor]] | None:
    """Make some shared tokens again as if they were missing; None where that is not asked for, or dear."""
    count, rules = plan.recipe.report.hidden, plan.recipe.anchors
    needs = {need for params in plan.recipe.all_methods for need in find_method(params.name).needs}
    if not (count and plan.wanted and plan.is_anchored) or needs - {"donor"}:
        return None
    share = min(_MOST_HIDDEN, count / len(plan.anchors))
    if (1 - share) * len(plan.anchors) < rules.minimum:
        return None
    try:
        hidden = hide_anchors(plan, share, plan.recipe.runtime.seed)
        logger.info("Making %d shared tokens again, to see how far off rows are", len(hidden.ids))
        return hidden, make_hidden(hidden, plan.recipe.method, resources, Batches(Processes()))
    except (InputError, PolicyError) as error:
        # Too few that can be hidden, or that would be left: what was made is made all the same.
        logger.warning("report.hidden: %s", str(error).splitlines()[0])
        return None


def preflight(recipe: Recipe, force: bool) -> Plan:
    """Make the plan of a run, and refuse what would be refused before its first row.

    Args:
        recipe: What to do.
        force: Whether an existing output may be replaced.

    Returns:
        The plan.

    Raises:
        TokensurgeonError: The run is impossible or refused.
    """
    refuse_existing(Path(recipe.output).expanduser().resolve(), force)
    plan = make_plan(recipe)
    told_shares(plan)
    find_resources(plan).check()
    check_healing(plan)
    if recipe.verify.fail_on:
        refuse_warned(recipe.verify, foresee_notices(plan))
    free = free_bytes(plan.output)
    if free < plan.bytes_to_write:
        raise ResourceError(
            f"{plan.output}: {free / 1e9:.1f} GB free",
            f"{plan.bytes_to_write / 1e9:.1f} GB for the weights",
            "free space, or choose another output",
        )
    available = available_memory()
    if available is not None and available < plan.memory_bytes:
        raise ResourceError(
            f"{available / 1e9:.1f} GB of memory available",
            f"about {plan.memory_bytes / 1e9:.1f} GB for the vocabulary tensors and a batch",
            "free memory, or lower runtime.memory_gb",
        )
    return plan


def edit_tokenizer_only(recipe: Recipe, *, force: bool = False, dry_run: bool = False) -> EditedTokenizer:
    """Edit a tokenizer and publish its directory, without a model.

    Args:
        recipe: Its base, edits and output count; the base needs no weights.
        force: Replace an existing output.
        dry_run: Publish nothing.

    Returns:
        What the edits made.

    Raises:
        TokensurgeonError: An edit is impossible, or the output exists.
    """
    output = Path(recipe.output).expanduser().resolve()
    refuse_existing(output, force)
    source = resolve_checkpoint(recipe.base.path, recipe.base.revision, "none")
    edited = edit_tokenizer(source, recipe.edits)
    if dry_run:
        return edited
    with staged_directory(output, force) as stage:
        shutil.copytree(edited.folder, stage, dirs_exist_ok=True)
        (stage / ID_MAP).write_text(dump_id_map(edited), encoding="utf-8")
        write_record(recipe, stage, tokenizer_only=True)
    return edited


def find_resources(plan: Plan) -> FileResources:
    """What the recipe brings besides the models.

    Args:
        plan: The plan of a run.

    Returns:
        The resources; nothing is read yet.
    """
    recipe = plan.recipe
    device = find_device(recipe.runtime.device)
    return FileResources(
        recipe.resources, plan.inputs.base, device, recipe.trust_remote_code, recipe.runtime.seed
    )


def settle_method(plan: Plan, resources: FileResources, processes: Processes) -> tuple[Plan, Choice | None]:
    """Choose the methods where the recipe leaves that to its pair.

    Args:
        plan: The plan of a run.
        resources: What the recipe brings.
        processes: Those of the run; the main one chooses.

    Returns:
        The plan with its methods named, and what was measured, if anything was.
    """
    rules = plan.recipe.method
    if not isinstance(rules, Auto) or not plan.wanted:
        return plan, None
    choice = None
    if rules.calibrate is not False:
        logger.info("Choosing among %d methods", len(rules.tried))
        choice = processes.exchange(_choose(plan, resources) if processes.is_main else None)[0]
    recipe = settle(plan.recipe, choice)
    return replace(plan, recipe=recipe), choice


def _digest(plan: Plan, resources: FileResources) -> str:
    """A name for what rows depend on and no tensor shows: resources and both tokenizers."""
    tokenizers = [hash_file(place / "tokenizer.json") for place in (plan.inputs.base, plan.inputs.target)]
    rewritten = [hashlib.sha256(text.encode()).hexdigest() for text in plan.rewritten.values()]
    return " ".join([resources.digest, *tokenizers, *rewritten])


def _write(plan: Plan, healing: Healing, stage: Path) -> None:
    tensors = healing.tensors
    for name, path in plan.copied_files.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, stage / name)
    for name, text in plan.rewritten.items():
        (stage / name).write_text(text, encoding="utf-8")
    (stage / "config.json").write_text(dump_config(plan.config), encoding="utf-8")
    (stage / "generation_config.json").write_text(dump_config(plan.generation_config), encoding="utf-8")
    if plan.edited is not None:
        (stage / ID_MAP).write_text(dump_id_map(plan.edited), encoding="utf-8")
    replaced = {new.tensor.name: new.data for new in tensors}
    with progress("writing", plan.bytes_to_write, "bytes") as advance:
        link = plan.recipe.runtime.link
        hashes = write_weights(
            plan.inputs.base_index, replaced, stage, advance, changed=healing.body, link=link
        )
    for new in tensors:
        if new.factors_file is not None:
            _write_factors(new, stage / new.factors_file)
    _expect(plan, healing, hashes, stage).save(stage)


def _write_factors(new: NewTensor, path: Path) -> None:
    """The nearest table of low rank beside the dense one: ``coordinates @ primitives``, both float32."""
    assert new.made is not None and new.made.primitives is not None
    primitives = new.made.primitives.cpu().double()
    lengths = primitives.square().sum(dim=1)
    into_coordinates = primitives.mT / torch.where(lengths > 0, lengths, torch.inf)
    parts = [part.double() @ into_coordinates for part in new.data.split(8192)]
    path.parent.mkdir(exist_ok=True)
    factors = {"coordinates": torch.cat(parts).float(), "primitives": primitives.float().contiguous()}
    save_file(factors, path, metadata={"format": "pt"})


def _expect(plan: Plan, healing: Healing, hashes: dict[str, str], stage: Path) -> Expectation:
    """What the output must be, from the base's own bytes and the target's own tokenizer."""
    tensors = healing.tensors
    sources = {**plan.copied_files, **{name: stage / name for name in plan.rewritten}}
    stored = plan.inputs.base_index.tensors
    vocab = {}
    for new in tensors:
        ref = new.tensor.ref
        copied = [origin for origin in new.source if origin >= 0]
        made_by, trained = new.made_by, set(new.healed)
        repeated = {i for i, name in made_by.items() if name == "map" or not find_method(name).distinct}
        # A head that is dropped for the embedding's rows is a copy of the embedding.
        twin = next((t.tensor for t in tensors if t.tensor.name == new.equal_to), new.tensor)
        base_rows = token_rows(map_tensor(twin.ref), twin.axis)
        vocab[ref.name] = VocabRows(
            role=str(new.tensor.role),
            dtype=ref.dtype,
            shape=list(new.data.shape),
            axis=new.tensor.axis,
            equal_to=new.equal_to,
            source=new.source,
            copied_sha256=hash_rows(base_rows, copied),
            may_repeat=sorted(repeated | set(new.repeats)),
            may_vanish="zero" in made_by.values(),
            mapped=[i for i, name in made_by.items() if name == "map" and i not in trained],
        )
    return Expectation(
        rows=plan.rows,
        bound=plan.match.target.bound,
        body={
            name: BodyTensor(dtype=stored[name].dtype, shape=list(stored[name].shape), sha256=digest)
            for name, digest in sorted(hashes.items())
        },
        vocab=vocab,
        files={
            name: hash_file(sources[name])
            for name, path in plan.copied_files.items()
            if is_tokenizer_file(Path(name)) and path.is_relative_to(plan.inputs.target)
        },
        probe=probe_ids(plan.match.target),
        chat=probe_chat(plan.match.target),
        untied=plan.inputs.untied,
        rewritten=sorted(plan.rewritten),
        base_pad=find_pad(plan.inputs.base_config),
        trained=sorted(healing.body),
    )


def _refuse_failed(verification: Verification, plan: Plan) -> None:
    failed = {check.name: check.detail for check in verification.checks if not check.passed}
    if failed:
        lines = [f"{name}: {detail}" for name, detail in failed.items()]
        raise VerificationError(
            "\n".join(
                [f"{plan.recipe.output}: {len(failed)} of {len(verification.checks)} checks failed", *lines]
            ),
            "an output that is what the plan says",
            f"nothing was written; {_advise(set(failed), plan)}",
        )


def _advise(failed: set[str], plan: Plan) -> str:
    """What a user can do about an output that failed these checks."""
    if "AutoTokenizer" in failed:
        return "for another tokenizer class see verify.allow_reader_mismatch"
    if "positions" in failed:
        return "choose a target whose padding token has the base's id"
    if failed & {"loads in a fresh process", "forward pass"} and plan.lost_ids:
        return (
            f"{', '.join(plan.lost_ids)} named tokens that the target has no counterpart of, and the model "
            "may need them: say which tokens stand for them (anchors.map, --map)"
        )
    fault = _fault_of_base(failed, plan) if failed & _IN_ITS_CLASS else None
    if fault is not None:
        return f"the base fails there, too: {fault}; verify.forward: false writes an output that nobody ran"
    return "this is worth a bug report"


_IN_ITS_CLASS = {"loads in a fresh process", "forward pass"}


def _fault_of_base(failed: set[str], plan: Plan) -> str | None:
    """What the base's own class says of the base, where its output failed; None if all is well with it."""
    try:
        own = verify_checkpoint(plan.inputs.base, trust_remote_code=plan.recipe.trust_remote_code)
    except TokensurgeonError:
        return None
    return next((check.detail for check in own.checks if check.name in failed and not check.passed), None)


def _judge(plan: Plan, stage: Path) -> DraftSummary | None:
    """Say which engines take the output as a draft, from its files.

    Of the model that the recipe wants it to be a draft of, where it is refused if one of them does not; else
    of the model whose tokenizer it has, if there is one.
    """
    served = plan.inputs.served
    if served is not None and plan.recipe.match_vocab_of is not None:
        verdicts = judge_draft(load_side(served), load_side(stage))
        told = ", ".join(f"{verdict.rule} {verdict.result}" for verdict in verdicts)
        logger.info("As a draft of %s: %s", served, told)
        refuse_unfit(verdicts, served)
        return _tell_draft(plan.recipe.match_vocab_of.path, verdicts, asked=True)
    if plan.edited is not None or plan.inputs.target == plan.inputs.base:
        return None
    try:
        check_architecture("the base", plan.config.get("architectures"), plan.config.get("auto_map"))
    except InputError:
        return None  # it writes no text
    try:
        target = load_side(plan.inputs.target, None if plan.rewritten else plan.match.target)
    except InputError:
        return None  # a tokenizer without a model
    return _tell_draft(plan.recipe.target.path, judge_draft(target, load_side(stage)), asked=False)


def _tell_draft(model: str, verdicts: list[Verdict], asked: bool) -> DraftSummary:
    told = [DraftVerdict(rule=v.rule, result=v.result.value, reason=v.reason) for v in verdicts]
    return DraftSummary(model=model, asked=asked, verdicts=told)


def _score(plan: Plan, stage: Path, verification: Verification) -> list[TextScore]:
    """Bits per byte, base against output, in a process of its own: this one never holds a body."""
    rules = plan.recipe.report
    if not rules.texts:
        return []
    logger.info("Scoring %d texts", len(rules.texts))
    command = [*child_command("tokensurgeon"), "eval", str(plan.inputs.base), str(stage)]
    command += ["--anatomy", "--json"]
    command += [part for text in rules.texts for part in ("--text", text)]
    command += ["--max-bytes", str(rules.max_bytes), "--device", plan.recipe.runtime.device]
    command += ["--trust-remote-code"] * plan.recipe.trust_remote_code
    texts = read_texts([Path(text) for text in rules.texts], rules.max_bytes)
    total = 2 * sum(len(text.encode()) for text in texts.values())
    with progress("scoring", total, "bytes") as advance, hear_child(advance) as hearing:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", check=False, **hearing
        )
    if done.returncode:
        # The output is finished and verified; that it cannot be scored is worth a warning, not its loss.
        verification.notices.append(Notice("TS018", _why_not(done)))
        return []
    before, after = (model["texts"] for model in json.loads(done.stdout)["models"])
    return [
        TextScore(
            text=old["text"],
            bytes=old["bytes"],
            base=old["bits_per_byte"],
            output=new["bits_per_byte"],
            base_bytes_per_token=old["bytes_per_token"],
            output_bytes_per_token=new["bytes_per_token"],
            anatomy=LossAnatomy.model_validate(new["anatomy"]),
        )
        for old, new in zip(before, after, strict=True)
    ]


def _why_not(done: subprocess.CompletedProcess[str]) -> str:
    """What a command with ``--json`` says of its failure; a killed one says nothing."""
    try:
        return str(json.loads(done.stdout)["error"]["found"]).splitlines()[0]
    except ValueError:
        return f"exit {done.returncode}"
