"""Lines and heat maps: norms by layer, and how they move from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from fastckpt.plotting.markup import (
    CHARACTER,
    COLOURS,
    SHADES,
    element,
    figure,
    fits,
    log_ticks,
    nice_ticks,
    number,
    quantity,
    shortened,
    spread,
    text,
    tick_labels,
    title,
)

WIDTH: Final = 960.0
_LEFT: Final = 70.0
_RIGHT: Final = 190.0
"""Room for the names of the lines, each beside its end."""
_TOP: Final = 14.0
_TICK_GAP: Final = 44.0
_HEIGHT: Final = 300.0
_LABEL_GAP: Final = 15.0
_LABEL_LENGTH: Final = 26
_LOG_FROM: Final = 20
MAX_LINES: Final = len(COLOURS)
_DARK: Final = 5
"""The first of SHADES that light words can be read on."""
_NO_NUMBER: Final = "\u2013"
"""Stands in cells without a number."""


class Line(NamedTuple):
    """A named line through ``(x, y)`` points, ascending in x."""

    name: str
    points: Sequence[tuple[float, float]]


def are_wide(series: Sequence[Line]) -> bool:
    """Whether positive values lie so far apart that they are drawn on a logarithmic scale."""
    values = [y for line in series for _, y in line.points]
    return max(values) > _LOG_FROM * min(values)


def lines(name: str, x_label: str, y_label: str, series: Sequence[Line], *, log: bool) -> str:
    """A line chart.

    Args:
        name: Of the figure, for those who cannot see it.
        x_label, y_label: What the axes show.
        series: At most MAX_LINES lines, each with a point.
        log: Whether the y axis is logarithmic. All y must be positive then.
    """
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    low, high = min(ys), max(ys)
    if log:
        low, high = low / 1.15, high * 1.15
    else:
        margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
        low, high = low - margin, high + margin
    left, right, bottom = _LEFT, WIDTH - _RIGHT, _TOP + _HEIGHT
    first, last = min(xs), max(xs)

    def at_x(x: float) -> float:
        return (left + right) / 2 if last == first else left + 12 + (x - first) / (last - first) * (right - left - 24)

    def at_y(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if log else (y - low) / (high - low)
        return bottom - share * _HEIGHT

    parts = []
    ticks = log_ticks(low, high) if log else nice_ticks(low, high)
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts += [
            element("line", x1=left, x2=right, y1=at_y(tick), y2=at_y(tick), class_="grid"),
            text(left - 8, at_y(tick) + 4, label, class_="small faint", anchor="end"),
        ]
    for tick in _ticks_apart(sorted(set(xs)), at_x):
        parts.append(text(at_x(tick), bottom + 18, f"{tick:,.0f}", class_="small faint", anchor="middle"))
    parts += [
        element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"),
        text((left + right) / 2, bottom + 38, x_label, class_="small", anchor="middle"),
        element("g", text(0, 0, y_label, class_="small", anchor="middle"), transform=_turned(14, _TOP + _HEIGHT / 2)),
    ]
    ends = [at_y(line.points[-1][1]) for line in series]
    for place, (line, end, label_y) in enumerate(
        zip(series, ends, spread(ends, _LABEL_GAP, _TOP + 4, bottom - 2), strict=True)
    ):
        path = " ".join(f"{number(at_x(x))},{number(at_y(y))}" for x, y in line.points)
        marks = [element("polyline", title(line.name), points=path, class_=f"line s{place}")]
        for x, y in line.points:
            about = title(f"{line.name}, {x_label} {x:,.0f}: {quantity(y)}")
            marks.append(element("circle", about, cx=at_x(x), cy=at_y(y), r=3.0, class_=f"dot c{place}"))
        tip = at_x(line.points[-1][0]) + 5
        marks.append(
            element("polyline", points=_path((tip, end), (right + 4, label_y), (right + 12, label_y)), class_="lead")
        )
        marks.append(element("rect", x=right + 14, y=label_y - 5, width=10.0, height=10.0, class_=f"c{place}"))
        shown = shortened(line.name, _LABEL_LENGTH)
        marks.append(text(right + 29, label_y + 4, shown, class_="small"))
        parts.append(element("g", *marks, class_="series"))
    return figure(name, WIDTH, bottom + 46, parts)


def _path(*points: tuple[float, float]) -> str:
    return " ".join(f"{number(x)},{number(y)}" for x, y in points)


def _turned(x: float, y: float) -> str:
    return f"translate({number(x)} {number(y)}) rotate(-90)"


def _ticks_apart(values: Sequence[float], at_x: Callable[[float], float]) -> list[float]:
    """As many of the values themselves (layers and steps are whole numbers) as have room; the last is among them."""
    gap = max(_TICK_GAP, len(f"{values[-1]:,.0f}") * 11 * CHARACTER + 8)
    ticks: list[float] = []
    for value in values:
        if not ticks or at_x(value) - at_x(ticks[-1]) >= gap:
            ticks.append(value)
    ticks[-1] = values[-1]
    return ticks


def heatmap(
    name: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[float | None]],
    *,
    low: float,
    high: float,
    x_label: str,
    words: Callable[[float], str],
) -> str:
    """A heat map on a logarithmic scale, with the values in the cells where they have room, and its scale below.

    Args:
        name: Of the figure.
        columns: Their labels.
        rows: By label, a positive value for each column; 0 and None have no shade.
        low, high: What the palest and the darkest shade begin at.
        x_label: What the columns are.
        words: A value as text.
    """
    left, height = 190.0, 20.0
    width = min((WIDTH - left) / len(columns), 90.0)
    parts = []
    for place, (label, values) in enumerate(rows.items()):
        y = _TOP + place * height
        shown = shortened(label, _LABEL_LENGTH, keep_end=True)
        parts.append(element("g", title(label), text(left - 8, y + 14, shown, class_="small", anchor="end")))
        for column, value in enumerate(values):
            x = left + column * width
            shade = _shade(value, low, high)
            said = "not measured" if value is None else words(value)
            tip = title(f"{label}, {x_label} {columns[column]}: {said}")
            parts.append(element("rect", tip, x=x, y=y, width=width - 1, height=height - 1, class_=f"cell h{shade}"))
            shown = _NO_NUMBER if value is None else said
            if fits(shown, width, 10) or value is None:
                ink = "faint" if not shade else "ink-light" if shade >= _DARK else "ink-dark"
                parts.append(text(x + width / 2, y + 14, shown, class_=f"tiny {ink}", anchor="middle"))
    bottom = _TOP + len(rows) * height
    every = -(-56 // int(width)) if width < 56 else 1
    for column in range(0, len(columns), every):
        x = left + (column + 0.5) * width
        parts.append(text(x, bottom + 14, columns[column], class_="small faint", anchor="middle"))
    middle = left + len(columns) * width / 2
    parts.append(text(middle, bottom + 34, x_label, class_="small", anchor="middle"))
    parts += _scale(left, bottom + 56, low, high, words)
    return figure(name, WIDTH, bottom + 84, parts)


def _scale(x: float, y: float, low: float, high: float, words: Callable[[float], str]) -> list[str]:
    """What the shades mean: the value that each begins at."""
    if high <= low:
        return []
    width = 64.0
    parts = []
    for place in range(len(SHADES)):
        value = low * (high / low) ** (place / len(SHADES))
        at = x + place * width
        parts.append(element("rect", x=at, y=y, width=width - 1, height=10.0, class_=f"h{place + 1}"))
        parts.append(text(at, y + 22, words(value), class_="tiny faint"))
    return parts


def _shade(value: float | None, low: float, high: float) -> int:
    """From 1, the palest, to the number of SHADES; 0 for what has none."""
    if value is None or value <= 0:
        return 0
    if high <= low:
        return (len(SHADES) + 1) // 2
    share = math.log(value / low) / math.log(high / low)
    return 1 + max(0, min(len(SHADES) - 1, int(share * len(SHADES))))
