"""The bytes of the chosen storages, ready to be copied: where they lie, or out of a spool file.

What stands as it is in a file is copied from there. What must be decoded, or
has missing bytes to be filled, goes through a temporary file beside the
destination, so that memory stays bounded whatever the sizes.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Final, NamedTuple

from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.fckpt.payload import Reading, Target, read_targets
from fastckpt.foreign.byte_order import turn_round
from fastckpt.io.copying import FilePlace
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.source import Source
from fastckpt.io.space import check_space
from fastckpt.io.transfer import MEMORY, Move, transfer
from fastckpt.layout.blocks import align
from fastckpt.layout.entries import Entry
from fastckpt.salvaging.selection import Part
from fastckpt.surveying.holes import Hole

_NAN: Final[Mapping[str, bytes]] = {
    "float16": b"\x00\x7e",
    "bfloat16": b"\xc0\x7f",
    "float32": b"\x00\x00\xc0\x7f",
    "float64": b"\x00\x00\x00\x00\x00\x00\xf8\x7f",
    "complex32": b"\x00\x7e" * 2,
    "complex64": b"\x00\x00\xc0\x7f" * 2,
    "complex128": b"\x00\x00\x00\x00\x00\x00\xf8\x7f" * 2,
    "float8_e4m3fn": b"\x7f",
    "float8_e4m3fnuz": b"\x80",
    "float8_e5m2": b"\x7f",
    "float8_e5m2fnuz": b"\x80",
    "float8_e8m0fnu": b"\xff",
}
_FILL_STEP: Final = 2**20


class Gathered(NamedTuple):
    """The origins of all storages, and how many bytes in them were filled."""

    origins: list[FilePlace]
    filled: int


@contextlib.contextmanager
def gathered(
    pieces: Sequence[Part],
    entries: Sequence[Entry],
    sources: Mapping[str, Source],
    directory: str,
    *,
    fill: str,
    threads: int,
) -> Iterator[Gathered]:
    """The origins of ``pieces``, valid inside the block.

    Args:
        pieces: The storages.
        entries: The tensors on them; their dtypes say what NaN looks like.
        sources: The open files by path.
        directory: Where the spool file goes, if one is needed.
        fill: ``nan`` or ``zeros``, for missing bytes.
        threads: Worker threads.

    Raises:
        OutOfSpaceError, CheckpointIOError: The spool file cannot be written.
        DamagedError: A file changed since it was surveyed.
    """
    dtypes: dict[int, str] = {}
    for entry in entries:
        dtypes.setdefault(entry.storage, entry.dtype)
    with contextlib.ExitStack() as stack:
        spool: _Spool | None = None
        origins = []
        for number, piece in enumerate(pieces):
            if not piece.state.nbytes:
                origins.append(FilePlace(MEMORY, 0))
                continue
            source = sources[piece.wreck.path]
            holes = [hole for hole in piece.state.holes if hole.located]
            if piece.state.offset is not None and not holes and piece.state.unit == 1:
                origins.append(FilePlace(source.fd, piece.state.offset))
                continue
            if spool is None:
                spool = _Spool(stack, directory, threads)
            dtype = dtypes.get(number, piece.dtype)
            pattern = _NAN.get(dtype or "", b"\0") if fill == "nan" else b"\0"
            origins.append(spool.take(piece, source, holes, pattern))
        yield Gathered(origins, spool.filled if spool is not None else 0)


class _Spool:
    """A temporary file without a name."""

    def __init__(self, stack: contextlib.ExitStack, directory: str, threads: int) -> None:
        with typed_os_errors(directory, doing="make a temporary file in"):
            # It has no name: the system removes it when it is closed, or when the process dies.
            self._file: IO[Any] = stack.enter_context(tempfile.TemporaryFile(dir=directory))  # noqa: SIM115
        self._threads = threads
        self._directory = directory
        self._end = 0
        self.filled = 0

    def take(self, piece: Part, source: Source, holes: Sequence[Hole], pattern: bytes) -> FilePlace:
        """Copy a storage here, decoded, with its holes filled."""
        with typed_os_errors(self._directory, doing="write a temporary file in"):
            encoded = piece.state.record is not None
            offset = self._decode(piece, source) if encoded else self._copy(piece, source, holes)
            self._turn_round(offset, piece.state.nbytes, piece.state.unit)
            for hole in holes:
                self._fill(offset, hole, piece.state.nbytes, pattern)
        return FilePlace(self._file.fileno(), offset)

    def _reserve(self, size: int) -> int:
        check_space(self._directory or os.curdir, size, self._directory)
        offset = self._end
        self._end = align(offset + size)
        os.truncate(self._file.fileno(), self._end)
        return offset

    def _decode(self, piece: Part, source: Source) -> int:
        record, start = piece.state.record, piece.state.record_offset
        assert record is not None
        first = start // LEAF_SIZE * LEAF_SIZE
        end = min(align(start + piece.state.nbytes, LEAF_SIZE), record.raw_size)
        offset = self._reserve(end - first)
        for begin, stop in _outside(piece.state.holes, piece.state.nbytes):
            # Whole leaves are wanted; what of them lies in a hole is overwritten afterwards.
            low = max((start + begin) // LEAF_SIZE * LEAF_SIZE, first)
            high = min(align(start + stop, LEAF_SIZE), end)
            target = Target(record, low, high - low, offset + low - first)
            read_targets(source, [target], Reading(self._threads, verify=False, sink=self._file.fileno()))
        return offset + start - first

    def _copy(self, piece: Part, source: Source, holes: Sequence[Hole]) -> int:
        offset = self._reserve(piece.state.nbytes)
        base = piece.state.offset
        assert base is not None
        moves = [Move(base + a, offset + a, b - a) for a, b in _outside(holes, piece.state.nbytes)]
        moved = transfer(
            moves, source=source.fd, sink=self._file.fileno(), threads=self._threads, leaves=False, crcs=False
        )
        if moved.faults:
            raise DamagedError("the file became shorter or unreadable while it was salvaged", path=source.path)
        return offset

    def _turn_round(self, offset: int, nbytes: int, unit: int) -> None:
        """Make the numbers of a big-endian file little-endian."""
        for at in range(0, nbytes if unit > 1 else 0, _FILL_STEP):
            piece = bytearray(os.pread(self._file.fileno(), min(_FILL_STEP, nbytes - at), offset + at))
            turn_round(memoryview(piece), unit)
            if os.pwrite(self._file.fileno(), piece, offset + at) != len(piece):
                raise CheckpointIOError("a temporary file could not be written", path=self._directory)

    def _fill(self, offset: int, hole: Hole, nbytes: int, pattern: bytes) -> None:
        width = len(pattern)
        # A hole may begin or end inside an element, which is then lost as a whole.
        start = hole.start // width * width
        end = min(align(hole.end, width), nbytes)
        self.filled += end - start
        block = pattern * (_FILL_STEP // width)
        for at in range(start, end, len(block)):
            part = block[: min(len(block), end - at)]
            if os.pwrite(self._file.fileno(), part, offset + at) != len(part):
                raise CheckpointIOError("a temporary file could not be written", path=self._directory)


def _outside(holes: Sequence[Hole], nbytes: int) -> Iterator[tuple[int, int]]:
    """The ranges of a storage that are in no hole."""
    at = 0
    for hole in holes:
        if hole.start > at:
            yield at, hole.start
        at = max(at, hole.end)
    if at < nbytes:
        yield at, nbytes
