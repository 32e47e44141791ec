"""The files in a tar archive: their names, and where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from fastckpt.errors import DamagedError
from fastckpt.io.source import Source

BLOCK: Final = 512
"""Headers are one of these, and what is in a file is padded to whole ones (POSIX.1-2001, pax)."""
_USTAR: Final = b"ustar"
_CHECKSUM: Final = slice(148, 156)
_REGULAR: Final = (b"0", b"\0")
_PAX: Final = (b"x", b"g")
_MAX_PAX: Final = 2**16
_MAX_TAIL: Final = 2**16
"""Zeros behind the last file; tar fills up to 10,240 bytes."""


class TarMember(NamedTuple):
    """A file in an archive; of one that is cut, ``offset + size`` lies beyond its end."""

    name: str
    offset: int
    size: int


class _Header(NamedTuple):
    name: str
    size: int
    kind: bytes


def _header(block: bytes) -> _Header | None:
    """What a header says; None if it is none, or damaged."""
    if len(block) < BLOCK or block[257:262] != _USTAR:
        return None
    try:
        stated = int(block[_CHECKSUM].strip(b" \0"), 8)
        size = int(block[124:136].strip(b" \0") or b"0", 8)
        name = block[:100].rstrip(b"\0").decode("utf-8")
    except ValueError:
        return None
    blank = block[:148] + b" " * 8 + block[156:]
    return _Header(name, size, block[156:157]) if sum(blank) == stated and size >= 0 else None


def names_in(head: bytes) -> Iterator[str]:
    """The names of the first files of an archive, from its first bytes."""
    at = 0
    while (header := _header(head[at : at + BLOCK])) is not None:
        if header.kind in _REGULAR:
            yield header.name
        at += BLOCK + _padded(header.size)


def tar_members(source: Source, *, most: int) -> tuple[list[TarMember], int]:
    """The files of an archive, and where it ends: behind its zeros, or where something else than these begins.

    Args:
        source: The file.
        most: More files than this are none of what is looked for.

    Raises:
        DamagedError: A header is damaged, or it holds too many files.
    """
    members: list[TarMember] = []
    at, size = 0, None
    while at + BLOCK <= source.size:
        block = source.read(at, BLOCK, what="header of a tar archive")
        if not any(block):
            break
        header = _header(block)
        if header is None or header.kind not in _REGULAR + _PAX:
            raise DamagedError("a header of the tar archive is damaged", offset=at)
        at += BLOCK
        if header.kind in _PAX:
            size = _pax_size(source.read(at, min(header.size, _MAX_PAX, source.size - at))) or size
            at += _padded(header.size)
            continue
        if len(members) == most:
            raise DamagedError(f"the tar archive has more than {most} files", offset=at)
        members.append(TarMember(header.name, at, header.size if size is None else size))
        at, size = at + _padded(members[-1].size), None
    tail = source.read(at, min(max(source.size - at, 0), _MAX_TAIL)) if at < source.size else b""
    return members, source.size if at + len(tail) >= source.size and not any(tail) else at


def _pax_size(records: bytes) -> int | None:
    """The size that does not fit the header of the next file: ``length size=number`` and a line feed."""
    for line in records.split(b"\n"):
        _, _, pair = line.partition(b" ")
        if pair.startswith(b"size=") and pair[5:25].isdigit() and len(pair) <= 25:
            return int(pair[5:])
    return None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
