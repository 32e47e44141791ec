"""The commit protocol of an object in a store: the old object or the new one, whole, whatever happens.

1. The new object is sent in parts, from its first byte to its last. The store
   keeps them apart: under the object's name nothing changes.
2. **The store is told that these are all: the commit point.** It puts the new
   object in its place in one step.
3. Its size and its last bytes are asked for, and compared.

An error before 2, Ctrl-C too, ends the upload, so that no parts of it stay. A
crash leaves them, seen by nobody, until the store's own rule for unfinished
uploads removes them. Where 2 is not answered, 3 says whether it was done.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Final

from fastckpt.constants import ALIGNMENT
from fastckpt.errors import CheckpointIOError, CheckpointNotFoundError, UsageError
from fastckpt.io.memory import allocate
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.layout.blocks import align
from fastckpt.remote.path import RemotePath

PART: Final = 16 * 2**20
"""Bytes of a part, unless the object is so large that it would have too many of them."""
_MOST_PARTS: Final = 9_000
"""Stores take 10,000."""
UNDER_WAY: Final = 8
"""Parts on their way at a time."""
_MEMORY: Final = 256 * 2**20
"""Bytes of parts on their way at a time, where parts are large; two are, whatever their size."""
_BEHIND_ROOM: Final = 4
"""Parts that wait for bytes in front of them."""
_COMPARED: Final = ALIGNMENT
"""Last bytes that are compared: the footer of a checkpoint, which names its root."""


class Upload:
    """A new object that takes the place of the one at ``path`` when the block ends without an error.

    What `fastckpt.io.commit.Commit` is for a file. It is fastest if it is written in order; what comes before its place
    waits in a temporary file.

    Args:
        path: The object.
        most: Bytes that it will have at most.

    Raises (on making it, in the block, or on leaving it):
        UsageError: The path is a directory.
        CheckpointIOError: The store refused, or did not answer; or the temporary file cannot be written.
        RuntimeError: The block ended without a call of `finish`.
    """

    def __init__(self, path: RemotePath, *, most: int) -> None:
        self.path = str(path)
        if path.is_directory:
            raise UsageError("this names a directory, not an object", path=self.path, next_step="put a name behind it")
        self._where = path
        self._part_size = max(PART, align(-(-most // _MOST_PARTS)))
        workers = max(2, min(UNDER_WAY, _MEMORY // self._part_size))
        self._parts = path.store.begin(path.key, part_size=self._part_size, workers=workers)
        self._memory = _Memory(min(self._part_size, most))
        self._part = self._memory.take()
        self._filled = 0
        self._at = 0
        self._early: _Early | None = None
        self._room_left_at = 0
        self._room_left: list[memoryview] = []
        self._waiting: deque[tuple[memoryview, int]] = deque()
        self._last = b""
        self._size: int | None = None
        self._committed = False
        self._owner = os.getpid()

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, kind: object, value: BaseException | None, *_: object) -> None:
        if os.getpid() != self._owner:
            return  # A forked child leaves the block: the upload is the parent's.
        try:
            if value is None:
                self._publish()
        finally:
            if self._early is not None:
                self._early.close()
            if not self._committed:
                self._parts.abort()

    def memory(self, offset: int, most: int) -> memoryview:
        """Memory for the bytes from ``offset`` on, where nothing before is missing: to be filled before the next call.

        Args:
            offset: Where they stand in the object. Up to 4 KiB alignment, what was not written before it is zero.
            most: How many there are; of fewer the part has room for, and only they are returned.
        """
        assert self._at <= offset <= align(self._at), "not in order"
        while self._at < offset:
            zeros = self._room(offset - self._at)
            zeros[:] = bytes(len(zeros))
        return self._room(most)

    def leave_room(self, offset: int, size: int) -> None:
        """Leave room for ``size`` bytes that will be known later, as `memory` would. Parts wait until they are written.

        What follows before that should fit in `most_behind_room`, for it stays in memory.
        """
        self._room_left_at = offset
        while size:
            room = self.memory(offset, size)
            self._room_left.append(room)
            offset += len(room)
            size -= len(room)

    @property
    def most_behind_room(self) -> int:
        """Bytes that may follow room that was left."""
        return _BEHIND_ROOM * self._part_size

    def _fill_room(self, data: memoryview) -> None:
        assert data.nbytes == sum(map(len, self._room_left)), "room was left for another length"
        at = 0
        for room in self._room_left:
            room[:] = data[at : at + len(room)]
            at += len(room)
        self._room_left.clear()
        while self._waiting:
            self._send(*self._waiting.popleft())

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data`` at ``offset``: behind what was written, before its turn, or where room was left.

        Raises:
            CheckpointIOError: The store refused, or the temporary file cannot be written.
        """
        rest = memoryview(data).cast("B")
        if not rest.nbytes:
            return
        if self._room_left and offset == self._room_left_at:
            self._fill_room(rest)
            return
        if offset > align(self._at):
            if self._early is None:
                self._early = _Early(self.path)
            self._early.write(offset, rest)
            return
        self._append(offset, rest)
        if self._early is not None and self._early.start == self._at:
            for piece in self._early.taken():
                self._append(self._at, piece)

    def write_blocks(self, blocks: Sequence[tuple[int, bytes]], threads: int) -> None:
        """Write blocks, each at its offset."""
        for offset, block in blocks:
            self.write(offset, block)

    def finish(self, size: int) -> None:
        """State the final length in bytes: all that was written."""
        assert size == self._at, "something is missing"
        self._size = size

    def _append(self, offset: int, data: memoryview) -> None:
        while data.nbytes:
            room = self.memory(offset, data.nbytes)
            room[:] = data[: len(room)]
            offset += len(room)
            data = data[len(room) :]

    def _room(self, most: int) -> memoryview:
        """The next bytes of the part; of the next part if it is full."""
        if self._filled == len(self._part):
            if self._room_left:
                self._waiting.append((self._part, self._filled))
            else:
                self._send(self._part, self._filled)
            self._part, self._filled = self._memory.take(), 0
        room = self._part[self._filled : self._filled + most]
        self._filled += len(room)
        self._at += len(room)
        return room

    def _send(self, memory: memoryview, filled: int) -> None:
        part = memory[:filled]
        self._last = bytes((self._last + part[-_COMPARED:])[-_COMPARED:])
        self._memory.lend(memory, part)
        self._parts.send(part)

    def _publish(self) -> None:
        """Steps 2 and 3."""
        if self._size is None:
            raise RuntimeError("an upload ended without a call of finish(size)")
        self._send(self._part, self._filled)
        try:
            self._parts.complete()
        except CheckpointIOError:
            if not self._is_in_place():
                raise
        self._committed = True
        if not self._is_in_place():
            raise CheckpointIOError(
                "the store took all parts, and has another object now: something else was written under this name",
                path=self.path,
                next_step=f"fastckpt verify {self.path}",
            )

    def _is_in_place(self) -> bool:
        try:
            version, last = self._where.store.tail(self._where.key, len(self._last))
        except CheckpointNotFoundError:
            return False
        return version.size == self._size and last == self._last


class _Memory:
    """Memory of parts, used again when it is sent: the first touch of fresh pages takes as long as the copy itself."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lent: dict[int, _Lent] = {}
        self._free: SimpleQueue[_Lent] = SimpleQueue()

    def take(self) -> memoryview:
        """Memory that nobody uses."""
        try:
            back = self._free.get_nowait()
        except Empty:
            return allocate(self._size)
        del self._lent[id(back)]
        return back.memory

    def lend(self, memory: memoryview, view: memoryview) -> None:
        """It is free when nothing refers to this view of it any more."""
        lent = _Lent(view, self._free.put)  # No Python code may run then: see `fastckpt.remote.waiting`.
        lent.memory = memory
        self._lent[id(lent)] = lent


class _Lent(weakref.ref[memoryview]):
    """A view of memory that is lent."""

    __slots__ = ("memory",)
    memory: memoryview


class _Early:
    """Bytes that were written before their turn: a stretch that goes on, in a temporary file.

    Attributes:
        start: Where they stand in the object.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.start = self._size = 0
        with self._typed_errors():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def write(self, offset: int, data: memoryview) -> None:
        """Keep them."""
        if not self._size:
            self.start = offset
        assert offset == self.start + self._size, "not in order"
        with self._typed_errors():
            self._size += self._file.write(data)

    def taken(self) -> Iterator[memoryview]:
        """All of them, piece after piece; none stay."""
        with self._typed_errors():
            self._file.seek(0)
            while self._size:
                piece = self._file.read(min(self._size, PART))
                self._size -= len(piece)
                yield memoryview(piece)
            self._file.seek(0)
            self._file.truncate()

    def close(self) -> None:
        self._file.close()

    def _typed_errors(self) -> AbstractContextManager[None]:
        return typed_os_errors(self._path, doing=f"use a temporary file in {tempfile.gettempdir()}")
