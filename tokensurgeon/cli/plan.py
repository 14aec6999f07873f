"""``tokensurgeon plan``: everything a run will do, before a weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokensurgeon import console
from tokensurgeon.recipe.load import load_recipe

if TYPE_CHECKING:
    from tokensurgeon.plan import Plan
    from tokensurgeon.recipe.schema import Recipe


def show_plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one field; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Plan to replace an existing output.")] = False,
) -> None:
    """Show what a recipe will do: rows, anchors, special tokens, config fields, time and memory.

    Reads tokenizers, configs and headers only, and exits as the real run would before its first row.

    \b
    Examples:
      tokensurgeon plan configs/demo.yaml
      tokensurgeon plan recipe.yaml --json --set method=pieces
    """  # noqa: D301 - click wants the character, not its name
    print_plan(load_recipe(recipe, overrides or ()), as_json, force)


def print_plan(recipe: Recipe, as_json: bool, force: bool) -> None:
    """Make a plan and print it.

    Args:
        recipe: What would be done.
        as_json: Print one JSON document.
        force: Whether an existing output may be replaced.
    """
    from tokensurgeon.pipeline import preflight

    facts = _facts(preflight(recipe, force))
    if as_json:
        console.print_json({"schema_version": 1, "ok": True, "exit_code": 0, "error": None, "plan": facts})
        return
    lists = ("vocabulary_tensors", "special_tokens", "config_changes")
    console.print_table(
        "Plan",
        ["", ""],
        [[key.replace("_", " "), _cell(value)] for key, value in facts.items() if key not in lists],
    )
    for key in lists:
        rows = facts[key]
        if rows:
            console.print_result("")
            console.print_table(
                key.replace("_", " ").capitalize(),
                list(rows[0]),
                [[_cell(v) for v in row.values()] for row in rows],
            )


def _facts(plan: Plan) -> dict[str, Any]:
    inputs, match = plan.inputs, plan.match
    return {
        "base": str(inputs.base),
        "target": str(plan.edited.source if plan.edited else inputs.target),
        "donor": str(inputs.donor) if inputs.donor else None,
        "output": str(plan.output),
        "edits": [f"{s.params.operation} {s.before:,} -> {s.after:,} tokens" for s in plan.edited.steps]
        if plan.edited
        else [],
        "method": plan.method_names,
        "heal": plan.recipe.heal.objective if plan.recipe.heal else None,
        "tied": inputs.layout.tied,
        "untied_bytes": plan.added_bytes,
        "parameters_before": plan.parameters_before,
        "parameters_after": plan.parameters_after,
        "rows_before": inputs.layout.rows,
        "rows_after": plan.rows,
        "target_tokens": len(match.target),
        "byte_equal_matches": len(match.byte_equal),
        "missing_tokens": len(match.missing),
        "without_donor_row": len(plan.unserved),
        "anchors": len(plan.anchors),
        "anchors_excluded": {reason: len(ids) for reason, ids in plan.excluded.items()},
        "bytes_to_write": plan.bytes_to_write,
        "memory_bytes": plan.memory_bytes,
        "seconds_for_new_rows": round(plan.operations / _speed(plan), 1),
        "warnings": [f"{notice.code} {notice.text}" for notice in plan.notices],
        "files": {name: str(path) for name, path in sorted(plan.copied_files.items())},
        "vocabulary_tensors": [
            {
                "tensor": tensor.name,
                "role": str(tensor.role),
                "dtype": tensor.ref.dtype,
                "old": [] if tensor.name in inputs.added else list(tensor.ref.shape),
                "new": list(plan.new_shape(tensor)),
            }
            for tensor in inputs.layout.tensors
        ],
        "special_tokens": [
            {
                "id": token.id,
                "token": token.content,
                "base": [match.base.tokens[i].text for i in source.embedding] if source else [],
                "decided_by": source.reason if source else f"method {plan.method_names}",
            }
            for token in match.target
            if token.kind == "special"
            for source in [match.sources.get(token.id)]
        ],
        "config_changes": [
            {"file": c.file, "field": c.field, "old": c.old, "new": c.new} for c in plan.config_changes
        ],
    }


def _speed(plan: Plan) -> float:
    from tokensurgeon.device import find_device
    from tokensurgeon.solvers.omp import measure_speed

    width = (plan.inputs.donor_layout or plan.inputs.layout).embedding.ref.shape[1]
    return measure_speed(width, find_device(plan.recipe.runtime.device))


def _cell(value: Any) -> str:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value)
