"""Parity on its way into a ``.fckpt`` that is being written: the bytes of its section, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import xxhash

from fastckpt import _core
from fastckpt.constants import ALIGNMENT, DIGEST_SIZE, LEAF_SIZE, MAGIC_PARITY
from fastckpt.io.beginning import Beginning
from fastckpt.io.memory import allocate
from fastckpt.io.tally import Tally
from fastckpt.io.transfer import MEMORY, NOWHERE, Move, transfer
from fastckpt.layout.blocks import encode_prologue
from fastckpt.seals.encoded import Encoded, encoded, of_tally
from fastckpt.seals.parity import Parity
from fastckpt.seals.parity_section import ParitySection, runs_of_rows

_AT_A_TIME: Final = 512
"""Leaves of parity in a piece: 8 MiB."""

_NO_ROOT: Final = bytes(DIGEST_SIZE)


class ParityInside:
    """The parity that a file gets inside, for `fastckpt.fckpt.writer.write_checkpoint`.

    Args:
        parity: How much.

    Attributes:
        tally: Is to be told of all that is written in front of the section.
    """

    def __init__(self, parity: Parity) -> None:
        self.parity = parity
        self.tally = Tally(parity.groups, parity.rows)

    def size(self, covered: int) -> int:
        """Bytes of the section behind so many others."""
        return ParitySection(covered, self.parity, _NO_ROOT).end - covered

    def pieces(self, fd: int, path: str, covered: int, root: bytes, *, threads: int) -> Iterator[bytes | memoryview]:
        """The sealed block of the section, piece by piece; each is to be used before the next is asked for.

        Its parity is what was summed up; where that is not possible (`Tally`), all is read again.

        Args:
            fd: The file, in which all that is covered stands.
            path: What that is called in errors.
            covered: How many bytes that are.
            root: The root digest of the file.
            threads: Worker threads.

        Raises:
            CheckpointIOError, OutOfSpaceError: It cannot be read again, or the parity not be kept.
            KeyboardInterrupt: Within 0.2 s of Ctrl-C.
        """
        section = ParitySection(covered, self.parity, root)
        with ExitStack() as stack:
            if self.tally.native is not None:
                self.tally.sum()
                rows = of_tally(self.tally, self.parity, covered)
            else:
                source = Beginning(fd, path, covered)
                rows = stack.enter_context(encoded(source, self.parity, beside=path, threads=threads))
            yield from section_pieces(section, rows, threads=threads)


def section_pieces(section: ParitySection, rows: Encoded, *, threads: int) -> Iterator[bytes | memoryview]:
    """The sealed block of a section, of the parity and the digests of all that it covers. See `ParityInside.pieces`."""
    runs = list(runs_of_rows(section, _AT_A_TIME))
    moves = [Move(rows.origins[row] + first * LEAF_SIZE, 0, count * LEAF_SIZE) for row, first, count in runs]
    moved = transfer(moves, source=rows.source, sink=NOWHERE, threads=threads)
    moved.require_read(moves)
    pages = section.encode_pages(bytes(rows.leaves) + bytes(moved.leaves))
    head = encode_prologue(MAGIC_PARITY, section.end - section.covered)
    digest = xxhash.xxh3_128()
    for piece in _body(head.ljust(ALIGNMENT, b"\0"), pages, rows, moves, threads):
        digest.update(piece)
        yield piece
    last = bytes(ALIGNMENT - DIGEST_SIZE)
    digest.update(last)
    yield last + digest.digest()


def _body(first: bytes, pages: bytes, rows: Encoded, moves: list[Move], threads: int) -> Iterator[bytes | memoryview]:
    yield first
    yield pages
    room = allocate(max(move.size for move in moves))
    for move in moves:
        to_room = [Move(move.source, _core.address(room), move.size)]
        transfer(to_room, source=rows.source, sink=MEMORY, threads=threads, leaves=False).require_read(to_room)
        yield room[: move.size]
    yield pages
