"""Parity inside of a ``.fckpt`` of which too little is left to be used, while all else in the file proves itself.

What it was follows from the rest, so it can be made again; and the footer has its digest, which tells how much it was.
"""

from __future__ import annotations

from fastckpt.constants import SECTION_PARITY
from fastckpt.errors import FastckptError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.findings import Kind, Report
from fastckpt.io.beginning import Beginning
from fastckpt.io.source import Source
from fastckpt.layout.blocks import block_digest
from fastckpt.seals.encoded import encoded
from fastckpt.seals.inside import InsideRemains
from fastckpt.seals.parity import PARITIES
from fastckpt.seals.parity_inside import section_pieces
from fastckpt.seals.parity_section import ParitySection


def inside_of_whole(source: Source, report: Report, *, threads: int) -> InsideRemains | None:
    """The parity that stood in an open file, made again in memory; None unless all else in the file is proven.

    Args:
        source: The file.
        report: What its own checksums say of every byte of it.
        threads: Worker threads.

    Raises:
        CheckpointIOError, OutOfSpaceError: It cannot be read, or the parity not be kept.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.
    """
    try:
        footer = CheckpointFile(source).footer
    except FastckptError:
        return None
    section = footer.section(SECTION_PARITY)
    if section is None or report.verified != report.size:
        return None
    begin, end = section.extent.offset, section.extent.end
    serious = [found for found in report.findings if found.kind is not Kind.UNPROVEN]
    if any(found.offset < begin or found.offset + found.size > end for found in serious):
        return None
    covered = Beginning(source.fd, source.path, begin, direct_fd=source.direct_fd)
    for parity in PARITIES.values():
        made = ParitySection(begin, parity, footer.root)
        if made.end != end:
            continue
        with encoded(covered, parity, beside=source.path, threads=threads) as rows:
            *_, last = section_pieces(made, rows, threads=threads)
            if block_digest(last) == section.digest:
                # None of its leaves is known: their digests are those of nothing.
                digests = bytes(rows.leaves).ljust(made.digests_size, b"\0")
                return InsideRemains(source, made, memoryview(digests), threads)
    return None
