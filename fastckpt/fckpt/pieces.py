"""The raw bytes of records that are to be encoded, piece after piece: where each lies, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from fastckpt.fckpt.content import Content, Delivery, brought_pieces
from fastckpt.fckpt.turns import RecordToWrite, origin_of
from fastckpt.io.memory import allocate
from fastckpt.io.transfer import MEMORY


class Piece(NamedTuple):
    """``size`` raw bytes of a record.

    Attributes:
        source: File descriptor that they come from, or MEMORY.
        origin: Where they begin there.
        size: How many. A piece begins with a chunk, and ends with one or with its record.
        leaves: Their leaf digests, if they are known.
        fleeting: Whether they lie there only until the next piece is asked for, else as long as the record's pack.
    """

    source: int
    origin: int
    size: int
    leaves: bytes | None = None
    fleeting: bool = False


class Pieces:
    """The pieces of records, to be asked for in their order; a context manager.

    Args:
        content: Where the bytes are.
        records: All that are to be written.
        gather: Copies the storages of a record to the memory that its pack shall have.
    """

    def __init__(
        self,
        content: Content,
        records: Sequence[RecordToWrite],
        gather: Callable[[RecordToWrite, memoryview], None],
    ) -> None:
        self._content = content
        self._covered = [record.plan for record in records if content.covered(record.plan)]
        self._gather = gather
        self._held = ExitStack()
        self._brought: Iterator[tuple[Delivery, bytes | None]] = iter(())

    def __enter__(self) -> Pieces:
        if self._content.supply is not None and self._covered:
            self._brought = brought_pieces(self._held.enter_context(self._content.supply.deliver(self._covered)))
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def of(self, record: RecordToWrite) -> Iterator[Piece]:
        """The pieces of the next record. Its pack, where it has one, is made here."""
        if self._content.covered(record.plan):
            yield from self._up_to(record.plan.raw_size)
            return
        source = self._content.source_of(record.plan.storages[0].storage)
        if record.is_pack:
            record.pack = allocate(record.plan.raw_size)
            self._gather(record, record.pack)
            source = MEMORY
        yield Piece(source, origin_of(self._content, record), record.plan.raw_size)

    def _up_to(self, size: int) -> Iterator[Piece]:
        """The next pieces that the supply brings, up to the one that ends a record of this size."""
        for piece, leaves in self._brought:
            yield Piece(MEMORY, piece.address, piece.size, leaves, fleeting=True)
            if piece.start + piece.size == size:
                return
