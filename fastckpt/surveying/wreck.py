"""A damaged file taken stock of: its structure as far as it stands, and the state of every storage.

Every format ends in this one description; fates of tensors follow from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from fastckpt.constants import LEAF_SIZE, LEAVES_PER_CHUNK
from fastckpt.findings import Finding, Kind
from fastckpt.io.source import Identity, Source
from fastckpt.io.transfer import Progress
from fastckpt.io.unreadable import unreadable_parts
from fastckpt.layout.entries import Entry
from fastckpt.layout.records import Record
from fastckpt.surveying.fates import Status, TensorFate


class Hole(NamedTuple):
    """Bytes ``[start, end)`` of a storage that are not there, or are wrong.

    ``located`` is False where a checksum over the whole range says only that
    something in it is wrong.
    """

    start: int
    end: int
    kind: Kind
    located: bool = True


@dataclass(slots=True)
class StorageState:
    """What is left of one storage.

    Attributes:
        nbytes: Size it had.
        offset: Where its first byte lies (or lay) in the file; None if it is not known or is encoded.
        proven: Whether a checksum matches for all bytes outside of its holes.
        holes: What is missing or wrong, ascending.
        reason: Why it is not intact, in a few words.
        record: Of a ``.fckpt``: the record it is in.
        record_offset: Of a ``.fckpt``: where it begins in the record's raw bytes.
        bad_leaves: Of a ``.fckpt``: the damaged leaves of its record that it touches.
    """

    nbytes: int
    offset: int | None = None
    proven: bool = False
    holes: list[Hole] = field(default_factory=list)
    reason: str = ""
    record: Record | None = None
    record_offset: int = 0
    bad_leaves: list[int] = field(default_factory=list)

    def lose(self, reason: str) -> None:
        """Note that none of it is there."""
        self.proven = False
        self.holes = [Hole(0, self.nbytes, Kind.MISSING)] if self.nbytes else []
        self.reason = reason


class Unnamed(NamedTuple):
    """A storage that no tensor lies in: something that is not understood refers to it.

    Attributes:
        key: Its key in the file.
        state: What is left of it.
        dtype: Its element type, if the file tells.
    """

    key: str
    state: StorageState
    dtype: str | None


@dataclass(frozen=True, slots=True)
class Original:
    """The structure of a file as its own bytes, which hold also what is not understood.

    Attributes:
        pickle: ``data.pkl``.
        keys: The keys under which it names ``Wreck.storages``.
        order: The keys of all storages, in the order in which they were saved.
    """

    pickle: bytes
    keys: list[str]
    order: list[str]


@dataclass(slots=True)
class Wreck:
    """What stands of a file.

    Attributes:
        path: The file.
        format: As in `SalvageReport`.
        size: Its length in bytes.
        structure: As in `SalvageReport`.
        tree: The nesting; ``TensorRef(i)`` is ``entries[i]``. Leaves that are not understood are `Opaque`.
        entries: The tensors.
        storages: What they lie in; ``Entry.storage`` counts here.
        metadata: The user's metadata.
        findings: All damage.
        notes: What else the user should know.
        doubt: Why names, shapes and dtypes are not proven; "" if they are.
        opaque: Path text and name of everything in the structure that is not understood.
        unnamed: Storages that only such things refer to.
        original: The structure as it was saved; None unless a checksum proves it.
        identity: Which file it was: whoever reads its bytes later reads them from this one.
    """

    path: str
    format: str
    size: int
    structure: str = "none"
    tree: Any = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    storages: list[StorageState] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    doubt: str = ""
    opaque: list[tuple[str, str]] = field(default_factory=list)
    unnamed: list[Unnamed] = field(default_factory=list)
    original: Original | None = None
    identity: Identity | None = None

    def fates(self) -> dict[str, TensorFate]:
        """The fate of every tensor, in order."""
        return {entry.name: self._fate(entry) for entry in self.entries}

    def _fate(self, entry: Entry) -> TensorFate:
        storage = self.storages[entry.storage]
        start, end = entry.span
        holes = [hole for hole in storage.holes if hole.start < end and start < hole.end]
        status, present = _judge(holes, start, end, proven=storage.proven)
        reason = storage.reason if status is not Status.INTACT else ""
        if start == end:
            # There is no byte to lose: a tensor without elements is as good as its name and shape.
            status, reason = Status.INTACT, ""
        if status is Status.INTACT and self.doubt:
            status, reason = Status.UNVERIFIED, self.doubt
        fate = TensorFate(
            entry.name,
            status,
            entry.dtype,
            entry.shape,
            entry.nbytes,
            # Strided and broadcast tensors reach over another number of bytes than they have.
            entry.nbytes if not holes else min(present, entry.nbytes),
            offset=storage.offset + start if storage.offset is not None else None,
            source=self.path,
            reason=reason,
        )
        if holes:
            leaves = _leaves_in(storage, start, end)
            fate.leaves, fate.chunks = leaves, sorted({leaf // LEAVES_PER_CHUNK for leaf in leaves})
        if holes and status in (Status.DAMAGED, Status.PARTIAL) and all(hole.located for hole in holes):
            rows = good_rows(entry, holes)
            if storage.proven and not self.doubt:
                fate.rows_intact = rows
            else:
                fate.rows_present = rows
        return fate


def _leaves_in(storage: StorageState, start: int, end: int) -> list[int]:
    first = (storage.record_offset + start) // LEAF_SIZE
    last = -(-(storage.record_offset + end) // LEAF_SIZE)
    return [leaf for leaf in storage.bad_leaves if first <= leaf < last]


def storage_status(state: StorageState) -> Status:
    """What became of a storage as a whole."""
    return _judge(state.holes, 0, state.nbytes, proven=state.proven)[0]


def _judge(holes: Sequence[Hole], start: int, end: int, *, proven: bool) -> tuple[Status, int]:
    """Status and bytes that are left of ``[start, end)``."""
    size = end - start
    if not holes:
        return (Status.INTACT if proven else Status.UNVERIFIED), size
    gone = sum(min(hole.end, end) - max(hole.start, start) for hole in holes if hole.located)
    absent = all(hole.kind is not Kind.ROTTED for hole in holes)
    if absent and gone == size:
        return Status.LOST, 0
    contiguous = all(a.end == b.start for a, b in pairwise(holes))
    if absent and contiguous and holes[-1].end >= end:
        return Status.PARTIAL, size - gone
    return Status.DAMAGED, size - gone


def good_rows(entry: Entry, holes: Iterable[Hole]) -> list[tuple[int, int]]:
    """The row ranges of a tensor that have no byte in a hole. A row is one index of the first dimension."""
    if not entry.shape or not entry.numel:
        return []
    rows, itemsize = entry.shape[0], entry.itemsize
    step = entry.stride[0] * itemsize
    base = entry.storage_offset * itemsize
    reach = (1 + sum((n - 1) * s for n, s in zip(entry.shape[1:], entry.stride[1:], strict=True))) * itemsize
    good = []
    at = 0
    for hole in holes:
        if step == 0:
            return []
        first = max(-(-(hole.start - base - reach + 1) // step), 0)
        last = min((hole.end - 1 - base) // step + 1, rows)
        if first > at:
            good.append((at, first))
        at = max(at, last)
    if at < rows:
        good.append((at, rows))
    return good


def mark_unreadable(
    source: Source, storages: Iterable[StorageState], *, threads: int, progress: Progress | None
) -> None:
    """Read all that is there of storages that have no checksum: only that tells whether it can be read."""
    there = []
    for state in storages:
        if state.offset is not None and state.nbytes:
            end = min([hole.start for hole in state.holes if hole.kind is Kind.MISSING], default=state.nbytes)
            there.append((state, end))
    ranges = [(state.offset or 0, size) for state, size in there]
    for (state, _), faults in zip(
        there, unreadable_parts(source, ranges, threads=threads, progress=progress), strict=True
    ):
        if faults:
            bad = [Hole(fault.offset, fault.offset + fault.size, Kind.UNREADABLE) for fault in faults]
            state.holes = merge_holes([*state.holes, *bad])
            state.reason = "parts of it cannot be read"


def merge_holes(holes: Iterable[Hole]) -> list[Hole]:
    """The same holes, ascending; neighbours of one kind become one."""
    merged: list[Hole] = []
    for hole in sorted(holes):
        if merged and merged[-1].end >= hole.start and merged[-1].kind is hole.kind:
            merged[-1] = merged[-1]._replace(end=max(merged[-1].end, hole.end))
        else:
            merged.append(hole)
    return merged
