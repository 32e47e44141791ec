"""A checkpoint of several files that fills tensors that exist: each part goes from its file to its place."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from fastckpt.constants import SET_NAME, SET_TENSORS
from fastckpt.errors import DamagedError, errors_about
from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry, contiguous_stride
from fastckpt.layout.prefixes import Named, with_names
from fastckpt.layout.selection import select_names
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import map_tensors
from fastckpt.loading.assembly import items_of
from fastckpt.loading.filling import FileFiller, Filler
from fastckpt.loading.load_set import one_checkpoint
from fastckpt.loading.nesting import nested
from fastckpt.loading.opening import Wanted
from fastckpt.loading.own_set import object_in, require_root
from fastckpt.loading.shards import names_in, require_indexed
from fastckpt.sets import dcp, dcp_metadata, own
from fastckpt.sets.dcp_metadata import GlobalTensor
from fastckpt.sets.model import CheckpointSet, Member, Piece
from fastckpt.sets.require_sound import require_manifest, require_there
from fastckpt.sets.set_manifest import key_of, read_set_manifest
from fastckpt.staging.stage import Staging
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import Opened
from fastckpt.tensor.dtypes import require_dtypes


class _Part(NamedTuple):
    """A part of a tensor: its number, what it is in its file, where it begins in the tensor, and its extents."""

    number: int
    key: str | Piece
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def set_filler(
    directory: str, keys: str | Iterable[str] | None, *, prefix: str | None, renamed: bool, values: bool
) -> Filler:
    """The checkpoint in a directory.

    Args:
        directory: Where it is.
        keys: What is wanted of it, without the prefix; None is all.
        prefix: What stands, with a dot, before the names that are wanted.
        renamed: Whether ``keys`` are other names than those in the checkpoint.
        values: Whether more than tensors is wanted.

    Raises: What `fastckpt.load` of a directory raises.
    """
    one = one_checkpoint(directory)
    if one.kind == own.KIND:
        return _OwnSet(one, values=values)
    if one.kind == dcp.KIND:
        return _Pieces(one, values=values)
    return _Shards(one, None if renamed else keys, prefix)


class _SetFiller(Filler):
    """What the kinds have in common; see `Filler`."""

    def __init__(self, checkpoint: CheckpointSet) -> None:
        self.path = checkpoint.path
        self._checkpoint = checkpoint
        self._entries: list[Entry] = []
        self._parts: dict[str, list[_Part]] = {}

    def _add(self, name: str, dtype: str, shape: tuple[int, ...]) -> TensorRef:
        """A tensor of the whole, which has a storage of its own."""
        number = len(self._entries)
        self._entries.append(Entry(name, dtype, shape, contiguous_stride(shape), number, 0))
        return TensorRef(number)

    def _add_parts(self, member: str, parts: Iterable[_Part]) -> None:
        self._parts.setdefault(member, []).extend(parts)

    def _add_object(self, name: str, file: Opened, node: Any) -> Any:
        """A value of the checkpoint, with the tensors in it."""
        refs: dict[int, TensorRef] = {}

        def add(ref: TensorRef) -> TensorRef:
            if ref.entry not in refs:
                there = file.entries[ref.entry]
                refs[ref.entry] = self._add(f"{name}.{there.name}", there.dtype, there.shape)
                origin = (0,) * len(there.shape)
                self._add_parts(file.path, [_Part(refs[ref.entry].entry, there.name, origin, there.shape)])
            return refs[ref.entry]

        return map_tensors(node, add)

    def _name(self, tree: Any) -> None:
        """All tensors are added: they are called as in a state that is nested so."""
        self.named = Named(with_names(self._entries, tree), lambda: tree)
        self.storage_sizes = [entry.nbytes for entry in self._entries]
        require_dtypes(self._entries, self.path)

    def require(self, entries: Sequence[Entry]) -> None:
        """See `Filler`: every file is there, and has the parts in their types and shapes."""
        wanted = {entry.storage for entry in entries}
        for member in self._checkpoint.members:
            parts = self._wanted_of(member, wanted)
            if parts:
                with self._open(member) as file, errors_about(file.path):
                    self._found(file, parts)

    def fill(
        self, entries: Sequence[Entry], tensors: Mapping[str, torch.Tensor], stagings: Mapping[torch.device, Staging]
    ) -> None:
        """See `Filler`."""
        wholes = {entry.storage: tensors[entry.name] for entry in entries}
        done = dict.fromkeys(stagings, 0)
        for member in self._checkpoint.members:
            parts = self._wanted_of(member, wholes)
            if not parts:
                continue
            with self._open(member) as file, errors_about(file.path):
                found = self._found(file, parts)
                places = {entry.name: _place(wholes[part.number], part) for part, entry in found}
                how = {
                    device: replace(each, progress=_after(done[device], each.progress))
                    for device, each in stagings.items()
                }
                entries_here = [entry for _, entry in found]
                FileFiller(Wanted(file, entries_here, whole=False)).fill(entries_here, places, how)
            for entry in entries_here:
                done[places[entry.name].device] += entry.nbytes

    def _wanted_of(self, member: Member, numbers: Iterable[int]) -> list[_Part]:
        return [part for part in self._parts.get(member.path, ()) if part.number in numbers]

    def _open(self, member: Member) -> Opened:
        require_there(self._checkpoint, [member])
        return open_file(member.path)

    def _found(self, file: Opened, parts: Sequence[_Part]) -> list[tuple[_Part, Entry]]:
        """The parts as they are in the file. Raises DamagedError unless they are what the whole needs."""
        found = self._look_up(file, parts)
        for part, entry in zip(parts, found, strict=True):
            whole = self._entries[part.number]
            if (entry.dtype, entry.shape) != (whole.dtype, part.sizes):
                raise DamagedError(
                    f"the part of {whole.name} at {list(part.offsets)} is not what the manifest says",
                    tensor=whole.name,
                    expected=f"{whole.dtype}{list(part.sizes)}",
                    actual=f"{entry.dtype}{list(entry.shape)}",
                )
        if len({entry.name for entry in found}) < len(found):
            raise DamagedError("the manifest names a part of this file twice")
        return list(zip(parts, found, strict=True))

    @abstractmethod
    def _look_up(self, file: Opened, parts: Sequence[_Part]) -> list[Entry]:
        """What each part is in its file."""


def _by_name(file: Opened, parts: Sequence[_Part]) -> list[Entry]:
    require_indexed([str(part.key) for part in parts], file.by_name, file.path, whole=False)
    return [file.by_name[str(part.key)] for part in parts]


class _Shards(_SetFiller):
    """A model in shards, each tensor in one of them: shapes stand in the shards alone."""

    def __init__(self, checkpoint: CheckpointSet, keys: str | Iterable[str] | None, prefix: str | None) -> None:
        super().__init__(checkpoint)
        if keys is None:
            require_manifest(checkpoint)
            require_there(checkpoint, checkpoint.members)
        shards = [
            (member, names_in(member) if member.tensors is None else member.tensors) for member in checkpoint.members
        ]
        names = [name for _, held in shards for name in held]
        chosen = set(names) if keys is None else _chosen(names, keys, prefix, checkpoint.path)
        for member, held in shards:
            wanted = [name for name in held if name in chosen]
            if not wanted:
                continue
            with self._open(member) as file, errors_about(file.path):
                require_indexed(wanted, file.by_name, file.path, whole=keys is None)
                for name in wanted:
                    shape = file.by_name[name].shape
                    number = self._add(name, file.by_name[name].dtype, shape).entry
                    self._add_parts(member.path, [_Part(number, name, (0,) * len(shape), shape)])
        self._name({entry.name: TensorRef(number) for number, entry in enumerate(self._entries)})

    def _look_up(self, file: Opened, parts: Sequence[_Part]) -> list[Entry]:
        return _by_name(file, parts)


def _chosen(names: Sequence[str], keys: str | Iterable[str], prefix: str | None, path: str) -> set[str]:
    start = f"{prefix}." if prefix else ""
    bare = [name[len(start) :] for name in names if name.startswith(start)]
    return {start + name for name in select_names(bare, keys, path)}


class _OwnSet(_SetFiller):
    """A set of ``.fckpt`` shards, each with its parts by their keys."""

    def __init__(self, checkpoint: CheckpointSet, *, values: bool) -> None:
        super().__init__(checkpoint)
        require_manifest(checkpoint)
        manifest = read_set_manifest(os.path.join(checkpoint.path, SET_NAME))
        members = {member.name: member for member in checkpoint.members}
        tree: dict[str, Any] = {}
        for name, tensor in manifest.tensors.items():
            tree[name] = self._add(name, tensor.dtype, tensor.shape)
            for (offsets, sizes), shard in zip(tensor.chunks, tensor.shards, strict=True):
                key = f"{SET_TENSORS}.{key_of(name, offsets, sizes, tensor.shape)}"
                self._add_parts(members[shard].path, [_Part(tree[name].entry, key, offsets, sizes)])
        for shard in dict.fromkeys(manifest.objects.values() if values else ()):
            with self._open(members[shard]) as file, errors_about(file.path):
                for name in (name for name, where in manifest.objects.items() if where == shard):
                    tree[name] = self._add_object(name, file, object_in(file.tree, name, file.path))
        self._name(nested(manifest.paths, tree))

    def _open(self, member: Member) -> Opened:
        file = super()._open(member)
        try:
            require_root(file, member)
        except DamagedError:
            file.source.close()
            raise
        return file

    def _look_up(self, file: Opened, parts: Sequence[_Part]) -> list[Entry]:
        return _by_name(file, parts)


class _Pieces(_SetFiller):
    """A checkpoint of torch.distributed.checkpoint: each piece is an archive at its place in a file."""

    def __init__(self, checkpoint: CheckpointSet, *, values: bool) -> None:
        super().__init__(checkpoint)
        require_manifest(checkpoint)
        metadata = dcp_metadata.read_metadata(os.path.join(checkpoint.path, dcp_metadata.NAME))
        tree: dict[str, Any] = {
            name: self._add(name, tensor.dtype, tensor.shape) for name, tensor in metadata.tensors.items()
        }
        known = set(metadata.objects)
        for member in checkpoint.members:
            objects = [piece for piece in member.pieces if piece.name in known]
            pieces = [piece for piece in member.pieces if piece.name in metadata.tensors]
            self._add_parts(
                member.path, [_part_of(tree[each.name], metadata.tensors[each.name], each) for each in pieces]
            )
            if objects and values:
                with self._open(member) as file, errors_about(file.path):
                    item_at = items_of(_as_pieces(file))
                    for piece in objects:
                        tree[piece.name] = self._add_object(piece.name, file, item_at(piece))
        self._name(nested(metadata.paths, tree))

    def _look_up(self, file: Opened, parts: Sequence[_Part]) -> list[Entry]:
        item_at = items_of(_as_pieces(file))
        found = []
        for part in parts:
            if isinstance(part.key, str):
                found += _by_name(file, [part])
                continue
            item = item_at(part.key)
            if not isinstance(item, TensorRef):
                raise DamagedError(f"{part.key.name} is no tensor here", path=file.path, offset=part.key.offset)
            found.append(file.entries[item.entry])
        return found


def _part_of(ref: TensorRef, tensor: GlobalTensor, piece: Piece) -> _Part:
    offsets = piece.offsets or ()
    # Of a piece that the tensor does not have the shape is never that of what the file has.
    sizes = dict(tensor.chunks).get(offsets, (-1,))
    return _Part(ref.entry, piece, offsets, sizes)


def _as_pieces(file: Opened) -> OpenedForeign:
    if not isinstance(file, OpenedForeign):
        raise DamagedError("this file is none of torch.distributed.checkpoint", path=file.path, actual=file.format)
    return file


def _place(whole: torch.Tensor, part: _Part) -> torch.Tensor:
    if tuple(whole.shape) == part.sizes:
        return whole
    return whole[tuple(slice(at, at + size) for at, size in zip(part.offsets, part.sizes, strict=True))]


def _after(done: int, progress: Progress | None) -> Progress | None:
    """What reports what is done of a file as a part of all."""
    return None if progress is None else lambda count: progress(done + count)
