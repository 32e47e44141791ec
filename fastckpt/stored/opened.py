"""An open checkpoint, whatever its format: the one thing that load, verify, inspect, diff and convert stand on.

`fastckpt.stored.open_file` makes one from a path or an open file. What every
kind has to promise stands in docs/architecture.md, section "The door". Without torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, NamedTuple

from fastckpt.errors import FastckptError
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry, StorageBytes

Witness = Literal["leaves", "crcs", "nothing"]
"""What proves the bytes of a storage: a digest for each leaf of 16 KiB, a CRC-32 for the whole of it, or nothing."""


class LeafRun(NamedTuple):
    """The digests (u64 each) of the leaves under a range, which begins ``skip`` bytes after the first one."""

    skip: int
    digests: memoryview


class Opened:
    """What every kind has in common; a context manager that closes the file.

    Attributes:
        path: The file.
        source: The open file. Structure and bytes come from this one.
        format: ``fckpt``, ``torch-zip``, ``torch-legacy`` or ``safetensors``.
        size: Bytes of the file.
        entries: The tensors in tree order, each inside its storage; ``TensorRef(i)`` is ``entries[i]``.
        root: Root digest in hex, where the format has one.
        opaque: ``(place, what)`` of everything that is neither a tensor nor a plain value.
        storage_sizes: Bytes of each storage.
        bytes_read: Bytes of tensors that `read` has read so far.
    """

    def __init__(
        self, source: Source, kind: str, tree: Callable[[], Any], entries: list[Entry], sizes: Sequence[int]
    ) -> None:
        self.path = source.path
        self.source = source
        self.format = kind
        self.size = source.size
        self._tree = tree
        self.entries = entries
        self.storage_sizes = sizes
        self.root: str | None = None
        self.opaque: list[tuple[str, str]] = []
        self.bytes_read = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.source.close()

    @cached_property
    def tree(self) -> Any:
        """The nesting; its leaves are plain values and the references of `fastckpt.layout.tree`.

        Decoded when it is first asked for: some tensors can be had without it.

        Raises:
            DamagedError: It cannot be decoded.
        """
        try:
            return self._tree()
        except FastckptError as error:
            error.path = error.path or self.path
            raise

    @cached_property
    def by_name(self) -> dict[str, Entry]:
        """The tensors by flat name, in tree order."""
        return {entry.name: entry for entry in self.entries}

    @property
    def metadata(self) -> dict[str, Any]:
        """The user's metadata. Raises DamagedError if it cannot be decoded."""
        raise NotImplementedError

    def require_plain(self) -> None:
        """Raise UnsupportedStateError if the file holds objects that a state cannot be built of."""

    def count(self, nbytes: int) -> None:
        """Add to `bytes_read`, from any thread."""
        with self._lock:
            self.bytes_read += nbytes

    def place(self, storage: int) -> int | None:
        """Where in the file the bytes of a storage begin; None where they are encoded."""
        raise NotImplementedError

    def witness(self, storage: int) -> Witness:
        """What proves the bytes of a storage."""
        raise NotImplementedError

    def bring(
        self, storages: Iterable[int], *, threads: int | None, verify: bool, progress: Progress | None, mapped: bool
    ) -> Callable[[int], StorageBytes]:
        """Storages in memory: fresh memory or, with ``mapped``, the file itself as far as it can be mapped.

        Returns:
            Where the bytes of each of them now are.

        Raises:
            DamagedError: With ``verify``, a byte is not what the witness says; names the tensors.
            CheckpointIOError: The system could not read.
        """
        raise NotImplementedError

    def fill(self, places: Mapping[int, int], *, threads: int | None, progress: Progress | None) -> None:
        """Read storages, each of which `stands_alone`, straight to the addresses given for them, verified.

        Raises what `bring` does.
        """
        raise NotImplementedError

    def stands_alone(self, storage: int) -> bool:
        """Whether the bytes of a storage can be read and proven without those of others."""
        raise NotImplementedError

    def batches(self, storages: Iterable[int]) -> Iterator[list[int]]:
        """The storages in groups that are best brought together, none with more bytes than need be."""
        raise NotImplementedError

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
