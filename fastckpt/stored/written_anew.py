"""What the checksums of a file itself tell of a seal that differs from it: no accident makes them match."""

from __future__ import annotations

from typing import Final

from fastckpt.findings import Report
from fastckpt.io.source import Source
from fastckpt.layout.blocks import Extent
from fastckpt.seals.standing import WRITTEN_ANEW, Standing
from fastckpt.stored.own_digests import changed_leaves, proven_where_it_differs, touch
from fastckpt.verdicts import Verdict

WRITTEN_ANEW_IN_PART: Final = (
    "its own checksums prove bytes that were not sealed, so it was written anew, and then damaged"
)
"""Why a seal is not of a damaged file, either, that has whole leaves which differ from it."""


def why_written_anew(report: Report, standing: Standing, source: Source, *, threads: int) -> str:
    """Why a file that differs from its seal was written anew since; empty if it may have been damaged.

    Args:
        report: What the file's own checksums say of it, without the seal.
        standing: How it stands to its seal.
        source: The open file.
        threads: Worker threads.
    """
    if report.verdict is Verdict.INTACT:
        return WRITTEN_ANEW
    if report.format != "fckpt" or standing.is_as_sealed:
        return ""
    if report.verified != report.size or any(not finding.size for finding in report.findings):
        own = proven_where_it_differs(source, standing, threads=threads)
        return WRITTEN_ANEW_IN_PART if own and any(own) else ""
    # Of one that was verified to its end, each byte is proven that nothing is said of.
    # Where a finding names the byte that is wrong, its size is still that of the whole block.
    doubtful = [
        Extent(max(f.offset - f.size, 0), f.offset + f.size - max(f.offset - f.size, 0)) for f in report.findings
    ]
    return "" if all(touch(changed_leaves(standing), doubtful)) else WRITTEN_ANEW_IN_PART
