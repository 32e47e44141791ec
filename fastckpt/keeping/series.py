"""The steps of a directory, as the rules ask for them; each kind of directory answers in its own way."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from typing import Final, NamedTuple

from fastckpt.foreign.suffixes import FORMAT_OF
from fastckpt.io.os_errors import status
from fastckpt.sets.listing import Listing

_BLOCK: Final = 512
"""The unit of st_blocks, whatever the file system's block size (stat(2))."""


class Look(NamedTuple):
    """What was found about a step.

    Attributes:
        whole: Whether nothing speaks against it.
        reasons: What does, one sentence each.
        unread: Whether the system did not let it be read, which is one of the reasons: it may be whole.
    """

    whole: bool
    reasons: tuple[str, ...] = ()
    unread: bool = False


class Series(ABC):
    """Steps by number, the oldest first.

    Attributes:
        directory: Where they are.
        numbers: The steps.
        left_out: Checkpoints beside them that are of no step, by path: nobody looks at these.
        facts_in: What has the facts of a step, in words.
    """

    directory: str
    numbers: list[int]
    left_out: list[str]
    facts_in: str

    @abstractmethod
    def look(self, number: int, *, verify: bool) -> Look:
        """Whether a step is whole. With ``verify`` every byte is read, otherwise what can be told without."""

    @abstractmethod
    def lacks_optimizer(self, number: int) -> bool:
        """Whether a step lacks the optimizer that other steps have: a model that no training goes on from."""

    @abstractmethod
    def files(self, number: int) -> list[str]:
        """The files of a step in the order in which they would be deleted."""

    @abstractmethod
    def facts(self, number: int) -> dict[str, object]:
        """What a step says of itself beside tensors. Raises CheckpointIOError."""

    @abstractmethod
    def delete(self, number: int) -> None:
        """Delete a step: a crash never leaves a part of it that is taken for a whole one. Raises CheckpointIOError."""

    def changed(self, number: int) -> list[int]:
        """When each file of a step was last written to, in nanoseconds. Raises CheckpointIOError."""
        return [status(path).st_mtime_ns for path in self.files(number)]

    def frees(self, number: int) -> int:
        """Bytes that deleting a step frees; a file with another hard link frees nothing."""
        return sum(map(_frees, self.files(number)))


class FileSeries(Series):
    """Steps that are files of this computer."""

    @abstractmethod
    def to_copy(self, number: int) -> dict[str, str]:
        """The files that make a copy of a whole step, by the name that each has in the directory of the copy.

        In the order in which they are written: what makes it a step comes last.
        """


def files_by_name(listing: Listing) -> list[str]:
    """The files in a directory whose names say that they are checkpoints."""
    named = [name for name in listing.names if os.path.splitext(name)[1].lower() in FORMAT_OF]
    return [listing.path(name) for name in named if not name.startswith(".") and os.path.isfile(listing.path(name))]


def _frees(path: str) -> int:
    try:
        found = os.lstat(path)
    except OSError:
        return 0
    return found.st_blocks * _BLOCK if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else 0
