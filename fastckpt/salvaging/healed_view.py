"""Parity first: what is looked at in place of a damaged file is the same with all that its parity heals in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final

from fastckpt.errors import FILE_OBJECT, FastckptError
from fastckpt.findings import Finding
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.source import Source
from fastckpt.io.space import check_space
from fastckpt.io.stand_in import StandIn
from fastckpt.seals.bad_leaves import findings_of
from fastckpt.seals.healed_copy import HealedCopy
from fastckpt.seals.names import is_sums_path
from fastckpt.seals.remains import SumsRemains
from fastckpt.seals.standing import Standing
from fastckpt.stored.healing_plan import HealingPlan, healing_plan

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
    """The view of an open file by its parity, valid as long as ``stack``; the file itself without any.

    It is in a file without a name: in the directory of the destination or, without one, of the file itself, where the
    file system can share its blocks; else among the temporary files. Where there is no room for it, parity is not used.

    Raises:
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.
    """
    view = HealedView(source)
    if source.path == FILE_OBJECT or source.unpacked is not None or is_sums_path(source.path):
        return view
    try:
        plan = stack.enter_context(healing_plan(source, threads=threads))
    except FastckptError:
        return view  # Whoever looks at the file says what is wrong with it.
    if plan is None:
        return view
    view.standing = _of_seal(plan, plan.standing)
    view.heals_all = plan.heals_all
    if not plan.is_needed or plan.heals_nothing:
        return view
    for directory in _directories(source, destination):
        try:
            _heal(view, plan, directory, stack, threads, read=destination is not None)
        except FastckptError as error:
            view.notes = [f"its parity was not used: {error.message}"]
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
    plan: HealingPlan,
    directory: str,
    stack: ExitStack,
    threads: int,
    *,
    read: bool,
) -> None:
    sums, standing, source = plan.remains.sums, plan.standing, view.source
    with typed_os_errors(directory, doing="look for room in"):
        # A report alone must not take the last room from whoever saves here.
        check_space(directory, _ROOM * sums.size, directory)
    with (
        typed_os_errors(directory, doing="make a temporary file in"),
        tempfile.TemporaryFile(dir=directory, buffering=0) as there,
    ):
        copy = HealedCopy(there.fileno(), source.path, plan.remains, standing)
        copy.write(source, threads=threads)
        # Of what is only reported, what the disk would make of the copy does not matter.
        copy.require_proven(threads=threads, read=read)
        size = copy.complete(source, threads=threads)
        # Of a file that was cut, nothing stands behind what it has and what came back.
        end = _end_of(copy.unhealed, source.size, standing)
        there.truncate(size if end == sums.size else end)
        view.source = stack.enter_context(StandIn(source, os.dup(there.fileno())))
    back = standing.bad_among(set(standing.bad_numbers).difference(copy.unhealed))
    view.healed = [replace(finding, loss=False) for finding in findings_of(sums, back, size=source.size)]
    if standing.behind:
        view.healed += [replace(finding, loss=False) for finding in standing.findings()[-1:]]
    if not copy.unhealed:
        view.healed += plan.behind
    view.standing = _of_seal(plan, Standing(sums, view.source.size, bad=standing.bad_among(copy.unhealed)))
    view.heals_all = not copy.unhealed


def _of_seal(plan: HealingPlan, standing: Standing) -> Standing | None:
    """How a file stands to the seal beside it; None if its parity is not from there."""
    return standing if isinstance(plan.remains, SumsRemains) else None


def _end_of(unhealed: list[int], size: int, standing: Standing) -> int:
    """Where the view ends: with the last byte that was sealed, if that is there or came back."""
    end = standing.sums.size
    gone = set(unhealed)
    last = standing.sums.leaves - 1
    while last in gone and end > size:
        end = max(standing.sums.leaf_extent(last).offset, size)
        last -= 1
    return end
