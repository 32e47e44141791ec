"""What a damaged ``.fckpt`` file has lost, given what remains of it."""

from __future__ import annotations

from fastckpt.constants import CHUNK_SIZE, LEAF_SIZE
from fastckpt.errors import DamagedError
from fastckpt.fckpt.bad_ranges import tensors_in
from fastckpt.fckpt.remains import Remains
from fastckpt.findings import Finding, Kind
from fastckpt.layout.records import Record
from fastckpt.text import some


def whole_prefix(record: Record, file_size: int) -> int:
    """How many of a record's raw bytes can be there at all in a file of ``file_size`` bytes.

    A multiple of the leaf size, or all of them.
    """
    if record.payload.end <= file_size:
        return record.raw_size
    there = max(file_size - record.payload.offset, 0)
    if record.is_raw:
        return there // LEAF_SIZE * LEAF_SIZE
    whole = sum(1 for chunk in record.chunks if chunk.offset + chunk.stored_size <= there)
    return min(whole * CHUNK_SIZE, record.raw_size)


def find_cuts(remains: Remains, size: int) -> list[Finding]:
    """One finding for each record whose payload ends beyond the file."""
    return [_cut(record, size) for _, record in sorted(remains.records.items()) if record.payload.end > size]


def _cut(record: Record, size: int) -> Finding:
    """The finding for a record whose payload ends beyond the file."""
    names = tuple(tensors_in(record, whole_prefix(record, size), record.raw_size))
    missing = record.payload.end - size
    message = f"record {record.number}: its last {missing} bytes are missing, the file ends before them: {some(names)}"
    return Finding(Kind.MISSING, message, size, 0, record=record.number, tensors=names, loss=bool(names))


def find_lost(remains: Remains, size: int) -> list[Finding]:
    """One finding for each record that the manifest names and the scan did not find."""
    if remains.manifest is None:
        return [Finding(Kind.MISSING, "no manifest is whole: which tensors are lost is not known", size, 0)]
    lost: dict[int, list[str]] = {}
    try:
        entries = list(remains.manifest.entries)
    except DamagedError as error:
        return [Finding(Kind.INCONSISTENT, f"which tensors are lost is not known: {error.message}", size, 0)]
    for entry in entries:
        if entry.storage >= len(remains.manifest.storages):
            continue
        record = remains.manifest.storages[entry.storage].record
        if record not in remains.records:
            lost.setdefault(record, []).append(entry.name)
    return [
        Finding(
            Kind.MISSING,
            f"record {record} is not in the file: {some(names)}",
            size,
            0,
            record=record,
            tensors=tuple(names),
        )
        for record, names in sorted(lost.items())
    ]
