"""`fastckpt.verify`: is every byte of a file still what was written?

Damage is data here: it is collected as findings and never raised. All copies
of the metadata are checked, not only those a load would use, and every byte
of the file is accounted for: block, payload or zero padding.
"""

from __future__ import annotations

import os

from fastckpt.constants import SUMS_SUFFIX
from fastckpt.errors import (
    FILE_OBJECT,
    CheckpointIOError,
    DamagedError,
    FastckptError,
    NotACheckpointError,
    UnsupportedStateError,
)
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.findings import Kind, Report
from fastckpt.foreign.accounting import verify_foreign
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.open_source import source_of
from fastckpt.io.os_errors import exists
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Openable, Source
from fastckpt.io.transfer import Progress
from fastckpt.remote.path import Options, located
from fastckpt.seals.healing import advice_for_damaged_seal
from fastckpt.seals.names import is_sums_path
from fastckpt.stored.damage import report_damage
from fastckpt.stored.seal_report import SealOf, compare_signature
from fastckpt.stored.verify_fckpt import Verification
from fastckpt.stored.would_heal_inside import would_heal_inside
from fastckpt.text import quoted
from fastckpt.verdicts import Verdict


def verify(
    path: Openable,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    storage_options: Options | None = None,
) -> Report:
    """Check every byte of a checkpoint file. Damage is reported, never raised.

    Args:
        path: A ``.fckpt`` file; also a ``.pt`` (CRCs) or ``.safetensors`` (which has no checksum). With a seal beside
            it (`fastckpt.seal`) any file, and all of it is compared with that, too.
            Or a binary file object or a URL, see `fastckpt.load`.
        threads: Worker threads; None takes one per CPU.
        progress: Called now and then with the bytes done so far.
        storage_options: See `fastckpt.load`.

    Returns:
        The report; ``report.ok`` says whether the file is intact.

    Raises:
        NotACheckpointError, UnsupportedVersionError: It is not something that can be verified.
        CheckpointIOError: It cannot be opened.

    Example:
        >>> fastckpt.verify("state.fckpt").ok
        True
    """
    with source_of(located(path, storage_options)) as source:
        return verify_source(source, threads=reading_threads(source, threads), progress=progress)


def require_verified(path: str | os.PathLike[str], *, threads: int, next_step: str) -> None:
    """Read a file that was just written, from the disk and not from the page cache.

    Raises:
        DamagedError: It does not verify; advises ``next_step``.
    """
    with Source(path) as written:
        written.drop_cache()
        # A seal that is there by chance is of a file that was there before.
        report = verify_source(written, threads=threads, sealed=False)
    if not report.ok:
        message = f"what was written does not verify: {report.findings[0].message}"
        raise DamagedError(message, path=path, next_step=next_step)


def require_every_byte(source: Source, *, threads: int) -> None:
    """Raise unless every byte of a file was read and is accounted for: what must be true before it is deleted.

    Whatever else proves its tensors: what could not be read may be all that tells of a damage elsewhere.

    Raises:
        CheckpointIOError: Not all of it can be read.
        DamagedError: Some of it is not what was written, or belongs to nothing.
    """
    report = verify_source(source, threads=threads)
    wrong = [finding for finding in report.findings if finding.kind is not Kind.UNPROVEN]
    unread = next((finding for finding in wrong if finding.kind is Kind.UNREADABLE), None)
    advice = "convert it without --replace, and keep it"
    if unread is not None:
        message = f"not every byte of it can be read, so it cannot be deleted: {unread.message}"
        raise CheckpointIOError(message, path=source.path, offset=unread.offset, next_step=advice)
    if wrong:
        message = f"not every byte of it is accounted for, so it cannot be deleted: {wrong[0].message}"
        raise DamagedError(message, path=source.path, offset=wrong[0].offset, next_step=advice)


def verify_source(source: Source, *, threads: int, progress: Progress | None = None, sealed: bool = True) -> Report:
    """`verify` for an open file, which stays open; without ``sealed`` by what the file itself says alone."""
    source.keep_passed_over()
    seal = SealOf(source, threads=threads, progress=progress) if sealed else None
    try:
        report = _verify_itself(source, seal, threads=threads, progress=progress)
    except NotACheckpointError:
        found = seal.report_of_no_checkpoint(source) if seal is not None else None
        if found is None:
            raise
        report = found
    else:
        if seal is not None:
            seal.complete(report, source)
            _advise_repair(report, source, threads)
    if sealed:
        compare_signature(report, source, threads=threads)
    if report.next_step is not None and is_sums_path(source.path):
        sealed_file = source.path.removesuffix(SUMS_SUFFIX)
        if exists(sealed_file):
            report.next_step = advice_for_damaged_seal(sealed_file)
    return report


def _advise_repair(report: Report, source: Source, threads: int) -> None:
    """Name the command that heals a file by parity inside, where none is named that heals it by its seal."""
    command = f"fastckpt repair {quoted(source.path)}"
    if report.format != "fckpt" or not report.exit_code or source.path == FILE_OBJECT or report.next_step == command:
        return
    if would_heal_inside(source, report, threads=threads):
        report.next_step = command


def is_whole_by_itself(path: str, *, threads: int) -> bool:
    """Whether the checksums that a file has of its own prove all of it, whatever a seal says."""
    try:
        with Source(path) as source:
            return verify_source(source, threads=threads, sealed=False).verdict is Verdict.INTACT
    except FastckptError:
        return False


def _verify_itself(source: Source, seal: SealOf | None, *, threads: int, progress: Progress | None) -> Report:
    """The report that the file's own checksums give, and where it is damaged what a seal proves of it."""
    failure: FastckptError | None = None
    report: Report | None = None
    try:
        report = _verify_whole(source, threads, progress, is_read=seal is not None and seal.proves_all)
    except (DamagedError, NotACheckpointError) as error:
        failure = error
    except CheckpointIOError as error:
        if error.offset is None:
            raise  # With an offset, it is a part of it that could not be read.
        failure = error
    except UnsupportedStateError as error:
        if kind_of(source) not in ("safetensors", "torch-legacy"):
            raise
        # An element type that torch lacks: its bytes can be looked at all the same. And where no checksum tells that
        # a pickle is as it was written, what makes no sense in it is damage.
        failure = error
    # A .fckpt that opens has been checked record by record, with the digests of the index that its footer names.
    # What the checksums of a .pt prove is as good, whatever its seal says.
    differs = seal is not None and seal.differs and report is not None and report.verdict is not Verdict.INTACT
    if report is not None and (report.format == "fckpt" or (report.ok and not differs)):
        return report
    return report_damage(source, report, failure, threads=threads, standing=seal.standing if seal is not None else None)


def _verify_whole(source: Source, threads: int, progress: Progress | None, *, is_read: bool) -> Report:
    """The report on a file that can be read as a whole one. Raises what reading it raises."""
    if kind_of(source) not in (None, "fckpt"):
        return verify_foreign(source, threads=threads, progress=progress, is_read=is_read)
    return Verification(CheckpointFile(source), threads, progress).run()
