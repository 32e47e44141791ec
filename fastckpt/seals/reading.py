"""Bytes of a sealed file, each leaf that they lie in proven before anybody sees them.

Memory is filled leaf by leaf, straight from the file. A leaf of which only a part is wanted is read whole beside it,
proven there, and copied from there: what was hashed is what is handed out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final

from fastckpt import _core
from fastckpt.constants import LEAF_DIGEST_SIZE, LEAF_SIZE
from fastckpt.io.anew import until_right
from fastckpt.io.memory import allocate
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.sums import hash_parts
from fastckpt.io.transfer import MEMORY, NOWHERE, Move, Moved, Progress, thread_count, transfer
from fastckpt.layout.blocks import Extent
from fastckpt.layout.records import count_leaves
from fastckpt.seals.bad_leaves import BadLeaves, differing, merged
from fastckpt.seals.sums import Sums

_EDGES: Final = 1024
"""Leaves of which a part is wanted that are read at a time: 16 MiB."""


def runs_around(sums: Sums, ranges: Iterable[tuple[int, int]]) -> list[Extent]:
    """The whole leaves that ranges of the file (first byte, and first after) lie in, joined where they touch."""
    runs: list[Extent] = []
    for begin, end in sorted(ranges):
        if begin < end:
            around = sums.leaves_around(begin, end)
            if runs and around.offset <= runs[-1].end:
                first = runs.pop()
                around = Extent(first.offset, max(first.end, around.end) - first.offset)
            runs.append(around)
    return runs


def prove(
    source: Source, sums: Sums, ranges: Iterable[tuple[int, int]], *, threads: int, progress: Progress | None = None
) -> list[BadLeaves]:
    """Hash the leaves that ranges of the file lie in; those that are not as they were sealed."""
    bad = _prove_once(source, sums, ranges, threads=threads, progress=progress)
    return list(until_right(source, bad, lambda bad: prove_again(source, sums, bad, threads=threads)))


def prove_again(source: Source, sums: Sums, bad: Sequence[BadLeaves], *, threads: int) -> list[BadLeaves]:
    """Hash leaves that were bad once more, for `until_right`; those that still are."""
    extents = [sums.leaf_extent(run.first, run.leaves) for run in bad]
    return _prove_once(source, sums, [(extent.offset, extent.end) for extent in extents], threads=threads)


def _prove_once(
    source: Source, sums: Sums, ranges: Iterable[tuple[int, int]], *, threads: int, progress: Progress | None = None
) -> list[BadLeaves]:
    """`prove` of bytes as they come the first time."""
    runs = runs_around(sums, ranges)
    moved = hash_parts(source, [Move(run.offset, 0, run.size) for run in runs], threads=threads, progress=progress)
    return _compare(sums, runs, moved)


def prove_mapped(
    source: Source,
    sums: Sums,
    ranges: Iterable[tuple[int, int]],
    address: int,
    *,
    threads: int | None,
    progress: Progress | None,
) -> list[BadLeaves]:
    """The same where the file is mapped at an address, for who hands out that map."""
    runs = runs_around(sums, ranges)
    moved = transfer(
        [Move(address + run.offset, 0, run.size) for run in runs],
        source=MEMORY,
        sink=NOWHERE,
        threads=thread_count(threads),
        mapped=True,
        progress=progress,
    )
    faults = [
        fault._replace(errno=source.errno_of_map(runs[fault.move].offset + fault.offset, min(fault.size, LEAF_SIZE)))
        for fault in moved.faults
    ]
    return _compare(sums, runs, moved._replace(faults=faults))


def read_proven(
    source: Source, sums: Sums, moves: Sequence[Move], *, threads: int | None, progress: Progress | None = None
) -> list[BadLeaves]:
    """Read parts of the file to the addresses that they have as their sink.

    Returns:
        The leaves in them that are not as they were sealed. Then what was read must not be handed out.
    """

    def again(bad: Sequence[BadLeaves]) -> list[BadLeaves]:
        return _read_proven_once(source, sums, list(_within(moves, sums, bad)), threads=threads, progress=None)

    bad = _read_proven_once(source, sums, moves, threads=threads, progress=progress)
    return list(until_right(source, bad, again))


def _within(moves: Sequence[Move], sums: Sums, bad: Sequence[BadLeaves]) -> Iterator[Move]:
    """What of moves lies in bad leaves."""
    for run in bad:
        extent = sums.leaf_extent(run.first, run.leaves)
        for offset, address, size in moves:
            begin, end = max(offset, extent.offset), min(offset + size, extent.end)
            if begin < end:
                yield Move(begin, address + begin - offset, end - begin)


def _read_proven_once(
    source: Source, sums: Sums, moves: Sequence[Move], *, threads: int | None, progress: Progress | None
) -> list[BadLeaves]:
    inner: list[Move] = []
    edges: list[tuple[int, Move]] = []
    for offset, address, size in moves:
        end = offset + size
        first, last = -(-offset // LEAF_SIZE) * LEAF_SIZE, end if end == sums.size else end // LEAF_SIZE * LEAF_SIZE
        if first < last:
            inner.append(Move(first, address + first - offset, last - first))
        else:
            first = last = min(first, end)
        edges += _edges(offset, first, address)
        edges += _edges(last, end, address + last - offset)
    count = reading_threads(source, threads)
    moved = source.transfer(inner, sink=MEMORY, threads=count, progress=progress)
    bad = _compare(sums, [Extent(move.source, move.size) for move in inner], moved)
    done = sum(move.size for move in inner)
    by_leaf = [(leaf, [move for _, move in group]) for leaf, group in groupby(sorted(edges), lambda edge: edge[0])]
    for at in range(0, len(by_leaf), _EDGES):
        bad += _read_edges(source, sums, by_leaf[at : at + _EDGES], count)
        done += sum(move.size for _, wanted in by_leaf[at : at + _EDGES] for move in wanted)
        if progress is not None:
            progress(done)
    return merged(bad)


def _edges(begin: int, end: int, address: int) -> Iterator[tuple[int, Move]]:
    """The parts of leaves that bytes ``[begin, end)`` of the file, wanted at an address, consist of; by leaf."""
    at = begin
    while at < end:
        leaf = at // LEAF_SIZE
        stop = min((leaf + 1) * LEAF_SIZE, end)
        yield leaf, Move(at, address + at - begin, stop - at)
        at = stop


def read_leaves(source: Source, sums: Sums, leaves: Extent) -> tuple[memoryview, list[BadLeaves]]:
    """Whole leaves in memory of their own, and which of them are not as they were sealed."""
    region = allocate(leaves.size)
    move = Move(leaves.offset, _core.address(region) if leaves.size else 0, leaves.size)

    def read() -> list[BadLeaves]:
        return _compare(sums, [leaves], source.transfer([move], sink=MEMORY, threads=1, past_the_cache=False))

    return region, list(until_right(source, read(), lambda _: read()))


def _read_edges(source: Source, sums: Sums, wanted: Sequence[tuple[int, list[Move]]], threads: int) -> list[BadLeaves]:
    """Read whole leaves beside, and copy what is wanted of each to its place."""
    room = allocate(len(wanted) * LEAF_SIZE)
    base = _core.address(room)
    extents = [sums.leaf_extent(leaf) for leaf, _ in wanted]
    moved = source.transfer(
        [Move(extent.offset, base + n * LEAF_SIZE, extent.size) for n, extent in enumerate(extents)],
        sink=MEMORY,
        threads=threads,
    )
    bad = _compare(sums, extents, moved)
    copies = [
        Move(base + n * LEAF_SIZE + move.source - extents[n].offset, move.sink, move.size)
        for n, (_, moves) in enumerate(wanted)
        for move in moves
    ]
    transfer(copies, source=MEMORY, sink=MEMORY, threads=1, leaves=False)
    return bad


def _compare(sums: Sums, runs: Sequence[Extent], moved: Moved) -> list[BadLeaves]:
    bad: list[BadLeaves] = []
    at = 0
    for number, run in enumerate(runs):
        end = at + count_leaves(run.size) * LEAF_DIGEST_SIZE
        faults = [fault for fault in moved.faults if fault.move == number] if moved.faults else ()
        bad += differing(moved.leaves[at:end], sums.digests_of(run), run.offset // LEAF_SIZE, faults)
        at = end
    return merged(bad)
