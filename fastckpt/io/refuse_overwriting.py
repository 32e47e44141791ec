"""What a command must not write over: what it reads, and what is whole and holds something else."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from fastckpt.errors import MismatchError, UsageError
from fastckpt.io.os_errors import path_text, translate_os_error


def refuse_overwriting(
    destination: str | os.PathLike[str],
    read: Iterable[str | os.PathLike[str] | int],
    *,
    next_step: str = "name another destination",
) -> None:
    """Raise UsageError if the destination is, under whatever name, one of the files or directories that are read.

    Args:
        destination: Where something is to be written.
        read: What it is made of: paths, or descriptors of open files.
        next_step: What the user can do instead.

    Raises:
        CheckpointIOError: The system does not say which file one of them is.
    """
    there = _status(destination)
    if there is None:
        return
    for source in read:
        found = _status(source)
        if found is not None and os.path.samestat(there, found):
            kind = "directory" if stat.S_ISDIR(there.st_mode) else "file"
            what = f"the destination is the {kind} itself that is read"
            raise UsageError(what, path=destination, next_step=next_step)


def holds_something_else(
    destination: str | os.PathLike[str], source: str | os.PathLike[str], *, next_step: str
) -> MismatchError:
    """The error for a destination that is whole and was not made of the source: there may be no other copy of it."""
    name = os.path.basename(destination)
    return MismatchError(
        f"there is a {name} already, whole, and it does not hold what {os.fspath(source)} holds",
        path=destination,
        next_step=next_step,
    )


def _status(file: str | os.PathLike[str] | int) -> os.stat_result | None:
    """None if there is no such file, or a symbolic link that leads nowhere."""
    try:
        return os.stat(file if isinstance(file, int) else path_text(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        path = None if isinstance(file, int) else file
        raise translate_os_error(error, path, doing="look which file this is") from error
