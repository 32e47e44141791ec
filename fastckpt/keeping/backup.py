"""`fastckpt.backup`: the whole steps of a directory of any kind, verified, in another one.

A step is copied as a whole or not at all: a directory is made under a hidden
name and gets its own when all of it is on the disk. What is there already is
compared by content: a run that was killed is finished by running it again.
What holds something else is never overwritten.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from fastckpt.errors import DamagedError, MismatchError, UsageError
from fastckpt.io.cloning import How, clone, same_bytes
from fastckpt.io.commit import fsync_directory, make_directory
from fastckpt.io.os_errors import exists, typed_os_errors
from fastckpt.io.refuse_overwriting import holds_something_else, refuse_overwriting
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.keeping.series_of import series_of
from fastckpt.keeping.set_series import SetSeries
from fastckpt.nanochat.backing_up import Backup, CopiedFile, LeftOut, SavedAnew, check_same, identity
from fastckpt.nanochat.backing_up import backup as backup_nanochat
from fastckpt.nanochat.steps import list_numbers
from fastckpt.sets.judge import judge
from fastckpt.sets.listing import Listing
from fastckpt.sets.model import CheckpointSet
from fastckpt.text import quoted

_UNFINISHED: Final = ".fckpt-part"
_MOVE: Final = "move it away, or back up into another directory"


class _Way(NamedTuple):
    share: bool
    threads: int
    progress: Progress | None


def backup(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    step: int | None = None,
    share: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Backup:
    """Put verified copies of the whole steps of a directory into another directory.

    The steps are those that `fastckpt.Retention` knows: nanochat's, a Trainer's, accelerate's, DeepSpeed's,
    Lightning's, sets, files and directories named after steps. On one file system the files are reflinked, or, if they
    are ``.fckpt`` files, which are never written to in place, hard-linked; everything else is copied and compared with
    what the disk gives back.

    Args:
        source: The directory with the steps.
        destination: Another directory, made if it is missing. The names stay the same.
        step: Only this step.
        share: False copies the bytes also where they could be shared: a disk that fails takes shared ones with it.
        threads: Worker threads; None takes one per CPU.
        progress: Called now and then with the bytes copied so far of the current file.

    Returns:
        The files by step, the steps that were left out, each with its reasons, and the names of what is no step.

    Raises:
        UsageError: No such step, or a destination that is the source or that nanochat would take for a model.
        NotACheckpointError: There are no steps here.
        OutOfSpaceError, CheckpointIOError: What was backed up before is whole and stays.

    Example:
        >>> sorted(fastckpt.backup("checkpoints", "copies").steps)
        [10, 20]
    """
    source, destination = os.fsdecode(source), os.fsdecode(destination)
    series = series_of(source, command=f"fastckpt backup {{}} {quoted(destination)}")
    of_steps = {_first_name(path, source) for number in series.numbers for path in series.files(number)}
    others = [name for name in Listing(source).names if not name.startswith(".") and name not in of_steps]
    if not isinstance(series, SetSeries):
        result = backup_nanochat(source, destination, step=step, share=share, threads=threads, progress=progress)
        result.others = others
        return result
    if step is not None and step not in series.numbers:
        known = f"one of {list_numbers(series.numbers)}"
        raise UsageError(f"there is no step {step}", path=source, expected=known)
    refuse_overwriting(destination, [source])
    make_directory(destination)
    result = Backup(others=others)
    way = _Way(share, thread_count(threads), progress)
    for number in series.numbers if step is None else [step]:
        done = _step(series, number, destination, way)
        if isinstance(done, LeftOut):
            result.left_out.append(done)
        else:
            result.steps[number] = done
    return result


def _first_name(path: str, directory: str) -> str:
    return os.path.relpath(path, directory).partition(os.sep)[0]


def _step(series: SetSeries, number: int, destination: str, way: _Way) -> list[CopiedFile] | LeftOut:
    before = {path: identity(path) for path in series.files(number)}
    reports = [judge(part, threads=way.threads) for part in series.parts(number)]
    if not all(report.is_whole for report in reports):
        kinds = {problem.kind for report in reports for problem in report.problems}
        damaged = bool(kinds - {"missing"}) or not all(file.ok for report in reports for file in report.files)
        unread = any(report.unread for report in reports)
        return LeftOut(number, damaged and not unread, tuple(r for report in reports for r in report.reasons), unread)
    links = [link for part in series.parts(number) for link in _linked_directories(part.path)]
    if links:
        return LeftOut(number, damaged=False, reasons=(f"{links[0]} is a link to a directory, which is not followed",))
    copied: list[CopiedFile] = []
    try:
        with contextlib.ExitStack() as stack:
            # All are opened before the first is copied, so that what is copied is what was verified.
            files = [stack.enter_context(Source(path, may_be_empty=True)) for path in before]
            check_same(files, before)
            for part in series.parts(number):
                inside = [file for file in files if _first_name(file.path, series.directory) in _names_of(part)]
                copied += _part(part, inside, destination, way)
    except (DamagedError, MismatchError) as error:
        return LeftOut(number, not isinstance(error, SavedAnew), (str(error),))
    return copied


def _linked_directories(path: str) -> list[str]:
    if os.path.islink(path) and os.path.isdir(path):
        return [path]
    inside = (os.path.join(place, name) for place, names, _ in os.walk(path) for name in names)
    return [each for each in inside if os.path.islink(each)]


def _names_of(part: CheckpointSet) -> set[str]:
    name = os.path.basename(part.path)
    return {name, f"{name}.fckpt-sums"}


def _part(part: CheckpointSet, files: Sequence[Source], destination: str, way: _Way) -> list[CopiedFile]:
    """A file of a step, or a directory: all of it."""
    if not os.path.isdir(part.path):
        targets = [os.path.join(destination, os.path.basename(file.path)) for file in files]
        return [_file(file, target, target, way) for file, target in zip(files, targets, strict=True)]
    target = os.path.join(destination, os.path.basename(part.path))
    inner = [os.path.relpath(file.path, part.path) for file in files]
    if exists(target):
        return [_there(file, os.path.join(target, name), way) for file, name in zip(files, inner, strict=True)]
    unfinished = os.path.join(destination, f".{os.path.basename(part.path)}{_UNFINISHED}")
    with typed_os_errors(unfinished, doing="remove what a backup has left"), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(unfinished)
    copied = []
    for file, name in zip(files, inner, strict=True):
        make_directory(os.path.dirname(os.path.join(unfinished, name)))
        copied.append(_file(file, os.path.join(unfinished, name), os.path.join(target, name), way))
    with typed_os_errors(target, doing="give the copy its name"):
        os.rename(unfinished, target)
    fsync_directory(destination)
    return copied


def _file(file: Source, place: str, target: str, way: _Way) -> CopiedFile:
    """A copy of a file at ``place``, which will be at ``target``."""
    if exists(place):
        return _there(file, place, way)
    link = file.path.endswith(".fckpt")
    how: How | Literal["already there"] = clone(
        file, place, share=way.share, link=link, threads=way.threads, progress=way.progress
    )
    return CopiedFile(file.path, target, file.size, how)


def _there(file: Source, target: str, way: _Way) -> CopiedFile:
    """Raises MismatchError unless a file that is there holds what the file holds."""
    if exists(target):
        with Source(target, may_be_empty=True) as there:
            if same_bytes(file, there, threads=way.threads):
                return CopiedFile(file.path, target, file.size, "already there")
    raise holds_something_else(target, file.path, next_step=_MOVE)
