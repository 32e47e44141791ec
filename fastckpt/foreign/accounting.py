"""Verifying foreign files: a ``.pt`` by its CRCs, a ``.safetensors`` only by its structure."""

from __future__ import annotations

from fastckpt.findings import Finding, Kind, Report, conclude
from fastckpt.foreign.model import ForeignFile
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.io.source import Source
from fastckpt.io.sums import sum_parts
from fastckpt.io.transfer import Move, Progress


def verify_foreign(source: Source, *, threads: int, progress: Progress | None) -> Report:
    """The report on a ``.pt`` or ``.safetensors`` file.

    Bytes without a CRC are reported as unproven: they are there, and nothing
    in the file says that they are right.

    Raises:
        DamagedError, UnsupportedStateError, NotACheckpointError, CheckpointIOError: It cannot be read as a whole file.
    """
    report = Report(source.path, "unknown", source.size)
    foreign = open_foreign(source)
    report.format = foreign.kind
    report.tensors_total = len(foreign.entries)
    report.findings += _check_storages(foreign, source, report, threads=threads, progress=progress)
    conclude(report)
    return report


def _check_storages(
    foreign: ForeignFile, source: Source, report: Report, *, threads: int, progress: Progress | None
) -> list[Finding]:
    names: dict[int, list[str]] = {}
    for entry in foreign.entries:
        names.setdefault(entry.storage, []).append(entry.name)
    proven = [number for number, storage in enumerate(foreign.storages) if storage.nbytes and storage.crc is not None]
    parts = [Move(foreign.storages[number].offset, 0, foreign.storages[number].nbytes) for number in proven]
    moved = sum_parts(source, parts, threads=threads, progress=progress)
    unreadable = {fault.move: fault.errno for fault in moved.faults}
    findings = []
    for position, number in enumerate(proven):
        storage = foreign.storages[number]
        shown = ", ".join(names.get(number, [storage.key]))
        if position in unreadable:
            kind, message = (
                Kind.UNREADABLE,
                f"record {storage.key} cannot be read (error {unreadable[position]}): {shown}",
            )
        elif moved.crcs[position] != storage.crc:
            kind = Kind.ROTTED
            message = (
                f"the CRC-32 of record {storage.key} does not match: {shown} "
                f"(expected {storage.crc:08x}, found {moved.crcs[position]:08x})"
            )
        else:
            report.verified += storage.nbytes
            continue
        findings.append(Finding(kind, message, storage.offset, storage.nbytes, tensors=tuple(names.get(number, ()))))
    unproven = [storage for storage in foreign.storages if storage.nbytes and storage.crc is None]
    if unproven:
        total = sum(storage.nbytes for storage in unproven)
        findings.append(
            Finding(
                Kind.UNPROVEN,
                f"{total} bytes of tensor data have no checksum in this file: present, not proven",
                unproven[0].offset,
                total,
                loss=False,
            )
        )
    return findings
