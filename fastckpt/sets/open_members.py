"""The open files of a checkpoint: as many as it has, but only so many at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fastckpt.errors import DamagedError
from fastckpt.io.source import Identity
from fastckpt.sets.model import Member
from fastckpt.stored.opened import OpenedFile

MOST_OPEN: Final = 128
"""A process may often have 1024 files open, and each takes up to two of these. Those in use are never closed."""


class OpenMembers:
    """Files that are opened when they are needed; from any thread.

    One that was closed meanwhile must be the same when it is opened again.

    Args:
        open_member: Opens one.
    """

    def __init__(self, open_member: Callable[[Member], OpenedFile]) -> None:
        self._open_member = open_member
        self._files: dict[str, OpenedFile] = {}
        self._users: dict[str, int] = {}
        self._known: dict[str, Identity] = {}
        self._lock = threading.Lock()

    @contextmanager
    def use(self, member: Member) -> Iterator[OpenedFile]:
        """The open file, which stays open meanwhile.

        Raises:
            DamagedError: It is not there, or another one than before.
        """
        with self._lock:
            file = self._files.pop(member.path, None) or self._opened(member)
            self._files[member.path] = file  # The last one is the one used last.
            self._users[member.path] = self._users.get(member.path, 0) + 1
        try:
            yield file
        finally:
            with self._lock:
                self._users[member.path] -= 1
                self._close_some()

    def _opened(self, member: Member) -> OpenedFile:
        file = self._open_member(member)
        if self._known.setdefault(member.path, file.source.identity) != file.source.identity:
            file.close()
            raise DamagedError("the file changed while it was read", path=file.path, next_step="do it again")
        return file

    def _close_some(self) -> None:
        idle = [path for path in self._files if not self._users[path]]
        for path in idle[: max(len(self._files) - MOST_OPEN, 0)]:
            file = self._files.pop(path)
            try:
                file.require_unchanged(next_step="do it again")
            finally:
                file.close()

    def require_unchanged(self, *, next_step: str) -> None:
        """Raise DamagedError, which advises ``next_step``, if one of them changed. Of closed ones that was asked."""
        for file in self._files.values():
            file.require_unchanged(next_step=next_step)

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            while self._files:
                self._files.popitem()[1].close()
