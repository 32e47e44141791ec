"""In which byte order a damaged torch zip archive keeps its numbers.

Since version 2.1 torch writes the record ``byteorder`` in front of the first storage; files of older versions have none
and are little-endian by torch's own rule. So a missing record says something only where it is known that it never was
there. A CRC-32 proves bytes, not how they are to be read: where nothing tells that, numbers of several bytes are not
proven.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

from fastckpt.foreign.byte_order import BIG, LITTLE, unit_of, units_in
from fastckpt.io.unreadable import read_there
from fastckpt.layout.zip_layout import SMALL_RECORDS, end_of, places
from fastckpt.surveying.torch_zip.evidence import Archive, descriptor_at, search_local_headers
from fastckpt.surveying.torch_zip.pickle import FoundPickle
from fastckpt.surveying.torch_zip.storages import Candidate
from fastckpt.surveying.wreck import StorageState, Wreck

_RECORD: Final = "byteorder"
_ORDERS: Final = {zlib.crc32(order): order for order in (BIG, LITTLE)}
"""The byte orders, by the CRC-32 of the record that names them."""
_SIZES: Final = {len(order): order for order in (BIG, LITTLE)}
_DESCRIPTOR: Final = 16
_BEHIND: Final = 2**20
"""Bytes behind the last storage in which the record is looked for."""
_DOUBT: Final = "its bytes match their CRC-32, but nothing left of the file tells their order"


def settle_byte_order(
    wreck: Wreck,
    archive: Archive,
    pickle: FoundPickle,
    candidates: Sequence[Candidate],
    states: Sequence[StorageState],
) -> None:
    """Say of each storage which numbers are to be turned round in it, or that nothing tells whether they are."""
    order = _order(archive, pickle, candidates)
    own = pickle.state if pickle.state is not None and wreck.tree is pickle.state.tree else None
    if order == BIG:
        if own is not None:
            units = units_in(own)
            for candidate, state in zip(candidates, states, strict=True):
                state.unit = units[candidate.key]
        else:
            for entry in wreck.entries:
                wreck.storages[entry.storage].unit = unit_of(entry.dtype)
        what = "their numbers come back as all machines have them today"
        if wreck.structure == "none":
            what = "which numbers they hold is not known, so they come back as they stand"
        wreck.notes.append(f"a big-endian machine wrote these tensors: {what}")
    elif order is None:
        concerned = [wreck.storages[entry.storage] for entry in wreck.entries if unit_of(entry.dtype) > 1]
        concerned += [unnamed.state for unnamed in wreck.unnamed if unnamed.dtype and unit_of(unnamed.dtype) > 1]
        there = [state for state in concerned if sum(hole.end - hole.start for hole in state.holes) < state.nbytes]
        for state in there:
            state.doubt = _DOUBT
        if there:
            wreck.notes.append(
                "nothing left of the file tells its byte order: numbers of several bytes come back as little-endian, "
                "which is wrong if a big-endian machine wrote them"
            )


def _order(archive: Archive, pickle: FoundPickle, candidates: Sequence[Candidate]) -> bytes | None:
    """The byte order, by the best of what tells it; None if nothing does."""
    if archive.agreed:
        return _ORDERS.get(archive.agreed[_RECORD]) if _RECORD in archive.agreed else LITTLE
    entry = archive.directory.get(f"{archive.prefix}/{_RECORD}")
    if entry is not None and entry.crc in _ORDERS:
        return _ORDERS[entry.crc]
    if entry is None and archive.whole_directory:
        return LITTLE
    return _in_the_record(archive, candidates) or _by_arithmetic(archive, pickle, candidates)


def _in_the_record(archive: Archive, candidates: Sequence[Candidate]) -> bytes | None:
    """What the record says. One that stands among the storages is that of a checkpoint inside of a tensor."""
    source = archive.source
    placed = [(c.place, c.nbytes) for c in candidates if c.place is not None]
    first = min((place.header for place, _ in placed), default=source.size)
    windows = [(0, min(first, source.size))]
    if len(placed) == len(candidates) > 0:
        # Programs that write such files with torch's own writer have it behind them.
        last = max(end_of(place, nbytes) for place, nbytes in placed)
        windows.append((last, min(last + _BEHIND, source.size)))
    for _, header in (found for start, stop in windows for found in search_local_headers(source, start, stop)):
        prefix, _, name = header.name.partition("/")
        if name != _RECORD or archive.prefix not in ("", prefix):
            continue
        for size, order in _SIZES.items():
            if read_there(source, header.data, size) == order or _is_described(archive, header.data + size, size):
                return order
    return None


def _by_arithmetic(archive: Archive, pickle: FoundPickle, candidates: Sequence[Candidate]) -> bytes | None:
    """What the place of the first storage tells, and the descriptor of the record, where its header is lost."""
    first = min((c for c in candidates if c.place is not None), key=lambda c: c.place or (), default=None)
    if first is None or first.place is None:
        return None
    described = [(order, first.place.header - _DESCRIPTOR) for order in _SIZES.values()]
    for small in SMALL_RECORDS if pickle.crc else ():
        names = [(f"{archive.prefix}/{name}", size) for name, size in small]
        *before, there = places(pickle.end + _DESCRIPTOR, [*names, (archive.name(first.key), first.nbytes)])
        if first.named and there == first.place:
            return _SIZES[dict(small)[_RECORD]] if small else LITTLE
        if small:
            size = dict(small)[_RECORD]
            described.append((_SIZES[size], end_of(before[-1], size) - _DESCRIPTOR))
    return next((order for order, at in described if _is_described(archive, at, len(order))), None)


def _is_described(archive: Archive, at: int, size: int) -> bool:
    """Whether the descriptor of a record of this size stands here, and its CRC-32 is none of another record."""
    found = descriptor_at(archive.source, at, size, _DESCRIPTOR)
    return found is not None and found.signed and found.crc in (0, zlib.crc32(_SIZES[size]))
