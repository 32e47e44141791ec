"""What the operating system refused, said in words a person can act on."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fastckpt.errors import CheckpointIOError, CheckpointNotFoundError, OutOfSpaceError, UsageError, WrongTypeError
from fastckpt.remote.url import refuse_url

_OUT_OF_SPACE: Final[dict[int, tuple[str, str]]] = {
    errno.ENOSPC: ("the file system is full", "free some space there, or save to another file system"),
    errno.EDQUOT: ("the disk quota is used up", "remove files you no longer need, or save to another file system"),
    errno.EFBIG: (
        "the file would be larger than is allowed here",
        "raise the limit (ulimit -f), or save to a file system that takes larger files",
    ),
}

_REASONS: Final[dict[int, str]] = {errno.ENOENT: "not found"}
"""What is said in other words than the system's."""

_NEXT_STEP: Final[dict[int, str]] = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it that should be a directory is a file",
    errno.EISDIR: "name a file, not a directory",
    errno.EACCES: "check the permissions of the file and of its directory (ls -ld)",
    errno.EPERM: "check the permissions and attributes of the file and of its directory (ls -ld, lsattr)",
    errno.EROFS: "save to a file system that is not mounted read-only",
    errno.EIO: "the storage device failed: look at the kernel log (dmesg), and keep other copies safe",
    errno.ESTALE: "the network file system lost the file: check the mount, then try again",
    errno.EBUSY: "the path is in use by the system, as a mount point is: save under another name",
    errno.ELOOP: "remove the circle of symbolic links",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close some programs: the system has no open files left",
    errno.ENOMEM: "free some memory, or raise the limit on address space (ulimit -v)",
}


def path_text(path: str | os.PathLike[str]) -> str:
    """A path or URL as text.

    Raises:
        UsageError: It has a NUL character in it. The system knows no such name, and Python raises a bare ValueError.
        WrongTypeError: It is no path.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise WrongTypeError("this is no path", expected="a path, as text or pathlib.Path", actual=type(path).__name__)
    text = os.fsdecode(path)
    if "\0" in text:
        raise UsageError("a path cannot have a NUL character in it", path=text)
    return text


def file_path(path: str | os.PathLike[str]) -> str:
    """The path of something here as text.

    Raises:
        UsageError: It has a NUL character in it, or is a URL.
    """
    text = path_text(path)
    refuse_url(text)
    return text


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether something has this name, be it a symbolic link that leads nowhere.

    Raises:
        CheckpointIOError: The system does not say. `os.path.exists` would take that for no, and what is there
            would be written over.
    """
    try:
        os.lstat(path_text(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise translate_os_error(error, path, doing="look whether this is there") from error
    return True


def refuse_missing(path: str | os.PathLike[str]) -> None:
    """Raise CheckpointNotFoundError, as opening it would, if nothing has this name; UsageError for a URL."""
    if not exists(file_path(path)):
        raise translate_os_error(FileNotFoundError(errno.ENOENT, ""), path)


def status(path: str | os.PathLike[str] | int) -> os.stat_result:
    """`os.stat`. Raises CheckpointIOError."""
    try:
        return os.stat(path if isinstance(path, int) else file_path(path))
    except OSError as error:
        raise translate_os_error(error, None if isinstance(path, int) else path, doing="look at the file") from error


def is_directory(path: str | os.PathLike[str]) -> bool:
    """Whether this is a directory, or a symbolic link to one.

    Raises:
        CheckpointIOError: The system does not say.
    """
    try:
        return stat.S_ISDIR(os.stat(path_text(path)).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise translate_os_error(error, path, doing="look what this is") from error


def translate_os_error(
    error: OSError,
    path: str | os.PathLike[str] | None,
    offset: int | None = None,
    *,
    doing: str | None = None,
    next_step: str | None = None,
) -> CheckpointIOError:
    """The typed error for an OSError; an error that is typed already comes back as it is.

    Args:
        error: What the system said. Its errno is kept.
        path: The file it is about.
        offset: Byte offset in that file.
        doing: What was being done, as in "cannot <doing>".
        next_step: Takes the place of the usual advice for this errno.

    Returns:
        OutOfSpaceError for ENOSPC, EDQUOT and EFBIG, else CheckpointIOError; for ENOENT, without a
        ``next_step``, CheckpointNotFoundError.
    """
    if isinstance(error, CheckpointIOError):
        return error
    code = error.errno
    kind: type[CheckpointIOError] = CheckpointIOError
    if code is None:
        reason, advice = str(error) or type(error).__name__, None
    elif code in _OUT_OF_SPACE:
        kind = OutOfSpaceError
        reason, advice = _OUT_OF_SPACE[code]
    else:
        reason, advice = _REASONS.get(code) or os.strerror(code), _NEXT_STEP.get(code)
        kind = CheckpointNotFoundError if code == errno.ENOENT and next_step is None else kind
    message = f"cannot {doing}: {reason}" if doing else reason
    return kind(message, errno=code, path=path, offset=offset, next_step=next_step or advice)


@contextmanager
def typed_os_errors(
    path: str | os.PathLike[str] | None,
    offset: int | None = None,
    *,
    doing: str | None = None,
    next_step: str | None = None,
) -> Iterator[None]:
    """What the system refuses inside of this ``with`` is raised as `translate_os_error` says it."""
    try:
        yield
    except CheckpointIOError:
        raise  # With the cause that it has.
    except OSError as error:
        raise translate_os_error(error, path, offset, doing=doing, next_step=next_step) from error
