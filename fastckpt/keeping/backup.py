"""`fastckpt.backup`: the whole steps of a directory of any kind, verified, in another one.

A step is copied as a whole or not at all: a directory is made under a hidden
name and gets its own when all of it is on the disk. What is there already is
compared by content: a run that was killed is finished by running it again, and
what is missing or damaged there is copied anew. What holds something else is
never overwritten.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from typing import Final, NamedTuple

from fastckpt.errors import DamagedError, MismatchError, NotACheckpointError, UsageError
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.cloning import How, clone, same_bytes
from fastckpt.io.commit import fsync_directory, make_directory
from fastckpt.io.os_errors import exists, path_text, typed_os_errors
from fastckpt.io.refuse_overwriting import holds_something_else, refuse_overwriting
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.keeping.object_copies import ObjectCopies
from fastckpt.keeping.send_steps import send_steps
from fastckpt.keeping.series_of import series_of
from fastckpt.keeping.set_series import SetSeries, linked_directories
from fastckpt.nanochat.backing_up import MOVE_IT_AWAY, Backup, CopiedFile, LeftOut, check_same, identity
from fastckpt.nanochat.backing_up import backup as backup_nanochat
from fastckpt.nanochat.steps import list_numbers
from fastckpt.remote.path import Options, RemotePath, located
from fastckpt.seals.names import sums_path
from fastckpt.sets.judge import judge
from fastckpt.sets.listing import Listing
from fastckpt.sets.model import CheckpointSet
from fastckpt.stored.is_whole import is_whole
from fastckpt.text import quoted, some

_UNFINISHED: Final = ".fckpt-part"


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
    storage_options: Options | None = None,
) -> Backup:
    """Put verified copies of the whole steps of a directory into another directory, or into an object store.

    The steps are those that `fastckpt.Retention` knows: nanochat's, a Trainer's, accelerate's, DeepSpeed's,
    Lightning's, sets, files and directories named after steps. On one file system the files are reflinked, or, if they
    are ``.fckpt`` files, which are never written to in place, hard-linked; everything else is copied and compared with
    what the disk gives back.

    Args:
        source: The directory with the steps.
        destination: Another directory, made if it is missing. The names stay the same. Or a URL (see
            `fastckpt.save`): there what makes a step one is sent last. What has the name of a copy is one if it has
            the size, and of a ``.fckpt`` the footer, which names its root digest; of any other file every byte is
            compared. What the store has of a ``.fckpt`` besides its footer is not read: `fastckpt.verify` does.
        step: Only this step.
        share: False copies the bytes also where they could be shared: a disk that fails takes shared ones with it.
        threads: Worker threads; None takes one per CPU.
        progress: Called now and then with the bytes copied so far of the current file.
        storage_options: Of a URL; see `fastckpt.save`.

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
    source, where = path_text(source), located(destination, storage_options)
    destination = path_text(where)
    series = series_of(source, command=f"fastckpt backup {{}} {quoted(destination)}")
    of_steps = {_first_name(path, source) for number in series.numbers for path in series.files(number)}
    others = [name for name in Listing(source).names if not name.startswith(".") and name not in of_steps]
    if step is not None and step not in series.numbers:
        known = f"one of {list_numbers(series.numbers)}"
        raise UsageError(f"there is no step {step}", path=source, expected=known)
    if isinstance(where, RemotePath):
        numbers = series.numbers if step is None else [step]
        place = ObjectCopies(where, threads=thread_count(threads), progress=progress)
        return send_steps(series, numbers, place, Backup(others=others))
    if not isinstance(series, SetSeries):
        result = backup_nanochat(source, destination, step=step, share=share, threads=threads, progress=progress)
        result.others = others
        return result
    refuse_overwriting(destination, [source])
    _refuse_inside(series, destination)
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


def _refuse_inside(series: SetSeries, destination: str) -> None:
    """Raise UsageError for a destination in a step: the copies would be a part of it, and go with it."""
    place = os.path.realpath(destination)
    for part in (part for number in series.numbers for part in series.parts(number)):
        if os.path.commonpath([place, os.path.realpath(part.path)]) == os.path.realpath(part.path):
            raise UsageError(
                f"the destination lies in the step {part.path}", path=destination, next_step="name another one"
            )


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
    links = [link for part in series.parts(number) for link in linked_directories(part.path)]
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
        return LeftOut.because(number, error)
    return copied


def _names_of(part: CheckpointSet) -> set[str]:
    name = os.path.basename(part.path)
    return {name, sums_path(name)}


def _part(part: CheckpointSet, files: Sequence[Source], destination: str, way: _Way) -> list[CopiedFile]:
    """A file of a step, or a directory: all of it."""
    if not os.path.isdir(part.path):
        targets = [os.path.join(destination, os.path.basename(file.path)) for file in files]
        return _files(files, targets, way)
    target = os.path.join(destination, os.path.basename(part.path))
    inner = [os.path.relpath(file.path, part.path) for file in files]
    if exists(target):
        _require_no_others(part, target, inner)
        return _files(files, [os.path.join(target, name) for name in inner], way)
    unfinished = os.path.join(destination, f".{os.path.basename(part.path)}{_UNFINISHED}")
    with typed_os_errors(unfinished, doing="remove what a backup has left"), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(unfinished)
    copied = []
    for file, name in zip(files, inner, strict=True):
        make_directory(os.path.dirname(os.path.join(unfinished, name)))
        how = _copy(file, os.path.join(unfinished, name), way)
        copied.append(CopiedFile(file.path, os.path.join(target, name), file.size, how))
    with typed_os_errors(target, doing="give the copy its name"):
        os.rename(unfinished, target)
    fsync_directory(destination)
    return copied


def _require_no_others(part: CheckpointSet, target: str, inner: Sequence[str]) -> None:
    """Raise MismatchError if a copy of a directory that is there has files that the directory has not."""
    there = [os.path.join(place, name) for place, _, names in os.walk(target) for name in names]
    others = sorted({os.path.relpath(path, target) for path in there} - set(inner))
    if others:
        raise MismatchError(
            f"there is a copy already, and it has {some(others)}, which {part.path} has not",
            path=target,
            next_step=MOVE_IT_AWAY,
        )


def _files(files: Sequence[Source], targets: Sequence[str], way: _Way) -> list[CopiedFile]:
    """Copies of files; what is there already is looked at before the first is written."""
    there = [_is_there(file, target, way) for file, target in zip(files, targets, strict=True)]
    return [
        CopiedFile(file.path, target, file.size, "already there" if is_there else _copy(file, target, way))
        for file, target, is_there in zip(files, targets, there, strict=True)
    ]


def _copy(file: Source, target: str, way: _Way) -> How:
    link = file.path.endswith(".fckpt")
    return clone(file, target, share=way.share, link=link, threads=way.threads, progress=way.progress)


def _is_checkpoint(file: Source) -> bool:
    try:
        return kind_of(file) is not None
    except NotACheckpointError:
        return False


def _is_there(file: Source, target: str, way: _Way) -> bool:
    """Whether ``target`` holds what the file holds; what is damaged there does not.

    Raises:
        MismatchError: It is not damaged, or nothing tells whether it is, and it holds something else.
    """
    if not exists(target):
        return False
    with Source(target, may_be_empty=True) as there:
        if same_bytes(file, there, threads=way.threads):
            return True
        if not there.size:
            return False
        is_checkpoint = _is_checkpoint(there)
    if not is_checkpoint:
        what = f"there is a {os.path.basename(target)} already, and it does not hold what {file.path} holds"
        raise MismatchError(what, path=target, next_step=MOVE_IT_AWAY)
    if not is_whole(target, threads=way.threads):
        return False
    raise holds_something_else(target, file.path, next_step=MOVE_IT_AWAY)
