"""`fastckpt.salvage`: every tensor that a damaged checkpoint still proves, into a new file."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from typing import Final

from fastckpt.errors import CheckpointIOError, UsageError
from fastckpt.findings import Kind
from fastckpt.io.how import How
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.layout.walk import has_optimizer
from fastckpt.salvaging.alike import blueprint_finder, survey_as_named
from fastckpt.salvaging.next_step import next_step
from fastckpt.salvaging.original import keep_original
from fastckpt.salvaging.report import SalvageReport
from fastckpt.salvaging.request import Request, make_request
from fastckpt.salvaging.selection import Selection, choose
from fastckpt.salvaging.write import destination_format, refuse_what_does_not_fit, write_destination
from fastckpt.surveying.fates import Status, TensorFate
from fastckpt.surveying.survey import survey
from fastckpt.surveying.wreck import Wreck, storage_status

_SHOWN: Final = 20
"""Things that are not understood, named one by one."""
_THERE: Final = (Status.INTACT, Status.UNVERIFIED)


def salvage(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None = None,
    *,
    like: str | os.PathLike[str] | None = None,
    include: Iterable[str] = (),
    fill: str = "nan",
    backfill: str | os.PathLike[str] | None = None,
    durable: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> SalvageReport:
    """Find out what a damaged checkpoint still holds, and write it to a new file.

    Damage is data: it is in the report and never raised.

    Args:
        src: A ``.fckpt``, ``.pt`` or ``.safetensors`` file in any state. It is only read.
        dst: The file to write: ``.fckpt``, ``.pt`` or ``.safetensors`` by suffix. None only reports.
        like: Another checkpoint of the same structure, for names, shapes and dtypes that are lost.
        include: What else comes back beside intact tensors: ``unverified``, ``partial``, ``damaged``.
        fill: ``nan`` or ``zeros``, for the missing bytes of those.
        backfill: Another checkpoint of which tensors are taken that did not come back.
        durable: Return only when ``dst`` survives a power cut.
        threads: Worker threads; None takes one per CPU.
        progress: Told of the bytes done so far.

    Returns:
        The report.

    Raises:
        NotACheckpointError, UnsupportedVersionError, UnsupportedStateError: Nothing that can be salvaged.
        CheckpointIOError, OutOfSpaceError: ``src`` cannot be opened or ``dst`` not written; ``dst`` is untouched.
        UsageError: An argument is wrong.

    Example:
        >>> fastckpt.salvage("damaged.fckpt", "rescued.fckpt").written
        ['bias']
    """
    path = os.fspath(src)
    destination = os.fspath(dst) if dst is not None else None
    others = [os.fspath(other) for other in (like, backfill) if other is not None]
    request = make_request(
        like=os.fspath(like) if like is not None else None,
        include=include,
        fill=fill,
        backfill=os.fspath(backfill) if backfill is not None else None,
    )
    kind = None
    if destination is not None:
        kind = destination_format(destination)
        _refuse_overwriting(destination, [path, *others])
    for other in others:
        if not os.path.isfile(other):
            raise CheckpointIOError("there is no such file", path=other)
    if os.path.isdir(path):
        raise UsageError(
            "this is a directory", path=path, next_step=f"fastckpt salvage {shlex.quote(path)} shows every step in it"
        )
    count = thread_count(threads)
    find = blueprint_finder(path, request.like)
    wreck = survey(path, like=request.like, find_blueprint=find, threads=count, progress=progress)
    donor = survey_as_named(request.backfill, threads=count) if request.backfill is not None else None
    fates = wreck.fates()
    selection = choose(wreck, fates, request.include, donor)
    if kind in (None, "pt"):
        keep_original(selection, wreck, request.include, donor)
    if kind is not None:
        refuse_what_does_not_fit(selection, kind)
    report = _report(wreck, fates, selection, donor, request)
    if destination is not None and (selection.entries or selection.original is not None):
        report.destination = destination
        write_destination(
            destination,
            selection,
            report,
            [wreck, donor] if donor is not None else [wreck],
            How(count, durable, progress),
            fill=fill,
        )
    report.exit_code = _exit_code(report, wreck, written=destination is not None)
    report.next_step = next_step(report, request, threads=count)
    return report


def _refuse_overwriting(destination: str, inputs: Iterable[str]) -> None:
    for path in inputs:
        if os.path.exists(destination) and os.path.exists(path) and os.path.samefile(destination, path):
            raise UsageError("the destination is one of the files that are read", path=destination)


def _report(
    wreck: Wreck, fates: dict[str, TensorFate], selection: Selection, donor: Wreck | None, request: Request
) -> SalvageReport:
    written = selection.names
    report = SalvageReport(
        wreck.path,
        wreck.format,
        wreck.size,
        fates,
        wreck.findings,
        wreck.structure,
        written=written,
        backfilled=selection.backfilled,
        notes=[*wreck.notes, *selection.notes],
    )
    kept = selection.original is not None
    report.notes += _what_is_not_understood(wreck, kept=kept)
    nothing_left_out = kept or (not wreck.opaque and not wreck.unnamed)
    unnamed_whole = all(storage_status(unnamed.state) in _THERE for unnamed in wreck.unnamed)
    report.complete = (
        wreck.structure != "none" and not report.broken and not _is_open(wreck) and nothing_left_out and unnamed_whole
    )
    if donor is not None:
        donor_fates = donor.fates()
        doubtful = [name for name in selection.backfilled if donor_fates[name].status is not Status.INTACT]
        if doubtful:
            share = f"{len(doubtful)} of {len(report.backfilled)} tensors taken"
            report.notes.append(f"nothing proves {share} from {donor.path}")
        if report.broken:
            lacking = f"{len(report.broken)} of {len(fates)} tensors"
            report.notes.append(f"{donor.path} cannot fill in {lacking}: it has none like them, or not whole")
    report.notes += _what_is_missing(report, request.include, strict=not has_optimizer(wreck.tree))
    return report


def _what_is_not_understood(wreck: Wreck, *, kept: bool) -> Iterator[str]:
    fate = "it was not imported or run, and " + ("comes back as it was saved" if kept else "is left out")
    for path, name in wreck.opaque[:_SHOWN]:
        yield f"{path} is a {name}: {fate}"
    if len(wreck.opaque) > _SHOWN:
        yield f"... and {len(wreck.opaque) - _SHOWN} more that are not understood"
    counts: dict[str, int] = {}
    for unnamed in wreck.unnamed:
        status = storage_status(unnamed.state).value
        counts[status] = counts.get(status, 0) + 1
    if counts:
        shown = ", ".join(f"{count} {status}" for status, count in counts.items())
        yield f"{len(wreck.unnamed)} storages belong to what is not understood: {shown}"


def _what_is_missing(report: SalvageReport, include: frozenset[Status], *, strict: bool) -> Iterator[str]:
    """Notes on the tensors that do not come back whole. A model is loaded strictly: all of them must be there."""
    missing = set(report.tensors) - set(report.written)
    unproven = {name for name in missing if report.tensors[name].status is Status.UNVERIFIED}
    if unproven and Status.UNVERIFIED not in include:
        share = f"{len(unproven)} of {len(report.tensors)} tensors"
        yield f"{share} are all there, and nothing proves them: --include unverified takes them in"
        missing -= unproven
    if missing and strict and report.structure != "none":
        yield f"incomplete: {len(missing)} of {len(report.tensors)} tensors are missing, and a strict load refuses that"
    if report.broken_groups:
        shown = ", ".join(report.broken_groups[:3]) + (", ..." if len(report.broken_groups) > 3 else "")
        yield f"param_groups are not whole, and an optimizer may refuse its first step without {shown}"
    holed = set(report.broken) & set(report.written)
    if holed:
        share = f"{len(holed)} of {len(report.written)} tensors"
        yield f"{share} that come back are not whole: wrong or filled bytes are in them"


def _is_open(wreck: Wreck) -> bool:
    """Whether tensors may be missing that nothing names."""
    return wreck.structure == "from index/header" or (wreck.format == "safetensors" and wreck.structure == "damaged")


def _exit_code(report: SalvageReport, wreck: Wreck, *, written: bool) -> int:
    damaged = any(finding.kind is not Kind.UNPROVEN for finding in report.findings)
    names = set(report.written)
    usable = names if written else names | {n for n, fate in report.tensors.items() if fate.status in _THERE}
    unnamed = [storage_status(storage.state) in _THERE for storage in wreck.unnamed]
    if not report.tensors and not unnamed:
        return 2 if damaged else 0
    if not usable and not any(unnamed):
        return 2
    holed = any(fate.status not in _THERE and n not in report.backfilled for n, fate in report.tensors.items())
    left_out = any(name not in usable for name in report.tensors) or (written and not report.complete and not names)
    if report.structure == "none" or holed or left_out or not all(unnamed):
        return 3
    if written and wreck.unnamed and not report.complete:
        return 3
    return 1 if damaged else 0
