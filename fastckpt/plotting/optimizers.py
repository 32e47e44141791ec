"""What the optimizers of a file were set to: a table of their groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fastckpt.plotting.markup import element, escaped, quiet, shortened, table
from fastckpt.plotting.numbers import PlottedFile
from fastckpt.stored.optimizer_words import counts, group_rows, title

_MAX_OPTIMIZERS: Final = 16
_MAX_GROUPS: Final = 200
_FIRST: Final = ("lr", "initial_lr", "momentum", "betas", "eps", "weight_decay")
"""Options that people look for, in this order; the others follow."""
_MAX_CELL: Final = 40


def optimizer_section(file: PlottedFile, suffix: str) -> Iterator[str]:
    """Learning rate, betas, weight decay and all else of each group, and the step."""
    for facts in file["optimizers"][:_MAX_OPTIMIZERS]:
        words = title(facts)
        yield element("h2", escaped(f"{words[0].upper()}{words[1:]}{suffix}"))
        yield quiet(counts(facts))
        head, *rows = group_rows(facts)
        if not rows:
            continue
        order = sorted(range(len(head)), key=lambda place: _rank(head[place]))
        sides = ["left" if name == "state" else None for name in head]
        titles = [element("th", escaped(shortened(head[place], _MAX_CELL)), class_=sides[place]) for place in order]
        body = [
            element("tr", *(element("td", escaped(row[place]), class_=sides[place]) for place in order))
            for row in rows[:_MAX_GROUPS]
        ]
        yield table(titles, body)
        if len(rows) > _MAX_GROUPS:
            yield quiet(f"{len(rows) - _MAX_GROUPS} more groups are not shown.")


def _rank(option: str) -> int:
    if option in ("#", "params"):
        return -1
    return _FIRST.index(option) if option in _FIRST else len(_FIRST) + (option == "state")
