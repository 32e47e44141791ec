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
