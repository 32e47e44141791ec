"""Records of a zip archive that are deflated: read piece by piece, and no further than they are said to go."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from fastckpt.errors import DamagedError
from fastckpt.io.source import Source

_PIECE: Final = 2**20


def inflated(source: Source, offset: int, nbytes: int, full: int, *, name: str) -> Iterator[bytes]:
    """Yield what a deflated record becomes.

    Args:
        source: The file.
        offset: Where its bytes begin.
        nbytes: How many they are in the file.
        full: How many they become.
        name: What it is called in messages.

    Raises:
        DamagedError: They become more or fewer, are no deflated bytes, or others follow them.
        CheckpointIOError: The system could not read.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    done = 0
    last = offset + max(nbytes - 1, 0)  # It comes alone: see `_has_stray_bits`.
    begins = [*range(offset, last, _PIECE), *([last] if nbytes else [])]
    for at, stop in pairwise([*begins, offset + nbytes]):
        rest = source.read(at, stop - at, what=f"record {name}")
        if at == last and not inflater.eof and _has_stray_bits(inflater, rest):
            raise DamagedError(f"bits follow the end of the deflated record {name}", offset=last)
        while rest and not inflater.eof:
            try:
                piece = inflater.decompress(rest, _PIECE)
            except zlib.error as error:
                raise DamagedError(f"the record {name} cannot be inflated ({error})", offset=offset) from None
            rest = inflater.unconsumed_tail
            done += len(piece)
            if done > full:
                raise DamagedError(f"the record {name} becomes more than {full} bytes", offset=offset)
            yield piece
        if inflater.eof and (inflater.unused_data or at < last):
            raise DamagedError(f"bytes follow the end of the deflated record {name}", offset=offset)
    if done != full or not inflater.eof:
        raise DamagedError(
            f"the record {name} ends too early", offset=offset, expected=f"{full} bytes", actual=f"{done} bytes"
        )


def _has_stray_bits(inflater: zlib._Decompress, last: bytes) -> bool:
    """Whether the last byte has a bit behind the end of what it ends. zlib leaves these at 0, and reads over them."""
    usual = _outcome(inflater, last)
    cleared = [bytes([last[0] & ~(1 << bit)]) for bit in range(8) if last[0] >> bit & 1]
    return usual[1] and any(_outcome(inflater, other) == usual for other in cleared)


def _outcome(inflater: zlib._Decompress, data: bytes) -> tuple[bytes, bool]:
    copy = inflater.copy()
    try:
        return copy.decompress(data, _PIECE), copy.eof
    except zlib.error:
        return b"", False


def inflated_crc(source: Source, offset: int, nbytes: int, full: int, *, name: str) -> int:
    """The CRC-32 of what a deflated record becomes. Raises what `inflated` does."""
    crc = 0
    for piece in inflated(source, offset, nbytes, full, name=name):
        crc = zlib.crc32(piece, crc)
    return crc
