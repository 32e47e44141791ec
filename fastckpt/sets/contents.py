"""What a checkpoint of several files holds: each tensor of the whole, which part of it is where, and how all is nested.

One description for all that read such a checkpoint: `load_into` fills tensors
by it, and `fastckpt.sets.opened_set` makes one open checkpoint of it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from fastckpt.constants import SET_OBJECTS, SET_TENSORS
from fastckpt.errors import (
    CheckpointNotFoundError,
    DamagedError,
    FastckptError,
    NotACheckpointError,
    errors_about,
)
from fastckpt.foreign.model import ForeignFile
from fastckpt.io.open_source import open_source
from fastckpt.layout.entries import Entry
from fastckpt.layout.selection import select_names
from fastckpt.layout.tree import AttributedDict, NamedRef, TensorRef
from fastckpt.layout.walk import map_tensors, tensors_below
from fastckpt.sets import dcp, own
from fastckpt.sets.dcp_metadata import Metadata
from fastckpt.sets.items_of import items_of
from fastckpt.sets.judge import tensors_in
from fastckpt.sets.model import CheckpointSet, Member, Piece
from fastckpt.sets.nesting import nested
from fastckpt.sets.require_sound import require_indexed, require_manifest, require_there
from fastckpt.sets.set_manifest import SetManifest, key_of
from fastckpt.sets.steps import FILE
from fastckpt.stored.flat_tree import FlatTree
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import OpenedFile
from fastckpt.stored.structure_difference import WRITTEN_BY, same_value
from fastckpt.text import some


class WholeTensor(NamedTuple):
    """A tensor of the whole.

    Attributes:
        name: Its flat name, as the manifest has it.
        dtype: torch's name of the element type.
        shape: Its extents.
        kept: Whether its only part stays as it is in its file: with its strides, on the storage that it shares there.
            Else it is put together, in row-major order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kept: bool


class Part(NamedTuple):
    """A part of a tensor: its number, what it is in its file, where it begins in the tensor, and its extents."""

    number: int
    key: str | Piece
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class Contents(ABC):
    """What the kinds have in common.

    Attributes:
        checkpoint: The files.
        tensors: The tensors; ``TensorRef(i)`` is ``tensors[i]``.
        parts: The parts that each file has, by its path.
        tree: The nesting; its leaves are plain values and the references of `fastckpt.layout.tree`.
        metadata: What the files say beside the state.
        requires_grad: What the manifest says of tensors, by name; what loading gives is what their files say.
        left_out: What the files have beside the state, by name.
        root: The digest of all of it, where the manifest has one.
    """

    def __init__(self, checkpoint: CheckpointSet) -> None:
        self.checkpoint = checkpoint
        self.tensors: list[WholeTensor] = []
        self.parts: dict[str, list[Part]] = {}
        self.tree: Any = {}
        self.metadata: dict[str, Any] = {}
        self.requires_grad: dict[str, bool] = {}
        self.left_out: list[str] = []
        self.root: str | None = None

    def open(self, member: Member) -> OpenedFile:
        """Open a file of it. Raises DamagedError if it is not there, or is another one than the manifest names."""
        require_there(self.checkpoint, [member])
        return open_file(member.place)

    def found(self, file: OpenedFile, parts: Sequence[Part]) -> list[Entry]:
        """What each part is in its file. Raises DamagedError unless they are what the whole needs."""
        entries = self._look_up(file, parts)
        for part, entry in zip(parts, entries, strict=True):
            whole = self.tensors[part.number]
            if (entry.dtype, entry.shape) != (whole.dtype, part.sizes):
                raise DamagedError(
                    f"the part of {whole.name} at {list(part.offsets)} is not what the manifest says",
                    tensor=whole.name,
                    expected=f"{whole.dtype}{list(part.sizes)}",
                    actual=f"{entry.dtype}{list(entry.shape)}",
                )
        if len({entry.name for entry in entries}) < len(entries):
            raise DamagedError("the manifest names a part of this file twice")
        return entries

    def _add(self, name: str, dtype: str, shape: tuple[int, ...], *, kept: bool) -> TensorRef:
        self.tensors.append(WholeTensor(name, dtype, shape, kept))
        return TensorRef(len(self.tensors) - 1)

    def _add_parts(self, member: str, parts: Iterable[Part]) -> None:
        self.parts.setdefault(member, []).extend(parts)

    def _add_node(self, name: str, file: OpenedFile, node: Any) -> Any:
        """A value of the checkpoint, with the tensors in it, each as it is in its file."""
        refs: dict[int, TensorRef] = {}

        def add(ref: TensorRef) -> TensorRef:
            if ref.entry not in refs:
                there = file.entries[ref.entry]
                refs[ref.entry] = self._add(f"{name}.{there.name}", there.dtype, there.shape, kept=True)
                origin = (0,) * len(there.shape)
                self._add_parts(file.path, [Part(refs[ref.entry].entry, there.name, origin, there.shape)])
            return refs[ref.entry]

        return map_tensors(node, add)

    @abstractmethod
    def _look_up(self, file: OpenedFile, parts: Sequence[Part]) -> list[Entry]:
        """What each part is in its file."""


def contents_of(
    checkpoint: CheckpointSet,
    keys: str | Iterable[str] | None = None,
    *,
    prefix: str | None = None,
    values: bool = True,
) -> Contents:
    """What a checkpoint holds whose files together are one state, or that is one file.

    Args:
        checkpoint: The checkpoint.
        keys: What is wanted of it, without the prefix; None is all. It may give more: only a model in shards has to be
            opened to be described, and of that no other shards are.
        prefix: What stands, with a dot, before the names that are wanted.
        values: Whether more than tensors is wanted.

    Raises: What `fastckpt.load` of a directory raises.
    """
    if checkpoint.kind == own.KIND:
        return _OwnSet(checkpoint, values=values)
    if checkpoint.kind == dcp.KIND:
        return _Pieces(checkpoint, values=values)
    if checkpoint.kind == FILE:
        return _OneFile(checkpoint)
    return _Shards(checkpoint, keys, prefix)


def _by_name(file: OpenedFile, parts: Sequence[Part]) -> list[Entry]:
    require_indexed([str(part.key) for part in parts], file.by_name, file.path, whole=False)
    return [file.by_name[str(part.key)] for part in parts]


class _Shards(Contents):
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
            with self.open(member) as file, errors_about(file.path):
                require_indexed(wanted, file.by_name, file.path, whole=keys is None)
                self._take(file, wanted)
                if keys is None:
                    self._note(member.name, file, wanted)

    def _take(self, file: OpenedFile, names: Sequence[str]) -> None:
        numbers = {entry.name: number for number, entry in enumerate(file.entries)}
        for name in names:
            entry = file.by_name[name]
            ref = self._add(name, entry.dtype, entry.shape, kept=True)
            self._add_parts(file.path, [Part(ref.entry, name, (0,) * len(entry.shape), entry.shape)])
            node = file.tree.get(name) if isinstance(file.tree, dict) else None
            # Elements for which torch has no type, attributes of a tensor: what stands around it stays.
            is_around = type(node) is NamedRef and tensors_below(node) == [numbers[name]]
            self.tree[name] = map_tensors(node, lambda _, ref=ref: ref) if is_around else ref  # type: ignore[misc]

    def _note(self, shard: str, file: OpenedFile, names: Sequence[str]) -> None:
        """Note what a shard has beside its tensors: metadata, and values that loading all shards does not give."""
        tree, known = file.tree, set(names)
        if isinstance(tree, dict):
            rest: Any = type(tree)((key, item) for key, item in tree.items() if key not in known)
            if type(tree) is AttributedDict:
                rest.attributes = tree.attributes
            tree = rest
        beside = FlatTree.of(tree).values
        metadata = {key: value for key, value in file.metadata.items() if (key, value) != WRITTEN_BY}
        found = [*beside, *(f"metadata {key!r}" for key in metadata)]
        self.left_out += [name for name in found if name not in self.left_out]
        for key, value in (*metadata.items(), *((f"values.{name}", value) for name, value in beside.items())):
            if not same_value(self.metadata.setdefault(key, value), value):
                self.metadata[f"{shard}: {key}"] = value

    def _look_up(self, file: OpenedFile, parts: Sequence[Part]) -> list[Entry]:
        return _by_name(file, parts)


def names_in(member: Member) -> list[str]:
    """The names of the tensors in a shard of which no index tells."""
    with open_source(member.place) as source:
        return list(tensors_in(source))


def _chosen(names: Sequence[str], keys: str | Iterable[str], prefix: str | None, path: str) -> set[str]:
    start = f"{prefix}." if prefix else ""
    bare = [name[len(start) :] for name in names if name.startswith(start)]
    return {start + name for name in select_names(bare, keys, path)}


class _OneFile(Contents):
    """A file by itself."""

    def __init__(self, checkpoint: CheckpointSet) -> None:
        super().__init__(checkpoint)
        (member,) = checkpoint.members
        with self.open(member) as file, errors_about(file.path):
            for entry in file.entries:
                ref = self._add(entry.name, entry.dtype, entry.shape, kept=True)
                self._add_parts(file.path, [Part(ref.entry, entry.name, (0,) * len(entry.shape), entry.shape)])
            self.tree = file.tree
            self.metadata = file.metadata
            self.left_out = [f"metadata {key!r}" for key, value in file.metadata.items() if (key, value) != WRITTEN_BY]
            if isinstance(file, OpenedForeign) and file.foreign.program:
                self.left_out.append(f"the program of {file.foreign.program}")

    def _look_up(self, file: OpenedFile, parts: Sequence[Part]) -> list[Entry]:
        return _by_name(file, parts)


class _OwnSet(Contents):
    """A set of ``.fckpt`` shards, each with its parts by their keys."""

    def __init__(self, checkpoint: CheckpointSet, *, values: bool) -> None:
        super().__init__(checkpoint)
        require_manifest(checkpoint)
        manifest = checkpoint.manifest
        assert isinstance(manifest, SetManifest), "it is sound"
        self.root = manifest.root
        self.requires_grad = {name: tensor.requires_grad for name, tensor in manifest.tensors.items()}
        members = {member.name: member for member in checkpoint.members}
        found: dict[str, Any] = {}
        for name, tensor in manifest.tensors.items():
            kept = [sizes for _, sizes in tensor.chunks] == [tensor.shape]
            found[name] = self._add(name, tensor.dtype, tensor.shape, kept=kept)
            for (offsets, sizes), shard in zip(tensor.chunks, tensor.shards, strict=True):
                key = f"{SET_TENSORS}.{key_of(name, offsets, sizes, tensor.shape)}"
                self._add_parts(members[shard].path, [Part(found[name].entry, key, offsets, sizes)])
        for shard in dict.fromkeys(manifest.objects.values() if values else ()):
            with self.open(members[shard]) as file, errors_about(file.path):
                for name in (name for name, where in manifest.objects.items() if where == shard):
                    found[name] = self._add_node(name, file, object_in(file.tree, name, file.path))
        self.tree = nested(manifest.paths, {name: found[name] for name in manifest.order if name in found})

    def open(self, member: Member) -> OpenedFile:
        with about_shard(member.path, [name.removeprefix(f"{SET_TENSORS}.") for name in member.tensors or ()]):
            file = open_file(member.place)
            try:
                require_root(file, member)
            except DamagedError:
                file.close()
                raise
        return file

    def _look_up(self, file: OpenedFile, parts: Sequence[Part]) -> list[Entry]:
        return _by_name(file, parts)


def object_in(state: Any, name: str, path: str) -> Any:
    """What the state of a shard has of a name that is no tensor's. Raises DamagedError if it has nothing."""
    try:
        return state[SET_OBJECTS][name]
    except (KeyError, TypeError):
        raise DamagedError(f"the manifest puts {name} into this file, and it is not there", path=path) from None


@contextmanager
def about_shard(path: str, keys: Sequence[str]) -> Iterator[None]:
    """What goes wrong inside of this ``with`` is about a shard, and says which parts and objects were wanted of it.

    Raises:
        DamagedError: The shard is not there, or is no checkpoint: the set names it.
    """
    wanted = f"wanted of it: {some(keys)}"
    try:
        yield
    except (CheckpointNotFoundError, NotACheckpointError) as error:
        message = f"{error.message} ({wanted})"
        raise DamagedError(message, path=path, actual=error.actual, next_step=error.next_step) from error
    except FastckptError as error:
        error.path = error.path or path
        error.message += f" ({wanted})"
        raise


def require_root(shard: OpenedFile, member: Member) -> None:
    """Raise DamagedError unless this is the shard that the manifest names."""
    if shard.root != member.root:
        raise DamagedError("this shard is not the one that the set names", expected=member.root, actual=shard.root)


class _Pieces(Contents):
    """A checkpoint of torch.distributed.checkpoint: each piece is an archive at its place in a file."""

    def __init__(self, checkpoint: CheckpointSet, *, values: bool) -> None:
        super().__init__(checkpoint)
        require_manifest(checkpoint)
        metadata = checkpoint.manifest
        assert isinstance(metadata, Metadata), "its manifest is sound"
        self.requires_grad = {name: tensor.requires_grad for name, tensor in metadata.tensors.items()}
        found: dict[str, Any] = {
            name: self._add(name, tensor.dtype, tensor.shape, kept=False) for name, tensor in metadata.tensors.items()
        }
        known = set(metadata.objects)
        self._named = {
            member.path: {(piece.offset, piece.length) for piece in member.pieces} for member in checkpoint.members
        }
        for member in checkpoint.members:
            objects = [piece for piece in member.pieces if piece.name in known]
            pieces = [piece for piece in member.pieces if piece.name in metadata.tensors]
            self._add_parts(member.path, [_part_of(found[each.name], each) for each in pieces])
            if objects and values:
                with self.open(member) as file, errors_about(file.path):
                    item_at = items_of(as_pieces(file).foreign)
                    for piece in objects:
                        found[piece.name] = self._add_node(piece.name, file, item_at(piece))
        self.tree = nested(metadata.paths, found)

    def _look_up(self, file: OpenedFile, parts: Sequence[Part]) -> list[Entry]:
        pieces = as_pieces(file).foreign
        item_at = items_of(pieces)
        self._note_unnamed(pieces)
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

    def _note_unnamed(self, file: ForeignFile) -> None:
        """Note which archives of a file the manifest does not name."""
        named = self._named[file.path]
        for archive in file.archives:
            what = f"the archive at byte {archive.begin} of {os.path.basename(file.path)}"
            if (archive.begin, archive.end - archive.begin) not in named and what not in self.left_out:
                self.left_out.append(what)


def _part_of(ref: TensorRef, piece: Piece) -> Part:
    # Of a piece that the tensor does not have the shape is never that of what the file has.
    return Part(ref.entry, piece, piece.offsets or (), (-1,) if piece.sizes is None else piece.sizes)


def as_pieces(file: OpenedFile) -> OpenedForeign:
    """A file with pieces. Raises DamagedError if it is another one."""
    if not isinstance(file, OpenedForeign):
        raise DamagedError("this file is none of torch.distributed.checkpoint", path=file.path, actual=file.format)
    return file
