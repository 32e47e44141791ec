"""What stands behind the records of a ``.fckpt`` with parity inside, made again from all in front of it.

Parity section, index, directory, manifest copy and footer follow from those bytes. That what was made is what was saved
the root digest proves, which the pages of the parity state, and the footer, where that is left.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from fastckpt.constants import (
    ALIGNMENT,
    FOOTER_SIZE,
    MAGIC_MANIFEST,
    MAGIC_SOURCE,
    SECTION_SOURCE,
    SUPERBLOCK_SIZE,
)
from fastckpt.errors import DamagedError
from fastckpt.fckpt.footer import footer_if_whole
from fastckpt.fckpt.remains import read_block, scan
from fastckpt.fckpt.tail import write_tail
from fastckpt.io.beginning import Beginning
from fastckpt.io.commit import write_all
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.source import Source
from fastckpt.io.unreadable import read_there
from fastckpt.layout.blocks import Extent, block_digest
from fastckpt.layout.frame import encode_footer, encode_superblock, root_digest
from fastckpt.seals.encoded import encoded
from fastckpt.seals.parity_inside import section_pieces
from fastckpt.seals.parity_section import ParitySection

_AT_A_TIME: Final = 8 * 2**20


def make_again(fd: int, source: Source, section: ParitySection, digests: memoryview, *, threads: int) -> int:
    """Write all that stands behind the bytes that parity covers, where it is not there already; returns where it ends.

    Args:
        fd: The file; it has all bytes that are covered, healed.
        source: The damaged file.
        section: The parity of that.
        digests: Of the leaves that it covers.
        threads: Worker threads.

    Raises:
        DamagedError: What was healed is not what pages or footer of the damaged file are of. Nothing was written.
        OutOfSpaceError, CheckpointIOError: It cannot be written.
    """
    healed = Beginning(fd, source.path, section.covered)
    manifest, headers, end = _structure(healed, section, threads)
    further = {}
    if end < section.covered:
        further[SECTION_SOURCE] = read_block(healed, end, MAGIC_SOURCE, what="source section")
    if end + sum(map(len, further.values())) != section.covered:
        raise DamagedError("what stands in front of the parity is not known", path=source.path, offset=end)
    with encoded(healed, section.parity, beside=source.path, threads=threads) as rows:
        if bytes(rows.leaves) != bytes(digests):
            raise DamagedError("the file changed while it was read", path=source.path)

        def write_with(write: Callable[[int, bytes | memoryview], None]) -> int:
            return write_tail(
                lambda offset, data: write(offset, data) if offset >= section.covered else None,
                end,
                manifest,
                headers,
                further,
                lambda _begin, _root: section_pieces(section, rows, threads=threads),
            )

        last = [b""]
        write_with(lambda _offset, data: last.__setitem__(0, bytes(data[-FOOTER_SIZE:])))
        _require_same_footer(source, last[0])
        return write_with(lambda offset, data: _write_where_it_differs(fd, offset, data, source.path))


def _structure(healed: Source, section: ParitySection, threads: int) -> tuple[bytes, list[tuple[int, bytes]], int]:
    """Manifest, record headers and where the last record ends, proven by the root digest."""
    manifest = read_block(healed, SUPERBLOCK_SIZE, MAGIC_MANIFEST, what="manifest")
    found = scan(healed, threads=threads)
    records = [record for _, record in sorted(found.records.items())]
    headers = [(record.header.offset, healed.read(*record.header)) for record in records]
    root = root_digest(block_digest(manifest), [block_digest(block) for _, block in headers])
    extent = Extent(SUPERBLOCK_SIZE, len(manifest))
    superblock = encode_superblock(extent, block_digest(manifest))
    if root != section.root or healed.read(0, SUPERBLOCK_SIZE) != superblock:
        raise DamagedError("what its parity gives is not the save that this is of", path=healed.path)
    return manifest, headers, records[-1].end if records else extent.end


def _require_same_footer(source: Source, made: bytes) -> None:
    """Raise DamagedError if the footer of the damaged file is whole, and another one."""
    footer = footer_if_whole(source)
    if footer is not None and encode_footer(footer) != made:
        raise DamagedError("the end of the file that was made again is not the one that is there", path=source.path)


def _write_where_it_differs(fd: int, offset: int, data: bytes | memoryview, path: str) -> None:
    """Nothing is written over bytes that are right: what breaks off in the middle makes nothing worse."""
    with typed_os_errors(path, offset, doing="read"):
        here = _read_there(fd, offset, len(data))
    if not here:
        write_all(fd, offset, data, path=path)
        return
    for at in range(0, len(data), ALIGNMENT) if here != data else ():
        page = data[at : at + ALIGNMENT]
        if here[at : at + ALIGNMENT] != page:
            write_all(fd, offset + at, page, path=path)


def _read_there(fd: int, offset: int, size: int) -> bytes:
    try:
        return os.pread(fd, size, offset)
    except OSError as error:
        if error.errno == errno.EIO:
            return b"\0"  # A bad sector: all is written, which may mend it.
        raise


def copy_behind(fd: int, source: Source, begin: int) -> int:
    """Write what the damaged file has from a byte on to the same place, zeros where it cannot be read.

    Returns:
        Where it ends.
    """
    for offset in range(begin, source.size, _AT_A_TIME):
        _write_where_it_differs(fd, offset, read_there(source, offset, _AT_A_TIME), source.path)
    return max(source.size, begin)
