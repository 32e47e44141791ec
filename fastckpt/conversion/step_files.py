"""Converting a directory of steps that are one file each: ``ckpt_500.pt``, ``epoch=3-step=400.ckpt``.

Each file is converted as it would be by itself, the oldest step first. A run that was killed is finished by running it
again: what is there already, and holds what its source holds, stays. A step that is damaged is left out; the others are
converted, and the error comes at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from fastckpt.conversion.convert_file import convert_file
from fastckpt.conversion.finished import find_finished
from fastckpt.conversion.request import Request
from fastckpt.conversion.result import Conversion, Format
from fastckpt.conversion.step_by_step import step_by_step
from fastckpt.errors import UsageError
from fastckpt.foreign.suffixes import FORMAT_OF, name_before, own_name, told_apart
from fastckpt.io.commit import make_directory
from fastckpt.io.os_errors import exists, is_directory
from fastckpt.io.source import Source
from fastckpt.io.transfer import thread_count
from fastckpt.keeping.series import files_by_name
from fastckpt.sets.listing import Listing
from fastckpt.sets.model import CheckpointSet
from fastckpt.sets.steps import recognise, says_its_step
from fastckpt.text import some


def step_files(directory: str) -> list[CheckpointSet]:
    """The files in a directory whose names say their step, the oldest first."""
    found = recognise(Listing(directory))
    return [each for each in found if os.path.isfile(each.path) and says_its_step(os.path.basename(each.path))]


def convert_step_files(
    files: Sequence[CheckpointSet],
    directory: str,
    destination: str | None,
    request: Request,
    *,
    to: Format | None,
    step: int | None,
    origin: Callable[[Source], Format],
) -> list[Conversion]:
    """Convert steps that are one file each; see `fastckpt.convert`.

    Args:
        files: From `step_files`.
        directory: Where they are.
        destination: The directory to write to, made if it is missing. None is the same one.
        request: How to convert.
        to: The wanted format. None is ``fckpt`` if there is any file of another one, else that which each was made of.
        step: Only this step.
        origin: What a ``.fckpt`` was made of.

    Raises:
        UsageError: There is no such step, or nothing to convert.
        DamagedError, MismatchError, UnsupportedStateError: Of one file; the others are converted.
        OutOfSpaceError, CheckpointIOError
    """
    is_back = to is None and all(each.path.endswith(".fckpt") for each in files)
    wanted = to or (None if is_back else "fckpt")
    targets = _targets(
        [each.path for each in files if FORMAT_OF[os.path.splitext(each.path)[1].lower()] != wanted], wanted
    )
    chosen = [each for each in files if each.path in targets and step in (None, each.step)]
    if not chosen:
        there = some(sorted({each.step for each in files if each.step is not None}), 8)
        raise UsageError(
            "there is nothing to convert", path=directory, expected=f"one of the steps {there}", actual=step
        )
    target_directory = destination or directory
    if not is_directory(target_directory):
        make_directory(target_directory)
    known = {each.path for each in files}
    # Before anything is written: what is made here may lie beside its source.
    others = [os.path.basename(path) for path in files_by_name(Listing(directory)) if path not in known]
    notes = [f"left out, since their names say no step: {some(others)}"] if others and step is None else []

    def convert(each: CheckpointSet) -> list[Conversion]:
        return [_convert(each.path, target_directory, request, name=targets[each.path], origin=origin)]

    return step_by_step(chosen, convert, what="files", notes=notes)


def _targets(paths: Sequence[str], to: Format | None) -> dict[str, str | None]:
    """What each file is called when it is converted, by its path; None if that is up to what it was made of.

    To ``.fckpt``, two that would be one keep their whole names. To another format, of what is there as a ``.fckpt``
    and as another file, the ``.fckpt`` is taken.
    """
    own = {path: _own_name(os.path.basename(path)) for path in paths}
    if to == "fckpt":
        return {**told_apart(own, {path: os.path.basename(path) for path in paths})}
    by_name = {own[path]: path for path in sorted(paths, key=lambda path: path.endswith(".fckpt"))}
    return {path: None if to is None else name_before(os.path.basename(path), to) for path in by_name.values()}


def _own_name(name: str) -> str:
    return name if name.endswith(".fckpt") else own_name(name)


def _convert(
    path: str, directory: str, request: Request, *, name: str | None, origin: Callable[[Source], Format]
) -> Conversion:
    if name is None:
        with Source(path) as source:
            name = name_before(os.path.basename(path), origin(source))
    target = os.path.join(directory, name)
    if exists(target):
        found = find_finished(path, target, request, threads=thread_count(request.threads))
        if found is not None:
            return found
    return convert_file(path, target, request, to=FORMAT_OF[os.path.splitext(name)[1].lower()])
