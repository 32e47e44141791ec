"""Changes to a step that is there already: all of the old one stays until all of the new one is there.

Several processes replace the files of a step, one at a time, and none of them waits
for the others. So before the first file goes, the whole step is linked into a hidden
directory:

1. ``.fckpt-step-000500.before.part`` gets a hard link to every file of the step. If
   that makes a complete step, **it is renamed to** ``.fckpt-step-000500.before``.
2. The files are replaced, in any order, by any number of processes.
3. Whoever finds the new step complete, every byte of it, first makes its names durable, and then
   renames ``.before`` to ``.before.gone`` and deletes it.

Whoever reads takes the files at their names if they make a complete step, else those
in ``.before`` (`fastckpt.nanochat.completeness`). So whatever is killed, and wherever
the power fails, one of the two is whole. Nothing has to be finished or undone: the
next save of the step goes on from what is there.

New files that one process makes for a whole step, as `reshard` does, are written into
``.fckpt-step-000500.part``, which is locked, before step 1. nanochat does not look
into these directories. A file that is linked must be replaced and not written to;
torch.save does write to it, as it would without the link.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from fastckpt.errors import CheckpointIOError
from fastckpt.io.cloning import clone
from fastckpt.io.commit import fsync_directory
from fastckpt.io.os_errors import exists, translate_os_error, typed_os_errors
from fastckpt.io.source import Source
from fastckpt.nanochat.completeness import state_at_names
from fastckpt.nanochat.names import BEFORE, META, MODEL, hidden_name, parse_name
from fastckpt.nanochat.steps import Step, read_steps, versions

logger = logging.getLogger("fastckpt.nanochat")

NEW: Final = "part"
LINKING: Final = f"{BEFORE}.part"
GONE: Final = f"{BEFORE}.gone"
"""Hidden directories that hold nothing that counts, once no process is at them."""


def keep_whole(directory: str, step: int) -> None:
    """Keep what a step is now, if it is complete, until `drop_kept` finds it complete again. Before the first change.

    Raises:
        OutOfSpaceError, CheckpointIOError: It cannot be kept; nothing was changed.
    """
    here = read_steps(directory).get(step)
    if here is None or here.model not in here.states:
        return  # There is nothing whole: the step is new, or its first save was cut short.
    with _locked(directory):
        here = read_steps(directory).get(step)
        if here is None or (here.before is not None and _is_kept(here.own_paths, here.before)):
            return  # Another rank has done it.
        state = state_at_names(here, verify=False)
        # What cannot be read may be whole. It must not cost what is kept, which is.
        if state.complete or (state.unread and here.before is None):
            with typed_os_errors(directory, doing=f"keep what step {step} is now"):
                _link(directory, here, unread=state.unread)


def drop_kept(directory: str, step: int) -> None:
    """Delete what `keep_whole` has kept, if the step is complete without it, every byte of it read.

    Where that fails it is logged and not raised: the step is saved all the same, and what is kept only takes space.
    """
    shutil.rmtree(_path(directory, step, GONE), ignore_errors=True)  # What a killed process has left.
    try:
        if not exists(_path(directory, step, BEFORE)):
            return
        with _locked(directory):
            here = read_steps(directory).get(step)
            if here is None or here.before is None:
                return
            state = state_at_names(here, verify=False)
            if not state.complete or _is_kept(state.files, here.before):
                return  # Other ranks are still saving theirs, or have not begun to.
            # All files are there. What is kept is whole; it goes only for bytes that are, too.
            state = state_at_names(here, verify=True)
            if not state.complete:
                logger.warning("What step %d was before stays: %s", step, "; ".join(state.reasons))
                return
            # Not only our own files: those that other ranks have just put at their names, too.
            fsync_directory(directory)
            _remove_kept(directory, step)
    except OSError as error:
        logger.warning("What step %d was before is still in %s: %s", step, directory, error)


@contextlib.contextmanager
def stage(directory: str, step: int, *, removing: Sequence[str] = ()) -> Iterator[str]:
    """A directory to write the new files of a step into; they go to their names when the block ends without an error.

    Args:
        directory: Where they shall be; it exists.
        step: Their step.
        removing: Names of the files of ``directory`` to remove once the new ones are there.

    Raises:
        CheckpointIOError: The system refused, or another process is at the same step.
    """
    part = _path(directory, step, NEW)
    with typed_os_errors(part, doing="make the directory"):
        os.makedirs(part, exist_ok=True)
        fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(fd, part)
        for name in os.listdir(part):  # What a killed run has left.
            os.unlink(os.path.join(part, name))
        try:
            yield part
            fsync_directory(part)
            keep_whole(directory, step)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        for name in sorted(os.listdir(part), key=in_order):
            os.rename(os.path.join(part, name), os.path.join(directory, name))
            fsync_directory(directory)
        for name in removing:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))
        fsync_directory(directory)
        drop_kept(directory, step)
        os.rmdir(part)
    except OSError as error:
        raise translate_os_error(error, directory, doing="put the new files in place") from error
    finally:
        _close(fd)


def was_cut_short(directory: str, step: int) -> bool:
    """Whether new files of a step are there that a process was at, and did not end with. Raises CheckpointIOError."""
    return exists(_path(directory, step, NEW))


def clear(directory: str, step: int) -> None:
    """Remove what is left of a `stage` that was killed when all of its files were in place."""
    with contextlib.suppress(OSError):
        os.rmdir(_path(directory, step, NEW))


def in_order(name: str) -> tuple[int, int]:
    """Sorts the files of a step: ranks from the highest down (those that an old set lacks come first), meta, model."""
    parsed = parse_name(os.path.basename(name))
    stem = parsed[0] if parsed is not None else None
    role = stem.role if stem is not None else ""
    return (role == META) + 2 * (role == MODEL), -(stem.rank or 0) if stem is not None else 0


def _path(directory: str, step: int, kind: str) -> str:
    return os.path.join(directory, hidden_name(step, kind))


def _is_kept(paths: Iterable[str], kept: Step) -> bool:
    """Whether all these files are among those that are kept."""
    return versions(paths).items() <= versions(kept.own_paths).items()


def _link(directory: str, here: Step, *, unread: bool) -> None:
    """Make the kept step out of the one that is there."""
    part = _path(directory, here.number, LINKING)
    shutil.rmtree(part, ignore_errors=True)
    os.mkdir(part)
    for path in here.own_paths:
        target = os.path.join(part, os.path.basename(path))
        try:
            os.link(os.path.realpath(path), target)
        except OSError:  # A file system without links: the copy is read back and compared.
            with Source(path) as source:
                clone(source, target, share=True, link=False, threads=1)
    fsync_directory(part)
    # Where locks do not work, another rank may have replaced a file meanwhile. And what is kept by now goes only for
    # files of which every byte was read.
    verify = here.before is not None
    if not unread and not state_at_names(read_steps(part)[here.number], verify=verify).complete:
        shutil.rmtree(part)
        return
    _remove_kept(directory, here.number)
    os.rename(part, _path(directory, here.number, BEFORE))
    fsync_directory(directory)


def _remove_kept(directory: str, step: int) -> None:
    gone = _path(directory, step, GONE)
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.rename(_path(directory, step, BEFORE), gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Alone, of all processes that keep or drop something in a directory."""
    with typed_os_errors(directory, doing="open the directory"):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # A file system without locks.
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        _close(fd)


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):  # It is a directory, and nothing was written to it.
        os.close(fd)


def _lock(fd: int, part: str) -> None:
    """The lock goes with the process, so a ``.part`` that can be locked is nobody's."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CheckpointIOError(
            "another process is writing this step",
            path=part,
            next_step="wait until it has ended, then run this again",
        ) from None
    except OSError:
        pass  # A file system without locks.
