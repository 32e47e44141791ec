"""Are all records of a damaged archive of one save?

A header and a CRC-32 prove that bytes are what somebody wrote under this name. That all of them were written by one
save is said by the central directory, and, where that is lost or contradicts the records, by torch's last record: its
digits are made of the names and CRC-32s of all others. Who knows all of these can make them again.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from fastckpt.findings import UNSETTLED
from fastckpt.foreign.last_record import CONTRADICTED, ID_RECORD, ID_SIZE, Row, is_contradicted
from fastckpt.foreign.serialization_id import combine, hash_of_crcs, hash_of_names
from fastckpt.io.unreadable import read_there
from fastckpt.layout.zip_layout import SMALL_RECORDS, end_of, places
from fastckpt.surveying.torch_zip.evidence import Archive, descriptor_at, local_header_at, search_local_headers
from fastckpt.surveying.torch_zip.pickle import FoundPickle
from fastckpt.surveying.torch_zip.storages import Candidate, Sums, call_misplaced
from fastckpt.surveying.wreck import StorageState

_PICKLE: Final = "data.pkl"
_BEHIND: Final = 2**20
"""Bytes behind the last storage in which the small records at the end are looked for."""
_USUAL: Final = {
    ".format_version": (b"1",),
    ".storage_alignment": (b"64",),
    "byteorder": (b"little", b"big"),
    "version": (b"3\n",),
}
_SMALL: Final = 4096
"""Bytes of a record that is read to know its CRC-32."""
_MAX_WORK: Final = 30_000
"""Steps of the search for the CRC-32s that give the digits, each by one more of them."""
_SECTOR: Final = 512
"""What a device writes at least: a record of fewer bytes goes to a wrong place only with its neighbours."""


class _Record(NamedTuple):
    """A record: its name, and the CRC-32s that it may have been saved with, the likeliest one first."""

    name: str
    crcs: list[int]
    is_empty: bool = False


def settle(
    archive: Archive, pickle: FoundPickle, candidates: Sequence[Candidate], states: Sequence[StorageState], sums: Sums
) -> str:
    """Let storages count as proven if they belong together, and take back what is only proven by itself.

    Returns:
        Why it is not certain that all records are of one save; "" if it is.
    """
    filled = [candidate for candidate in candidates if candidate.nbytes]
    listed = archive.whole_directory and (pickle.proven or pickle.not_computed)
    listed = listed and all(candidate.entry is not None for candidate in filled)
    if listed and not any(candidate.is_disputed for candidate in filled):
        return CONTRADICTED if _is_contradicted(archive) else ""
    behind = _Behind.of(archive, candidates)
    contradicted = False
    if behind is not None:
        archive.agreed, contradicted = _made_of(_orders(archive, pickle, candidates, sums, behind), behind)
    if archive.agreed:
        _take(pickle, candidates, states, sums, archive.agreed)
        return ""
    if listed:
        return ""
    stated = all(state.proven or candidate.has_checksum() for candidate, state in zip(candidates, states, strict=True))
    if pickle.proven and stated and contradicted:
        for state in states:
            if state.proven and state.nbytes:
                state.proven, state.reason = False, f"{CONTRADICTED}, and nothing tells which"
        return CONTRADICTED
    _doubt_copies(candidates, states, sums)
    return UNSETTLED


def _is_contradicted(archive: Archive) -> bool:
    """Whether the last record was made of others than the directory has, also where that is wrong about a small one."""
    stated = list(archive.directory.values())
    found = [
        row._replace(crc=zlib.crc32(_content(archive, row)))
        if row.size <= _SMALL and archive.key_of(row.name) is None
        else row
        for row in stated
    ]
    return all(is_contradicted(rows, lambda row: _content(archive, row)) for rows in (stated, found))


def _content(archive: Archive, row: Row) -> bytes:
    """The bytes of a record that stands where the directory puts it."""
    header = local_header_at(archive.source, row.header)
    return read_there(archive.source, header.data, row.size) if header is not None else b""


def _take(
    pickle: FoundPickle,
    candidates: Sequence[Candidate],
    states: Sequence[StorageState],
    sums: Sums,
    crcs: Mapping[str, int],
) -> None:
    """Judge by the CRC-32s that belong together."""
    if crcs[_PICKLE] == pickle.crc:
        pickle.proven, pickle.contradicted, pickle.doubt = True, False, ""
    for candidate, state in zip(candidates, states, strict=True):
        found = sums.of(candidate)
        if not candidate.nbytes or found is None or found.holes:
            continue
        if found.crc == crcs[f"data/{candidate.key}"]:
            state.proven, state.holes, state.reason = True, [], ""
        elif state.proven:
            state.proven = False
            call_misplaced(state)


def _doubt_copies(candidates: Sequence[Candidate], states: Sequence[StorageState], sums: Sums) -> None:
    """Of equal bytes under two names, one may be a copy that was written to a wrong place, with its CRC-32."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, candidate in enumerate(candidates):
        found = sums.of(candidate)
        if states[number].proven and candidate.nbytes >= _SECTOR and found is not None:
            groups.setdefault((found.crc, candidate.nbytes), []).append(number)
    for numbers in groups.values():
        for number in numbers if len(numbers) > 1 else ():
            if candidates[number].entry is None:
                other = candidates[numbers[0] if number != numbers[0] else numbers[1]].key
                states[number].proven = False
                states[number].reason = f"the same bytes stand in data/{other}, and nothing tells whether one is a copy"


# --- the record that is made of all others -------------------------------------------


class _Behind(NamedTuple):
    """What stands behind the storages.

    Attributes:
        digits: The content of the last record.
        whole: Whether a CRC-32 says that it is as it was written.
        others: Records between ``version`` and it: other programs than torch have some.
    """

    digits: bytes
    whole: bool
    others: list[_Record]

    def has_names_of(self, records: Sequence[_Record]) -> bool:
        """Whether it is made of these names."""
        return self.digits[:20] == hash_of_names([record.name for record in records])

    @classmethod
    def of(cls, archive: Archive, candidates: Sequence[Candidate]) -> _Behind | None:
        """What is there of it; None without the last record."""
        source, prefix = archive.source, archive.prefix
        at = max((end_of(c.place, c.nbytes) for c in candidates if c.place is not None), default=0)
        _, by_arithmetic = places(at, [(f"{prefix}/version", 2), (f"{prefix}/{ID_RECORD}", ID_SIZE)])
        others: list[_Record] = []
        places_of_it = []
        before = 0
        for header_at, header in search_local_headers(source, at, min(at + _BEHIND, source.size)):
            name = header.name.removeprefix(f"{prefix}/")
            if others and not others[-1].crcs:
                # Its size is known by the next header.
                size = header_at - 16 - before
                descriptor = descriptor_at(source, before + size, size, 16) if size > 0 else None
                others[-1].crcs.append(descriptor.crc if descriptor is not None else 0)
            if name == ID_RECORD:
                places_of_it.append(header.data)
                break
            if name != "version":
                others.append(_Record(name, []))
            before = header.data
        for data in (*places_of_it, by_arithmetic.data):
            raw = read_there(source, data, ID_SIZE)
            if len(raw) == ID_SIZE and raw.isdigit():
                behind = descriptor_at(source, data + ID_SIZE, ID_SIZE, 16)
                entry = archive.directory.get(f"{prefix}/{ID_RECORD}")
                stated = {entry.crc if entry is not None else 0, behind.crc if behind is not None else 0}
                return cls(raw, zlib.crc32(raw) in stated, others if places_of_it else [])
        return None


def _orders(
    archive: Archive, pickle: FoundPickle, candidates: Sequence[Candidate], sums: Sums, behind: _Behind
) -> Iterator[list[_Record]]:
    """All records in the order in which they may have been written, with all that is known of their CRC-32s."""
    source = archive.source
    placed = [(c.place, c) for c in candidates if c.place is not None]
    if len(placed) < len(candidates) or not pickle.crc:
        return
    storages = [_storage(c, sums) for _, c in sorted(placed, key=lambda item: item[0])]
    first = _Record(_PICKLE, [pickle.crc, *sorted(pickle.stated - {pickle.crc})])
    last = _Record("version", list(map(zlib.crc32, _USUAL["version"])))
    for small in SMALL_RECORDS:
        named = [(f"{archive.prefix}/{name}", size) for name, size in small]
        there = [
            read_there(source, place.data, size)
            for place, (_, size) in zip(places(pickle.end + 16, named), small, strict=True)
        ]
        records = [
            _Record(name, list(dict.fromkeys([zlib.crc32(raw), *map(zlib.crc32, _USUAL[name])])))
            for (name, _), raw in zip(small, there, strict=True)
        ]
        yield [first, *records, *storages, last, *behind.others]


def _storage(candidate: Candidate, sums: Sums) -> _Record:
    found = sums.of(candidate)
    crcs = [found.crc] if found is not None and not found.holes else []
    if candidate.is_signed and candidate.descriptor is not None:
        crcs.append(candidate.descriptor.crc)
    if candidate.entry is not None:
        crcs.append(candidate.entry.crc)
    known = list(dict.fromkeys(crc for crc in crcs if crc))
    return _Record(f"data/{candidate.key}", known, is_empty=not candidate.nbytes)


def _made_of(orders: Iterable[Sequence[_Record]], behind: _Behind) -> tuple[dict[str, int], bool]:
    """The CRC-32s by name, one for each record that is not empty, of which the last record is made.

    Returns:
        None of them if they are not found; and then, whether it is certain that it was made of others.
    """
    contradicted = False
    for records in orders:
        filled = [record for record in records if not record.is_empty]
        if all(record.crcs for record in filled) and behind.has_names_of(records):
            crcs, all_tried = _agreeing([record.crcs for record in filled], behind.digits[20:])
            if crcs:
                return {record.name: crc for record, crc in zip(filled, crcs, strict=True)}, False
            contradicted = contradicted or (all_tried and behind.whole)
    return {}, contradicted


def _agreeing(stated: Sequence[Sequence[int]], digits: bytes) -> tuple[Sequence[int], bool]:
    """One CRC-32 of each that together give the digits; none if there are none, and whether all were tried."""
    for uniform in ([crcs[0] for crcs in stated], [crcs[-1] for crcs in stated]):
        if hash_of_crcs(uniform) == digits:
            return uniform, True
    # Depth first, so that what many choices begin with is put together once.
    wanted, work = int(digits), _MAX_WORK
    ends: list[tuple[int, int, tuple[Any, int] | None]] = [(0, 0, None)]
    while ends:
        number, found, way = ends.pop()
        while number < len(stated) and work:
            first, *others = stated[number]
            ends += [(number + 1, combine(found, crc), (way, crc)) for crc in others]
            number, found, way, work = number + 1, combine(found, first), (way, first), work - 1
        if not work:
            return (), False
        if found == wanted:
            return _steps(way), True
    return (), True


def _steps(way: tuple[Any, int] | None) -> list[int]:
    steps = []
    while way is not None:
        way, crc = way
        steps.append(crc)
    return steps[::-1]
