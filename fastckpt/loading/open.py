"""`fastckpt.open`: a checkpoint file as a lazy, read-only mapping from name to tensor, and parts of it as such."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from fastckpt.collector import collector_paused
from fastckpt.errors import FastckptError, NotACheckpointError, TensorNotFoundError, UsageError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.storages import read_span
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.file_object import Readables, is_path
from fastckpt.io.open_source import open_source
from fastckpt.io.source import Openable, Source
from fastckpt.io.transfer import thread_count
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.layout.entries import Entry, check_entry
from fastckpt.layout.subtree import NOTHING, below
from fastckpt.layout.tree import decode_tree
from fastckpt.layout.walk import tensors_below
from fastckpt.remote.path import Options, Place, as_place, located
from fastckpt.seals.beside import seal_beside
from fastckpt.sets.one_checkpoint import one_checkpoint
from fastckpt.sets.opened_set import OpenedSet
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import Opened
from fastckpt.stored.sealed import OpenedSealed
from fastckpt.tensor.dtypes import require_dtypes
from fastckpt.tensor.rebuild import build_tensors, resolve_tree
from fastckpt.text import quoted


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a tensor is, without its bytes: name, dtype (torch's name), shape, stride in elements, size in bytes.

    Example:
        >>> fastckpt.open("state.fckpt").info("w").dtype
        'float32'
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    nbytes: int
    requires_grad: bool

    @classmethod
    def of(cls, entry: Entry) -> TensorInfo:
        """The description of an entry."""
        return cls(entry.name, entry.dtype, entry.shape, entry.stride, entry.nbytes, bool(entry.flags & 1))


class Checkpoint(Mapping[str, torch.Tensor]):
    """An open checkpoint: ``ck[name]`` reads and verifies just that tensor.

    What names begin with has its place too: ``ck["model"]`` is a `Part`, with
    the names below ``model.``, and ``ck["step"]`` a value that is no tensor.
    Tensors are in file order. Each access reads again; nothing is cached. It is
    a context manager, and safe to use from several threads.

    Example:
        >>> list(fastckpt.open("state.fckpt"))
        ['bias', 'w']
    """

    def __init__(self, path: Openable, *, threads: int | None = None) -> None:
        self._threads = thread_count(threads)
        self._file = CheckpointFile(path)
        self._source = self._file.source
        self._path = self._source.path
        try:
            with collector_paused():
                self._names = {name: index for index, name in enumerate(self._file.entry_names)}
        except BaseException:
            self._source.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Tensors that were read stay valid."""
        self._source.close()

    @property
    def _is_closed(self) -> bool:
        return self._source.is_closed

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names or (isinstance(name, str) and self._below(name) is not NOTHING)

    def __repr__(self) -> str:
        return f"<fastckpt.Checkpoint {self._path!r}: {len(self)} tensors>"

    @property
    def root(self) -> str:
        """The root digest in hex: equal for files that hold equal state."""
        return self._file.footer.root.hex()

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What was given to ``save`` as metadata."""
        return self._file.manifest.metadata

    def _entry(self, name: str) -> Entry:
        index = self._names.get(name)
        if index is None:
            close = difflib.get_close_matches(name, list(self._names), 3)
            raise TensorNotFoundError(
                f"there is no tensor {name!r}",
                path=self._path,
                expected=", ".join(close) if close else None,
                next_step=f"fastckpt inspect {quoted(self._path)}",
            )
        if self._is_closed:
            raise UsageError("the checkpoint is closed", path=self._path)
        return self._entry_at(index)

    def _entry_at(self, index: int) -> Entry:
        entry = self._file.manifest.entries[index]
        try:
            check_entry(entry, [place.nbytes for place in self._file.manifest.storages])
        except FastckptError as error:
            error.path = self._path
            raise
        return entry

    def info(self, name: str) -> TensorInfo:
        """What a tensor is. Raises TensorNotFoundError if there is none of this name."""
        return TensorInfo.of(self._entry(name))

    def __getitem__(self, name: str) -> Any:
        """The tensor of this name, a `Part` of names that begin with it, or a value that is no tensor."""
        part = NOTHING if name in self._names else self._below(name)
        if part is NOTHING:
            return self._read(self._entry(name))
        return Part(self, name) if tensors_below(part) else self._resolved(part)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """``ck[name][start:stop]``, reading and verifying only the leaves (16 KiB) these rows touch.

        Args:
            name: Flat name of a tensor with at least one dimension.
            start: First row; negative counts from the end, as in a slice.
            stop: First row not wanted.

        Raises:
            UsageError: The tensor has no rows.
            DamagedError: A leaf that was read is damaged.
        """
        entry = self._entry(name)
        if not entry.shape:
            raise UsageError("a tensor without dimensions has no rows", path=self._path, tensor=name)
        begin, end, _ = slice(start, stop).indices(entry.shape[0])
        return self._read(
            entry._replace(
                shape=(max(end - begin, 0), *entry.shape[1:]),
                storage_offset=entry.storage_offset + begin * entry.stride[0],
            )
        )

    def _read(self, entry: Entry) -> torch.Tensor:
        memory = memoryview(self._bytes_of(entry.storage, *entry.span))
        moved = entry._replace(storage=0, storage_offset=0)
        return build_tensors([moved], lambda _: (memory, 0, len(memory)), torch.device("cpu"))[0]

    def _bytes_of(self, storage: int, start: int, end: int) -> bytearray | memoryview:
        """The bytes ``[start, end)`` of a storage, verified."""
        return read_span(self._file, storage, start, end, threads=self._threads)

    def tree(self) -> Any:
        """The nesting of the state, with a `TensorInfo` in the place of every tensor."""
        return self._resolved(self._tree)

    @cached_property
    def _tree(self) -> Any:
        manifest = self._file.manifest
        return decode_tree(manifest.tree, len(manifest.entries))

    def _below(self, name: str) -> Any:
        return below(self._tree, name)

    def _resolved(self, tree: Any) -> Any:
        entries = self._all_entries()
        return resolve_tree(tree, lambda ref: TensorInfo.of(entries[ref.entry]))

    def _all_entries(self) -> Sequence[Entry]:
        return self._file.manifest.entries


class OpenedCheckpoint(Checkpoint):
    """The same of several files, or of a ``.pt`` or ``.safetensors`` with a seal beside it."""

    def __init__(self, opened: Opened) -> None:
        require_dtypes(opened.entries, opened.path)
        self._opened = opened
        self._path = opened.path
        self._was_closed = False
        self._names = {entry.name: index for index, entry in enumerate(opened.entries)}

    def close(self) -> None:
        self._was_closed = True
        self._opened.close()

    @property
    def _is_closed(self) -> bool:
        return self._was_closed

    @property
    def root(self) -> str:
        if self._opened.root is None:
            raise UsageError(f"this has no root digest: it is of the format {self._opened.format}", path=self._path)
        return self._opened.root

    @cached_property
    def metadata(self) -> dict[str, Any]:
        return self._opened.metadata

    def _entry_at(self, index: int) -> Entry:
        return self._opened.entries[index]

    def _bytes_of(self, storage: int, start: int, end: int) -> bytearray | memoryview:
        return self._opened.read(storage, start, end)

    @cached_property
    def _tree(self) -> Any:
        return self._opened.tree

    def _all_entries(self) -> Sequence[Entry]:
        return self._opened.entries


class Part(Mapping[str, torch.Tensor]):
    """A part of an open checkpoint, such as the model in it: a `Checkpoint` of the names that begin so, without that.

    A module takes it for its state dict, and reads each tensor as it does.

    Example:
        >>> fastckpt.save({"model": {"w": torch.arange(3)}, "step": 500}, "run.fckpt")
        >>> run = fastckpt.open("run.fckpt"); run["model"]["w"], run["step"]
        (tensor([0, 1, 2]), 500)
    """

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint = checkpoint
        self._name = name

    def __iter__(self) -> Iterator[str]:
        begin = f"{self._name}."
        return (name[len(begin) :] for name in self._checkpoint if name.startswith(begin))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return f"{self._name}.{name}" in self._checkpoint

    def __repr__(self) -> str:
        return f"<{self._name!r} of {self._checkpoint!r}: {len(self)} tensors>"

    def __getitem__(self, name: str) -> Any:
        return self._checkpoint[f"{self._name}.{name}"]

    def info(self, name: str) -> TensorInfo:
        """As `Checkpoint.info`."""
        return self._checkpoint.info(f"{self._name}.{name}")

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """As `Checkpoint.rows`."""
        return self._checkpoint.rows(f"{self._name}.{name}", start, stop)

    def tree(self) -> Any:
        """As `Checkpoint.tree`."""
        return self._checkpoint._resolved(self._checkpoint._below(self._name))


def open(path: Readables, *, threads: int | None = None, storage_options: Options | None = None) -> Checkpoint:
    """Open a ``.fckpt`` file without reading any tensor; or a ``.pt`` or ``.safetensors`` with a seal beside it.

    Args:
        path: What `fastckpt.load` takes. Of a checkpoint in several files each must be one that can be opened so.
        threads: Worker threads; None takes one per CPU.
        storage_options: See `fastckpt.load`.

    Raises:
        NotACheckpointError, UnsupportedVersionError, DamagedError, CheckpointIOError

    Example:
        >>> fastckpt.open("state.fckpt").rows("w", 1, 3)
        tensor([1., 2.])
    """
    place = located(path, storage_options)
    if is_path(place) and is_directory_of_checkpoints(place):
        return _open_set(as_place(place))
    source = open_source(place)
    try:
        if kind_of(source) not in (None, "fckpt", "tar"):
            return _open_sealed(source, threads=threads)
        return Checkpoint(source, threads=threads)
    except BaseException:
        source.close()
        raise


def _open_sealed(source: Source, *, threads: int | None) -> Checkpoint:
    """Raises what `CheckpointFile` does, unless every part that is read can be proven by a seal."""
    if seal_beside(source) is not None:
        opened = open_file(source)
        if isinstance(opened, OpenedSealed):
            return OpenedCheckpoint(opened)
    try:
        return Checkpoint(source, threads=threads)
    except NotACheckpointError as error:
        error.next_step = f"{error.next_step}; or fastckpt seal {quoted(source.path)}, to open it as it is"
        raise


def _open_set(directory: Place) -> Checkpoint:
    """Raises what `OpenedSet` does, and NotACheckpointError unless every part that is read can be proven by itself."""
    opened = OpenedSet(one_checkpoint(directory))
    try:
        if any(nbytes and opened.witness(number) != "leaves" for number, nbytes in enumerate(opened.storage_sizes)):
            raise NotACheckpointError(
                "its files have no digests to prove a part of a tensor by",
                path=opened.path,
                next_step="fastckpt.stream, or load with keys= for some tensors",
            )
        return OpenedCheckpoint(opened)
    except BaseException:
        opened.close()
        raise
