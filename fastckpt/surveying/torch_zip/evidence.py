"""What a damaged zip archive still says: local headers, descriptors, the central directory."""

from __future__ import annotations

import re
import struct
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Final, NamedTuple

from fastckpt.io.part import Part
from fastckpt.io.source import Source
from fastckpt.io.unreadable import read_there
from fastckpt.layout.zip_layout import (
    DESCRIPTOR_MAGIC,
    END64_MAGIC,
    END_MAGIC,
    END_SIZE,
    LOCAL_HEADER,
    DirectoryEntry,
    LocalHeader,
    parse_directory,
    parse_local,
)

WINDOW: Final = 8 * 2**20
"""Bytes looked at in one piece when the file is searched."""
MAX_DIRECTORY: Final = 128 * 2**20
MAX_NAME: Final = 1024
_USUAL_NAME: Final = 64
SHORT_END: Final = 22
"""Bytes of the end record alone."""
_END: Final = struct.Struct("<4s6xHIIH")
_END64: Final = struct.Struct("<4s28xQQQ")
_STORAGE_NAME: Final = re.compile(r"([^/]+)/data/([0-9]{1,18})")
MAX_FOUND: Final = 300_000
"""Local headers that a search gives back; a checkpoint has some thousands, and these fit into 100 MB."""


@dataclass(slots=True)
class Archive:
    """What is known of a damaged archive as a whole.

    Attributes:
        source: The part of the file that it is.
        directory: The entries of the central directory that stand, by name.
        whole_directory: Whether all of it stands, at the end of the file, and names each record once.
        prefix: The top directory of all names; "" while nothing tells.
        headers: The local headers of the whole file and their offsets, once it was searched for them.
        agreed: The CRC-32s of all records, by name without the top directory, where its last record proves them.
    """

    source: Part
    directory: dict[str, DirectoryEntry]
    whole_directory: bool
    prefix: str = ""
    headers: list[tuple[int, LocalHeader]] | None = None
    agreed: dict[str, int] = field(default_factory=dict)

    def name(self, key: str) -> str:
        """The name of a storage's record."""
        return f"{self.prefix}/data/{key}"

    def key_of(self, name: str) -> str | None:
        """The key of the storage whose record has this name; None if it is that of no storage."""
        match = _STORAGE_NAME.fullmatch(name)
        return match[2] if match is not None and match[1] == self.prefix else None

    def search(self) -> list[tuple[int, LocalHeader]]:
        """Every local header in the file and its offset. Reads all of it, once."""
        if self.headers is None:
            self.headers = list(search_local_headers(self.source))
        return self.headers

    def storage_headers(self, start: int, stop: int) -> Iterator[tuple[int, str, LocalHeader]]:
        """Offset, key and content of every local header of a storage in a part of the file."""
        if self.headers is None:
            found: Iterable[tuple[int, LocalHeader]] = search_local_headers(self.source, start, stop)
        else:
            first = bisect_left(self.headers, start, key=lambda item: item[0])
            found = takewhile(lambda item: item[0] < stop, islice(self.headers, first, None))
        for at, header in found:
            key = self.key_of(header.name)
            if key is not None:
                yield at, key, header


def local_header_at(source: Source, at: int) -> LocalHeader | None:
    """The local header at an offset; None if there is none."""
    raw = read_there(source, at, LOCAL_HEADER.size + _USUAL_NAME)
    if len(raw) < LOCAL_HEADER.size:
        return None
    name_size = LOCAL_HEADER.unpack_from(raw)[9]
    if name_size > MAX_NAME:
        return None
    if name_size > _USUAL_NAME:
        raw = read_there(source, at, LOCAL_HEADER.size + name_size)
    return parse_local(raw, at)


class Descriptor(NamedTuple):
    """What stands behind a record.

    Attributes:
        crc: The CRC-32; 0 if neither signature nor sizes are right, so that overwritten bytes are never taken for one.
        signed: Whether signature and sizes are both right.
        raw: All that stands there.
    """

    crc: int
    signed: bool
    raw: bytes


def descriptor_at(source: Source, at: int, size: int, width: int) -> Descriptor | None:
    """The descriptor of a record of ``size`` bytes, ``width`` bytes long; None if it is cut."""
    raw = read_there(source, at, width)
    if len(raw) < 8:
        return None
    magic, crc = struct.unpack_from("<4sI", raw)
    sizes = struct.pack("<QQ", size, size) if width == 24 else struct.pack("<II", size & 0xFFFFFFFF, size & 0xFFFFFFFF)
    has_sizes = raw[8:] == sizes
    has_magic = magic == DESCRIPTOR_MAGIC
    # A run of equal bytes can have just these bytes as its CRC-32: four times FF does.
    return Descriptor(crc if has_magic or has_sizes else 0, has_magic and has_sizes, raw)


class StatedDirectory(NamedTuple):
    """What the end record of an archive says.

    Attributes:
        at: Where the directory begins, counted back from the record.
        begin: Where the archive begins, if its own count is right; before 0, if its first bytes were taken away.
        entries: How many it has.
    """

    at: int
    begin: int
    entries: int


def stated_directory(source: Source, end: int, *, comment: int = 0) -> StatedDirectory | None:
    """What an end record says that ends at ``end``, where a comment of so many bytes begins; None if there is none."""
    raw = read_there(source, max(end - END_SIZE, 0), min(END_SIZE, end))
    if len(raw) < SHORT_END:
        return None
    magic, count, size, start, stated = _END.unpack_from(raw, len(raw) - SHORT_END)
    if magic != END_MAGIC or stated != comment:
        return None
    at = end - SHORT_END - size
    if len(raw) == END_SIZE and raw.startswith(END64_MAGIC):
        _, count, size, start = _END64.unpack_from(raw)
        at = end - END_SIZE - size
    return StatedDirectory(at, at - start, count) if at >= 0 else None


class Directory(NamedTuple):
    """The central directory of an archive.

    Attributes:
        entries: Those that stand, by name; of one name the first.
        stands: Whether they are as many as the end of the file says.
        again: If so, the others of these names.
    """

    entries: dict[str, DirectoryEntry]
    stands: bool
    again: Sequence[DirectoryEntry]

    @property
    def is_whole(self) -> bool:
        """Whether all of it stands, and no name twice."""
        return self.stands and not self.again


def read_directory(source: Source) -> Directory:
    """The central directory at the end of an archive."""
    tail_size = min(source.size, 70_000)
    base = source.size - tail_size
    tail = read_there(source, base, tail_size)
    stated, is_last, floor = None, False, max(base - 2**20, 0)
    at = tail.rfind(END_MAGIC)
    if at >= 0:
        end = base + at + SHORT_END
        stated = stated_directory(source, end, comment=source.size - end)
        is_last = stated is not None
        stated = stated or stated_directory(source, end)
        if stated is not None and not is_last and stated.begin:
            # That of an archive which a tensor holds: the directory of this one stands behind it.
            stated, floor = None, end
    if stated is None or source.size - stated.at > MAX_DIRECTORY:
        # Its end is lost: what of it lies in the last part of the file is found by its signature.
        stated = StatedDirectory(floor, 0, -1)
    raw = read_there(source, stated.at, min(source.size - stated.at, MAX_DIRECTORY))
    entries: dict[str, DirectoryEntry] = {}
    again = [entry for entry in parse_directory(raw) if entries.setdefault(entry.name, entry) is not entry]
    stands = is_last and len(entries) + len(again) == stated.entries
    return Directory(entries, stands, again if stands else ())


_LOCAL: Final = re.compile(re.escape(b"PK\x03\x04"))


def search_local_headers(
    source: Source, start: int = 0, stop: int | None = None, *, methods: Collection[int] = (0,)
) -> Iterator[tuple[int, LocalHeader]]:
    """Every local header of a record of torch in the file by its signature, of those packed by one of the methods."""
    found = 0
    at = start
    end = source.size if stop is None else stop
    zeros = bytes(min(WINDOW, max(end - start, 0)))
    while at < end and found < MAX_FOUND:
        window = read_there(source, at, min(WINDOW, end - at))
        if not window:
            return
        # To compare is ten times as fast as to search, and a file that was preallocated can have many zeros.
        blank = window == (zeros if len(window) == len(zeros) else bytes(len(window)))
        for match in () if blank else _LOCAL.finditer(window):
            raw = window[match.start() : match.start() + LOCAL_HEADER.size + MAX_NAME]
            header = parse_local(raw, at + match.start())
            if header is None:
                header = local_header_at(source, at + match.start())
            if header is not None and header.method in methods and "/" in header.name and header.name.isprintable():
                found += 1
                yield at + match.start(), header
        if at + len(window) >= end:
            return
        # A signature may lie across the border.
        at += len(window) - 3
