"""An open checkpoint, whatever its format: the one thing that load, verify, inspect, diff and convert stand on.

`fastckpt.stored.open_file` makes one from a path or an open file. What every
kind has to promise stands in docs/architecture.md, section "The door". Without torch.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple, TypeVar

from fastckpt.errors import UnsupportedStateError, errors_about
from fastckpt.io.memory import ARENA_SIZE
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry, StorageBytes
from fastckpt.layout.tree import path_text
from fastckpt.layout.walk import objects_in

_SHOWN: Final = 200
"""Objects that are not understood, named one by one: a message of that many lines can still be read."""
Witness = Literal["leaves", "crcs", "nothing"]
"""What proves the bytes of a storage: a digest for each leaf of 16 KiB, a CRC-32 for the whole of it, or nothing."""

Self = TypeVar("Self", bound="Opened")


class LeafRun(NamedTuple):
    """The digests (u64 each) of the leaves under a range, which begins ``skip`` bytes after the first one."""

    skip: int
    digests: memoryview


class Opened(ABC):
    """What every kind has in common; a context manager that closes it.

    Attributes:
        path: The file, or the directory.
        format: ``fckpt``, ``torch-zip``, ``torch-legacy`` or ``safetensors``; ``shards``, ``set`` or ``dcp`` of several
            files, and ``json`` of one that is no checkpoint by itself.
        size: Bytes of the file, or of all files.
        is_bare: Whether it can hold nothing but tensors by flat names.
        entries: The tensors in tree order, each inside its storage; ``TensorRef(i)`` is ``entries[i]``.
        root: Root digest in hex, where the format has one.
        storage_sizes: Bytes of each storage.
        bytes_read: Bytes of tensors that `read` has read so far.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        size: int,
        tree: Callable[[], Any],
        entries: list[Entry],
        storage_sizes: Sequence[int],
    ) -> None:
        self.path = path
        self.format = kind
        self.size = size
        self.is_bare = kind == "safetensors"
        self._tree = tree
        self.entries = entries
        self.storage_sizes = storage_sizes
        self.root: str | None = None
        self.bytes_read = 0
        self._lock = threading.Lock()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close all that is open. Closing twice does nothing."""

    @abstractmethod
    def require_unchanged(self, *, next_step: str) -> None:
        """Raise DamagedError, which advises ``next_step``, if something of it changed since it was opened."""

    @cached_property
    def tree(self) -> Any:
        """The nesting; its leaves are plain values and the references of `fastckpt.layout.tree`.

        Decoded when it is first asked for: some tensors can be had without it.

        Raises:
            DamagedError: It cannot be decoded.
        """
        with errors_about(self.path):
            return self._tree()

    @cached_property
    def opaque(self) -> list[tuple[str, str]]:
        """``(place, what)`` of every object that is not understood. Raises what `tree` does."""
        return [(path_text(path), node.payload[0]) for path, node in objects_in(self.tree)]

    @cached_property
    def by_name(self) -> dict[str, Entry]:
        """The tensors by flat name, in tree order."""
        return {entry.name: entry for entry in self.entries}

    @property
    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """The user's metadata. Raises DamagedError if it cannot be decoded."""

    @abstractmethod
    def files(self) -> Iterator[tuple[OpenedFile, set[int]]]:
        """Every checkpoint file of it, and the storages in that which a tensor lies in."""

    @property
    def notes(self) -> list[str]:
        """What there is to say of it that is no part of what it holds."""
        return []

    def require_plain(self) -> None:
        """Raise UnsupportedStateError, which names all of them, if the file holds objects that are not understood."""
        if self.opaque:
            listed = [f"{place} is a {name}" for place, name in self.opaque[:_SHOWN]]
            listed += [f"and {len(self.opaque) - _SHOWN} more"] if len(self.opaque) > _SHOWN else []
            raise UnsupportedStateError(
                f"{'; '.join(listed)}: neither tensors nor plain values. Nothing in the file was imported or run",
                path=self.path,
                next_step='load with opaque="keep" for everything else and a placeholder for each of these; '
                "keys=, load_into and stream give the tensors, also those inside of them",
            )

    def count(self, nbytes: int) -> None:
        """Add to `bytes_read`, from any thread."""
        with self._lock:
            self.bytes_read += nbytes

    @abstractmethod
    def place(self, storage: int) -> int | None:
        """Where in the file the bytes of a storage begin; None where they are encoded."""

    @abstractmethod
    def witness(self, storage: int) -> Witness:
        """What proves the bytes of a storage."""

    def has_checksums(self, storages: Iterable[int] | None = None) -> bool:
        """Whether each of these storages has a checksum in the file; None is all of them."""
        numbers = range(len(self.storage_sizes)) if storages is None else storages
        return all(self.witness(number) != "nothing" for number in numbers)

    @abstractmethod
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

    @abstractmethod
    def fill(self, places: Mapping[int, int], *, threads: int | None, progress: Progress | None) -> None:
        """Read storages, each of which `stands_alone`, straight to the addresses given for them, verified.

        Raises what `bring` does.
        """

    def stands_alone(self, storage: int) -> bool:
        """Whether the bytes of a storage can be read and proven without those of others."""
        return True

    def batches(self, storages: Iterable[int]) -> Iterator[list[int]]:
        """The storages in groups that are best brought together, none with more bytes than need be."""
        batch: list[int] = []
        size = 0
        for storage in storages:
            if batch and size + self.storage_sizes[storage] > ARENA_SIZE:
                yield batch
                batch, size = [], 0
            batch.append(storage)
            size += self.storage_sizes[storage]
        if batch:
            yield batch

    @abstractmethod
    def prove(self, storage: int, *, threads: int) -> None:
        """Check what can only be checked for a storage as a whole. Raises DamagedError."""

    @abstractmethod
    def read(self, storage: int, start: int, end: int) -> bytearray | memoryview:
        """The bytes ``[start, end)`` of a storage, in memory that may be written to.

        Raises:
            DamagedError: They are not what was written.
            CheckpointIOError: They cannot be read.
        """

    def leaf_run(self, storage: int, start: int, end: int) -> LeafRun | None:
        """The digests of the bytes ``[start, end)`` of a storage; None where there are none."""
        return None


class OpenedFile(Opened):
    """One that is one file.

    Attributes:
        source: The open file. Structure and bytes come from this one.
    """

    def __init__(
        self, source: Source, kind: str, tree: Callable[[], Any], entries: list[Entry], sizes: Sequence[int]
    ) -> None:
        super().__init__(source.path, kind, source.file_size, tree, entries, sizes)
        self.source = source

    def files(self) -> Iterator[tuple[OpenedFile, set[int]]]:
        yield self, {entry.storage for entry in self.entries}

    def close(self) -> None:
        self.source.close()

    def require_unchanged(self, *, next_step: str) -> None:
        self.source.require_unchanged(next_step=next_step)
