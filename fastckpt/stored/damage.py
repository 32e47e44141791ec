"""The report on a file that is not as it was written: what `verify` says is what `salvage` would find."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Set
from dataclasses import replace
from itertools import accumulate

from fastckpt.errors import DamagedError, FastckptError, NotACheckpointError, UnsupportedStateError
from fastckpt.findings import Finding, Kind, Report, conclude
from fastckpt.io.source import Source
from fastckpt.seals.standing import Standing
from fastckpt.surveying.fates import THERE, Status
from fastckpt.surveying.survey import survey
from fastckpt.surveying.wreck import Wreck


def report_damage(
    source: Source,
    strict: Report | None,
    failure: FastckptError | None,
    *,
    threads: int,
    standing: Standing | None = None,
) -> Report:
    """The report on a damaged file.

    Args:
        source: The open file.
        strict: What reading it as a whole file found; None if that was not possible.
        failure: Why not.
        threads: Worker threads.
        standing: How it stands to a seal, which proves some of it.

    Raises:
        NotACheckpointError: Nothing in it is of a checkpoint.
        UnsupportedVersionError, UnsupportedStateError: It is one that this fastckpt cannot read.
    """
    try:
        # A file that was cut or written to meanwhile is looked at as it is now.
        wreck = survey(source if source.unchanged() else source.path, threads=threads, standing=standing)
    except NotACheckpointError:
        raise failure or NotACheckpointError("nothing in it is of a checkpoint", path=source.path) from None
    except UnsupportedStateError as error:
        if strict is None:
            if not isinstance(failure, DamagedError):
                raise
            strict = Report(source.path, "torch-zip", source.file_size)
            at = failure.offset or 0
            strict.findings.append(Finding(Kind.ROTTED, failure.message, at, source.file_size - at))
            conclude(strict)
        # Nothing but what is known of it as a whole file.
        strict.next_step, strict.tensor_bytes = error.next_step, None
        return strict
    if isinstance(failure, NotACheckpointError) and not wreck.entries:
        raise failure  # Its name alone made it look like a checkpoint.
    found = [*wreck.findings, *_unnamed(wreck)]
    report = strict
    if report is None:
        report = Report(source.path, wreck.format, wreck.size, verified=_proven(wreck))
        report.findings = found
        report.findings += _unproven(wreck)
        unexplained = all(finding.kind is Kind.UNPROVEN for finding in found)
        if unexplained and isinstance(failure, DamagedError | NotACheckpointError):
            # All tensors can be found, but no reader of whole files would take it.
            at = failure.offset or 0
            report.findings.append(Finding(Kind.INCONSISTENT, failure.message, at, 0, loss=False))
    else:
        intact = {name for name, fate in wreck.fates().items() if fate.status is Status.INTACT}
        strict_ones = report.findings
        if standing is not None and not standing.stale:
            # What had no checksum of its own is proven by the seal, or named by it.
            strict_ones = [finding for finding in strict_ones if finding.kind is not Kind.UNPROVEN or not finding.size]
            found += _unproven(wreck)
        report.findings = _joined(found, strict_ones, intact)
    if wreck.structure != "none":
        report.tensors_total = len(wreck.entries)
        report.tensor_bytes = wreck.byte_counts()
    report.findings.sort(key=lambda finding: (finding.offset, finding.size))
    conclude(report)
    return report


def _joined(first: Iterable[Finding], second: Iterable[Finding], intact: Set[str]) -> list[Finding]:
    """The findings of two readings; of the second one those about bytes of which the first says nothing.

    What one of them calls a loss is one, unless it is of tensors that the first could prove.
    """
    kept = sorted(first, key=lambda finding: finding.offset)
    begins = [finding.offset for finding in kept]
    # How far each of them and those before it reach: the first to reach beyond a byte is where to look for it.
    ends = list(accumulate((finding.offset + max(finding.size, 1) for finding in kept), max))
    more = []
    for finding in second:
        same = bisect_right(ends, finding.offset)
        is_new = same == len(kept) or begins[same] >= finding.offset + max(finding.size, 1)
        if finding.kind is Kind.UNPROVEN or is_new:
            more.append(finding)
        elif finding.loss and not (finding.tensors and set(finding.tensors) <= intact):
            kept[same] = replace(kept[same], loss=True)
    return kept + more


def _unnamed(wreck: Wreck) -> list[Finding]:
    """A finding for each tensor that is not whole and that no finding names as lost."""
    named = {name for finding in wreck.findings if finding.loss for name in finding.tensors}
    found = []
    for name, fate in wreck.fates().items():
        if fate.status in THERE or name in named:
            continue
        offset = min(fate.offset if fate.offset is not None else wreck.size, wreck.size)
        kind = Kind.ROTTED if fate.status is Status.DAMAGED else Kind.MISSING
        size = min(fate.nbytes, wreck.size - offset)
        found.append(Finding(kind, f"{name}: {fate.reason or fate.status.value}", offset, size, tensors=(name,)))
    return found


def _proven(wreck: Wreck) -> int:
    """Bytes of storages that a checksum proves."""
    gone = sum(hole.end - hole.start for state in wreck.storages if state.proven for hole in state.holes)
    return sum(state.nbytes for state in wreck.storages if state.proven) - gone


def _unproven(wreck: Wreck) -> list[Finding]:
    """One finding for all bytes that are there without a checksum, unless there is one for each storage."""
    if wreck.format == "torch-zip":
        return []
    there = [state for state in wreck.storages if state.nbytes and not state.proven and not state.holes]
    if not there:
        return []
    total = sum(state.nbytes for state in there)
    text = f"{total} bytes of tensor data have no checksum in this file: present, not proven"
    return [Finding(Kind.UNPROVEN, text, min(state.offset or 0 for state in there), total, loss=False)]
