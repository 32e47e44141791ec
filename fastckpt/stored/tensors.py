"""An open checkpoint of any format: what it holds, and verified bytes of its storages, without torch.

A ``.fckpt`` proves every range as it is read. A ``.pt`` has one CRC-32 for a
whole storage, so `StoredTensors.prove` goes through it once before any part of
it is read; a ``.safetensors`` proves nothing.
"""

from __future__ import annotations

import os
import shlex
import threading
from types import TracebackType
from typing import Any, NamedTuple

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import CheckpointIOError, DamagedError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.payload import Reading, Target, raise_damage, read_targets
from fastckpt.foreign.model import ForeignFile
from fastckpt.foreign.open_foreign import open_foreign
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.memory import allocate
from fastckpt.io.source import Source
from fastckpt.io.sums import sum_parts
from fastckpt.io.transfer import Move
from fastckpt.layout.blocks import align
from fastckpt.layout.entries import Entry, check_entry
from fastckpt.layout.tree import decode_tree

_KEPT_SIZE = 64 * 1024
"""Reads up to this size are kept until the next one: a leaf holds hundreds of small tensors."""


class LeafRun(NamedTuple):
    """The digests (u64 each) of the leaves under a range, which begins ``skip`` bytes after the first one."""

    skip: int
    digests: memoryview


class StoredTensors:
    """What every format has in common; a context manager. See `open_stored`.

    Attributes:
        path: The file.
        format: ``fckpt``, ``torch-zip``, ``torch-legacy`` or ``safetensors``.
        size: Bytes of the file.
        root: Root digest in hex, where the format has one.
        tree: The nesting; its leaves are plain values and the references of `fastckpt.layout.tree`.
        entries: The tensors by flat name, in tree order.
        metadata: The user's metadata.
        opaque: How many objects are neither tensors nor plain values.
        bytes_read: Bytes of tensors that were read so far.
    """

    def __init__(self, source: Source, kind: str, tree: Any, entries: list[Entry], metadata: dict[str, Any]) -> None:
        self.path = source.path
        self.source = source
        self.format = kind
        self.size = source.size
        self.root: str | None = None
        self.tree = tree
        self.entries = {entry.name: entry for entry in entries}
        self.metadata = metadata
        self.opaque = 0
        self.bytes_read = 0
        self._lock = threading.Lock()

    def __enter__(self) -> StoredTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.source.close()

    def count(self, nbytes: int) -> None:
        """Add to `bytes_read`, from any thread."""
        with self._lock:
            self.bytes_read += nbytes

    def prove(self, storage: int, *, threads: int) -> None:
        """Check what can only be checked for a storage as a whole. Raises DamagedError."""

    def read(self, storage: int, start: int, end: int) -> bytearray | memoryview:
        """The bytes ``[start, end)`` of a storage, in memory that may be written to.

        Raises:
            DamagedError: They are not what was written.
            CheckpointIOError: They cannot be read.
        """
        raise NotImplementedError

    def leaf_run(self, storage: int, start: int, end: int) -> LeafRun | None:
        """The digests of the bytes ``[start, end)`` of a storage; None where there are none."""
        return None

    def require_unchanged(self) -> None:
        """Raise DamagedError if the file was written to since it was opened."""
        self.source.require_unchanged(next_step="compare it again")


class _FckptTensors(StoredTensors):
    def __init__(self, file: CheckpointFile) -> None:
        entries = file.checked_entries()
        tree = decode_tree(file.manifest.tree, len(entries))
        super().__init__(file.source, "fckpt", tree, entries, file.manifest.metadata)
        self.file = file
        self.root = file.footer.root.hex()
        self._kept: tuple[int, int, int, memoryview] | None = None

    def read(self, storage: int, start: int, end: int) -> bytearray | memoryview:
        place = self.file.manifest.storages[storage]
        record = self.file.records[place.record]
        first = (place.offset + start) // LEAF_SIZE * LEAF_SIZE
        last = min(align(place.offset + end, LEAF_SIZE), record.raw_size)
        kept = self._kept
        if kept is not None and kept[:3] == (place.record, first, last):
            region = kept[3]
        else:
            region = allocate(last - first)
            target = Target(record, first, last - first, _core.address(region))
            raise_damage(self.source, read_targets(self.source, [target], Reading(1)))
            self.count(last - first)
            if last - first <= _KEPT_SIZE:
                self._kept = (place.record, first, last, region)
        skip = place.offset + start - first
        return region[skip : skip + end - start]

    def leaf_run(self, storage: int, start: int, end: int) -> LeafRun | None:
        place = self.file.manifest.storages[storage]
        first, skip = divmod(place.offset + start, LEAF_SIZE)
        last = -(-(place.offset + end) // LEAF_SIZE)
        return LeafRun(skip, self.file.records[place.record].leaves[first * 8 : last * 8].cast("Q"))


class _ForeignTensors(StoredTensors):
    def __init__(self, source: Source, foreign: ForeignFile) -> None:
        sizes = [storage.nbytes for storage in foreign.storages]
        for entry in foreign.entries:
            check_entry(entry, sizes)
        super().__init__(source, foreign.kind, foreign.tree, foreign.entries, dict(foreign.metadata))
        self.opaque = len(foreign.opaque)
        self.storages = foreign.storages
        self._proven: dict[int, DamagedError | CheckpointIOError | None] = {}

    def prove(self, storage: int, *, threads: int) -> None:
        if storage not in self._proven:
            try:
                self._check_crc(storage, threads)
                self._proven[storage] = None
            except (DamagedError, CheckpointIOError) as error:
                self._proven[storage] = error
        error_or_none = self._proven[storage]
        if error_or_none is not None:
            raise error_or_none

    def _check_crc(self, storage: int, threads: int) -> None:
        stored = self.storages[storage]
        if stored.crc is None or not stored.nbytes:
            return
        moved = sum_parts(self.source, [Move(stored.offset, 0, stored.nbytes)], threads=threads)
        for fault in moved.faults:
            reason = os.strerror(fault.errno) if fault.errno else "the file ends there"
            raise CheckpointIOError(
                f"cannot read: {reason}",
                errno=fault.errno or None,
                path=self.path,
                offset=stored.offset + fault.offset,
            )
        if moved.crcs[0] != stored.crc:
            raise DamagedError(
                f"the CRC-32 of record {stored.key} does not match its {stored.nbytes} bytes",
                path=self.path,
                offset=stored.offset,
                expected=f"{stored.crc:08x}",
                actual=f"{moved.crcs[0]:08x}",
                next_step=f"fastckpt salvage {shlex.quote(self.path)}",
            )

    def read(self, storage: int, start: int, end: int) -> bytearray | memoryview:
        self.count(end - start)
        return bytearray(self.source.read(self.storages[storage].offset + start, end - start))


def open_stored(path: str | os.PathLike[str]) -> StoredTensors:
    """Open a checkpoint of any format; only its structure is read.

    Raises:
        NotACheckpointError, UnsupportedVersionError, UnsupportedStateError: It cannot be read.
        DamagedError: Its structure is cut or damaged.
        CheckpointIOError: The system could not open or read it.
    """
    source = Source(path)
    try:
        if kind_of(source) not in (None, "fckpt"):
            return _ForeignTensors(source, open_foreign(source))
    except BaseException:
        source.close()
        raise
    source.close()
    file = CheckpointFile(path)
    try:
        return _FckptTensors(file)
    except BaseException:
        file.source.close()
        raise
