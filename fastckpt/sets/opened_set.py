"""A checkpoint of several files as every other kind of open checkpoint: one state, whatever its sharding.

A tensor that is in one file stays what it is there. One that is in parts is put
together, in row-major order: any range of its bytes is read from the files that
have a part of it, so that no more of it has to be in memory than is asked for.
Without torch.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fastckpt import _core
from fastckpt.constants import ENTRY_FLAG_CONJ, ENTRY_FLAG_NEG, ENTRY_FLAG_REQUIRES_GRAD, SET_NAME
from fastckpt.errors import errors_about
from fastckpt.foreign.safetensors_content import is_plain
from fastckpt.io.memory import allocate_regions
from fastckpt.io.there import size_there
from fastckpt.io.transfer import Progress
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.entries import Entry, StorageBytes, contiguous_stride
from fastckpt.layout.prefixes import with_names
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import map_tensors, tensors_below
from fastckpt.sets import dcp, own
from fastckpt.sets.contents import Contents, contents_of
from fastckpt.sets.model import CheckpointSet, Member
from fastckpt.sets.open_members import OpenMembers
from fastckpt.sets.part_bytes import copy_runs, in_order, runs
from fastckpt.stored.opened import LeafRun, Opened, OpenedFile, Witness

_FORMATS = {own.KIND: "set", dcp.KIND: "dcp"}


class _Piece(NamedTuple):
    """A part of a tensor.

    Attributes:
        member: The file.
        entry: What it is in that.
        storage_size: Bytes of the storage that it lies in there.
        offsets: Where it begins in the tensor.
    """

    member: Member
    entry: Entry
    storage_size: int
    offsets: tuple[int, ...]

    @property
    def is_straight(self) -> bool:
        """Whether its storage is its elements in row-major order, and no more."""
        return is_plain(self.entry) and self.entry.nbytes == self.storage_size


class _Storage(NamedTuple):
    """A storage of the whole.

    Attributes:
        pieces: What it is put together from; of one that is kept as it is, the first tensor on it.
        shape: The extents of the tensor that is put together; None of one that is kept as it is.
        itemsize: Bytes of an element.
        nbytes: Its bytes.
    """

    pieces: list[_Piece]
    shape: tuple[int, ...] | None
    itemsize: int
    nbytes: int


class OpenedSet(Opened):
    """See `Opened`. Its tensors are read from the files, of which only some are open at a time.

    Args:
        checkpoint: A checkpoint whose files together are one state, or that is one file.
        apart: Whether every tensor is in row-major order on a storage of its own, also where it is not in its file.

    Attributes:
        left_out: What its files have beside the state, by name.
        other_forms: What tensors are not in their files that they are here, being apart: their names, by what it is.

    Raises:
        DamagedError: A file is missing, damaged, or not what the manifest says.
        NotACheckpointError, UnsupportedVersionError, UnsupportedStateError, CheckpointIOError
    """

    def __init__(self, checkpoint: CheckpointSet, *, apart: bool = False) -> None:
        contents = contents_of(checkpoint)
        self.left_out = contents.left_out
        self._files = OpenMembers(contents.open)
        self._witness: dict[tuple[str, int], Witness] = {}
        self._in_order = _LastInOrder()
        formats: set[str] = set()
        pieces: list[list[_Piece]] = [[] for _ in contents.tensors]
        try:
            for member in checkpoint.members:
                parts = contents.parts.get(member.path, [])
                if not parts:
                    continue
                with self._files.use(member) as file, errors_about(file.path):
                    formats.add(file.format)
                    for part, entry in zip(parts, contents.found(file, parts), strict=True):
                        self._witness[member.path, entry.storage] = file.witness(entry.storage)
                        size = file.storage_sizes[entry.storage]
                        pieces[part.number].append(_Piece(member, entry, size, part.offsets))
        except BaseException:
            self._files.close()
            raise
        tree, order = _in_tree_order(contents)
        self.other_forms = dict(_other_forms(contents, pieces)) if apart else {}
        entries, self._storages = _laid_out(contents, pieces, order, apart=apart)
        sizes = [storage.nbytes for storage in self._storages]
        kind = _FORMATS.get(checkpoint.kind, "shards")
        size = sum(size_there(each.place) or 0 for each in checkpoint.members)
        super().__init__(checkpoint.path, kind, size, lambda: tree, with_names(entries, tree), sizes)
        self.is_bare = formats == {"safetensors"}
        self.root = contents.root
        self._metadata = contents.metadata
        flagged = {contents.tensors[n].name: _has_grad(entry) for n, entry in zip(order, entries, strict=True)}
        other = {name: stated for name, stated in contents.requires_grad.items() if stated != flagged.get(name)}
        self._metadata |= {"requires_grad": other} if other else {}
        self._checkpoint = checkpoint

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self._metadata)

    @property
    def nbytes_before(self) -> int:
        """Bytes of the storages in its files that its tensors lie in."""
        pieces = [piece for storage in self._storages for piece in storage.pieces]
        return sum({(piece.member.path, piece.entry.storage): piece.storage_size for piece in pieces}.values())

    @property
    def paths(self) -> list[str]:
        """Its files, those that are no checkpoint files too."""
        return [*(member.path for member in self._checkpoint.members), *filter(None, [self._checkpoint.index])]

    @property
    def notes(self) -> list[str]:
        """What its manifest shows to be wrong, without any harm for what it holds."""
        return [problem.message for problem in self._checkpoint.problems if not problem.loss]

    def files(self) -> Iterator[tuple[OpenedFile, set[int]]]:
        """Every checkpoint file, and the storages of it that a tensor of the whole lies in."""
        used: dict[str, set[int]] = {}
        for path, storage in self._witness:
            used.setdefault(path, set()).add(storage)
        for member in self._checkpoint.members:
            if member.name != SET_NAME:
                with self._files.use(member) as file:
                    yield file, used.get(member.path, set())

    def close(self) -> None:
        self._files.close()

    def require_unchanged(self, *, next_step: str) -> None:
        self._files.require_unchanged(next_step=next_step)

    def place(self, storage: int) -> int | None:
        return None

    def witness(self, storage: int) -> Witness:
        found = [self._witness[piece.member.path, piece.entry.storage] for piece in self._storages[storage].pieces]
        if "nothing" in found:
            return "nothing"
        return "leaves" if "leaves" in found and "crcs" not in found else "crcs"

    def bring(
        self, storages: Iterable[int], *, threads: int | None, verify: bool, progress: Progress | None, mapped: bool
    ) -> Callable[[int], StorageBytes]:
        """See `Opened`. Always verified, and in fresh memory: of what is put together nothing could be mapped."""
        wanted = list(dict.fromkeys(storages))
        regions = dict(zip(wanted, allocate_regions([self.storage_sizes[n] for n in wanted]), strict=True))
        places = {n: _core.address(region) for n, region in regions.items() if region.nbytes}
        self.fill(places, threads=threads, progress=progress)
        return lambda storage: (regions[storage], 0, self.storage_sizes[storage])

    def fill(self, places: Mapping[int, int], *, threads: int | None, progress: Progress | None) -> None:
        jobs: dict[str, list[tuple[_Piece, _Storage, int]]] = {}
        members: dict[str, Member] = {}
        for number, address in places.items():
            for piece in self._storages[number].pieces:
                members[piece.member.path] = piece.member
                jobs.setdefault(piece.member.path, []).append((piece, self._storages[number], address))
        done = 0
        for path, own_jobs in jobs.items():
            with self._files.use(members[path]) as file, errors_about(path):
                _fill_from(file, own_jobs, threads=threads)
            done += sum(piece.entry.nbytes for piece, _, _ in own_jobs)
            if progress is not None:
                progress(done)

    def prove(self, storage: int, *, threads: int) -> None:
        for piece in self._storages[storage].pieces:
            with self._files.use(piece.member) as file, errors_about(file.path):
                file.prove(piece.entry.storage, threads=threads)

    def read(self, storage: int, start: int, end: int) -> bytearray | memoryview:
        pieces, shape, itemsize, _ = self._storages[storage]
        if shape is None:
            with self._files.use(pieces[0].member) as file, errors_about(file.path):
                raw = file.read(pieces[0].entry.storage, start, end)
            self.count(end - start)
            return raw
        made = memoryview(bytearray(end - start))
        for piece in pieces:
            found = list(runs(shape, piece.offsets, piece.entry.shape, itemsize, start, end))
            if not found:
                continue
            first, last = found[0].part, found[-1].part + found[-1].nbytes
            with self._files.use(piece.member) as file, errors_about(file.path):
                raw = memoryview(self._in_order.read(file, piece.entry, first, last))
            for each in found:
                copy_runs(each._replace(whole=each.whole - start, part=each.part - first), raw, made)
        self.count(end - start)
        return made

    def leaf_run(self, storage: int, start: int, end: int) -> LeafRun | None:
        pieces, shape, _, _ = self._storages[storage]
        filled = [piece for piece in pieces if piece.entry.nbytes] if shape is not None else pieces
        if len(filled) != 1 or (shape is not None and not is_plain(filled[0].entry)):
            return None
        entry = filled[0].entry
        begin = 0 if shape is None else entry.span[0]
        with self._files.use(filled[0].member) as file:
            return file.leaf_run(entry.storage, begin + start, begin + end)


def _has_grad(entry: Entry) -> bool:
    return bool(entry.flags & ENTRY_FLAG_REQUIRES_GRAD)


def _in_tree_order(contents: Contents) -> tuple[Any, list[int]]:
    """The tree with its tensors numbered as they stand in it, and which tensor each of these numbers is."""
    order = list(dict.fromkeys(tensors_below(contents.tree)))
    refs = {number: TensorRef(place) for place, number in enumerate(order)}
    return map_tensors(contents.tree, lambda ref: refs[ref.entry]), order


def _laid_out(
    contents: Contents, pieces: Sequence[list[_Piece]], order: Sequence[int], *, apart: bool
) -> tuple[list[Entry], list[_Storage]]:
    """The tensors in their order, and the storages they lie in, by their first use."""
    entries: list[Entry] = []
    storages: list[_Storage] = []
    numbers: dict[tuple[str, int], int] = {}
    for number in order:
        name, dtype, shape, kept = contents.tensors[number]
        own_pieces = pieces[number]
        itemsize = BY_NAME[dtype].itemsize
        if not kept or apart:
            flags = own_pieces[0].entry.flags & ~(ENTRY_FLAG_CONJ | ENTRY_FLAG_NEG) if kept else 0
            entries.append(Entry(name, dtype, shape, contiguous_stride(shape), len(storages), 0, flags))
            storages.append(_Storage(own_pieces, shape, itemsize, entries[-1].nbytes))
            continue
        (piece,) = own_pieces
        at = numbers.setdefault((piece.member.path, piece.entry.storage), len(storages))
        if at == len(storages):
            storages.append(_Storage(own_pieces, None, itemsize, piece.storage_size))
        entries.append(piece.entry._replace(name=name, storage=at))
    return entries, storages


def _other_forms(contents: Contents, pieces: Sequence[list[_Piece]]) -> Iterator[tuple[str, list[str]]]:
    """What tensors that stay as they are in their files would lose apart from each other."""
    kept = [(tensor.name, own[0]) for tensor, own in zip(contents.tensors, pieces, strict=True) if tensor.kept and own]
    users = Counter((piece.member.path, piece.entry.storage) for _, piece in kept if piece.entry.nbytes)
    strided = [name for name, piece in kept if not is_plain(piece.entry)]
    shared = [
        name
        for name, piece in kept
        if piece.entry.nbytes
        and (users[piece.member.path, piece.entry.storage] > 1 or piece.entry.nbytes < piece.storage_size)
    ]
    if strided:
        yield "strided or conjugated lazily, and written in row-major order", strided
    if shared:
        yield "views of memory that is shared or larger, and written each for itself", shared


def _fill_from(file: OpenedFile, jobs: Sequence[tuple[_Piece, _Storage, int]], *, threads: int | None) -> None:
    """Read what a file has of some storages to where these begin in memory, verified."""
    straight: dict[int, int] = {}
    others: dict[int, list[tuple[_Piece, _Storage, int]]] = {}
    for piece, storage, address in jobs:
        number = piece.entry.storage
        where = _straight_place(piece, storage, address)
        if where is not None and number not in straight and number not in others and file.stands_alone(number):
            straight[number] = where
        elif storage.shape is None or piece.entry.nbytes:
            others.setdefault(number, []).append((piece, storage, address))
    file.fill(straight, threads=threads, progress=None)
    for batch in file.batches(others):
        bytes_of = file.bring(batch, threads=threads, verify=True, progress=None, mapped=False)
        for number in batch:
            region, begin, size = bytes_of(number)
            for piece, storage, address in others[number]:
                target = memoryview((ctypes.c_ubyte * storage.nbytes).from_address(address)).cast("B")
                if storage.shape is None:
                    target[:] = region[begin : begin + size]
                    continue
                low, high = piece.entry.span
                raw = region[begin + low : begin + high]
                raw = raw if is_plain(piece.entry) else in_order(raw, piece.entry)
                sizes = piece.entry.shape
                for found in runs(storage.shape, piece.offsets, sizes, storage.itemsize, 0, storage.nbytes):
                    copy_runs(found, raw, target)


def _straight_place(piece: _Piece, storage: _Storage, address: int) -> int | None:
    """Where the whole storage of a piece can be read to; None if its bytes do not lie together in what is made."""
    if storage.shape is None:
        return address
    if not piece.is_straight or not piece.entry.nbytes:
        return None
    found = runs(storage.shape, piece.offsets, piece.entry.shape, storage.itemsize, 0, storage.nbytes)
    first = next(found)
    return address + first.whole if first.size == piece.storage_size else None


class _LastInOrder:
    """Reads parts of tensors; the last one that had to be put into row-major order is kept for the next read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[tuple[str, Entry], memoryview] | None = None

    def read(self, file: OpenedFile, entry: Entry, start: int, end: int) -> bytearray | memoryview:
        """The bytes ``[start, end)`` of the elements of a tensor in row-major order."""
        low, high = entry.span
        if is_plain(entry):
            return file.read(entry.storage, low + start, low + end)
        with self._lock:
            key = file.path, entry
            if self._kept is None or self._kept[0] != key:
                self._kept = None
                self._kept = key, in_order(memoryview(file.read(entry.storage, low, high)), entry)
            return self._kept[1][start:end]
