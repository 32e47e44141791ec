"""Every error fastckpt raises: what happened, where, and what to do next.

Each class carries the exit code the command line ends with. The message is
built from the same fields a program can read: file, byte offset, tensor,
chunk, what was expected and what was found, and the next step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

__all__ = [
    "CheckpointIOError",
    "CheckpointNotFoundError",
    "DamagedError",
    "FastckptError",
    "MismatchError",
    "MissingPackageError",
    "NotACheckpointError",
    "OutOfSpaceError",
    "TensorNotFoundError",
    "UnsupportedStateError",
    "UnsupportedVersionError",
    "UsageError",
]


FILE_OBJECT: Final = "<file object>"
"""What stands for the path of a checkpoint that was given as a binary file object."""


def for_file_object(next_step: str) -> str:
    """A next step that names a path; of a file object it says that it must have one first."""
    quoted = f"'{FILE_OBJECT}'"
    return f"write it to a file, then {next_step.replace(quoted, 'FILE')}" if quoted in next_step else next_step


class FastckptError(Exception):
    """Base class. ``str(error)`` is one paragraph a person can act on.

    Args:
        message: What happened, without the place.
        path: The file it happened in.
        offset: Byte offset in that file.
        tensor: Flat name of the first tensor concerned.
        chunk: Chunk number inside the record.
        expected: What should have been there.
        actual: What was there.
        next_step: The next command to run or thing to do.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        offset: int | None = None,
        tensor: str | None = None,
        chunk: int | None = None,
        expected: object = None,
        actual: object = None,
        next_step: str | None = None,
    ) -> None:
        self.message = message
        self.path = os.fspath(path) if path is not None else None
        self.offset = offset
        self.tensor = tensor
        self.chunk = chunk
        self.expected = expected
        self.actual = actual
        self.next_step = next_step
        super().__init__(message)

    def __str__(self) -> str:
        place = [self.path] if self.path is not None else []
        if self.offset is not None:
            place.append(f"byte {self.offset}")
        if self.tensor is not None:
            place.append(f"tensor {self.tensor!r}")
        if self.chunk is not None:
            place.append(f"chunk {self.chunk}")
        text = f"{', '.join(place)}: {self.message}" if place else self.message
        facts = (("expected", self.expected), ("found", self.actual))
        known = [f"{word} {fact}" for word, fact in facts if fact is not None]
        if known:
            text += f" ({', '.join(known)})"
        if self.next_step is not None:
            text += f". Next: {for_file_object(self.next_step)}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only fields survive pickling between worker processes.
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))


def _rebuild(cls: type[FastckptError], message: str, fields: dict[str, object]) -> FastckptError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    for name, value in fields.items():
        setattr(error, name, value)
    return error


class NotACheckpointError(FastckptError):
    """The file is not a checkpoint of any kind fastckpt reads."""

    exit_code = 4


class UnsupportedVersionError(FastckptError):
    """A checkpoint, but one that needs a newer fastckpt (version, flag, codec or section)."""

    exit_code = 4


class DamagedError(FastckptError):
    """Bytes are missing or not what was written. Nothing of what was read may be used."""

    exit_code = 2


class MismatchError(FastckptError):
    """The checkpoint and the destination disagree in names, shapes or dtypes, or a key is missing."""

    exit_code = 2


class TensorNotFoundError(MismatchError, KeyError):
    """The checkpoint has no tensor of this name."""

    __str__ = FastckptError.__str__


class UnsupportedStateError(FastckptError, TypeError):
    """The state holds an object that a checkpoint cannot store, or a file names a foreign class."""

    exit_code = 2


ABOUT_ONE_FILE: Final = (DamagedError, MismatchError, NotACheckpointError, UnsupportedStateError)
"""What is wrong with one file and says nothing about the next one; anything else ends a run over several."""


class CheckpointIOError(FastckptError, OSError):
    """The operating system refused: permission, missing file, read or write error.

    ``errno`` is set when the system gave one. The destination is untouched,
    unless the message says that the new file is in place.
    """

    exit_code = 5

    def __init__(self, message: str, *, errno: int | None = None, **place: object) -> None:
        FastckptError.__init__(self, message, **place)  # type: ignore[arg-type]
        self.errno = errno
        self.filename = self.path

    __str__ = FastckptError.__str__

    def __reduce__(self) -> tuple[object, ...]:
        # OSError keeps these two outside of __dict__.
        fields = {**self.__dict__, "errno": self.errno, "filename": self.filename}
        return (_rebuild, (type(self), self.message, fields))


class CheckpointNotFoundError(CheckpointIOError, FileNotFoundError):
    """There is no such checkpoint, or none that is complete. Whoever catches FileNotFoundError catches it."""


class OutOfSpaceError(CheckpointIOError):
    """The file system is full (or a quota or size limit is reached). The old file is untouched."""

    exit_code = 5


class UsageError(FastckptError, ValueError):
    """An argument is wrong: unknown codec, bad thread count, unknown suffix."""

    exit_code = 64


class WrongTypeError(UsageError, TypeError):
    """An argument is of a type that it cannot be, such as a state where a path has to be. It is a TypeError, too."""


class MissingPackageError(UsageError, ImportError):
    """What is asked for needs a package that is not installed; the next step is the command that installs it."""


@contextmanager
def errors_about(path: str) -> Iterator[None]:
    """What is raised inside of this ``with``, and names no file, is about this one."""
    try:
        yield
    except FastckptError as error:
        error.path = error.path or path
        raise


def require_positive(name: str, value: object) -> None:
    """Raise UsageError, which says what ``name`` is, unless a user's number is a whole one of at least 1."""
    if type(value) is not int or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1", actual=value)
