"""`fastckpt.repair`: a sealed file that was damaged becomes again what was sealed, or stays as it is.

1. Every byte is compared with the seal: what differs is lost, and nothing else is.
2. Lost leaves are computed from the others of their groups and the parity. What does not have its digest is dropped.
3. A new file is made beside: what was right is copied, what was healed is put in its place. Or, where the damaged file
   is not to be kept, what was healed is written into that.
4. Every leaf is compared with the seal again: of a new file before it takes the name, and without ``durable`` as it is
   written; of the damaged one when all is written. With parity inside, the file's own checksums prove every byte of it.

What cannot be healed keeps the bytes that it has, and only in a file that was asked for under another name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

from fastckpt.constants import SUMS_SUFFIX
from fastckpt.errors import DamagedError, UsageError
from fastckpt.io.beginning import Beginning
from fastckpt.io.cloning import clone, hard_link
from fastckpt.io.commit import Commit
from fastckpt.io.how import How
from fastckpt.io.local_copy import local_copy
from fastckpt.io.os_errors import file_path, is_directory
from fastckpt.io.refuse_overwriting import refuse_overwriting
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.remote.path import Options, RemotePath, located
from fastckpt.sealing.choose_parity import Wanted, choose_parity
from fastckpt.sealing.repaired import RepairReport
from fastckpt.seals.bad_leaves import findings_of
from fastckpt.seals.encoded import encoded
from fastckpt.seals.healed_copy import HealedCopy
from fastckpt.seals.healing import hopeless_leaves
from fastckpt.seals.healing_in_place import heal_in_place
from fastckpt.seals.inside import InsideRemains
from fastckpt.seals.names import DAMAGED_SUFFIX, is_sums_path, sealed_name, sums_path
from fastckpt.seals.parity_source import ParitySource
from fastckpt.seals.remains import SumsRemains
from fastckpt.seals.standing import Standing
from fastckpt.seals.sums import Sums, write_sums
from fastckpt.stored.verify import is_whole_by_itself, verify_source
from fastckpt.text import quoted
from fastckpt.verdicts import Verdict


def repair(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    keep: bool = True,
    dry_run: bool = False,
    durable: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
    storage_options: Options | None = None,
) -> RepairReport:
    """Heal a damaged file by the parity in its seal (see `seal`), or else by that inside (see `save`).

    Damage is in the report, and never raised. Each group of leaves can lose as many as it has leaves of parity,
    wherever they are. No byte is written that the digests beside the parity do not prove; what cannot be healed is
    named, and stays as it is.

    Args:
        path: The damaged file, beside its sums file or with parity inside. It is only read, unless ``keep`` is False.
            Of a URL both are copied to a temporary directory, and the healed file needs an ``output``, which is here.
        output: Where the healed file goes; also one of which only a part could be healed, which gets a sums file that
            tells what is not, and one whose seal tells of another file. Of a file that is as sealed nothing is written.
            None: it takes the place of the damaged one, if all of it could be healed, and a sums file that is damaged
            is written anew.
        keep: Without ``output``: keep the damaged file, as ``NAME.damaged``. If not, nothing is copied: each leaf that
            is healed is written into the file itself, so other names of it and programs that have it open see that.
            A call that ends early leaves fewer damaged leaves, and the next one goes on.
        dry_run: Write nothing.
        durable: Return only when the healed file survives a power cut.
        threads: Worker threads; None takes one per CPU.
        progress: Called now and then with the bytes done so far: up to three times those of the file.
        storage_options: See `fastckpt.load`.

    Returns:
        What was lost, and what came back.

    Raises:
        MismatchError: It has no seal and no parity inside; or that is of another file, or the file's own checksums
            match, so that it was written anew, and there is no ``output``.
        DamagedError: Its seal is damaged beyond use; or the file changed while it was read.
        UsageError: It is a directory, or a sums file itself.
        NotACheckpointError: It is no regular file.
        OutOfSpaceError, CheckpointIOError: It cannot be read, or the new file not be written; all is as it was.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C; all is as it was. (Both but for leaves healed without ``keep``.)

    Example:
        >>> fastckpt.repair("sealed.bin", dry_run=True).healed
        1
    """
    place = located(path, storage_options)
    if isinstance(place, RemotePath):
        if output is None and not dry_run:
            raise UsageError("a remote file is not repaired in its place", path=place, next_step="give an output")
        with local_copy(place, SUMS_SUFFIX) as copy:
            report = repair(copy, output, dry_run=dry_run, durable=durable, threads=threads, progress=progress)
        report.path, report.next_step = os.fspath(place), None
        return report
    name = file_path(place)
    beside = sums_path(name)
    if is_sums_path(name):
        raise UsageError("this is a sums file", path=name, next_step="repair the file that it is of")
    if is_directory(name):
        raise UsageError("this is a directory", path=name, next_step="fastckpt repair FILE, one by one")
    if output is not None:
        for written in (file_path(output), sums_path(output)):
            refuse_overwriting(written, [name, beside])
    with Source(name, may_be_empty=True) as source, ExitStack() as stack:
        how = How(reading_threads(source, threads), durable)
        wanted = Wanted(source, how, progress, as_sealed=output is not None)
        remains, standing, no_seal = choose_parity(wanted, stack)
        report = _planned(source, remains, standing)
        if isinstance(remains, SumsRemains):
            report.sums_damaged = not is_whole_by_itself(beside, threads=how.threads)
        report.dry_run = dry_run
        if not dry_run and report.findings and output is None and not keep and not report.left:
            _heal_itself(source, remains, standing, report, how, progress)
        elif not dry_run and report.findings and (output is not None or not report.left):
            _heal(source, remains, standing, report, output, keep, how, progress)
        if isinstance(remains, SumsRemains) and report.output is not None and report.left:
            # What is not healed in it is known here, and must not be taken for good there.
            sums = replace(remains.sums, name=sealed_name(report.output), parity=None)
            write_sums(sums, sums_path(report.output), how)
        if isinstance(remains, InsideRemains) and not report.findings:
            if no_seal is not None:
                raise no_seal  # It is what is wrong, and parity inside does not heal that.
            _require_intact(source, how)
        if report.output is None:
            source.require_unchanged(next_step="repair it when nobody writes to it")
    if report.sums_damaged and not dry_run and output is None and not report.left:
        with Source(name, may_be_empty=True) as whole:
            _renew_sums(whole, remains.sums, beside, how)
        report.sums_renewed = True
    report.next_step = _next_step(report)
    return report


def _planned(source: Source, remains: ParitySource, standing: Standing) -> RepairReport:
    """What is wrong, and what of it is left by too much damage in a group; whether the rest heals, its digests tell."""
    sums = remains.sums
    report = RepairReport(source.path, sums.size, leaves=sums.leaves)
    report.findings = standing.findings()
    if isinstance(remains, InsideRemains):
        report.parity_at, report.size = "inside", source.size
        report.findings += [found for found in remains.damage_behind(source) if found not in report.findings]
    lost = standing.bad_numbers
    report.lost = len(lost)
    if lost and sums.parity is None:
        report.message = "its seal has no parity: it tells what is damaged, and cannot heal it"
    _leave(report, standing, hopeless_leaves(remains, lost))
    return report


def _leave(report: RepairReport, standing: Standing, hopeless: Sequence[int]) -> None:
    """These leaves do not come back: name them."""
    report.healed = report.lost - len(hopeless)
    report.left = findings_of(standing.sums, standing.bad_among(hopeless), size=standing.size)


def _heal(
    source: Source,
    remains: ParitySource,
    standing: Standing,
    report: RepairReport,
    output: str | os.PathLike[str] | None,
    keep: bool,
    how: How,
    progress: Progress | None,
) -> None:
    target = file_path(output) if output is not None else source.path
    sums = remains.sums
    kept = ""
    # Who may not read the damaged file may not read another one that is made of it.
    mode = os.fstat(source.fd).st_mode & 0o666 | 0o600
    try:
        with Commit(target, durable=how.durable, reserve=sums.size, mode=mode) as sink:
            copy = HealedCopy(sink.fd, target, remains, standing, direct_fd=sink.direct_fd)
            copy.write(source, threads=how.threads, progress=_from(source.size, progress))
            _leave(report, standing, copy.unhealed)
            if copy.unhealed and (output is None or not report.healed):
                raise _NotWorthIt
            size = copy.complete(source, threads=how.threads)
            told = _from(source.size + sums.size, progress)
            if isinstance(remains, InsideRemains) and not copy.unhealed:
                _require_intact(Beginning(sink.fd, target, size), how)
            else:
                copy.require_proven(threads=how.threads, read=how.durable, progress=told)
            sink.finish(size)
            if output is None:
                source.require_unchanged(next_step="repair it when nobody writes to it")
                source.require_in_place(next_step="repair it when nobody writes to it")
                if keep:
                    kept = _keep(source, target, how)
    except _NotWorthIt:
        return
    except BaseException:
        if kept:
            _give_up_copy(kept, target)
        raise
    report.output, report.kept, report.size = target, kept or None, size


def _heal_itself(
    source: Source,
    remains: ParitySource,
    standing: Standing,
    report: RepairReport,
    how: How,
    progress: Progress | None,
) -> None:
    source.require_unchanged(next_step="repair it when nobody writes to it")
    source.require_in_place(next_step="repair it when nobody writes to it")
    told = replace(how, progress=_from(source.size, progress))
    _leave(report, standing, heal_in_place(source, remains, standing, told))
    if isinstance(remains, InsideRemains) and not report.left:
        with Source(source.path) as now:
            _require_intact(now, how)
    report.output = source.path if report.healed or not report.left else None


def _require_intact(healed: Source, how: How) -> None:
    """The second witness of a file that has checksums of its own: they must match, too."""
    report = verify_source(healed, threads=how.threads, sealed=False)
    if report.verdict is not Verdict.INTACT:
        raise DamagedError(
            f"all is as its parity says, and not whole by its own checksums: {report.findings[0].message}",
            path=healed.path,
            next_step=f"fastckpt salvage {quoted(healed.path)}",
        )


class _NotWorthIt(Exception):
    """Nothing is to be written."""


def _from(done: int, progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda count: progress(done + count)


def _keep(source: Source, target: str, how: How) -> str:
    """Give the damaged file a second name, or copy it, before the healed one takes its own."""
    target = os.path.realpath(target) if os.path.islink(target) else target
    for number in range(10_000):
        kept = f"{target}{DAMAGED_SUFFIX}" + (f".{number}" if number else "")
        if _is_same_file(kept, source):
            return kept  # A repair that was killed came as far as this.
        if os.path.lexists(kept):
            continue
        if not hard_link(source, kept):
            clone(source, kept, share=True, link=False, threads=how.threads)
        return kept
    raise UsageError("there are too many damaged files beside it", path=target, next_step="remove those not needed")


def _is_same_file(path: str, source: Source) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(source.fd))
    except OSError:
        return False


def _give_up_copy(kept: str, target: str) -> None:
    """Remove the second name of the damaged file, unless it is the only one by now."""
    with suppress(OSError):
        if os.path.samefile(kept, target):
            os.unlink(kept)


def _renew_sums(whole: Source, sums: Sums, beside: str, how: How) -> None:
    """Write the sums file of a file that is as sealed anew."""
    if sums.parity is None:
        write_sums(sums, beside, how)
        return
    with encoded(whole, sums.parity, beside=beside, threads=how.threads) as rows:
        if bytes(rows.leaves) != bytes(sums.digests):
            raise DamagedError("the file changed while it was read", path=whole.path, next_step="repair it again")
        write_sums(replace(sums, digests=rows.leaves), beside, how, encoded=rows)


def _next_step(report: RepairReport) -> str | None:
    if report.state == "would heal":  # Also with ``output``, where only the seal is damaged.
        return f"fastckpt repair {quoted(report.path)}"
    if report.state == "not healed" and report.healed:
        share = f"{report.healed} of {report.lost} lost leaves"
        return f"fastckpt repair {quoted(report.path)} -o OTHER writes a file in which {share} are healed"
    if report.left:
        damaged = quoted(report.output or report.path)
        return f"take it from another copy; or, if it is a checkpoint, fastckpt salvage {damaged}"
    return None
