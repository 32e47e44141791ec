"""Which payloads are written together: the turns of a save, and where small storages are brought together for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fastckpt import _core
from fastckpt.fckpt.content import Content, Deliveries, LeafDigests
from fastckpt.io.memory import allocate
from fastckpt.io.transfer import MEMORY, Move, Moved, Turn, TurnMover
from fastckpt.layout.blocks import align
from fastckpt.layout.plan import RecordPlan
from fastckpt.layout.records import count_leaves

BATCH: Final = 128 * 1024 * 1024
"""Raw bytes after which the headers of finished records are written. A killed
save loses at most the records of two batches to salvage."""


@dataclass(slots=True)
class RecordToWrite:
    """A record on its way into the file."""

    number: int
    plan: RecordPlan
    entry_table: bytes
    header_size: int
    offset: int = 0
    pack: memoryview | None = None

    @property
    def payload_offset(self) -> int:
        return self.offset + self.header_size

    @property
    def is_pack(self) -> bool:
        """Whether its raw bytes must be brought together before they are written."""
        return len(self.plan.storages) != 1


def origin_of(content: Content, record: RecordToWrite) -> int:
    """Where the raw bytes of a record begin: in its pack, or where its only storage does."""
    if record.is_pack:
        return _core.address(record.pack) if record.pack else 0
    return content.origins[record.plan.storages[0].storage]


class RawTurns:
    """Records in turns, each of about BATCH bytes from one source.

    Attributes:
        turns: What is moved.
        written: The records that each turn writes.
        empty: Records that no turn writes, because they have no bytes.
    """

    def __init__(self, content: Content, records: Sequence[RecordToWrite]) -> None:
        self.turns: list[Turn] = []
        self.written: list[list[RecordToWrite]] = []
        self.empty = [record for record in records if not record.plan.raw_size]
        self._batches = list(_batches([record for record in records if record.plan.raw_size]))
        self._batch_of: list[int] = []
        self._gathered = 0
        # A batch gathers its packs where the last but one had them: that one is written by then.
        size = max(map(_pack_space, self._batches), default=0)
        spaces = [allocate(size) for _ in self._batches[: TurnMover.OPEN]]
        for number, batch in enumerate(self._batches):
            at = 0
            by_source: dict[int, list[RecordToWrite]] = {}
            for record in batch:
                source = MEMORY if record.is_pack else content.source_of(record.plan.storages[0].storage)
                if record.is_pack:
                    record.pack = spaces[number % TurnMover.OPEN][at : at + record.plan.raw_size]
                    at = align(at + record.plan.raw_size)
                by_source.setdefault(source, []).append(record)
            for source, own in by_source.items():
                moves = [Move(origin_of(content, r), r.payload_offset, r.plan.raw_size) for r in own]
                self.turns.append(Turn(source, content.direct_of(source), moves))
                self.written.append(own)
                self._batch_of.append(number)

    def to_gather(self, turn: int) -> list[RecordToWrite]:
        """Records whose packs are to be brought together before this turn is opened; each is named once."""
        if turn >= len(self.turns) or self._gathered > self._batch_of[turn]:
            return []
        self._gathered += 1
        return [record for record in self._batches[self._batch_of[turn]] if record.is_pack]


def _pack_space(batch: Sequence[RecordToWrite]) -> int:
    """Bytes that the packs of a batch take when they lie one behind the other."""
    return sum(align(record.plan.raw_size) for record in batch if record.is_pack)


def _batches(records: Sequence[RecordToWrite]) -> Iterator[list[RecordToWrite]]:
    batch: list[RecordToWrite] = []
    size = 0
    for record in records:
        if batch and size + record.plan.raw_size > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += record.plan.raw_size
    if batch:
        yield batch


class SuppliedTurns:
    """Records that a supply brings, in the turns in which it does.

    Attributes:
        turns: What is moved.
        open_turns: How many may be moved at a time: one less than the supply has memory for, which it fills meanwhile.
        hashed: For each turn that is in memory, whether its leaves must be hashed when it is moved.
    """

    def __init__(self, brought: Deliveries, records: Sequence[RecordToWrite]) -> None:
        self.turns = [
            Turn(MEMORY, -1, [Move(p.address, records[p.record].payload_offset + p.start, p.size) for p in pieces])
            for pieces in brought.turns
        ]
        self.open_turns = max(brought.apart - 1, 1)
        self.hashed = bytearray(len(self.turns))
        self._brought = brought
        self._records = records
        self._digests: list[LeafDigests] = []
        self._leaves = bytearray()
        for _ in range(self.open_turns):
            self.bring()

    def bring(self) -> None:
        """Wait until the next turn is in memory, if there is one; it may be opened then."""
        number = len(self._digests)
        if number < len(self.turns):
            self._digests.append(self._brought.wait())
            self.hashed[number] = None in self._digests[number]

    def finished(self, turn: int, moved: Moved) -> Iterator[tuple[RecordToWrite, bytes]]:
        """The records that end in a turn which was moved, and their leaf digests."""
        at = 0
        for piece, digests in zip(self._brought.turns[turn], self._digests[turn], strict=True):
            end = at + count_leaves(piece.size) * 8
            # Digests from the device, where there are: they also prove the way to memory.
            self._leaves += moved.leaves[at:end] if digests is None else digests
            at = end
            record = self._records[piece.record]
            if piece.start + piece.size == record.plan.raw_size:
                yield record, bytes(self._leaves)
                self._leaves.clear()
