"""Parity first: what is looked at in place of a damaged file is the same with all that its seal heals in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final

from fastckpt.errors import FILE_OBJECT, FastckptError
from fastckpt.findings import Finding
from fastckpt.io.os_errors import exists, typed_os_errors
from fastckpt.io.source import Source
from fastckpt.io.space import check_space
from fastckpt.io.stand_in import StandIn
from fastckpt.seals.bad_leaves import findings_of
from fastckpt.seals.healed_copy import HealedCopy
from fastckpt.seals.names import is_sums_path, sums_path
from fastckpt.seals.remains import SumsRemains, open_remains
from fastckpt.seals.standing import Standing
from fastckpt.stored.healing_plan import healing_plan

_ROOM: Final = 2
"""Times the size of the file that must be free for a view of it."""


@dataclass(slots=True)
class HealedView:
    """What is to be looked at.

    Attributes:
        source: The damaged file, or what stands for it.
        standing: How that stands to its seal; None: it was not asked.
        healed: What was wrong with the file and is not with what stands for it.
        notes: Why the parity that there is was not used.
        heals_all: Whether `fastckpt.repair` makes the file what it was.
    """

    source: Source
    standing: Standing | None = None
    healed: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    heals_all: bool = False


def healed_view(source: Source, destination: str | None, stack: ExitStack, *, threads: int) -> HealedView:
    """The view of an open file by the parity in its seal, valid as long as ``stack``; the file itself without any.

    It is in a file without a name: in the directory of the destination or, without one, of the file itself, where the
    file system can share its blocks; else among the temporary files. Where there is no room for it, parity is not used.

    Raises:
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.
    """
    view = HealedView(source)
    beside = sums_path(source.path)
    if source.path == FILE_OBJECT or source.unpacked is not None or is_sums_path(source.path) or not exists(beside):
        return view
    try:
        remains = stack.enter_context(open_remains(beside, threads=threads))
        plan = healing_plan(source, remains, threads=threads)
        if plan is None:
            return view
        view.standing, hopeless = plan
        if plan.standing.is_as_sealed:
            return view
        view.heals_all = not hopeless
        if hopeless and hopeless == plan.standing.bad_numbers and not plan.standing.behind:
            return view
    except FastckptError:
        return view  # Whoever looks at the file says what is wrong with it and its seal.
    for directory in _directories(source, destination):
        try:
            _heal(view, remains, plan.standing, directory, stack, threads, read=destination is not None)
        except FastckptError as error:
            view.notes = [f"the parity in its seal was not used: {error.message}"]
        else:
            view.notes = []
            break
    return view


def _directories(source: Source, destination: str | None) -> Iterator[str]:
    """Where the view may be."""
    if destination is not None:
        yield os.path.dirname(os.path.realpath(destination))
        return
    yield os.path.dirname(os.path.realpath(source.path))
    yield tempfile.gettempdir()


def _heal(
    view: HealedView,
    remains: SumsRemains,
    standing: Standing,
    directory: str,
    stack: ExitStack,
    threads: int,
    *,
    read: bool,
) -> None:
    sums, source = remains.sums, view.source
    with typed_os_errors(directory, doing="look for room in"):
        # A report alone must not take the last room from whoever saves here.
        check_space(directory, _ROOM * sums.size, directory)
    with (
        typed_os_errors(directory, doing="make a temporary file in"),
        tempfile.TemporaryFile(dir=directory, buffering=0) as there,
    ):
        copy = HealedCopy(there.fileno(), source.path, remains, standing)
        copy.write(source, threads=threads)
        # Of what is only reported, what the disk would make of the copy does not matter.
        copy.require_proven(threads=threads, read=read)
        # Of a file that was cut, nothing stands behind what it has and what came back.
        there.truncate(_end_of(copy.unhealed, source.size, standing))
        view.source = stack.enter_context(StandIn(source, os.dup(there.fileno())))
    back = standing.bad_among(set(standing.bad_numbers).difference(copy.unhealed))
    view.healed = [replace(finding, loss=False) for finding in findings_of(sums, back, size=source.size)]
    if standing.behind:
        view.healed += [replace(finding, loss=False) for finding in standing.findings()[-1:]]
    view.standing = Standing(sums, view.source.size, bad=standing.bad_among(copy.unhealed))
    view.heals_all = not copy.unhealed


def _end_of(unhealed: list[int], size: int, standing: Standing) -> int:
    """Where the view ends: with the last byte that was sealed, if that is there or came back."""
    end = standing.sums.size
    gone = set(unhealed)
    last = standing.sums.leaves - 1
    while last in gone and end > size:
        end = max(standing.sums.leaf_extent(last).offset, size)
        last -= 1
    return end
