"""The optimizers in a checkpoint: their groups, and which parameters have state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastckpt.cli.render import Facts, Styled, columns, plain, value_text
from fastckpt.layout.tree import Path, TensorRef
from fastckpt.layout.walk import find_optimizers
from fastckpt.stored.inspection import Inspection
from fastckpt.text import count_text, numbers_text


def optimizers(inspection: Inspection) -> list[Facts]:
    """The facts about every ``{'state': ..., 'param_groups': [...]}`` in the file."""
    return [_facts(path, node, inspection) for path, node in find_optimizers(inspection.tree)]


def _facts(path: Path, optimizer: dict[Any, Any], inspection: Inspection) -> Facts:
    state = {key: value for key, value in optimizer["state"].items() if isinstance(value, dict)}
    groups = [_group(group, state, inspection) for group in optimizer["param_groups"]]
    return {
        "at": ".".join(map(str, path)),
        "step": _step(state, inspection),
        "params": sum(len(group["params"]) for group in groups),
        "state_ids": list(state),
        "groups": groups,
    }


def _group(group: dict[Any, Any], state: dict[Any, dict[Any, Any]], inspection: Inspection) -> Facts:
    params = group.get("params")
    ids = list(params) if isinstance(params, list | tuple) else []
    with_state = [number for number in ids if isinstance(number, int | str) and number in state]
    options = {
        key: f"tensor {inspection.entries[value.entry].name}" if type(value) is TensorRef else plain(value)
        for key, value in group.items()
        if key != "params"
    }
    kinds = list(dict.fromkeys(str(name) for number in with_state for name in state[number]))
    return {"params": plain(ids), "with_state": with_state, "state": kinds, "options": options}


def _step(state: dict[Any, dict[Any, Any]], inspection: Inspection) -> int | float | None:
    """The first step that stands in the state: a number, or a tensor that holds one."""
    for values in state.values():
        step = values.get("step")
        if type(step) is TensorRef:
            value = inspection.scalar(inspection.entries[step.entry])
            return int(value) if isinstance(value, float) and value.is_integer() else value
        if isinstance(step, int | float):
            return step
    return None


def optimizer_lines(facts: Facts) -> Iterator[str | Styled]:
    """One optimizer as text: a heading, then a row for each group."""
    at = f" at {facts['at']}" if facts["at"] else ""
    step = f", step {facts['step']}" if facts["step"] is not None else ""
    ids = facts["state_ids"]
    state = "no state"
    if ids:
        numbered = all(isinstance(number, int) and number >= 0 for number in ids)
        state = f"state under {numbers_text(ids) if numbered else value_text(ids, 60)}"
    counts = f"{count_text(len(facts['groups']), 'group')}, {count_text(facts['params'], 'parameter')}"
    heading = f"optimizer{at}: {counts}, {state}{step}"
    yield Styled(heading, "bold")
    if not facts["groups"]:
        return
    names = list(dict.fromkeys(key for group in facts["groups"] for key in group["options"]))
    # What is None or False in every group says nothing.
    names = [
        name for name in names if any(group["options"].get(name) not in (None, False) for group in facts["groups"])
    ]
    rows = [["#", *names, "params", "state"]]
    for number, group in enumerate(facts["groups"]):
        cells = [_cell(group["options"].get(name)) for name in names]
        held = ", ".join(group["state"]) or "-"
        if len(group["with_state"]) != len(group["params"]) and group["with_state"]:
            held += f" (under {numbers_text(group['with_state'])})" if _all_ints(group["with_state"]) else ""
        rows.append([str(number), *cells, str(len(group["params"])), held])
    yield from columns(rows)


def _all_ints(values: list[Any]) -> bool:
    return all(isinstance(value, int) and value >= 0 for value in values)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "(" + ", ".join(_cell(item) for item in value) + ")"
    return str(value) if len(str(value)) <= 40 else str(value)[:37] + "..."
