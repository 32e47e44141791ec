"""Histograms of magnitudes, one small panel for each kind of tensor, all on the same scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from fastckpt.plotting.markup import element, figure, shortened, text, title

WIDTH: Final = 960.0
MAX_PANELS: Final = 24
_TAIL: Final = 0.001
"""The share of a panel's numbers that may be drawn in its lowest bar, whatever their octave."""
_COLUMNS: Final = 4
_PANEL: Final = (228.0, 104.0)
_GAP: Final = (16.0, 54.0)
_HEADER: Final = 30.0
"""Room above the bars for two lines of words: the name, then zeros, NaN and infinities."""
_LABEL_LENGTH: Final = 32


class Panel(NamedTuple):
    """The magnitudes of one kind of tensor.

    Attributes:
        name: Of the kind.
        octaves: How many numbers there are in each octave, the first one ``first_octave``.
        zeros: How many numbers have no magnitude.
        warning: NaN and infinities.
    """

    name: str
    octaves: Sequence[int]
    zeros: int
    warning: str


def histograms(panels: Sequence[Panel], first_octave: int) -> str:
    """The figure: at most MAX_PANELS panels, of which at least one has a number in it."""
    low = min(_body(panel.octaves) for panel in panels if any(panel.octaves))
    high = max(place for panel in panels for place, count in enumerate(panel.octaves) if count) + 1
    parts = []
    for place, panel in enumerate(panels):
        row, column = divmod(place, _COLUMNS)
        x = column * (_PANEL[0] + _GAP[0])
        y = row * (_PANEL[1] + _GAP[1]) + _HEADER
        parts.append(element("g", *_panel(panel, x, y, low, high, first_octave), class_="panel"))
    rows = -(-len(panels) // _COLUMNS)
    return figure("Histograms of magnitudes", WIDTH, rows * (_PANEL[1] + _GAP[1]) + 4, parts)


def _body(octaves: Sequence[int]) -> int:
    """The first octave below which there are few numbers."""
    most, seen = _TAIL * sum(octaves), 0
    for place, count in enumerate(octaves):
        seen += count
        if seen > most:
            return place
    return 0


def _panel(panel: Panel, x: float, y: float, low: int, high: int, first_octave: int) -> list[str]:
    width, height = _PANEL
    shown = shortened(panel.name, _LABEL_LENGTH, keep_end=True)
    parts = [element("g", title(panel.name), text(x, y - 18, shown, class_="small"))]
    counts = [sum(panel.octaves[: low + 1]), *panel.octaves[low + 1 : high]]
    highest, total = max(counts), sum(panel.octaves)
    step = width / (high - low)
    for place, count in enumerate(counts):
        if count:
            octave = first_octave + low + place
            where = f"from 2^{octave} to 2^{octave + 1}" if place else f"below 2^{octave + 1}"
            tip = title(f"{panel.name}: {count:,} ({100 * count / total:.3g}%) {where}")
            tall = max(count / highest * height, 1.0)
            bar = {"x": x + place * step, "y": y + height - tall, "width": max(step - 1, 0.5), "height": tall}
            parts.append(element("rect", tip, class_="bar", **bar))
    parts.append(element("line", x1=x, x2=x + width, y1=y + height, y2=y + height, class_="axis"))
    for power, at in _decades(low + first_octave, high + first_octave):
        tick = x + (at - low - first_octave) * step
        if x + 12 <= tick <= x + width - 12:
            parts.append(text(tick, y + height + 13, f"1e{power}", class_="tiny faint", anchor="middle"))
    if panel.zeros:
        parts.append(text(x, y - 6, f"{panel.zeros:,} zeros", class_="tiny faint"))
    if panel.warning:
        parts.append(text(x + width, y - 6, panel.warning, class_="tiny warn", anchor="end"))
    return parts


def _decades(low: int, high: int) -> list[tuple[int, float]]:
    """Powers of ten between two powers of two, some four of them, each with its binary logarithm."""
    first, last = math.ceil(low / math.log2(10)), math.floor(high / math.log2(10))
    size = max(-(-(last - first + 1) // 4), 1)
    # Counted from 1, so that it is among them if it is in the range at all.
    return [(power, power * math.log2(10)) for power in range(first, last + 1) if power % size == 0]
