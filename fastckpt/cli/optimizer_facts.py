"""The optimizers in a checkpoint: their groups, and which parameters have state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypedDict

from fastckpt.cli.leaf_value import leaf_value
from fastckpt.cli.plain import plain
from fastckpt.cli.render import Styled, columns, value_text
from fastckpt.layout.tree import Path, TensorRef
from fastckpt.layout.walk import find_optimizers
from fastckpt.stored.inspection import Inspection
from fastckpt.text import count_text, numbers_text

_MOST_OPTIONS: Final = 24
"""Columns of the table of groups; torch's optimizers have up to 15 options."""
_MOST_CHARACTERS: Final = 40


class GroupFacts(TypedDict):
    params: list[Any]
    with_state: list[Any]
    state: list[str]
    options: dict[str, Any]


class OptimizerFacts(TypedDict):
    at: str
    step: int | float | None
    params: int
    state_ids: list[Any]
    groups: list[GroupFacts]


def optimizers(inspection: Inspection) -> list[OptimizerFacts]:
    """The facts about every ``{'state': ..., 'param_groups': [...]}`` in the file."""
    return [_facts(path, node, inspection) for path, node in find_optimizers(inspection.tree)]


def _facts(path: Path, optimizer: dict[Any, Any], inspection: Inspection) -> OptimizerFacts:
    state = {key: value for key, value in optimizer["state"].items() if isinstance(value, dict)}
    told: set[Any] = set()
    groups = [_group(group, state, told, inspection) for group in optimizer["param_groups"]]
    return {
        "at": ".".join(map(str, path)),
        "step": _step(state, inspection),
        "params": sum(len(group["params"]) for group in groups),
        "state_ids": list(state),
        "groups": groups,
    }


def _group(
    group: dict[Any, Any], state: dict[Any, dict[Any, Any]], told: set[Any], inspection: Inspection
) -> GroupFacts:
    """The facts about one group; ``told`` are the parameters of those before: none is in two of them."""
    params = group.get("params")
    ids = list(params) if isinstance(params, list | tuple) else []
    with_state = [number for number in ids if isinstance(number, int | str) and number in state]
    options = {
        key: f"tensor {inspection.entries[value.entry].name}" if type(value) is TensorRef else leaf_value(value)
        for key, value in group.items()
        if key != "params"
    }
    new = [number for number in dict.fromkeys(with_state) if number not in told]
    told.update(new)
    kinds = list(dict.fromkeys(str(name) for number in new for name in state[number]))
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


def optimizer_lines(facts: OptimizerFacts) -> Iterator[str | Styled]:
    """One optimizer as text: a heading, then a row for each group."""
    at = f" at {facts['at']}" if facts["at"] else ""
    step = f", step {facts['step']}" if facts["step"] is not None else ""
    ids = facts["state_ids"]
    state = "no state"
    if ids:
        state = f"state under {numbers_text(ids) if _all_ints(ids) else value_text(ids, 60)}"
    counts = f"{count_text(len(facts['groups']), 'group')}, {count_text(facts['params'], 'parameter')}"
    heading = f"optimizer{at}: {counts}, {state}{step}"
    yield Styled(heading, "bold")
    if not facts["groups"]:
        return
    # What is None or False in every group says nothing.
    says = {key for group in facts["groups"] for key, value in group["options"].items() if value not in (None, False)}
    names = [key for key in dict.fromkeys(key for group in facts["groups"] for key in group["options"]) if key in says]
    rows = [["#", *names[:_MOST_OPTIONS], "params", "state"]]
    for number, group in enumerate(facts["groups"]):
        cells = [_cell(group["options"].get(name)) for name in names[:_MOST_OPTIONS]]
        held = _cut(", ".join(group["state"]), 100) or "-"
        if len(group["with_state"]) != len(group["params"]) and group["with_state"]:
            held += f" (under {numbers_text(group['with_state'])})" if _all_ints(group["with_state"]) else ""
        rows.append([str(number), *cells, str(len(group["params"])), held])
    yield from columns(rows)
    if len(names) > _MOST_OPTIONS:
        yield f"  {len(names) - _MOST_OPTIONS} more options (--json lists all)"


def _all_ints(values: list[Any]) -> bool:
    return all(isinstance(value, int) and value >= 0 for value in values)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return _cut("(" + ", ".join(_cell(item) for item in value[:_MOST_CHARACTERS]) + ")")
    return _cut(str(value))


def _cut(text: str, most: int = _MOST_CHARACTERS) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
