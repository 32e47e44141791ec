"""Leaves that are not as they were written, and what is said of them: where they are, and in which tensors."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby
from typing import Final, NamedTuple

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE, LEAVES_PER_CHUNK
from fastckpt.errors import FastckptError
from fastckpt.findings import Finding, Kind, damage_of
from fastckpt.io.source import Source
from fastckpt.layout.records import Record
from fastckpt.text import quoted, some


class BadRange(NamedTuple):
    """Leaves ``[leaf, leaf + leaves)`` of a record that are not as written.

    ``errno`` is the system's error if they could not be read at all. ``whole``
    says that the chunk is bad as a whole (it did not decode).
    """

    record: Record
    leaf: int
    leaves: int
    kind: Kind
    errno: int = 0
    whole: bool = False


_ZERO_LEAF = _core.leaf_digests(bytes(LEAF_SIZE))


def differing_runs(actual: memoryview, expected: memoryview) -> Iterator[tuple[int, int, Kind]]:
    """``(first leaf, leaves, kind)`` of every run of differing leaf digests inside one chunk.

    A run of leaves that read as zeros was torn, others are rotted. Runs do not
    cross multiples of LEAVES_PER_CHUNK counted from the start.
    """
    if actual.cast("Q") == expected.cast("Q"):  # Memoryviews are compared item by item.
        return
    step = LEAVES_PER_CHUNK * 8
    for chunk in range(0, len(actual), step):
        if actual[chunk : chunk + step] == expected[chunk : chunk + step]:
            continue
        run, kind = 0, Kind.ROTTED
        for at in range(chunk, min(chunk + step, len(actual)), 8):
            digest = actual[at : at + 8]
            differs = digest != expected[at : at + 8]
            found = Kind.TORN if digest == _ZERO_LEAF else Kind.ROTTED
            if run and (not differs or found is not kind):
                yield at // 8 - run, run, kind
                run = 0
            if differs:
                run, kind = run + 1, found
        if run:
            yield min(chunk + step, len(actual)) // 8 - run, run, kind


_MOST_NAMES: Final = 400_000
"""Names that all bad ranges of a record are told to hold. Tensors that overlap in their thousands would make more."""


def tensors_in(record: Record, start: int, end: int) -> list[str]:
    """Flat names of the tensors that have bytes in ``[start, end)`` of a record's raw bytes."""
    return _tensors_in_each(record, [(start, end)])[0]


def _tensors_in_each(record: Record, ranges: Sequence[tuple[int, int]]) -> list[list[str]]:
    """The same for ranges that ascend; each tensor in one of them at least, where there are very many."""
    try:
        entries = list(record.entries)
    except FastckptError:
        entries = []  # A header whose entries contradict each other names nothing.
    places = {place.storage: place for place in record.storages}

    def spans() -> Iterator[tuple[str, int, int]]:
        for entry in entries:
            place = places.get(entry.storage)
            if place is not None:
                first, last = (place.offset + min(byte, place.nbytes) for byte in entry.span)
                yield entry.name, first, last

    return names_in_each(spans(), ranges)


def names_in_each(spans: Iterable[tuple[str, int, int]], ranges: Sequence[tuple[int, int]]) -> list[list[str]]:
    """Of tensors, each with its first byte and the first one after, the names of those that have a byte in each range.

    The ranges ascend. Each tensor is named for one of them at least, where there are very many.
    """
    names: list[list[str]] = [[] for _ in ranges]
    starts, ends = [start for start, _ in ranges], list(accumulate((end for _, end in ranges), max))
    room = _MOST_NAMES
    for name, first, last in spans:
        if first < last:
            touched = range(bisect_right(ends, first), bisect_left(starts, last))
            for number in touched[: max(room, 1)]:
                if ranges[number][1] > first:
                    names[number].append(name)
            room = max(room - len(touched), 0)
    return names


def findings_of(bad: Sequence[BadRange]) -> list[Finding]:
    """The findings that bad ranges, in the order of `read_targets`, amount to."""
    findings: list[Finding] = []
    for _, group in groupby(bad, key=lambda item: item.record.number):
        ranges = list(group)
        record = ranges[0].record
        names = _tensors_in_each(record, [_raw_range(item) for item in ranges])
        findings += map(_finding, ranges, names)
    return findings


def _raw_range(bad: BadRange) -> tuple[int, int]:
    return bad.leaf * LEAF_SIZE, min((bad.leaf + bad.leaves) * LEAF_SIZE, bad.record.raw_size)


def _finding(bad: BadRange, names: Sequence[str]) -> Finding:
    record = bad.record
    chunk = bad.leaf // LEAVES_PER_CHUNK
    start, end = _raw_range(bad)
    if bad.whole or not record.is_raw:
        offset, size = record.chunk_extent(chunk)
    else:
        offset, size = record.payload.offset + start, end - start
    tensors = tuple(names)
    what = {
        Kind.TORN: "was never written (reads as zeros)",
        Kind.ROTTED: "is not what was written",
        Kind.MISSING: "is missing: the file ends before it",
        Kind.UNREADABLE: f"cannot be read (error {bad.errno})",
    }[bad.kind]
    leaves = f"leaf {bad.leaf}" if bad.leaves == 1 else f"leaves {bad.leaf} to {bad.leaf + bad.leaves - 1}"
    message = f"record {record.number}, chunk {chunk}, {leaves} {what}: {some(tensors) or 'padding between tensors'}"
    return Finding(
        bad.kind,
        message,
        offset,
        size,
        record=record.number,
        chunk=chunk,
        leaf=bad.leaf,
        leaves=bad.leaves,
        tensors=tensors,
        loss=bool(tensors),
    )


def raise_damage(source: Source, bad: Sequence[BadRange]) -> None:
    """Raise DamagedError that names the first bad tensor and how many there are; nothing if ``bad`` is empty."""
    if not bad:
        return
    next_step = f"fastckpt salvage {quoted(source.path)}"
    raise damage_of(findings_of(bad), path=source.path, are="damaged", next_step=next_step)
