"""Where in a damaged file each of its zip archives stands.

Several calls of torch.save into one file object leave several archives, one behind the other, and so does a save that
is appended to another one. An archive says at its end how long it is. Where that is lost, the next one tells: it begins
with the record ``data.pkl``, behind all that still stands of the storages of the one before.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Final

from fastckpt.foreign.zip_records import MAX_ARCHIVES
from fastckpt.io.part import Part
from fastckpt.io.source import Source
from fastckpt.io.unreadable import read_there
from fastckpt.layout.zip_layout import END_MAGIC, LOCAL_MAGIC, end_of, parse_local
from fastckpt.surveying.torch_zip.evidence import (
    MAX_NAME,
    SHORT_END,
    WINDOW,
    Archive,
    local_header_at,
    read_directory,
    search_local_headers,
    stated_directory,
)
from fastckpt.surveying.torch_zip.pickle import find_pickle, is_pickle_name
from fastckpt.surveying.torch_zip.places import arithmetic_places
from fastckpt.surveying.torch_zip.storages import expected_size, look

_MARKS: Final = re.compile(b"PK(?:\x05\x06|\x03\x04)")
_LONGEST_HEADER: Final = 30 + MAX_NAME + 4096


def find_archives(source: Source) -> list[Part]:
    """The parts of a file in each of which an archive stands, or nothing that is known; in file order, all of it."""
    found: list[Part] = []
    end = source.size
    while end > 0 and len(found) < MAX_ARCHIVES:
        begin = _begin_of(source, end)
        if begin is None:
            break
        found.append(Part(source, begin, end - begin))
        end = begin
    return [*_from_the_front(source, end), *reversed(found)]


def holds_records(part: Part) -> bool:
    """Whether there is anything of a checkpoint in a part of a file."""
    names = (header.name.partition("/")[2] for _, header in search_local_headers(part))
    return any(name == "data.pkl" or name.startswith("data/") for name in names) or _has_pickle(part)


def _has_pickle(part: Part) -> bool:
    return find_pickle(part, {}).state is not None


# --- by what stands at their ends ---------------------------------------------------


def _begin_of(source: Source, end: int) -> int | None:
    """Where the archive begins that ends at ``end``; None if nothing there tells.

    Before 0, if the first bytes of the file were taken away.
    """
    begin = _stated_begin(source, end)
    if begin is None or begin == 0:
        return begin
    if begin < 0:
        return begin if _has_moved_to_the_front(source, begin, end) else None
    # Where bytes were put into an archive, its end states a beginning at which nothing begins.
    return begin if _begins_here(source, begin) or _stated_begin(source, begin) is not None else None


def _stated_begin(source: Source, end: int) -> int | None:
    """Where the end record that ends at ``end`` says that its archive begins."""
    stated = stated_directory(source, end)
    return stated.begin if stated is not None else None


def _begins_here(source: Source, at: int) -> bool:
    header = local_header_at(source, at)
    return header is not None and is_pickle_name(header.name)


def _has_moved_to_the_front(source: Source, begin: int, end: int) -> bool:
    """Whether the first record that is still there stands where the directory puts it."""
    if _begins_here(source, 0):
        return False
    part = Part(source, begin, end - begin)
    there = [entry for entry in read_directory(part).entries.values() if entry.header + begin >= 0]
    first = min(there, key=lambda entry: entry.header, default=None)
    header = local_header_at(part, first.header) if first is not None else None
    return first is not None and header is not None and header.name == first.name


# --- one after the other ------------------------------------------------------------


def _from_the_front(source: Source, end: int) -> Iterator[Part]:
    """The parts of the first ``end`` bytes."""
    at = 0
    while at < end:
        size = _length(Part(source, at, end - at))
        yield Part(source, at, size)
        at += size


def _length(part: Part) -> int:
    """How long the archive is that ``part`` begins with; or how much stands before one."""
    first, last = _stretch(part) if _begins_here(part, 0) else (1, part.size)
    for at, magic in _marks(part, max(first, 1)):
        if magic == END_MAGIC and _stated_begin(part, at + SHORT_END) == 0:
            return at + SHORT_END
        if magic == LOCAL_MAGIC and _begins_here(part, at) and not _is_in_a_record(part, at):
            return at
    if last < part.size and _has_pickle(Part(part.base, part.begin + last, part.size - last)):
        return last
    return part.size


def _stretch(part: Part) -> tuple[int, int]:
    """From where on nothing shows that a byte is of the archive at the beginning, and where it ended when it was whole.

    By what ``data.pkl`` says of its storages, if it can be read.
    """
    pickle = find_pickle(part, {})
    if pickle.state is None:
        return 0, part.size
    archive = Archive(part, {}, whole_directory=False, prefix=pickle.prefix)
    sizes = [(key, storage.nbytes) for key, storage in pickle.state.all_storages.items()]
    places = arithmetic_places(archive, pickle, sizes)
    seen = [look(archive, key, size, places.get(key)) for key, size in sizes]
    placed = sorted([(c.place, c) for c in seen if c.place is not None], key=lambda item: item[0])
    # A header does not show that its record was written to its end.
    ends = [end_of(place, c.nbytes) if c.is_signed else place.data for place, c in placed if c.is_witnessed]
    whole = expected_size([c for _, c in placed], archive.prefix) if placed else part.size
    return min(max(ends, default=pickle.end), part.size), whole


def _marks(part: Part, start: int) -> Iterator[tuple[int, bytes]]:
    """Offset and signature of everything from ``start`` on that may be a local header or an end record."""
    at = _next_written(part, start)
    zeros = bytes(min(WINDOW, max(part.size - at, 0)))
    while at < part.size:
        window = read_there(part, at, WINDOW)
        # To compare is ten times as fast as to search, and a file that was preallocated can have many zeros.
        blank = window == (zeros if len(window) == len(zeros) else bytes(len(window)))
        for match in () if blank else _MARKS.finditer(window):
            yield at + match.start(), match[0]
        if at + len(window) >= part.size:
            return
        at = max(_next_written(part, at + len(window)) - len(END_MAGIC) + 1, at + 1)


def _next_written(part: Part, at: int) -> int:
    """The first byte from ``at`` on that was ever written, as far as the system tells: saves reserve space."""
    try:
        return max(os.lseek(part.fd, max(part.begin + at, 0), os.SEEK_DATA) - part.begin, at)
    except OSError as error:
        return part.size if error.errno == errno.ENXIO else at


def _is_in_a_record(part: Part, at: int) -> bool:
    """Whether a record's bytes begin here: a tensor can hold the bytes of a whole archive."""
    start = max(at - _LONGEST_HEADER, 0)
    raw = read_there(part, start, at - start)
    for match in re.finditer(re.escape(LOCAL_MAGIC), raw):
        header = parse_local(raw[match.start() :], start + match.start())
        if header is not None and header.data == at:
            return True
    return False
