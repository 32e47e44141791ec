"""Markup that is well-formed whatever it is made of: SVG and HTML elements, escaped text, numbers, axes.

Names come from files and may be hostile. All text goes through `escaped`, which
spells out what is not printable: control characters, and those that change the
direction of the text around them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from html import escape
from itertools import accumulate
from typing import Final
from unicodedata import east_asian_width

_MAX_TEXT: Final = 300
"""Characters of a name that are shown; the JSON has all."""
CHARACTER: Final = 0.6
"""Width of a character over its font size, at most about, in the fonts the page asks for."""


def printable(text: object) -> str:
    """Any text with nothing in it that could steer what shows it, and not too long."""
    plain = str(text)
    if not plain.isprintable():
        plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in plain)
    return plain if len(plain) <= _MAX_TEXT else plain[: _MAX_TEXT - 1] + "\u2026"


def escaped(text: object) -> str:
    """Any text as it may stand in an element or attribute."""
    return escape(printable(text), quote=True)


def element(tag: str, *children: str, **attributes: object) -> str:
    """An element. ``children`` are markup already; ``class_`` means ``class``, ``text_anchor`` ``text-anchor``."""
    pairs = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped(number(v) if isinstance(v, float) else v)}"'
        for name, v in attributes.items()
        if v is not None
    )
    return f"<{tag}{pairs}>{''.join(children)}</{tag}>" if children else f"<{tag}{pairs}/>"


def title(text: object) -> str:
    """The tooltip of the element it stands in."""
    return f"<title>{escaped(text)}</title>"


def text(x: float, y: float, words: object, *, class_: str = "", anchor: str | None = None) -> str:
    """Words in an SVG."""
    return element("text", escaped(words), x=x, y=y, class_=class_ or None, text_anchor=anchor)


def quiet(words: str) -> str:
    """A sentence that explains."""
    return element("p", escaped(words), class_="quiet")


def table(head: Iterable[str], rows: Iterable[str]) -> str:
    """A table that can be scrolled where the page is too narrow. ``head`` are its ``th``, ``rows`` its ``tr``."""
    parts = element("thead", element("tr", *head)), element("tbody", *rows)
    return element("div", element("table", *parts), class_="table")


def tiles(items: Iterable[tuple[str, str, str | None]]) -> str:
    """What counts most, at the top of a page: a value, what it is, and the class of what is wrong."""
    each = [element("b", escaped(value), class_=kind) + element("span", escaped(words)) for value, words, kind in items]
    return element("ul", *(element("li", one) for one in each), class_="tiles")


def shape_words(shape: Sequence[int]) -> str:
    """The extents of a tensor."""
    return " x ".join(map(str, shape)) or "scalar"


def figure(name: str, width: float, height: float, parts: Iterable[str]) -> str:
    """An SVG that is as wide as the page and can be scrolled where that is too narrow."""
    body = "\n".join(parts)
    svg = element(
        "svg",
        title(name) + "\n",
        body + "\n",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {number(width)} {number(height)}",
        role="img",
        aria_label=name,
    )
    return element("div", svg, class_="figure")


def number(value: float) -> str:
    """A coordinate with at most two decimals."""
    digits = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if digits == "-0" else digits


def quantity(value: float) -> str:
    """A number as a person reads it: three digits."""
    if value == 0 or 0.001 <= abs(value) < 100_000:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return _exponent(f"{value:.2e}")


def fits(words: str, width: float, size: float = 11) -> bool:
    """Whether words surely fit into a width."""
    return sum(map(_columns, printable(words))) * size * CHARACTER + 6 <= width


def shortened(words: str, length: int, *, keep_end: bool = False) -> str:
    """Words of at most so many columns: their beginning, or their end. A Chinese or Japanese character takes two."""
    plain = printable(words)
    reach = [*accumulate(map(_columns, reversed(plain) if keep_end else plain))]
    if not reach or reach[-1] <= length:
        return plain
    kept = bisect_right(reach, length - 1)
    return "\u2026" + plain[len(plain) - kept :] if keep_end else plain[:kept] + "\u2026"


def _columns(character: str) -> int:
    return 2 if east_asian_width(character) in "WF" else 1


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high``, about five of them."""
    if high <= low:
        return [low]
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from ``low`` to ``high``, at most seven; 1, 2 and 5 times these if there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    within = (low * 0.999, high * 1.001)
    ticks = [10.0**power for power in powers if within[0] <= 10.0**power <= within[1]]
    if len(ticks) < 3:
        ticks = [f * 10.0**power for power in powers for f in (1, 2, 5) if within[0] <= f * 10.0**power <= within[1]]
    return ticks[:: -(-len(ticks) // 7)] if ticks else [low]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The ticks of an axis as text, with as many digits as tell them apart."""
    labels: list[str] = []
    for digits in range(2, 12):
        labels = [_tick_label(tick, digits) for tick in ticks]
        if len(set(labels)) == len(ticks):
            break
    return labels


def _tick_label(tick: float, digits: int) -> str:
    if 1 <= abs(tick) < 1e6:
        # As many digits in front of the point as it has, and no exponent.
        digits = max(digits, math.floor(math.log10(abs(tick))) + 1)
        return f"{tick:,.{digits}g}"
    return _exponent(f"{tick:.{digits}g}")


def _exponent(digits: str) -> str:
    return digits.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones that are ``gap`` apart, between ``low`` and ``high`` if they fit at all."""
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], index))
    places = [0.0] * len(wanted)
    at = low
    for index in order:
        at = places[index] = max(wanted[index], at)
        at += gap
    at = high
    for index in reversed(order):
        if places[index] <= at:
            break
        places[index] = at
        at -= gap
    return places


COLOURS: Final = ("#4269d0", "#efb118", "#e8573f", "#3fa796", "#3ca951", "#a463f2", "#f06fa4", "#9c6b4e")
"""For families and lines, told apart by most people who are colour-blind; in this order."""


OTHERS: Final = "#97a0ab"


_TINTS: Final = ("#a9bcee", "#f6d98a", "#f5b3a7", "#9fd6cb", "#9fd9aa", "#d3b7fa", "#f8b9d3", "#cfb5a4", "#cbd0d6")
"""The same, pale enough for dark words on them; the last one is for what has no colour of its own."""


SHADES: Final = ("#e4eefb", "#c3dbf4", "#93c0e8", "#5b9fd6", "#2f7cbf", "#14579c", "#08306b")
"""Of a heat map, from the palest on."""


_SHEET: Final = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --faint: #5c6670; --rule: #d9dee3; --soft: #f4f6f8;
  --intact: #9fd0b0; --unproven: #d9d2b8; --good: #1d7a3f; --bad: #b3162b; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --ink: #e6e9ec; --faint: #9aa5b1; --rule: #343c45; --soft: #1d232a;
    --intact: #2f6b4a; --unproven: #5f5a43; --good: #5fce8a; --bad: #ff7a88; --warn: #f0c060; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 24px 20px 64px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0 0 2px; overflow-wrap: anywhere; }
.tiles ~ h1 { margin-top: 48px; }
h2 { font-size: 17px; margin: 40px 0 4px; overflow-wrap: anywhere; }
p { margin: 4px 0 12px; max-width: 76ch; overflow-wrap: anywhere; } .quiet { color: var(--faint); }
code, td.name bdi { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; }
bdi { unicode-bidi: isolate; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 16px 0; padding: 0; list-style: none; }
.tiles li { background: var(--soft); border-radius: 8px; padding: 8px 14px; min-width: 112px; }
.tiles b { display: block; font-size: 19px; font-weight: 600; } .tiles span { color: var(--faint); font-size: 13px; }
.good { color: var(--good); } .bad { color: var(--bad); } .warning { color: var(--warn); }
.figure { overflow-x: auto; margin: 8px 0; }
.figure svg { display: block; width: 100%; min-width: 720px; height: auto; }
.keys { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; margin: 6px 0; color: var(--faint); }
.keys i { display: inline-block; width: 11px; height: 11px; margin-right: 6px; border-radius: 2px; }
.table { overflow-x: auto; max-height: 640px; overflow-y: auto; border: 1px solid var(--rule); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: var(--soft); font-weight: 600; text-align: right; }
td { text-align: right; border-top: 1px solid var(--rule); } th, td { padding: 4px 10px; white-space: nowrap; }
td.why { white-space: normal; }
td.name { max-width: 400px; white-space: normal; overflow-wrap: anywhere; min-width: min(288px, 45vw); }
.left { text-align: left; } summary { cursor: pointer; margin: 6px 0; } ul { padding-left: 20px; margin: 4px 0 12px; }
svg text { font: 12px system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; fill: var(--ink);
  unicode-bidi: plaintext; }
svg .small { font-size: 11px; } svg .tiny { font-size: 10px; } svg .faint { fill: var(--faint); }
svg .warn { fill: var(--bad); } svg text.on { fill: #14181d; pointer-events: none; }
svg text.on.faint { fill: #3d4650; }
svg .ink-light { fill: #fff; } svg .ink-dark { fill: #14181d; } svg text.tiny { pointer-events: none; }
.module { fill: var(--soft); stroke: var(--rule); } .grid { stroke: var(--rule); } .axis { stroke: var(--faint); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .lead { fill: none; stroke: var(--rule); }
.dot { stroke: var(--page); stroke-width: 1; } .series:hover .line { stroke-width: 4; } .bar { fill: #4269d0; }
.leaf:hover, .cell:hover, .bar:hover, .chunk:hover { stroke: var(--ink); stroke-width: 2; }
.leaf.broken { stroke: #d62839; stroke-width: 2.5; }
.cell.h0 { fill: var(--soft); } .chunk.intact { fill: var(--intact); } .chunk.unproven { fill: var(--unproven); }
.chunk.heals { fill: #4269d0; } .chunk.damaged { fill: #efb118; } .chunk.lost { fill: #d62839; }
.spark { width: 132px; height: 22px; vertical-align: middle; margin-right: 8px; }
.trend { fill: none; stroke: #4269d0; stroke-width: 1.5; }
.range { color: var(--faint); }
.cross { stroke: #fff; stroke-width: 1.2; pointer-events: none; }
.k-intact { background: var(--intact); } .k-unproven { background: var(--unproven); }
.k-heals { background: #4269d0; } .k-damaged { background: #efb118; } .k-lost { background: #d62839; }
@media print { .table { max-height: none; } }
"""


def style_sheet() -> str:
    """The style sheet of a page."""
    rules = []
    for place, (colour, tint) in enumerate(zip((*COLOURS, OTHERS), _TINTS, strict=True)):
        rules.append(f".c{place} {{ fill: {colour}; }} .s{place} {{ stroke: {colour}; }}")
        rules.append(f".leaf.c{place} {{ fill: {tint}; }} .k{place} {{ background: {tint}; }}")
    rules += [f".h{place} {{ fill: {shade}; }}" for place, shade in enumerate(SHADES, 1)]
    return _SHEET + "\n".join(rules) + "\n"
