"""`fastckpt.salvage`: every tensor that a damaged checkpoint still proves, into a new file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Final

from fastckpt.constants import SUMS_SUFFIX
from fastckpt.errors import (
    CheckpointNotFoundError,
    NotACheckpointError,
    UnsupportedStateError,
    for_file_object,
)
from fastckpt.findings import UNSETTLED, Finding, Kind
from fastckpt.io.file_object import Readables, is_path, name_of, require_path
from fastckpt.io.how import How
from fastckpt.io.local_copy import local_copy, local_directory
from fastckpt.io.open_source import open_source, source_of
from fastckpt.io.refuse_overwriting import refuse_overwriting
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.layout.walk import has_optimizer
from fastckpt.remote.path import Options, RemotePath, located
from fastckpt.salvaging.alike import blueprint_finder, survey_as_named
from fastckpt.salvaging.healed_view import healed_view
from fastckpt.salvaging.next_step import next_step
from fastckpt.salvaging.original import keep_original
from fastckpt.salvaging.report import SalvageReport
from fastckpt.salvaging.request import Request, make_request
from fastckpt.salvaging.selection import Selection, choose
from fastckpt.salvaging.survey_set import around_pieces, set_in, survey_set
from fastckpt.salvaging.write import destination_format, refuse_what_does_not_fit, write_destination
from fastckpt.stored.verify import verify_source
from fastckpt.surveying.fates import THERE, Status, TensorFate
from fastckpt.surveying.survey import survey
from fastckpt.surveying.wreck import Wreck, storage_status
from fastckpt.text import quoted, some

_SHOWN: Final = 20
"""Things that are not understood, named one by one."""


def salvage(
    src: Readables,
    dst: str | os.PathLike[str] | None = None,
    *,
    like: str | os.PathLike[str] | None = None,
    include: Iterable[str] = (),
    fill: str = "nan",
    backfill: str | os.PathLike[str] | None = None,
    durable: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
    storage_options: Options | None = None,
) -> SalvageReport:
    """Find out what a damaged checkpoint still holds, and write it to a new file.

    Damage is data: it is in the report and never raised. What parity heals, in a seal beside the file or
    inside (see `repair`), is healed first, in a temporary file: the rest is made of that.

    Args:
        src: A ``.fckpt``, ``.pt`` or ``.safetensors`` file in any state. It is only read.
            Or a binary file object: that is copied to a temporary file.
            Or a directory that one checkpoint of
            torch.distributed.checkpoint is in, or a set of shards: its tensors are put together.
            Or the URL of a file, or of such a directory, see `fastckpt.load`: it is copied to a temporary directory,
            with the seal of a file if there is one.
        dst: The file to write: ``.fckpt``, ``.pt`` or ``.safetensors`` by suffix. None only reports.
        like: Another checkpoint of the same structure, for names, shapes and dtypes that are lost;
            of a directory, another directory.
        include: What else comes back beside intact tensors: ``unverified``, ``partial``, ``damaged``.
        fill: ``nan`` or ``zeros``, for the missing bytes of those.
        backfill: Another checkpoint of which tensors are taken that did not come back; of a parameter the state of the
            optimizer too, where both files say which it is.
        durable: Return only when ``dst`` survives a power cut.
        threads: Worker threads; None takes one per CPU.
        progress: Called with the bytes done so far.
        storage_options: Of ``src``; see `fastckpt.load`.

    Returns:
        The report.

    Raises:
        NotACheckpointError, UnsupportedVersionError, UnsupportedStateError: Nothing that can be salvaged.
        CheckpointIOError, OutOfSpaceError: ``src`` cannot be opened or ``dst`` not written; ``dst`` is untouched.
        UsageError: An argument is wrong, or a directory is not one checkpoint that can be put together.
        DamagedError, CheckpointNotFoundError: Of a directory: there is no manifest that can be read, and no ``like``.

    Example:
        >>> fastckpt.salvage("damaged.fckpt", "rescued.fckpt").written
        ['bias']
    """
    src = located(src, storage_options)
    if isinstance(src, RemotePath):
        return _salvage_copy(
            src,
            dst,
            like=like,
            include=include,
            fill=fill,
            backfill=backfill,
            durable=durable,
            threads=threads,
            progress=progress,
        )
    is_here = is_path(src)
    path = name_of(src)
    destination = require_path(dst, "the destination") if dst is not None else None
    request = make_request(
        like=require_path(like, "the checkpoint of like=") if like is not None else None,
        include=include,
        fill=fill,
        backfill=require_path(backfill, "the checkpoint of backfill=") if backfill is not None else None,
    )
    others = [other for other in (request.like, request.backfill) if other is not None]
    kind = None
    if destination is not None:
        kind = destination_format(destination)
        refuse_overwriting(destination, [path, *others] if is_here else others)
    of_several = set_in(path) if is_here and is_directory_of_checkpoints(path) else None
    for other in others:
        is_one_file = os.path.exists(other) and not is_directory_of_checkpoints(other)
        if not is_one_file and (of_several is None or other != request.like):
            raise CheckpointNotFoundError("not found, or not a file", path=other)
    with ExitStack() as stack:
        count = thread_count(threads)
        if of_several is not None:
            wreck, file = survey_set(
                of_several, destination, stack, like=request.like, threads=count, progress=progress
            )
        else:
            # An empty file cannot be opened as a checkpoint; what is left of it is said all the same.
            has_bytes = not is_here or os.path.isdir(path) or (os.path.isfile(path) and os.path.getsize(path) > 0)
            damaged = stack.enter_context(open_source(src)) if has_bytes else None
            view = healed_view(damaged, destination, stack, threads=count) if damaged is not None else None
            file = view.source if view is not None else None
            wreck = survey(
                file or path,
                like=request.like,
                find_blueprint=blueprint_finder(path, request.like),
                threads=count,
                progress=progress,
                standing=view.standing if view is not None else None,
            )
            if view is not None and damaged is not None:
                # What is looked at may be longer than the file: healed, or with its records inflated.
                wreck.size, wreck.healed, wreck.notes[:0] = damaged.file_size, view.healed, view.notes
                wreck.repairs = [f"fastckpt repair {quoted(path)}"] if view.heals_all else []
        donor = survey_as_named(request.backfill, threads=count) if request.backfill is not None else None
        fates = wreck.fates()
        selection = choose(wreck, fates, request.include, donor)
        if kind in (None, "pt"):
            keep_original(selection, wreck, request.include, donor)
        if kind is not None:
            refuse_what_does_not_fit(selection, wreck, kind)
        report = _report(path, wreck, fates, selection, donor, request, kind)
        has_no_tensors = not wreck.entries and not wreck.unnamed and wreck.structure != "none"
        if destination is not None and (selection.entries or selection.original is not None or has_no_tensors):
            report.destination = destination
            write_destination(
                destination,
                selection,
                report,
                [wreck, donor] if donor is not None else [wreck],
                How(count, durable, progress),
                fill=fill,
                held=file if of_several is not None or not is_here or wreck.healed else None,
            )
        report.exit_code = _exit_code(report, wreck, selection, written=destination is not None)
        if report.exit_code == 0:
            # All that was looked at is of tensors; what lies around them can be damaged as well.
            around = (
                around_pieces(of_several, threads=count) if of_several is not None else _around(file or path, count)
            )
            report.findings += around
            report.exit_code = _exit_code(report, wreck, selection, written=destination is not None)
        understood = not (wreck.opaque or wreck.unnamed)
        following = next_step(report, request, selection.tree if understood else None, threads=count)
        report.next_step = for_file_object(following)
        repairs = wreck.repairs
        if repairs and destination is None:
            report.next_step = f"{repairs[0]}  # makes the whole file what it was"
            repairs = repairs[1:]
        report.notes += [f"its parity heals the whole file: {command}" for command in repairs]
        return report


def _salvage_copy(place: RemotePath, dst: str | os.PathLike[str] | None, **how: Any) -> SalvageReport:
    """`salvage` of a remote file, or of the files of one checkpoint in a directory."""
    if place.is_directory:
        set_in(place)  # Nothing is copied of a directory that is something else.
    with local_directory(place) if place.is_directory else local_copy(place, SUMS_SUFFIX) as copy:
        report = salvage(copy, dst, **how)
    report.path = os.fspath(place)

    def about_it(text: str) -> str:
        inside = text.replace(f"{copy}{os.sep}", report.path) if place.is_directory else text
        return inside.replace(copy, report.path)

    report.next_step = about_it(report.next_step)
    report.notes = ["what was looked at is a local copy of it", *map(about_it, report.notes)]
    return report


def _report(
    path: str,
    wreck: Wreck,
    fates: dict[str, TensorFate],
    selection: Selection,
    donor: Wreck | None,
    request: Request,
    kind: str | None,
) -> SalvageReport:
    written = selection.names
    report = SalvageReport(
        path,
        wreck.format,
        wreck.size,
        fates,
        wreck.byte_counts(),
        sorted([*wreck.healed, *wreck.findings], key=lambda found: (found.offset, found.size)),
        wreck.healed,
        wreck.structure,
        written=written,
        backfilled=selection.backfilled,
        notes=[*wreck.notes, *selection.notes],
    )
    kept = selection.original is not None
    carried = 'is in the new file: load(opaque="keep") shows it' if kind == "fckpt" else "is left out"
    report.notes += _what_is_not_understood(wreck, "comes back as it was saved" if kept else carried)
    nothing_left_out = kept or not (selection.is_reduced or wreck.opaque or wreck.unnamed)
    unnamed_whole = all(storage_status(unnamed.state) in THERE for unnamed in wreck.unnamed)
    report.complete = (
        wreck.structure != "none"
        and not report.broken
        and not wreck.is_open
        # What is completed from another file is of several saves by the user's wish, and the report names which.
        and (not wreck.unsettled or (wreck.unsettled == UNSETTLED and bool(selection.backfilled)))
        and nothing_left_out
        and unnamed_whole
        and not wreck.lost_values
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


def _what_is_not_understood(wreck: Wreck, fate: str) -> Iterator[str]:
    for path, name in wreck.opaque[:_SHOWN]:
        yield f"{path} is a {name}: it was not imported or run, and {fate}"
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
        yield f"param_groups are not whole: an optimizer may refuse its first step without {some(report.broken_groups)}"
    holed = set(report.broken) & set(report.written)
    if holed:
        share = f"{len(holed)} of {len(report.written)} tensors"
        yield f"{share} that come back are not whole: wrong or filled bytes are in them"


def _around(file: Source | str, threads: int) -> list[Finding]:
    """What is wrong with a file of which every tensor is there."""
    try:
        with source_of(file) as source:
            found = verify_source(source, threads=threads).findings
    except (NotACheckpointError, UnsupportedStateError) as error:
        return [Finding(Kind.INCONSISTENT, error.message, error.offset or 0, 0, loss=False)]
    return [finding for finding in found if finding.kind is not Kind.UNPROVEN]


def _exit_code(report: SalvageReport, wreck: Wreck, selection: Selection, *, written: bool) -> int:
    damaged = any(finding.kind is not Kind.UNPROVEN for finding in report.findings)
    names = set(report.written)
    usable = names if written else names | {n for n, fate in report.tensors.items() if fate.status in THERE}
    unnamed = [storage_status(storage.state) in THERE for storage in wreck.unnamed]
    left_out = selection.as_safetensors is not None and bool(selection.as_safetensors.left_out)
    if not report.tensors and not unnamed:
        if report.structure != "whole":
            return 2 if damaged else 0
        return 3 if left_out else 1 if damaged else 0
    if not usable and not any(unnamed):
        return 2
    holed = any(fate.status not in THERE and n not in report.backfilled for n, fate in report.tensors.items())
    left_out |= any(name not in usable for name in report.tensors) or (written and not report.complete and not names)
    if report.structure == "none" or holed or left_out or not all(unnamed) or wreck.lost_values:
        return 3
    if written and wreck.unnamed and not report.complete:
        return 3
    return 1 if damaged else 0
