"""What became of every chunk of a damaged file: intact, damaged, lost.

A chunk is 1 MiB of raw bytes of a record, or, in a file of another format, of
a storage. It is lost if nothing of it is proven or even there, damaged if a
part of it is, and unproven if the file has no checksum to tell.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from fastckpt.constants import CHUNK_SIZE
from fastckpt.layout.entries import Entry, by_storage
from fastckpt.plotting.markup import element, figure, text, title
from fastckpt.surveying.fates import THERE, Status
from fastckpt.surveying.holes import Holes
from fastckpt.surveying.wreck import StorageState, Wreck
from fastckpt.text import size_text, some
from fastckpt.verdicts import Verdict

INTACT: Final = Verdict.INTACT.value
HEALS: Final = "heals"
UNPROVEN: Final = "unproven"
DAMAGED: Final = "damaged"
LOST: Final = "lost"
STATES: Final = (INTACT, HEALS, UNPROVEN, DAMAGED, LOST)
"""From the best to the worst."""
MAX_CELLS: Final = 5_000
"""Cells of a map: some 500 kB of SVG."""
_MAX_NAMES: Final = 1_000_000
"""Names that all runs of a unit are told to hold. Tensors that overlap in their thousands would make more."""


@dataclass(frozen=True, slots=True)
class ChunkState:
    """A chunk; or a run of them that are in one state and hold the same tensors, or are too many to tell apart.

    Attributes:
        state: ``intact``, ``unproven``, ``damaged`` or ``lost``; of what parity heals ``heals``.
        nbytes: Bytes of tensors in it.
        place: Which one it is, for a person.
        tensors: Names of the tensors with bytes in it.
    """

    state: str
    nbytes: int
    place: str
    tensors: tuple[str, ...]


class _Part(NamedTuple):
    """A storage in its unit (a record, or itself), where it begins at ``start``."""

    start: int
    state: StorageState
    entries: Sequence[Entry]


def chunk_states(wreck: Wreck) -> list[ChunkState]:
    """The state of all chunks, in file order. As many as things in the file, whatever sizes it states."""
    entries = by_storage(wreck.entries)
    units: dict[str, list[_Part]] = {}
    for number, storage in enumerate(wreck.storages):
        unit = f"record {storage.record.number}" if storage.record is not None else f"storage {number}"
        units.setdefault(unit, []).append(_Part(storage.record_offset, storage, entries.get(number, [])))
    for unnamed in wreck.unnamed:
        units.setdefault(f"storage {unnamed.key} of no tensor", []).append(_Part(0, unnamed.state, []))
    return [state for unit, parts in units.items() for state in _unit_states(unit, parts)]


def _unit_states(unit: str, parts: Sequence[_Part]) -> Iterator[ChunkState]:
    """The chunks of a unit. Those between two places where something begins or ends are one run, however many."""
    count = -(-max(part.start + part.state.nbytes for part in parts) // CHUNK_SIZE)
    firsts = sorted(chunk for chunk in {0, *_ends(parts)} if chunk < count)
    names = _names(parts, firsts)
    states: list[set[str]] = [set() for _ in firsts]
    nbytes = [0] * len(firsts)
    for part in parts:
        holes = Holes(part.state.holes)
        for run in _runs(firsts, part.start, part.start + part.state.nbytes):
            begin, stop = firsts[run] * CHUNK_SIZE, (firsts[run + 1] if run + 1 < len(firsts) else count) * CHUNK_SIZE
            start, end = max(begin - part.start, 0), min(stop - part.start, part.state.nbytes)
            nbytes[run] += end - start
            states[run].add(_state(*holes.judge(start, end, proven=part.state.proven)))
    for run, (first, after) in enumerate(pairwise([*firsts, count])):
        state = DAMAGED
        if states[run] <= {INTACT, UNPROVEN} or states[run] == {LOST}:
            state = worst(states[run] or {INTACT})
        place = f"chunk {first}" if after == first + 1 else f"chunks {first} to {after - 1}"
        yield ChunkState(state, nbytes[run], f"{unit}, {place}", tuple(names[run]))


def _ends(parts: Sequence[_Part]) -> Iterator[int]:
    """The numbers of the chunks in which something begins or ends, and of those behind them."""
    for part in parts:
        ranges = [(0, part.state.nbytes), *((hole.start, hole.end) for hole in part.state.holes)]
        for start, end in ranges + [entry.span for entry in part.entries]:
            for byte in (start, end):
                chunk = (part.start + byte) // CHUNK_SIZE
                yield from (chunk, chunk + 1)


def _runs(firsts: Sequence[int], start: int, end: int) -> range:
    """The runs of chunks that have a byte in ``[start, end)``, by the first chunks of all runs."""
    if start >= end:
        return range(0)
    return range(bisect_right(firsts, start // CHUNK_SIZE) - 1, bisect_left(firsts, -(-end // CHUNK_SIZE)))


def _names(parts: Sequence[_Part], firsts: Sequence[int]) -> list[list[str]]:
    """The names of the tensors in each run of chunks, by the first chunks of the runs."""
    names: list[list[str]] = [[] for _ in firsts]
    room = _MAX_NAMES
    for part in parts:
        for entry in part.entries:
            start, end = (part.start + min(byte, part.state.nbytes) for byte in entry.span)
            runs = _runs(firsts, start, end)
            for run in runs[:room]:
                names[run].append(entry.name)
            room = max(room - len(runs), 0)
    return names


def _state(status: Status, left: int) -> str:
    """What a part of a storage, of which so many bytes are left, is drawn as."""
    if status in THERE:
        return INTACT if status is Status.INTACT else UNPROVEN
    return DAMAGED if left else LOST


def merged(states: Sequence[ChunkState], limit: int) -> tuple[list[ChunkState], int]:
    """At most ``limit`` states, each of the worst of so many neighbours; and how many that is."""
    size = -(-len(states) // limit) if len(states) > limit else 1
    if size == 1:
        return list(states), 1
    runs = [states[at : at + size] for at in range(0, len(states), size)]
    return [
        ChunkState(
            worst(item.state for item in run),
            sum(item.nbytes for item in run),
            f"{run[0].place} to {run[-1].place}",
            tuple(dict.fromkeys(name for item in run for name in item.tensors)),
        )
        for run in runs
    ], size


def worst(states: Iterable[str]) -> str:
    """The worst of some states."""
    return max(states, key=STATES.index)


WIDTH: Final = 960.0
_MARGIN: Final = 70.0
_SIZES: Final = ((1500, 16.0), (6000, 11.0))
"""How large a chunk is drawn if there are at most so many."""
_SMALLEST: Final = 7.0
_MOST_ROWS: Final = 160
_LEAST_WIDTH: Final = 1.5
"""What is not intact is seen, however few bytes it has."""
_SHOWN_NAMES: Final = 4


def chunk_map(cells: Sequence[ChunkState], name: str) -> str:
    """The figure of this name: rows of as many bytes each, in which every cell is as wide as its bytes."""
    total = sum(cell.nbytes for cell in cells)
    height = next((size for limit, size in _SIZES if total <= limit * CHUNK_SIZE), _SMALLEST)
    per_row = max(int((WIDTH - _MARGIN) // height) * CHUNK_SIZE, -(-total // _MOST_ROWS))
    per_row = max(min(per_row, total), 1)
    scale = (WIDTH - _MARGIN) / per_row
    rows = -(-total // per_row)
    parts = [
        text(_MARGIN - 8, row * height + height - 3, size_text(row * per_row), class_="tiny faint", anchor="end")
        for row in range(rows)
    ]
    marks: list[str] = []
    at = 0
    for cell in cells:
        tip = title(f"{cell.place}, {size_text(cell.nbytes)}: {cell.state}; {some(cell.tensors, _SHOWN_NAMES)}")
        end = at + cell.nbytes
        while at < end:
            row, column = divmod(at, per_row)
            stop = min(end, (row + 1) * per_row)
            # What is bad is drawn last, above its neighbours.
            into = parts if cell.state in (INTACT, UNPROVEN) else marks
            _draw(into, cell.state, tip, (_MARGIN + column * scale, row * height), (stop - at) * scale, height - 1.5)
            at = stop
    return figure(name, WIDTH, max(rows, 1) * height + 2, [*parts, *marks])


def _draw(into: list[str], state: str, tip: str, corner: tuple[float, float], width: float, height: float) -> None:
    x, y = corner
    shown = width - 1.5 if width > 4 else width
    if state not in (INTACT, UNPROVEN):
        shown = max(shown, _LEAST_WIDTH)
    into.append(element("rect", tip, class_=f"chunk {state}", x=x, y=y, width=shown, height=height))
    if state == LOST and shown > 4:
        # Told apart without colour, too.
        a, b, c, d = x + 2, x + shown - 2, y + 2, y + height - 2
        into.append(
            element("path", d=f"M{a:.1f} {c:.1f}L{b:.1f} {d:.1f}M{a:.1f} {d:.1f}L{b:.1f} {c:.1f}", class_="cross")
        )
