"""What is left of a ``.fckpt`` file whose end is missing or damaged.

The manifest stands at the start too, and record headers can be found by their
magic at multiples of 4 KiB. A header counts only if its digest matches, it
states the place where it was found, and it names this file's manifest: that
tells it from a header inside some tensor's bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fastckpt import _core
from fastckpt.constants import ALIGNMENT, MAGIC_MANIFEST, MAGIC_RECORD, SUPERBLOCK_SIZE
from fastckpt.errors import DamagedError, FastckptError
from fastckpt.findings import Finding, Kind, Report, conclude
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.layout.blocks import PROLOGUE_SIZE, read_prologue
from fastckpt.layout.manifest import Manifest, decode_manifest
from fastckpt.layout.records import Record, decode_record_header
from fastckpt.payload import Reading, Target, finding_of, read_targets


@dataclass(slots=True)
class Remains:
    """What stands in a file without its footer.

    Attributes:
        manifest: The first manifest that is whole, if any.
        records: The records whose headers are whole and whose payload lies inside the file, by number.
    """

    manifest: Manifest | None
    records: dict[int, Record]


def read_block(source: Source, offset: int, magic: bytes, *, what: str) -> bytes:
    """The bytes of the sealed block at ``offset``, not yet unsealed. Raises DamagedError if none begins there."""
    limit = source.size - offset
    size = read_prologue(source.read(offset, min(PROLOGUE_SIZE, max(limit, 0))), magic, what=what, limit=limit)
    return source.read(offset, size)


def scan(source: Source, *, threads: int) -> Remains:
    """Find the manifest and all whole record headers of a file without looking at its footer."""
    manifest: Manifest | None = None
    candidates = [SUPERBLOCK_SIZE]
    candidates += _core.find_blocks(source.fd, MAGIC_MANIFEST, 0, source.size, threads=threads)
    for offset in candidates:
        try:
            manifest = decode_manifest(read_block(source, offset, MAGIC_MANIFEST, what="manifest"))
            break
        except FastckptError:
            continue
    records: dict[int, Record] = {}
    for offset in _core.find_blocks(source.fd, MAGIC_RECORD, 0, source.size, threads=threads):
        try:
            # The payload may be cut: the header is judged by itself first.
            block = read_block(source, offset, MAGIC_RECORD, what="record header")
            record = decode_record_header(block, limit=2**63)
        except FastckptError:
            continue
        mine = manifest is None or record.manifest_digest == manifest.digest
        if record.header.offset == offset and mine:
            records.setdefault(record.number, record)
    return Remains(manifest, records)


def find_remains(
    path: str | os.PathLike[str], failure: DamagedError, *, threads: int, progress: Progress | None
) -> Report:
    """The report on a file that cannot be opened because of ``failure`` at its end."""
    with Source(path) as source:
        report = Report(source.path, "fckpt", source.size)
        kind = Kind.TORN if failure.actual == "zeros" else Kind.MISSING
        end = max(source.size - ALIGNMENT, 0)
        report.findings.append(Finding(kind, failure.message, end, source.size - end, loss=False))
        remains = scan(source, threads=threads)
        targets = [Target(record, 0, record.raw_size, None) for _, record in sorted(remains.records.items())]
        bad = read_targets(source, targets, Reading(threads, progress=progress))
        report.findings += [finding_of(item) for item in bad]
        report.verified = sum(record.raw_size for record in remains.records.values())
        report.findings += _lost(remains, source.size)
    conclude(report)
    return report


def _lost(remains: Remains, size: int) -> list[Finding]:
    """One finding for each record that the manifest names and the scan did not find."""
    if remains.manifest is None:
        return [Finding(Kind.MISSING, "no manifest is whole: which tensors are lost is not known", size, 0)]
    lost: dict[int, list[str]] = {}
    for entry in remains.manifest.entries:
        record = remains.manifest.storages[entry.storage].record
        if record not in remains.records:
            lost.setdefault(record, []).append(entry.name)
    return [
        Finding(
            Kind.MISSING,
            f"record {record} is not in the file: {', '.join(names[:3])}"
            + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
            size,
            0,
            record=record,
            tensors=tuple(names),
        )
        for record, names in sorted(lost.items())
    ]
