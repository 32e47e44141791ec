"""The report on a file that is not as it was written: what `verify` says is what `salvage` would find."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fastckpt.errors import DamagedError, FastckptError, NotACheckpointError
from fastckpt.findings import Finding, Kind, Report, conclude
from fastckpt.io.source import Source
from fastckpt.surveying.fates import Status
from fastckpt.surveying.survey import survey
from fastckpt.surveying.wreck import Wreck

_THERE = (Status.INTACT, Status.UNVERIFIED)


def report_damage(source: Source, strict: Report | None, failure: FastckptError | None, *, threads: int) -> Report:
    """The report on a damaged file.

    Args:
        source: The open file.
        strict: What reading it as a whole file found; None if that was not possible.
        failure: Why not.
        threads: Worker threads.

    Raises:
        NotACheckpointError: Nothing in it is of a checkpoint.
        UnsupportedVersionError, UnsupportedStateError: It is one that this fastckpt cannot read.
    """
    try:
        # A file that was cut or written to meanwhile is looked at as it is now.
        wreck = survey(source if source.unchanged() else source.path, threads=threads)
    except NotACheckpointError:
        raise failure or NotACheckpointError("nothing in it is of a checkpoint", path=source.path) from None
    if isinstance(failure, NotACheckpointError) and not wreck.entries:
        raise failure  # Its name alone made it look like a checkpoint.
    found = [*wreck.findings, *_unnamed(wreck)]
    report = strict
    if report is None:
        report = Report(source.path, wreck.format, wreck.size, verified=_proven(wreck))
        report.findings = found
        report.findings += _unproven(wreck)
        if isinstance(failure, DamagedError) and all(finding.kind is Kind.UNPROVEN for finding in found):
            # All tensors can be found, but no reader of whole files would take it.
            at = failure.offset or 0
            report.findings.append(Finding(Kind.INCONSISTENT, failure.message, at, 0, loss=False))
    else:
        report.findings = _joined(found, report.findings)
    report.tensors_total = len(wreck.entries) if wreck.structure != "none" else None
    report.findings.sort(key=lambda finding: (finding.offset, finding.size))
    conclude(report)
    return report


def _joined(first: Iterable[Finding], second: Iterable[Finding]) -> list[Finding]:
    """The findings of two readings; of the second one those about bytes of which the first says nothing.

    What one of them calls a loss is one.
    """
    kept = list(first)
    said = [(finding.offset, finding.offset + max(finding.size, 1)) for finding in kept]
    for finding in second:
        begin, end = finding.offset, finding.offset + max(finding.size, 1)
        same = [number for number, (start, stop) in enumerate(said) if start < end and begin < stop]
        if finding.kind is Kind.UNPROVEN or not same:
            kept.append(finding)
        elif finding.loss:
            kept[same[0]] = replace(kept[same[0]], loss=True)
    return kept


def _unnamed(wreck: Wreck) -> list[Finding]:
    """A finding for each tensor that is not whole and that no finding names as lost."""
    named = {name for finding in wreck.findings if finding.loss for name in finding.tensors}
    found = []
    for name, fate in wreck.fates().items():
        if fate.status in _THERE or name in named:
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
