"""What the files of a checkpoint still hold of each tensor: which pieces are proven, and why others are not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from fastckpt.constants import SET_NAME, SET_OBJECTS, SET_TENSORS
from fastckpt.errors import FastckptError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.io.part import Part
from fastckpt.io.source import Source
from fastckpt.layout.entries import Entry
from fastckpt.layout.subtree import NOTHING, at
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import tensors_below
from fastckpt.sets import dcp
from fastckpt.sets.dcp_metadata import NAME as METADATA
from fastckpt.sets.dcp_metadata import GlobalTensor, read_metadata
from fastckpt.sets.model import Member, Piece
from fastckpt.sets.set_manifest import key_of, read_set_manifest
from fastckpt.surveying.blueprint import nothing_alike
from fastckpt.surveying.fates import THERE, Status
from fastckpt.surveying.survey import survey
from fastckpt.surveying.torch_zip.archives import find_archives
from fastckpt.surveying.torch_zip.evidence import search_local_headers
from fastckpt.surveying.torch_zip.one_archive import survey_archive
from fastckpt.surveying.torch_zip.pickle import is_pickle_name
from fastckpt.surveying.wreck import Wreck, storage_status

_OTHER_NAMES: Final = "its name and place are those of another checkpoint"

NOT_OF_THIS_SAVE: Final = "nothing says that the shard is of this save"

Box = tuple[tuple[int, int], ...]
"""A part of a tensor: ``(first, end)`` for each of its dimensions."""


class Wanted(NamedTuple):
    """What the manifest puts into a file.

    Attributes:
        name: The flat name of the tensor that it is a piece of, or of an object.
        box: Where in the tensor; None for an object.
        where: The archive that it is, or its name in the shard.
    """

    name: str
    box: Box | None
    where: Piece | str


class Fragment(NamedTuple):
    """What became of it.

    Attributes:
        wanted: What the manifest says of it.
        status: `Status.LOST` unless all of it is there.
        reason: Why it is not intact.
        wreck: What it is in.
        node: It, in the tree of that.
    """

    wanted: Wanted
    status: Status
    reason: str
    wreck: Wreck
    node: Any

    @property
    def entry(self) -> Entry | None:
        """It, as a tensor; None if it is none."""
        return self.wreck.entries[self.node.entry] if type(self.node) is TensorRef else None


@dataclass(slots=True)
class Outline:
    """What a checkpoint of several files should hold.

    Attributes:
        tensors: Each tensor as a whole, by its flat name.
        paths: The keys on the way to each name, where they were kept.
        wanted: What should be in each file, by its name.
        is_other: Whether another checkpoint says so.
        is_of_shards: Whether the files themselves say so, and there may have been more.
        unknown: Files of which nothing says what should be in them.
    """

    tensors: dict[str, GlobalTensor]
    paths: dict[str, tuple[Any, ...]]
    wanted: dict[str, list[Wanted]] = field(default_factory=dict)
    is_other: bool = False
    is_of_shards: bool = False
    unknown: list[str] = field(default_factory=list)


def manifest_path(kind: str, directory: str) -> str:
    """Where the manifest of a checkpoint of several files is."""
    return os.path.join(directory, METADATA if kind == dcp.KIND else SET_NAME)


def outline_of(kind: str, directory: str) -> Outline:
    """What the manifest in a directory says.

    Raises:
        DamagedError, CheckpointNotFoundError, CheckpointIOError, UnsupportedStateError: There is none that can be read.
    """
    path = manifest_path(kind, directory)
    if kind == dcp.KIND:
        metadata = read_metadata(path)
        outline = Outline(metadata.tensors, metadata.paths)
        sizes = {name: dict(tensor.chunks) for name, tensor in metadata.tensors.items()}
        for piece in metadata.pieces:
            extents = sizes.get(piece.name, {}).get(piece.offsets or ())
            box = box_at(piece.offsets or (), extents) if extents is not None else None
            outline.wanted.setdefault(piece.file, []).append(Wanted(piece.name, box, piece))
        return outline
    manifest = read_set_manifest(path)
    outline = Outline(dict(manifest.tensors), manifest.paths)
    for name, tensor in manifest.tensors.items():
        for (offsets, extents), shard in zip(tensor.chunks, tensor.shards, strict=True):
            key = key_of(name, offsets, extents, tensor.shape)
            outline.wanted.setdefault(shard, []).append(Wanted(name, box_at(offsets, extents), key))
    for name, shard in manifest.objects.items():
        outline.wanted.setdefault(shard, []).append(Wanted(name, None, name))
    return outline


def fragments(
    source: Source, member: Member, wanted: Sequence[Wanted], *, is_other: bool, threads: int
) -> Iterator[Fragment]:
    """What became of everything that should be in a file of the checkpoint.

    Raises:
        NotACheckpointError, UnsupportedVersionError, UnsupportedStateError, CheckpointIOError: It cannot be read.
    """
    are_archives = isinstance(wanted[0].where, Piece)
    found = _pieces(source, wanted, is_other, threads) if are_archives else _parts(source, member, wanted, threads)
    for each in found:
        if is_other and each.status is Status.INTACT:
            each = each._replace(status=Status.UNVERIFIED, reason=_OTHER_NAMES)
        yield each


def _pieces(source: Source, wanted: Sequence[Wanted], is_other: bool, threads: int) -> Iterator[Fragment]:
    """Each piece is an archive of its own, which its CRC-32s prove in the place that the manifest names."""
    in_order = sorted(wanted, key=lambda each: each.where.offset if isinstance(each.where, Piece) else 0)
    places = [(each.where.offset, each.where.length) for each in in_order if isinstance(each.where, Piece)]
    if is_other:
        # Objects take other numbers of bytes in another step, so that all behind them are elsewhere.
        archives = find_archives(source)
        places = [(part.begin, part.size) for part in archives] if len(archives) == len(places) else places
    for each, (begin, size) in zip(in_order, places, strict=True):
        there = min(size, source.size - begin)
        if there <= 0:
            yield Fragment(each, Status.LOST, "the file ends before it", Wreck(source.path, "unknown", 0), None)
            continue
        part = Part(source, begin, there)
        # All archives have the same names in them. Where bytes were lost in front, one of another piece is here.
        if any(at and is_pickle_name(header.name) for at, header in search_local_headers(part)):
            wreck = Wreck(source.path, "torch-zip", there)
            yield Fragment(each, Status.LOST, "another archive reaches into its place", wreck, None)
            continue
        wreck = survey_archive(part, nothing_alike, threads=threads, progress=None, is_exact=not is_other)
        for state in {id(state): state for state in wreck.storages}.values():
            state.offset = None if state.offset is None else state.offset + begin
        yield _judged(each, wreck, wreck.tree)


def _parts(source: Source, member: Member, wanted: Sequence[Wanted], threads: int) -> Iterator[Fragment]:
    """The parts in a shard, by the names that they have there."""
    wreck = survey(source, threads=threads)
    try:
        root: str | None = CheckpointFile(source).footer.root.hex()
    except FastckptError:
        root = None
    is_other_save = bool(root and member.root and root != member.root)
    for each in wanted:
        found = _judged(each, wreck, at(wreck.tree, (SET_OBJECTS if each.box is None else SET_TENSORS, each.where)))
        if is_other_save:
            found = found._replace(status=Status.LOST, reason="the shard is of another save")
        elif not (root and member.root) and found.status is Status.INTACT:
            found = found._replace(status=Status.UNVERIFIED, reason=NOT_OF_THIS_SAVE)
        yield found


def _judged(wanted: Wanted, wreck: Wreck, node: Any) -> Fragment:
    """A piece or object, by the worst of what it is made of."""
    if node is NOTHING or wreck.structure not in ("whole", "from index/header"):
        return Fragment(wanted, Status.LOST, "it is not found where it should be", wreck, None)
    fates = wreck.fates()
    parts = [fates[wreck.entries[number].name] for number in tensors_below(node)]
    if wanted.box is None:
        parts = parts or list(fates.values())
    statuses = [part.status for part in parts] + [storage_status(unnamed.state) for unnamed in wreck.unnamed]
    doubt = wreck.doubt if not parts else ""
    reason = next((part.reason for part in parts if part.status is not Status.INTACT), doubt)
    if any(status not in THERE for status in statuses):
        return Fragment(wanted, Status.LOST, reason or "it is damaged", wreck, None)
    found = Fragment(wanted, max([Status.INTACT, *statuses], key=THERE.index), reason, wreck, node)
    if doubt and found.status is Status.INTACT:
        found = found._replace(status=Status.UNVERIFIED)
    if wanted.box is not None and not _fits(found, wanted.box):
        return found._replace(status=Status.LOST, reason="what is there is not what the manifest says", node=None)
    return found


def _fits(fragment: Fragment, box: Box) -> bool:
    entry = fragment.entry
    return entry is not None and entry.shape == tuple(end - first for first, end in box)


def box_at(offsets: Sequence[int], sizes: Sequence[int]) -> Box:
    """The part of a tensor that begins there and has these extents."""
    return tuple((first, first + size) for first, size in zip(offsets, sizes, strict=True))
