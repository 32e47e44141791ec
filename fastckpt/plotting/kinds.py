"""The kinds of tensors in a table, each with its norm layer by layer as a line of a few pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from fastckpt.plotting.markup import element, escaped, number, quantity, quiet, shortened, table, title
from fastckpt.plotting.numbers import PlottedFile
from fastckpt.plotting.summary import KindOfTensor, kinds_of
from fastckpt.text import count_text, size_text

_MAX_KINDS: Final = 100
_MAX_LABEL: Final = 60
_WIDTH: Final = 132.0
_HEIGHT: Final = 22.0
_MAX_POINTS: Final = 132


def kind_section(file: PlottedFile, suffix: str) -> Iterator[str]:
    """Bytes, norm, zeros and bad numbers of each kind of tensor."""
    kinds = kinds_of(file["tensors"])
    if not kinds:
        return
    yield element("h2", escaped(f"Kinds of tensors{suffix}"))
    more = f" {count_text(len(kinds) - _MAX_KINDS, 'more kind')} are not shown." if len(kinds) > _MAX_KINDS else ""
    yield quiet(
        "Tensors with the same name but for its first number, a star in its place: a layer, or a parameter of an "
        f"optimizer. The line is their L2 norm in that order, between its own least and largest value.{more}"
    )
    names = ("kind", "tensors", "size", "norm", "zeros", "NaN, inf", "norm in order")
    head = [element("th", name, class_=_side(name)) for name in names]
    rows = [_row(kind) for kind in kinds[:_MAX_KINDS]]
    yield table(head, rows)


def _side(name: str) -> str | None:
    return "left" if name in ("kind", "norm in order") else None


def _row(kind: KindOfTensor) -> str:
    bad = kind.nan + kind.inf
    norms = [norm for _, norm in sorted(kind.norms.items()) if math.isfinite(norm)]
    cells = [
        element("td", element("bdi", escaped(shortened(kind.kind, _MAX_LABEL, keep_end=True))), class_="left name"),
        element("td", f"{kind.tensors:,}"),
        element("td", size_text(kind.nbytes)),
        element("td", "-" if kind.unmeasured else quantity(kind.norm)),
        element("td", f"{100 * kind.zeros / kind.count:.3g}%" if kind.zeros else "0"),
        element("td", f"{bad:,}", class_="bad" if bad else None),
        element("td", sparkline(norms), class_="left"),
    ]
    return element("tr", *cells)


def sparkline(values: Sequence[float]) -> str:
    """A line through some values, with the least and the largest beside it; nothing for fewer than two."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    if quantity(low) == quantity(high):
        return element("span", escaped(quantity(low)), class_="range")
    shown = values[:: -(-len(values) // _MAX_POINTS)]
    step = (_WIDTH - 4) / max(len(shown) - 1, 1)
    points = " ".join(
        f"{number(2 + place * step)},{number(_HEIGHT - 3 - (value - low) / (high - low) * (_HEIGHT - 6))}"
        for place, value in enumerate(shown)
    )
    words = f"{quantity(low)} to {quantity(high)}"
    line = element("polyline", points=points, class_="trend")
    box = f"0 0 {number(_WIDTH)} {number(_HEIGHT)}"
    svg = element("svg", title(words), line, viewBox=box, role="img", aria_label=words, class_="spark")
    return svg + element("span", escaped(words), class_="range")
