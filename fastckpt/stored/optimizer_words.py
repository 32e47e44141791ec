"""The optimizers in a checkpoint as people read them: a heading, and a row of a table for each group."""

from __future__ import annotations

from typing import Any, Final

from fastckpt.stored.optimizer_facts import OptimizerFacts
from fastckpt.text import count_text, numbers_text, some

MOST_OPTIONS: Final = 24
"""Columns of the table of groups; torch's optimizers have up to 15 options."""
_MOST_CHARACTERS: Final = 40


def heading(facts: OptimizerFacts) -> str:
    """``optimizer at optimizer: 1 group, 4 parameters, state under {0..3}, step 7``."""
    return f"{title(facts)}: {counts(facts)}"


def title(facts: OptimizerFacts) -> str:
    """``optimizer at optimizer``."""
    return f"optimizer at {facts['at']}" if facts["at"] else "optimizer"


def counts(facts: OptimizerFacts) -> str:
    """``1 group, 4 parameters, state under {0..3}, step 7``."""
    step = f", step {facts['step']}" if facts["step"] is not None else ""
    ids = facts["state_ids"]
    state = f"state under {numbers_text(ids) if _all_ints(ids) else _cut(some(ids), 60)}" if ids else "no state"
    groups = f"{count_text(len(facts['groups']), 'group')}, {count_text(facts['params'], 'parameter')}"
    return f"{groups}, {state}{step}"


def option_names(facts: OptimizerFacts) -> list[str]:
    """The options of the groups, without those that are None or False in every group, which says nothing."""
    says = {key for group in facts["groups"] for key, value in group["options"].items() if value not in (None, False)}
    return [key for key in dict.fromkeys(key for group in facts["groups"] for key in group["options"]) if key in says]


def group_rows(facts: OptimizerFacts) -> list[list[str]]:
    """The head of the table, then a row for each group."""
    names = option_names(facts)[:MOST_OPTIONS]
    rows = [["#", *names, "params", "state"]]
    for number, group in enumerate(facts["groups"]):
        cells = [_cell(group["options"].get(name)) for name in names]
        held = _cut(", ".join(group["state"]), 100) or "-"
        if len(group["with_state"]) != len(group["params"]) and group["with_state"]:
            held += f" (under {numbers_text(group['with_state'])})" if _all_ints(group["with_state"]) else ""
        rows.append([str(number), *cells, str(len(group["params"])), held])
    return rows


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
