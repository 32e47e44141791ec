"""What became of every chunk of a damaged file: intact, damaged, lost.

A chunk is 1 MiB of raw bytes of a record, or, in a file of another format, of
a storage. It is lost if nothing of it is proven or even there, damaged if a
part of it is, and unproven if the file has no checksum to tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from fastckpt.constants import CHUNK_SIZE
from fastckpt.layout.entries import Entry
from fastckpt.plotting.markup import element, figure, text, title
from fastckpt.surveying.wreck import Hole, StorageState, Wreck

INTACT: Final = "intact"
UNPROVEN: Final = "unproven"
DAMAGED: Final = "damaged"
LOST: Final = "lost"
STATES: Final = (INTACT, UNPROVEN, DAMAGED, LOST)
"""From the best to the worst."""


class ChunkState(NamedTuple):
    """A chunk, or a run of them where there are too many to tell apart.

    Attributes:
        state: ``intact``, ``unproven``, ``damaged`` or ``lost``.
        place: Which one it is, for a person.
        tensors: Names of the tensors with bytes in it.
    """

    state: str
    place: str
    tensors: tuple[str, ...]


class _Part(NamedTuple):
    """A storage in its unit (a record, or itself), where it begins at ``start``."""

    start: int
    state: StorageState
    entries: Sequence[Entry]


def chunk_states(wreck: Wreck) -> list[ChunkState]:
    """The state of all chunks, in file order."""
    entries: dict[int, list[Entry]] = {}
    for entry in wreck.entries:
        entries.setdefault(entry.storage, []).append(entry)
    units: dict[str, list[_Part]] = {}
    for number, storage in enumerate(wreck.storages):
        unit = f"record {storage.record.number}" if storage.record is not None else f"storage {number}"
        units.setdefault(unit, []).append(_Part(storage.record_offset, storage, entries.get(number, [])))
    return [state for unit, parts in units.items() for state in _unit_states(unit, parts)]


def _unit_states(unit: str, parts: Sequence[_Part]) -> Iterator[ChunkState]:
    end = max(part.start + part.state.nbytes for part in parts)
    for chunk, begin in enumerate(range(0, end, CHUNK_SIZE)):
        states, names = [], []
        stop = min(begin + CHUNK_SIZE, end)
        for part in parts:
            first, last = max(begin - part.start, 0), min(stop - part.start, part.state.nbytes)
            if first < last:
                states.append(_state(part.state, first, last))
                names += [e.name for e in part.entries if e.span[0] < last and first < e.span[1]]
        if set(states) <= {INTACT, UNPROVEN} or set(states) == {LOST}:
            state = max(states, key=STATES.index, default=INTACT)
        else:
            state = DAMAGED
        yield ChunkState(state, f"{unit}, chunk {chunk}", tuple(names))


def _state(storage: StorageState, first: int, last: int) -> str:
    holes = [hole for hole in storage.holes if hole.start < last and first < hole.end]
    if not holes:
        return INTACT if storage.proven else UNPROVEN
    return LOST if _covered(holes, first, last) else DAMAGED


def _covered(holes: Sequence[Hole], first: int, last: int) -> bool:
    """Whether nothing is left between the holes; where a checksum says no more than "somewhere", something may be."""
    at = first
    for hole in holes:
        if not hole.located or hole.start > at:
            return False
        at = max(at, hole.end)
    return at >= last


def merged(states: Sequence[ChunkState], limit: int) -> tuple[list[ChunkState], int]:
    """At most ``limit`` states, each of the worst of so many neighbours; and how many that is."""
    size = -(-len(states) // limit) if len(states) > limit else 1
    if size == 1:
        return list(states), 1
    runs = [states[at : at + size] for at in range(0, len(states), size)]
    return [
        ChunkState(
            max((item.state for item in run), key=STATES.index),
            f"{run[0].place} to {run[-1].place}",
            tuple(dict.fromkeys(name for item in run for name in item.tensors)),
        )
        for run in runs
    ], size


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
