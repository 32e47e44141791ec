"""The page of two checkpoints: what differs between them, where, and by how much."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from fastckpt.layout.entries import Entry
from fastckpt.plotting.charts import MAX_LINES, Line, are_wide, lines
from fastckpt.plotting.markup import element, escaped, number, quantity, quiet, shape_words, shortened, table, tiles
from fastckpt.plotting.naming import counts_layers, parse, short_labels
from fastckpt.plotting.page import document
from fastckpt.stored.comparison import Comparison, Side, TensorDifference
from fastckpt.stored.leaf_value import leaf_value
from fastckpt.text import count_text, size_text

_MAX_ROWS: Final = 2000
_MAX_NAME: Final = 100
_BAR: Final = 90.0


class Compared(NamedTuple):
    """Two files that were compared.

    Attributes:
        role: What they are, if they are not the only ones; else "".
        found: The differences.
        verdict: What is said of them in a sentence.
        style: ``good``, ``warn`` or ``bad``.
    """

    role: str
    found: Comparison
    verdict: str
    style: str


def difference_page(a: str, b: str, pairs: Sequence[Compared]) -> str:
    """The page of two files, or of all files of two directories that belong together.

    Args:
        a, b: What was compared, as it was named.
        pairs: The files.
    """
    body = [element("h1", element("bdi", escaped(a)), " and ", element("bdi", escaped(b)))]
    for pair in pairs:
        if pair.role:
            body.append(element("h1", escaped(pair.role), class_="part"))
        body += _heading(pair)
        body += _by_layer(pair.found)
        body += _tensors(pair.found)
        body += _structure(pair.found)
    return document(f"{a} and {b}", body)


def _heading(pair: Compared) -> Iterator[str]:
    found = pair.found
    states = Counter(tensor.status for tensor in found.tensors.values())
    counted = [
        (states["identical"], "identical", None),
        (states["differs"], "differ", "warning" if states["differs"] else None),
        (states["damaged"], "damaged", "bad" if states["damaged"] else None),
        (len(found.structure.only_a), "only in A", None),
        (len(found.structure.only_b), "only in B", None),
    ]
    rows = [_side("A", found.a), _side("B", found.b)]
    yield element("div", element("table", element("tbody", *rows)), class_="table")
    yield tiles((f"{count:,}", words, kind) for count, words, kind in counted)
    yield element("p", element("b", escaped(pair.verdict), class_={"warn": "warning"}.get(pair.style, pair.style)))
    for note in found.structure.notes:
        yield quiet(note)


def _side(letter: str, side: Side) -> str:
    said = f"{side.format}, {size_text(side.size)}, {count_text(side.tensors, 'tensor')}"
    path = element("bdi", escaped(side.path))
    return element("tr", element("td", letter), element("td", path, class_="left name"), element("td", escaped(said)))


def _differing(found: Comparison) -> dict[str, TensorDifference]:
    """Those that differ, the most different first."""
    differ = {name: tensor for name, tensor in found.tensors.items() if tensor.status != "identical"}
    return dict(sorted(differ.items(), key=lambda item: _rank(item[1])))


def _rank(tensor: TensorDifference) -> float:
    relative = tensor.numbers.relative if tensor.numbers is not None else math.inf
    return -math.inf if math.isnan(relative) else -relative


def _by_layer(found: Comparison) -> Iterator[str]:
    """The relative change of each kind of tensor, layer by layer."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for name, tensor in found.tensors.items():
        parsed, relative = parse(name), tensor.numbers.relative if tensor.numbers is not None else 0.0
        if parsed.layer is not None and counts_layers(parsed.kind) and 0 < relative < math.inf:
            kinds.setdefault(parsed.kind, []).append((parsed.layer, relative))
    layered = {kind: sorted(points) for kind, points in kinds.items() if len(points) > 1}
    most = sorted(layered, key=lambda kind: (-max(y for _, y in layered[kind]), kind))[:MAX_LINES]
    if not most:
        return
    labels = short_labels(most)
    series = [Line(labels[kind], layered[kind]) for kind in most]
    yield element("h2", "Change by layer")
    rest = f" The {MAX_LINES} kinds that changed most are shown." if len(layered) > len(most) else ""
    yield quiet(f"L2 norm of B - A over that of A, by the first number in the name.{rest}")
    yield lines(
        "Change by layer",
        "layer (the first number in the name)",
        "relative L2",
        series,
        log=are_wide(series),
    )


def _tensors(found: Comparison) -> Iterator[str]:
    """All that differ in a table."""
    differ = _differing(found)
    if not differ:
        return
    yield element("h2", "Tensors that differ")
    if len(differ) > _MAX_ROWS:
        yield quiet(f"The first {_MAX_ROWS:,} of {len(differ):,}; fastckpt diff --json has all.")
    names = ("name", "dtype", "shape", "relative L2", "", "largest", "cosine", "elements that differ")
    left = ("name", "dtype", "")
    head = [element("th", name, class_="left" if name in left else None) for name in names]
    shown = list(differ.items())[:_MAX_ROWS]
    sizes = [tensor.numbers.relative for _, tensor in shown if tensor.numbers is not None]
    most = max((size for size in sizes if math.isfinite(size)), default=0.0)
    rows = [_row(name, tensor, most) for name, tensor in shown]
    yield table(head, rows)


def _row(name: str, tensor: TensorDifference, most: float) -> str:
    cells = [
        element("td", element("bdi", escaped(shortened(name, _MAX_NAME))), class_="left name"),
        element("td", escaped(tensor.a.dtype), class_="left"),
        element("td", shape_words(tensor.a.shape)),
    ]
    tally = tensor.numbers
    if tally is None:
        said = tensor.error.message if tensor.error is not None else "by how much cannot be said"
        said = "not read" if tensor.status == "unread" else said
        cells.append(element("td", escaped(said), colspan=5, class_="left why"))
        return element("tr", *cells)
    share = 100 * tally.differing / tally.elements if tally.elements else 0.0
    cells += [
        element("td", _finite(tally.relative)),
        element("td", _bar(tally.relative / most if most else 0.0), class_="left"),
        element("td", _finite(tally.max_abs)),
        element("td", "-" if tally.cosine is None else f"{tally.cosine:.6f}"),
        element("td", f"{tally.differing:,} ({share:.3g}%)"),
    ]
    return element("tr", *cells)


def _finite(value: float) -> str:
    return quantity(value) if math.isfinite(value) else str(value)


def _bar(share: float) -> str:
    """A bar as long as a share of the longest one."""
    width = _BAR * min(share, 1.0) if math.isfinite(share) else _BAR
    bar = element("rect", x=0.0, y=2.0, width=max(width, 1.0), height=8.0, class_="bar")
    return element("svg", bar, viewBox=f"0 0 {number(_BAR)} 12", class_="spark", aria_hidden="true")


def _structure(found: Comparison) -> Iterator[str]:
    """Names that only one has, and values, types and containers that are others."""
    structure = found.structure
    rows: list[tuple[str, str, str, str]] = []
    for entry in structure.only_a:
        rows.append(("tensor", entry.name, _type(entry), ""))
    for entry in structure.only_b:
        rows.append(("tensor", entry.name, "", _type(entry)))
    for name, changes in structure.tensors.items():
        rows += [(what, name, _value(change[0]), _value(change[1])) for what, change in changes.items()]
    rows += _changed("container", structure.containers)
    for what, named in (("value", structure.values), ("metadata", structure.metadata)):
        rows += _changed(what, named.changed)
        rows += [(what, name, _value(value), "") for name, value in named.only_a.items()]
        rows += [(what, name, "", _value(value)) for name, value in named.only_b.items()]
    rows += [("object", place, part.status, part.reason) for place, part in found.objects.items() if part.reason]
    if not rows:
        return
    yield element("h2", "Names and values")
    if len(rows) > _MAX_ROWS:
        yield quiet(f"The first {_MAX_ROWS:,} of {len(rows):,}; fastckpt diff --json has all.")
    head = [element("th", word, class_="left") for word in ("", "name", "A", "B")]
    body = [element("tr", *map(_cell, row)) for row in rows[:_MAX_ROWS]]
    yield table(head, body)


def _cell(words: str) -> str:
    return element("td", element("bdi", escaped(shortened(words, _MAX_NAME))), class_="left why")


def _changed(what: str, changes: Mapping[str, tuple[Any, Any]]) -> list[tuple[str, str, str, str]]:
    return [(what, name, _value(a), _value(b)) for name, (a, b) in changes.items()]


def _type(entry: Entry) -> str:
    return f"{entry.dtype} {shape_words(entry.shape)}"


def _value(value: Any) -> str:
    found = leaf_value(value)
    return quantity(found) if type(found) is float and math.isfinite(found) else str(found)
