"""The directory: where every record header stands, and the digest it ends with.

It is small and proves itself by the root digest. So a reader that wants one
tensor of many reads the directory and one header, not the index.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from fastckpt.constants import MAGIC_DIRECTORY
from fastckpt.errors import DamagedError
from fastckpt.layout.blocks import Extent, block_digest, require_zero, seal, sealed_size, unseal

_HEAD: Final = struct.Struct("<QQ")
_ROW: Final = struct.Struct("<QQ16s")


class HeaderPlace(NamedTuple):
    """Where a record header stands, and the digest it ends with."""

    header: Extent
    digest: bytes


def directory_size(record_count: int) -> int:
    """Size in bytes of the directory of so many records."""
    return sealed_size(_HEAD.size + record_count * _ROW.size)


def encode_directory(headers: Iterable[tuple[int, bytes]]) -> bytes:
    """The sealed directory from ``(offset, header block)`` of every record, in order."""
    rows = [_ROW.pack(offset, len(block), block_digest(block)) for offset, block in headers]
    return seal(MAGIC_DIRECTORY, _HEAD.pack(len(rows), 0), *rows)


def decode_directory(block: bytes) -> list[HeaderPlace]:
    """The place of every record header. Raises DamagedError: the digest does not match, or sizes do not add up."""
    body = unseal(block, MAGIC_DIRECTORY, what="directory")
    count, zero = _HEAD.unpack_from(body)
    end = _HEAD.size + count * _ROW.size
    if zero or end > len(body):
        raise DamagedError("the directory announces more records than fit in it", actual=count)
    require_zero(body[end:], what="padding of the directory")
    return [
        HeaderPlace(Extent(offset, size), digest) for offset, size, digest in _ROW.iter_unpack(body[_HEAD.size : end])
    ]
