"""`fastckpt.nanochat.backup`: the whole steps of a directory, verified, in another one.

Every file of a step, and its sums file, is verified before the first one is put in place, and the
model comes last, so the backup never shows half a step. What is there already
is compared by content: a run that was killed is finished by running it again.
A file that is whole and holds something else is never overwritten.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from fastckpt.errors import DamagedError, MismatchError, NotACheckpointError, UsageError
from fastckpt.io.cloning import How, clone, same_bytes
from fastckpt.io.commit import make_directory
from fastckpt.io.os_errors import exists, status
from fastckpt.io.refuse_overwriting import holds_something_else, refuse_overwriting
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.nanochat.completeness import step_state
from fastckpt.nanochat.meta import parse_meta, read_meta_bytes
from fastckpt.nanochat.places import refuse_taken_for_model
from fastckpt.nanochat.steps import choose_steps, read_steps
from fastckpt.nanochat.wholeness import lacks_optimizer
from fastckpt.remote.url import is_url, parse_url
from fastckpt.seals.names import with_sums
from fastckpt.stored.is_whole import is_whole
from fastckpt.text import quoted


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """One file of a backup.

    Attributes:
        source, destination: Where it was, and where its second one is.
        nbytes: Its size.
        how: ``reflink``, ``hard link``, ``copy``, ``sent`` to an object store, or ``already there``.
    """

    source: str
    destination: str
    nbytes: int
    how: How | Literal["sent", "already there"]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A step that is not in the backup.

    Attributes:
        step: Its number.
        damaged: Whether bytes are lost or in the way; False for a step that is merely not (yet) all there.
        reasons: What is wrong with it.
        unread: Whether the system did not let it be read: it may be whole.
        taken: Whether the destination has something else under its name.
    """

    step: int
    damaged: bool
    reasons: tuple[str, ...]
    unread: bool = False
    taken: bool = False

    @classmethod
    def because(cls, step: int, error: DamagedError | MismatchError) -> LeftOut:
        """What an error while it was copied makes of a step."""
        saved_anew = isinstance(error, SavedAnew)
        taken = isinstance(error, MismatchError) and not saved_anew
        return cls(step, not saved_anew, (str(error),), taken=taken)


class SavedAnew(MismatchError):
    """A file is not the one that was verified any more."""


MOVE_IT_AWAY: Final = "move it away, or back up into another directory"
"""What to do with something else that has the name of a copy."""


@dataclass(slots=True)
class Backup:
    """What a backup did: the files by step, and the steps it left out.

    Attributes:
        steps: The files of each step that was copied.
        left_out: The others.
        no_optimizer: Those of ``steps`` that have no optimizer file while another step of the directory has one.
        others: Names in the directory that are of no step: these are not copied.
    """

    steps: dict[int, list[CopiedFile]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    no_optimizer: list[int] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def backup(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    step: int | None = None,
    share: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Backup:
    """Put verified copies of the whole steps of a nanochat directory, and of their sums files, into another directory.

    On one file system the files are reflinked, or, if they are ``.fckpt`` files,
    which are never written to in place, hard-linked; everything else is copied
    and compared with what the disk gives back.

    Args:
        source: The directory with the ``model_*`` files.
        destination: Another directory, made if it is missing. The names stay the same.
        step: Only this step.
        share: False copies the bytes also where they could be shared: a disk that fails takes shared ones with it.
        threads: Worker threads; None takes one per CPU.
        progress: Called now and then with the bytes copied so far of the current file.

    Raises:
        UsageError: No such step, or a destination that is the source or that nanochat would take for a model.
        NotACheckpointError: There is no checkpoint here.
        OutOfSpaceError, CheckpointIOError: What was backed up before is whole and stays.

    Example:
        >>> sorted(fastckpt.nanochat.backup("base_checkpoints/d4", "copies/d4").steps)
        [10, 20]
    """
    source, destination = os.fsdecode(source), os.fsdecode(destination)
    if is_url(destination):
        raise UsageError("this copies to directories", path=parse_url(destination).shown, next_step="fastckpt.backup")
    count = thread_count(threads)
    steps = choose_steps(source, step, command=f"fastckpt backup {{}} {quoted(destination)}")
    refuse_overwriting(destination, [source])
    refuse_taken_for_model(source, destination, to="fckpt")
    make_directory(destination)
    result, others = Backup(), list(read_steps(source).values())
    for each in steps:
        before = {path: identity(path) for path in with_sums(each.paths)}
        state = step_state(each, verify=True, threads=count)
        if not state.complete or state.flaws:
            damaged = bool(state.flaws) or (
                not state.unread and not all(_is_whole(path, threads=count) for path in state.files)
            )
            reasons = (*state.reasons, *(f"{flaw}; fastckpt salvage brings all of them back" for flaw in state.flaws))
            result.left_out.append(LeftOut(each.number, damaged, reasons, state.unread))
            continue
        try:
            with contextlib.ExitStack() as stack:
                # All are opened before the first is copied, so that what is copied is what was verified.
                files = [stack.enter_context(Source(path)) for path in with_sums(state.files)]
                check_same(files, before)
                copied = _back_up(files, destination, share=share, threads=count, progress=progress)
            result.steps[each.number] = copied
            if lacks_optimizer(each, others):
                result.no_optimizer.append(each.number)
        except (DamagedError, MismatchError) as error:
            result.left_out.append(LeftOut.because(each.number, error))
    return result


def identity(file: str | int) -> tuple[int, ...] | None:
    """What changes when a file is written to, or replaced by another one of the same name."""
    if isinstance(file, str) and not exists(file):
        return None  # Opening it says more.
    found = status(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def check_same(files: Iterable[Source], before: Mapping[str, tuple[int, ...] | None]) -> None:
    """Raise SavedAnew unless the open files are those whose `identity` was taken before."""
    for file in files:
        if identity(file.fd) != before[file.path]:
            raise SavedAnew("the step was saved anew meanwhile", path=file.path, next_step="run the backup again")


def _back_up(
    files: Sequence[Source], destination: str, *, share: bool, threads: int, progress: Progress | None
) -> list[CopiedFile]:
    """All files of a step, the model last."""
    pairs = [(file, os.path.join(destination, os.path.basename(file.path))) for file in files]
    # Before the first file is written: a step is backed up as a whole or not at all.
    there = {target for file, target in pairs if _is_there(file, target, threads=threads)}
    copied = []
    for file, target in pairs:
        how: How | Literal["already there"] = "already there"
        if target not in there:
            link = file.path.endswith(".fckpt")
            how = clone(file, target, share=share, link=link, threads=threads, progress=progress)
        copied.append(CopiedFile(file.path, target, file.size, how))
    return copied


def _is_there(file: Source, target: str, *, threads: int) -> bool:
    """Whether ``target`` holds what the file holds. Raises MismatchError if it is whole and holds something else."""
    if not exists(target):
        return False
    try:
        with Source(target) as there:
            if same_bytes(file, there, threads=threads):
                return True
    except NotACheckpointError:
        return False  # It is empty. What is no file at all, the commit refuses.
    if not _is_whole(target, threads=threads):
        return False
    raise holds_something_else(target, file.path, next_step=MOVE_IT_AWAY)


def _is_whole(path: str, *, threads: int) -> bool:
    """Whether a file of a step is whole. Raises CheckpointIOError."""
    if not path.endswith(".json"):
        return is_whole(path, threads=threads)
    try:
        parse_meta(read_meta_bytes(path), path)
    except DamagedError:
        return False
    return True
