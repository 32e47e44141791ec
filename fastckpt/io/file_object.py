"""Checkpoints in binary file objects: a BytesIO, an object of a store that can only be read or written from end to end.

What is read goes into a temporary file without a name first, since readers go to and fro in a file and map it.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias, TypeGuard

from fastckpt.errors import FILE_OBJECT, NotACheckpointError, UsageError, WrongTypeError
from fastckpt.io.os_errors import file_path, path_text, typed_os_errors

_PIECE: Final = 8 * 2**20


class Readable(Protocol):
    """What can be read: a binary file object."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at its end."""


class Writable(Protocol):
    """What can be written: a binary file object."""

    def write(self, data: bytes, /) -> object:
        """Take these bytes."""


Readables: TypeAlias = "str | os.PathLike[str] | Readable"
"""What a checkpoint can be read from."""
Writables: TypeAlias = "str | os.PathLike[str] | Writable"
"""What a checkpoint can be saved to."""


def name_of(file: str | os.PathLike[str] | Readable) -> str:
    """A path as text, or what stands for that of a file object.

    Raises:
        UsageError: The path has a NUL character in it.
        WrongTypeError: It is neither.
    """
    if is_path(file) or not callable(getattr(file, "read", None)):
        return path_text(file)  # type: ignore[arg-type]  # Its TypeError says what a path can be.
    return FILE_OBJECT


def is_path(file: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether something is a path and no file object."""
    return isinstance(file, str | bytes | os.PathLike)


def refuse_swapped(state: object, path: object, call: str) -> None:
    """Raise WrongTypeError if a path has the place of the state, and the other way round.

    Args:
        state: What was given in the place of the state, or of what is to be filled.
        path: What was given in the place of the path.
        call: What was called.
    """
    if is_path(state) and not is_path(path) and not any(hasattr(path, name) for name in ("read", "write")):
        raise WrongTypeError(
            "the state comes first, then the path",
            actual=f"{type(state).__name__} and {type(path).__name__}",
            next_step=f"{call}(state, {os.fsdecode(state)!r})",
        )


def require_path(file: object, what: str) -> str:
    """A path as text. Raises UsageError, which says ``what`` it is, for a file object."""
    if not is_path(file) and (callable(getattr(file, "read", None)) or callable(getattr(file, "write", None))):
        raise UsageError(f"{what} is a file object, and has to be a path", next_step="write it to a file first")
    return file_path(file)  # type: ignore[arg-type]  # Its TypeError says what a path can be.


def spool(file: Readable) -> int:
    """What is in a file object from where it stands to its end, in a temporary file: the descriptor of that.

    Raises:
        UsageError: It gives text, or nothing although it was not at its end.
        NotACheckpointError: Nothing follows.
        OutOfSpaceError, CheckpointIOError: The temporary file cannot be written, or the object not be read.
    """
    with (
        typed_os_errors(FILE_OBJECT, doing=f"copy the file object to a temporary file in {tempfile.gettempdir()}"),
        tempfile.TemporaryFile(buffering=0) as there,
    ):
        while (data := _next(file)).nbytes:
            _write(there, data)
        if not there.tell():
            raise NotACheckpointError(
                "nothing follows the place where the file object stands",
                path=FILE_OBJECT,
                next_step="if it was just written, go back to its beginning: file.seek(0)",
            )
        return os.dup(there.fileno())


def _next(file: Readable) -> memoryview:
    data: object = file.read(_PIECE)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UsageError(
            "the file object does not give bytes",
            path=FILE_OBJECT,
            actual=type(data).__name__,
            next_step='open it in binary mode, as open(path, "rb") does',
        )
    return memoryview(data).cast("B")


def _write(file: Writable, data: memoryview) -> None:
    """Write all of it, also to what takes a part at a time and says how much."""
    while data.nbytes:
        count = file.write(bytes(data))
        if count == 0:
            raise OSError(errno.EIO, "nothing was written")
        data = data[count if isinstance(count, int) else data.nbytes :]


def require_writable(file: object) -> None:
    """Raise WrongTypeError unless something is a file object that can be written."""
    if not callable(getattr(file, "write", None)):
        file_path(file)  # type: ignore[arg-type]  # Its TypeError says what a path can be.


def write_whole(file: Writable, write: Callable[[str], Any]) -> None:
    """Let ``write`` make a whole file at a temporary path, and then write that into a file object.

    Raises:
        OutOfSpaceError, CheckpointIOError: The file cannot be made (nothing was written into the object), or the
            object refused a part of it.
    """
    require_writable(file)
    with (
        typed_os_errors(FILE_OBJECT, doing="write to the file object"),
        tempfile.TemporaryDirectory(prefix="fastckpt-") as room,
    ):
        path = os.path.join(room, "state.fckpt")
        write(path)
        with open(path, "rb") as whole:
            while data := whole.read(_PIECE):
                _write(file, memoryview(data))
