"""Several files of one step that appear together, or not at all, in a directory nanochat reads.

1. The new files are written into the hidden directory ``.fckpt-step-000500.part``
   inside the destination, locked, and made durable.
2. **It is renamed to** ``.fckpt-step-000500.ready``: **the commit point.** Its file
   ``change.json`` says which old files the new ones take the place of: their
   sizes and times, and whether they are to be removed.
3. One by one the files go to their names: optimizer ranks from the highest
   down, then meta, the model last. The old ones are removed, then the directory.

A run killed before 2 has changed nothing; the next one removes the ``.part``.
One killed later is finished by `finish`, which does 3 again from where it
stopped; every byte of the new state is on disk then. If the step has been saved
anew meanwhile, by training, its files are not the old ones any more, and
finishing is refused. nanochat does not look into these directories.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, Final

from fastckpt.errors import CheckpointIOError, DamagedError, MismatchError
from fastckpt.io.commit import fsync_directory, publish_bytes, translate_os_error
from fastckpt.io.source import read_small
from fastckpt.nanochat.names import META, MODEL, parse_name

CHANGE: Final = "change.json"
MAX_CHANGE_SIZE: Final = 16 * 2**20


def _base(directory: str, step: int) -> str:
    return os.path.join(directory, f".fckpt-step-{step:06d}")


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
    part = _base(directory, step) + ".part"
    try:
        os.makedirs(part, exist_ok=True)
        fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise translate_os_error(error, part, doing="make the directory") from error
    try:
        _lock(fd, part)
        for name in os.listdir(part):  # What a killed run has left.
            os.unlink(os.path.join(part, name))
        try:
            yield part
            _write_change(directory, part, removing)
            fsync_directory(part)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        ready = _base(directory, step) + ".ready"
        os.rename(part, ready)
        fsync_directory(directory)
        _put_in_place(directory, ready)
    except OSError as error:
        raise translate_os_error(error, directory, doing="put the new files in place") from error
    finally:
        os.close(fd)


def finish(directory: str, step: int) -> bool:
    """Do what is left of a committed change to a step; returns whether there was anything.

    Raises:
        MismatchError: The step was saved anew meanwhile.
        CheckpointIOError: The system refused, or another process is at it; what is left to do stays as it is.
    """
    ready = _base(directory, step) + ".ready"
    try:
        fd = os.open(ready, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise translate_os_error(error, ready, doing="open the directory") from error
    try:
        _lock(fd, ready)
        _put_in_place(directory, ready)
    except OSError as error:
        raise translate_os_error(error, ready, doing="put the new files in place") from error
    finally:
        os.close(fd)
    return True


def _write_change(directory: str, part: str, removing: Sequence[str]) -> None:
    """Note which files are there now that the change takes away."""
    old = {name: _version(os.path.join(directory, name)) for name in (*os.listdir(part), *removing)}
    change = {"old": {name: version for name, version in old.items() if version}, "remove": list(removing)}
    publish_bytes(os.path.join(part, CHANGE), json.dumps(change).encode())


def _read_change(path: str) -> tuple[dict[str, Any], list[str]]:
    """What `_write_change` wrote. Raises DamagedError for anything else: files are removed by it."""
    try:
        change = json.loads(read_small(path, limit=MAX_CHANGE_SIZE))
        old, remove = change["old"], change["remove"]
        sound = isinstance(old, dict) and isinstance(remove, list) and all(map(parse_name, remove))
    except (DamagedError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise DamagedError(
            "this does not say which files are to be replaced",
            path=path,
            next_step=f"rm -r {shlex.quote(os.path.dirname(path))}, then look at the step with fastckpt doctor",
        )
    return old, remove


def _version(path: str) -> list[int] | None:
    """What tells a file from one that was saved anew under its name; None if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _put_in_place(directory: str, ready: str) -> None:
    """Step 3, from wherever it stopped. Each change is on disk before the next one."""
    pending = sorted((name for name in os.listdir(ready) if name != CHANGE), key=in_order)
    plan = os.path.join(ready, CHANGE)
    if os.path.exists(plan):
        old, remove = _read_change(plan)
        for name in (*pending, *remove):
            if _version(os.path.join(directory, name)) not in (None, old.get(name)):
                raise MismatchError(
                    f"{name} was saved anew since the run that was to replace it was killed",
                    path=directory,
                    next_step=f"rm -r {shlex.quote(ready)}, which holds what that run made, then run this again",
                )
        for name in pending:
            os.rename(os.path.join(ready, name), os.path.join(directory, name))
            fsync_directory(directory)
        for name in remove:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))
        fsync_directory(directory)
        os.unlink(plan)
    os.rmdir(ready)


def in_order(name: str) -> tuple[int, int]:
    """Sorts the files of a step: ranks from the highest down (those that an old set lacks come first), meta, model."""
    parsed = parse_name(os.path.basename(name))
    stem = parsed[0] if parsed is not None else None
    role = stem.role if stem is not None else ""
    return (role == META) + 2 * (role == MODEL), -(stem.rank or 0) if stem is not None else 0


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
