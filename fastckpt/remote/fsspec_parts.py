"""An object on its way to a file system of fsspec, part after part."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastckpt.errors import FastckptError

Do = Callable[[Callable[[], object]], object]
"""Makes a call that blocks, and waits for it; its errors are typed."""


class FsspecParts:
    """See `fastckpt.remote.store.Parts`.

    Args:
        file: A file of fsspec that is opened with ``autocommit=False``.
        do: See `Do`.
    """

    def __init__(self, file: Any, do: Do) -> None:
        self._file = file
        self._do = do

    def send(self, part: memoryview) -> None:
        self._do(lambda: self._file.write(part))

    def complete(self) -> None:
        self._do(self._file.close)
        self._do(self._file.commit)

    def abort(self) -> None:
        with suppress(FastckptError):
            self._do(self._file.discard)
        with suppress(AttributeError):
            self._file.closed = True  # Where it is freed, it would be closed, and what was sent put in its place.


class MemoryParts:
    """The same for the file system in memory, which has an object as soon as it is opened: put there as a whole."""

    def __init__(self, files: Any, name: str, do: Do) -> None:
        self._files, self._name, self._do = files, name, do
        self._data = bytearray()

    def send(self, part: memoryview) -> None:
        self._data += part

    def complete(self) -> None:
        self._do(lambda: self._files.pipe_file(self._name, bytes(self._data)))

    def abort(self) -> None:
        self._data.clear()
