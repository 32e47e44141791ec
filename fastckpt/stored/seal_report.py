"""What the seal beside a file adds to a report on it; and the digests that a signature states."""

from __future__ import annotations

from typing import Final

from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError, NotACheckpointError, UnsupportedVersionError
from fastckpt.findings import ByteCounts, Finding, Kind, Report, SealState, conclude
from fastckpt.io.open_source import open_source
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.seals.beside import advice_for_another, advice_for_stale, seal_beside, unusable
from fastckpt.seals.digests import digests_of
from fastckpt.seals.healing import advice_for_damaged_seal, would_heal
from fastckpt.seals.signed import signed_digest
from fastckpt.seals.standing import Standing, standing_of
from fastckpt.stored.written_anew import why_written_anew
from fastckpt.text import quoted

_UNUSABLE: Final = (DamagedError, NotACheckpointError, UnsupportedVersionError)


class SealOf:
    """The seal of an open file, compared with every byte of it, before anything else is made of these.

    Attributes:
        standing: How the file stands to it; None without a seal that can be used.
        failure: Why the seal that there is cannot be used.

    Raises:
        CheckpointIOError: The seal cannot be read.
    """

    def __init__(self, source: Source, *, threads: int, progress: Progress | None) -> None:
        self.standing: Standing | None = None
        self.failure: FastckptError | None = None
        self._threads = threads
        try:
            sums = seal_beside(source)
        except _UNUSABLE as error:
            self.failure = error
            return
        if sums is not None:
            self.standing = standing_of(source, sums, threads=threads, progress=progress)

    @property
    def proves_all(self) -> bool:
        """Whether the file is as it was sealed."""
        return self.standing is not None and self.standing.is_as_sealed

    @property
    def differs(self) -> bool:
        """Whether the file is the one that was sealed, and some of it is not as it was."""
        return self.state == "changed"

    @property
    def state(self) -> SealState | None:
        """In a word; None where there is no seal."""
        if self.standing is None:
            return None if self.failure is None else "damaged"
        return "stale" if self.standing.stale else "as sealed" if self.proves_all else "changed"

    def findings(self, path: str) -> list[Finding]:
        """What is to be said of the seal, and of the bytes that are not as it says."""
        if self.failure is not None:
            return [unusable(path, self.failure)]
        return self.standing.findings() if self.standing is not None else []

    def report_of_no_checkpoint(self, source: Source) -> Report | None:
        """The report on a file that is no checkpoint, such as a configuration; None if no seal is of it."""
        if self.standing is None:
            return None
        report = Report(source.path, "unknown", source.file_size)
        self.complete(report, source)
        return report

    def complete(self, report: Report, source: Source) -> None:
        """Add what the seal says to a report that was made without it."""
        if self.state is None:
            return
        if self.standing is not None and self.differs:
            why = why_written_anew(report, self.standing, source, threads=self._threads)
            self.standing = self.standing.of_another(why) if why else self.standing
        report.seal = self.state
        found = self.findings(source.path)
        if self.proves_all and report.ok:
            # Bytes without a checksum of their own have one now. That they are of one save, it does not say.
            report.findings = [f for f in report.findings if f.kind is not Kind.UNPROVEN or not f.size]
            report.verified = report.size
            if report.tensor_bytes is not None:
                report.tensor_bytes = ByteCounts(report.tensor_bytes.total)
        report.findings += [new for new in found if not any(_is_about(old, new) for old in report.findings)]
        report.findings.sort(key=lambda finding: (finding.offset, finding.size))
        conclude(report)
        of_bytes = any(map(_is_of_bytes, report.findings))
        if self.standing is not None and self.standing.stale and not of_bytes:
            report.next_step = advice_for_another(source.path, self.standing.sums)
        elif self.standing is not None and would_heal(source, self.standing, threads=self._threads):
            report.next_step = f"fastckpt repair {quoted(source.path)}"
        elif self.state == "damaged" and not of_bytes:
            report.next_step = advice_for_damaged_seal(source.path)
        elif report.format == "unknown" and not report.ok:
            report.next_step = f"take it from another copy; or {advice_for_stale(source.path)}"


def _is_about(old: Finding, new: Finding) -> bool:
    """Whether a finding says already what another one does."""
    return (old.kind, old.offset, old.size) == (new.kind, new.offset, new.size)


def _is_of_bytes(finding: Finding) -> bool:
    return finding.kind not in (Kind.UNPROVEN, Kind.STALE) and bool(finding.size)


def compare_signature(report: Report, source: Source, *, threads: int) -> None:
    """Compare SHA-256 of a file with the one that a ``model.sig`` states of it, if there is one.

    Raises:
        CheckpointIOError: The file cannot be read.
    """
    if source.unpacked is not None or source.far:
        return  # A signature names files: not a folder, nor the archive that it was, nor what is not here.
    if source.has_other_form:
        with open_source(source.origin) as itself:
            compare_signature(report, itself, threads=threads)
        return
    try:
        signed = signed_digest(source.path)
    except FastckptError as error:
        report.signed = False
        text = f"{error.path} cannot be compared: {error.message}"
        kind = Kind.UNREADABLE if isinstance(error, CheckpointIOError) else Kind.INCONSISTENT
        report.findings.append(Finding(kind, text, 0, 0, loss=False))
        conclude(report)
        return
    if signed is None:
        return
    sha256 = digests_of(source, sha256=True, threads=threads).sha256
    report.signed = sha256 == signed[1]
    if not report.signed:
        text = f"{signed[0].path} states another SHA-256 (expected {signed[1]}, found {sha256})"
        report.findings.append(Finding(Kind.INCONSISTENT, text, 0, source.size, loss=False))
        conclude(report)
