"""An open ``.pt`` or ``.safetensors`` as every other kind of checkpoint.

A ``.pt`` has one CRC-32 for a whole storage, so `Opened.prove` goes through it
once before any part of it is read; a ``.safetensors`` proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.foreign.byte_order import read_numbers
from fastckpt.foreign.checks import check_records
from fastckpt.foreign.model import ForeignFile, ForeignStorage
from fastckpt.foreign.storages import StorageReader
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import StorageBytes, check_entry
from fastckpt.stored.opened import OpenedFile, Witness


class OpenedForeign(OpenedFile):
    """See `Opened`.

    Attributes:
        foreign: Where the storages lie.
    """

    def __init__(self, source: Source, foreign: ForeignFile) -> None:
        sizes = [storage.nbytes for storage in foreign.storages]
        for entry in foreign.entries:
            check_entry(entry, sizes)
        super().__init__(source, foreign.kind, lambda: foreign.tree, foreign.entries, sizes)
        self.foreign = foreign
        self._proven: dict[ForeignStorage, DamagedError | CheckpointIOError | None] = {}

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self.foreign.metadata)

    @cached_property
    def opaque(self) -> list[tuple[str, str]]:
        return self.foreign.opaque

    def place(self, storage: int) -> int | None:
        return self.foreign.storages[storage].offset

    def witness(self, storage: int) -> Witness:
        stored = self.foreign.storages[storage]
        return "crcs" if stored.crc is not None or not stored.nbytes else "nothing"

    def bring(
        self, storages: Iterable[int], *, threads: int | None, verify: bool, progress: Progress | None, mapped: bool
    ) -> Callable[[int], StorageBytes]:
        reader = StorageReader(self.foreign, self.source, threads=threads, verify=verify, progress=progress)
        return reader.bring(storages, mapped=mapped)

    def fill(self, places: Mapping[int, int], *, threads: int | None, progress: Progress | None) -> None:
        StorageReader(self.foreign, self.source, threads=threads, verify=True, progress=progress).fill(places)

    def prove(self, storage: int, *, threads: int) -> None:
        self.prove_stored(self.foreign.storages[storage], threads=threads)

    def prove_stored(self, stored: ForeignStorage, *, threads: int) -> None:
        """`prove` for any storage of the file, also one that no tensor lies in; each is read once."""
        if stored not in self._proven:
            try:
                check_records([stored], self.source, threads=threads)
                self._proven[stored] = None
            except (DamagedError, CheckpointIOError) as error:
                self._proven[stored] = error
        error_or_none = self._proven[stored]
        if error_or_none is not None:
            raise error_or_none

    def read(self, storage: int, start: int, end: int) -> bytearray | memoryview:
        stored = self.foreign.storages[storage]
        self.count(end - start)
        return read_numbers(self.source, stored.offset, stored.nbytes, stored.unit, start, end)
