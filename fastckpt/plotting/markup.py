"""Markup that is well-formed whatever it is made of: SVG and HTML elements, escaped text, numbers, axes.

Names come from files and may be hostile. All text goes through `escaped`, which
spells out what is not printable: control characters, and those that change the
direction of the text around them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
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


def amount(nbytes: int) -> str:
    """Bytes in decimal units, as in ``16.8 MB``."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if nbytes >= 0.9995 * 1000**power:
            return f"{nbytes / 1000**power:.3g} {unit}"
    return f"{nbytes} B"


def counted(count: int, noun: str) -> str:
    """``1 tensor``, ``1,234 tensors``."""
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def fits(words: str, width: float, size: float = 11) -> bool:
    """Whether words surely fit into a width."""
    columns = sum(2 if east_asian_width(character) in "WF" else 1 for character in printable(words))
    return columns * size * CHARACTER + 6 <= width


def shortened(words: str, length: int, *, keep_end: bool = False) -> str:
    """Words of at most so many characters: their beginning, or their end."""
    plain = printable(words)
    if len(plain) <= length:
        return plain
    return "\u2026" + plain[-length + 1 :] if keep_end else plain[: length - 1] + "\u2026"


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
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
