"""What is left of a damaged file: its structure as far as it can be read, and the state of every storage.

Every format ends in this one description; fates of tensors follow from it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from fastckpt.constants import LEAF_SIZE, LEAVES_PER_CHUNK
from fastckpt.findings import ByteCounts, Finding, Kind
from fastckpt.io.source import Identity, Source
from fastckpt.io.transfer import Progress
from fastckpt.io.unreadable import unreadable_parts
from fastckpt.layout.entries import Entry, by_storage
from fastckpt.layout.records import Record
from fastckpt.surveying.fates import THERE, Status, TensorFate
from fastckpt.surveying.holes import Hole, Holes, good_rows, merge_holes
from fastckpt.text import some

NO_CHECKSUM: Final = "the format has no checksums"
_MOST_LISTED: Final = 400_000
"""Holes and leaves that the fates of a file tell of, each as often as there are tensors it is in."""


@dataclass(slots=True)
class StorageState:
    """What is left of one storage.

    Attributes:
        nbytes: Size it had.
        offset: Where its first byte lies (or lay) in the file; None if it is not known or is encoded.
        proven: Whether a checksum matches for all bytes outside of its holes.
        holes: What is missing or wrong, ascending.
        reason: Why it is not intact, in a few words.
        doubt: Why it is not proven what its bytes mean: as `Wreck.doubt`, for this one alone, or their order.
        record: Of a ``.fckpt``: the record it is in.
        record_offset: Of a ``.fckpt``: where it begins in the record's raw bytes.
        bad_leaves: Of a ``.fckpt``: the damaged leaves of its record, ascending.
        unit: Bytes of each number where they stand in reverse order, as big-endian machines write them; else 1.
    """

    nbytes: int
    offset: int | None = None
    proven: bool = False
    holes: list[Hole] = field(default_factory=list)
    reason: str = ""
    doubt: str = ""
    record: Record | None = None
    record_offset: int = 0
    bad_leaves: list[int] = field(default_factory=list)
    unit: int = 1

    def lose(self, reason: str) -> None:
        """Note that none of it is there."""
        self.proven = False
        self.holes = [Hole(0, self.nbytes, Kind.MISSING)] if self.nbytes else []
        self.reason = reason

    def cut(self, there: int) -> None:
        """Note that the file ends behind so many bytes of it, fewer than it has, which nothing proves."""
        if there <= 0:
            self.lose("the file ends before it")
        else:
            self.holes = [Hole(there, self.nbytes, Kind.MISSING)]
            self.reason = f"the file ends inside it: {there} of {self.nbytes} bytes are there, unproven"


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
        healed: What of the damage is not in what was looked at: parity has healed it there.
        notes: What else the user should know.
        repairs: Commands that make damaged files of it what they were.
        doubt: Why names, shapes and dtypes are not proven; "" if they are.
        unsettled: Why it is not certain that all of it is of one save; "" if it is.
        is_open: Whether something may be missing that nothing names.
        is_inflated: Whether bytes were looked at as they are unpacked: no tensor has a place in the file then.
        opaque: Path text and name of everything in the structure that is not understood.
        unnamed: Storages that only such things refer to.
        lost_values: Flat names of what is no tensor and does not come back.
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
    healed: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)
    doubt: str = ""
    unsettled: str = ""
    is_open: bool = False
    is_inflated: bool = False
    opaque: list[tuple[str, str]] = field(default_factory=list)
    unnamed: list[Unnamed] = field(default_factory=list)
    lost_values: list[str] = field(default_factory=list)
    original: Original | None = None
    identity: Identity | None = None

    def fates(self) -> dict[str, TensorFate]:
        """The fate of every tensor, in order.

        Of tensors that overlap in their thousands, in a file that is damaged in thousands of places, the last ones
        have no list of these.
        """
        holes: dict[int, Holes] = {}
        room = _MOST_LISTED
        fates: dict[str, TensorFate] = {}
        for entry in self.entries:
            if entry.storage not in holes:
                holes[entry.storage] = Holes(self.storages[entry.storage].holes)
            fate = fates[entry.name] = self._fate(entry, holes[entry.storage])
            within = holes[entry.storage].within(*entry.span)
            if within and room > 0:
                self._list_damage(entry, within, fate)
                room -= len(within) + len(fate.leaves)
        return fates

    def byte_counts(self) -> ByteCounts:
        """What is proven of the bytes of all storages."""
        proven = unproven = gone = 0
        for state in [*self.storages, *(unnamed.state for unnamed in self.unnamed)]:
            lost = min(sum(hole.end - hole.start for hole in state.holes), state.nbytes)
            gone += lost
            if state.proven and not (self.doubt or state.doubt):
                proven += state.nbytes - lost
            else:
                unproven += state.nbytes - lost
        return ByteCounts(proven, unproven, gone)

    def _fate(self, entry: Entry, holes: Holes) -> TensorFate:
        storage = self.storages[entry.storage]
        start, end = entry.span
        status, present = holes.judge(start, end, proven=storage.proven)
        is_whole = status in THERE
        reason = storage.reason if status is not Status.INTACT else ""
        if start == end:
            # There is no byte to lose: a tensor without elements is as good as its name and shape.
            status, reason = Status.INTACT, ""
        doubt = self.doubt or storage.doubt
        if status is Status.INTACT and doubt:
            status, reason = Status.UNVERIFIED, doubt
        return TensorFate(
            entry.name,
            status,
            entry.dtype,
            entry.shape,
            entry.nbytes,
            # Strided and broadcast tensors reach over another number of bytes than they have.
            entry.nbytes if is_whole else min(present, entry.nbytes),
            offset=storage.offset + start if storage.offset is not None and not self.is_inflated else None,
            source=self.path,
            reason=reason,
        )

    def _list_damage(self, entry: Entry, holes: Sequence[Hole], fate: TensorFate) -> None:
        """Say of a tensor with holes in it which of its leaves are bad and which of its rows are good."""
        storage = self.storages[entry.storage]
        fate.leaves = _leaves_in(storage, *entry.span)
        fate.chunks = sorted({leaf // LEAVES_PER_CHUNK for leaf in fate.leaves})
        if fate.status in (Status.DAMAGED, Status.PARTIAL) and all(hole.located for hole in holes):
            rows = good_rows(entry, holes)
            if storage.proven and not (self.doubt or storage.doubt):
                fate.rows_intact = rows
            else:
                fate.rows_present = rows


def _leaves_in(storage: StorageState, start: int, end: int) -> list[int]:
    first = (storage.record_offset + start) // LEAF_SIZE
    last = -(-(storage.record_offset + end) // LEAF_SIZE)
    return storage.bad_leaves[bisect_left(storage.bad_leaves, first) : bisect_left(storage.bad_leaves, last)]


def storage_status(state: StorageState) -> Status:
    """What became of a storage as a whole."""
    return Holes(state.holes).judge(0, state.nbytes, proven=state.proven and not state.doubt)[0]


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


def name_holes(wreck: Wreck, storages: Sequence[StorageState]) -> None:
    """A finding for each of the storages, those of the tensors first, of which something is missing or unreadable."""
    on_storage = by_storage(wreck.entries)
    for number, state in enumerate(storages):
        if state.holes:
            names = tuple(entry.name for entry in on_storage.get(number, ()))
            offset = min(state.offset or wreck.size, wreck.size)
            text = f"{some(names) or 'a storage of no tensor'}: {state.reason}"
            size = min(state.nbytes, wreck.size - offset)
            wreck.findings.append(Finding(state.holes[0].kind, text, offset, size, tensors=names))
