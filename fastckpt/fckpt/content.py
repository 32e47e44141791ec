"""What a checkpoint file shall hold, and where the bytes come from.

A storage in memory or in a file is named by where it begins; the engine reads
it there. What lies on a device has no such place: a `Supply` brings it to
memory piece by piece while the writer writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from fastckpt.io.tally import Tally
from fastckpt.io.transfer import MEMORY
from fastckpt.layout.entries import Entry
from fastckpt.layout.plan import RecordPlan


class Delivery(NamedTuple):
    """A part of a record's raw bytes, and where in memory it will lie.

    Attributes:
        record: Which of the records that were asked for.
        start: First byte in the record, a multiple of CHUNK_SIZE.
        size: Bytes; a multiple of CHUNK_SIZE unless the record ends with them.
        address: Where they come to lie.
    """

    record: int
    start: int
    size: int
    address: int


LeafDigests = list[bytes | None]
"""The leaf digests of each piece, u64 little-endian each, taken where it came from; None: hash it here."""


class Deliveries(Protocol):
    """Raw bytes of records on their way to memory, turn after turn.

    Attributes:
        apart: So many turns have memory of their own: no more may be waited for before the first is released.
    """

    apart: int

    @property
    def turns(self) -> Sequence[Sequence[Delivery]]:
        """The pieces that each turn brings, in the order of the records; all of them are known at once."""
        ...

    def wait(self) -> LeafDigests:
        """Wait until the pieces of the next turn lie in memory."""
        ...

    def release(self) -> None:
        """The memory of the oldest turn may be used for another one."""
        ...


class Supply(Protocol):
    """Brings to memory what the engine cannot reach by an address: storages on a device."""

    def covers(self, plan: RecordPlan) -> bool:
        """Whether this record's raw bytes come from here, not from `Content.origins`."""
        ...

    def deliver(self, plans: Sequence[RecordPlan]) -> AbstractContextManager[Deliveries]:
        """Bring the raw bytes of these records, in order. Leaving the block stops it and gives the memory back."""
        ...


class ParityToWrite(Protocol):
    """Parity that a file gets inside.

    Attributes:
        tally: Is told of all that is written in front of it.
    """

    tally: Tally

    def size(self, covered: int) -> int:
        """Bytes of its section, of a file with so many in front of it."""
        ...

    def pieces(self, fd: int, path: str, covered: int, root: bytes, *, threads: int) -> Iterable[bytes | memoryview]:
        """The sealed block of the section, once all in front of it is written."""
        ...


def brought_pieces(deliveries: Deliveries) -> Iterator[tuple[Delivery, bytes | None]]:
    """Piece after piece with its leaf digests, if there are; each lies in memory until the next one is asked for."""
    for pieces in deliveries.turns:
        yield from zip(pieces, deliveries.wait(), strict=True)
        deliveries.release()


@dataclass(frozen=True, slots=True)
class Content:
    """What a checkpoint file shall hold.

    Attributes:
        tree: The encoded tree.
        metadata_tree: The encoded metadata.
        entries: The named tensors, in tree order.
        storage_sizes: Bytes of every storage.
        origins: Where each storage's bytes begin: an address, or an offset in ``source``.
        source: File descriptor the bytes come from, or MEMORY.
        source_direct: The same file opened with O_DIRECT, or -1.
        sources: One file descriptor per storage, where they come from several files; then ``source`` is not used.
        sections: Further sealed blocks to keep, by kind.
        supply: Where the bytes of storages on a device come from; their origins mean nothing.
        parity: Makes the parity that the file gets inside; of a local file only.
    """

    tree: bytes
    metadata_tree: bytes
    entries: Sequence[Entry]
    storage_sizes: Sequence[int]
    origins: Sequence[int]
    source: int = MEMORY
    source_direct: int = -1
    sources: Sequence[int] = ()
    sections: dict[int, bytes] = field(default_factory=dict)
    supply: Supply | None = None
    parity: ParityToWrite | None = None

    def covered(self, plan: RecordPlan) -> bool:
        """Whether the supply brings the bytes of a record."""
        return self.supply is not None and self.supply.covers(plan)

    def source_of(self, storage: int) -> int:
        """The file descriptor that the bytes of a storage come from, or MEMORY."""
        return self.sources[storage] if self.sources else self.source

    def direct_of(self, source: int) -> int:
        """The same file as ``source`` opened with O_DIRECT, if there is one, or -1."""
        return self.source_direct if source == self.source != MEMORY else -1
