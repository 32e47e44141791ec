"""What the digests that a ``.fckpt`` has of its own prove of the leaves that are not as its seal says."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import DamagedError, FastckptError, NotACheckpointError
from fastckpt.fckpt.bad_ranges import BadRange
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.payload import Reading, Target, read_targets
from fastckpt.fckpt.shifted import scan_shifted
from fastckpt.findings import Kind
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.source import Source
from fastckpt.layout.blocks import Extent, align
from fastckpt.layout.records import Record
from fastckpt.seals.standing import Standing


def proven_where_it_differs(source: Source, standing: Standing, *, threads: int) -> list[bool] | None:
    """Of each leaf that differs, but those where digests of a ``.fckpt`` itself do not match: do they prove all of it?

    Only the leaves of its records are looked at, so False leaves that open. None: it is no ``.fckpt``, or none differs.
    """
    changed = changed_leaves(standing)
    try:
        # Of one whose both ends are lost nothing tells at once what it is: its records do.
        if not changed or kind_of(source) not in (None, "fckpt"):
            return None
        records = [record for record in _records(source, threads) if record.is_raw]
        bad = read_targets(source, list(_parts(records, changed)), Reading(threads))
    except FastckptError:
        return None
    payloads = iter(sorted(record.payload for record in records))
    proven, payload = [], Extent(0, 0)
    for leaf, is_bad in zip(changed, touch(changed, [_place(found) for found in bad]), strict=True):
        while payload.end < leaf.end and (following := next(payloads, None)) is not None:
            payload = following
        if not is_bad:
            proven.append(payload.offset <= leaf.offset and leaf.end <= payload.end)
    return proven


def _records(source: Source, threads: int) -> Sequence[Record]:
    """All records that say what they are."""
    try:
        return CheckpointFile(source).records
    except (DamagedError, NotACheckpointError):
        found = scan_shifted(source, threads=threads).records.values()
        return sorted(found, key=lambda record: record.header.offset)


def _parts(records: Sequence[Record], changed: Sequence[Extent]) -> Iterator[Target]:
    """The bytes of records, as they are, around the leaves that differ; each once."""
    begins = [record.header.offset for record in records]
    read = (-1, 0)
    for differing in changed:
        first, last = bisect_right(begins, differing.offset) - 1, bisect_left(begins, differing.end)
        for record in records[max(first, 0) : last]:
            begin = max(differing.offset - record.payload.offset, 0) // LEAF_SIZE * LEAF_SIZE
            end = min(align(max(differing.end - record.payload.offset, 0), LEAF_SIZE), record.raw_size)
            if read[0] == record.number:
                begin = max(begin, read[1])
            if record.is_raw and begin < end:
                read = (record.number, end)
                yield Target(record, begin, end - begin, None)


def _place(found: BadRange) -> Extent:
    begin = found.record.payload.offset + found.leaf * LEAF_SIZE
    return Extent(begin, min(found.leaves * LEAF_SIZE, found.record.payload.end - begin))


def changed_leaves(standing: Standing) -> list[Extent]:
    """Where the leaves lie that differ from a seal and are there, ascending."""
    leaf = standing.sums.leaf_extent
    return [leaf(n) for run in standing.bad if run.kind is Kind.CHANGED for n in range(run.first, run.end)]


def touch(leaves: Sequence[Extent], others: Sequence[Extent]) -> Iterator[bool]:
    """Whether each leaf has a byte in one of some other extents."""
    others = sorted(others)
    begins = [other.offset for other in others]
    reach = list(accumulate((other.end for other in others), max))
    for leaf in leaves:
        before = bisect_left(begins, leaf.end)
        yield before > 0 and reach[before - 1] > leaf.offset
