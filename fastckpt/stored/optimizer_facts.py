"""The optimizers in a checkpoint: their groups, and which parameters have state."""

from __future__ import annotations

from typing import Any, TypedDict

from fastckpt.layout.tree import Path, TensorRef
from fastckpt.layout.walk import find_optimizers
from fastckpt.stored.inspection import Inspection
from fastckpt.stored.leaf_value import leaf_value
from fastckpt.stored.plain import plain


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
