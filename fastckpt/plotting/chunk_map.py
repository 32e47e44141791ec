"""The damage map: a cell for every chunk, in file order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastckpt.plotting.chunk_states import LOST
from fastckpt.plotting.markup import element, figure, text, title

WIDTH: Final = 960.0
_SIZES: Final = ((1500, 16.0), (6000, 11.0))
_SMALLEST: Final = 7.0
_SHOWN_NAMES: Final = 4
_MARGIN: Final = 70.0


def chunk_map(cells: Sequence[Mapping[str, Any]]) -> str:
    """The figure.

    Args:
        cells: ``state``, ``place`` and ``tensors`` of each.
    """
    size = next((size for limit, size in _SIZES if len(cells) <= limit), _SMALLEST)
    columns = int((WIDTH - _MARGIN) // size)
    parts = []
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        if not column:
            parts.append(text(_MARGIN - 8, row * size + size - 3, f"{number:,}", class_="tiny faint", anchor="end"))
        names = cell["tensors"]
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        tip = title(f"{cell['place']}: {cell['state']}; {', '.join(names[:_SHOWN_NAMES])}{more}")
        place = {"x": _MARGIN + column * size, "y": row * size}
        side = size - 1.5
        parts.append(element("rect", tip, class_=f"chunk {cell['state']}", width=side, height=side, **place))
        if cell["state"] == LOST:
            # Told apart without colour, too.
            a, b = place["x"] + 2, place["x"] + side - 2
            c, d = place["y"] + 2, place["y"] + side - 2
            parts.append(
                element("path", d=f"M{a:.1f} {c:.1f}L{b:.1f} {d:.1f}M{a:.1f} {d:.1f}L{b:.1f} {c:.1f}", class_="cross")
            )
    rows = -(-len(cells) // columns)
    return figure("Damage map", WIDTH, max(rows, 1) * size + 2, parts)
