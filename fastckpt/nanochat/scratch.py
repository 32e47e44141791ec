"""A checkpoint file put together from pieces of others, in memory that does not grow with it.

The pieces are brought together in an unnamed file beside the result, where each
storage has its place, and written from there in either format.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from fastckpt.errors import UnsupportedStateError
from fastckpt.fckpt.content import Content
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.writer import write_checkpoint
from fastckpt.foreign.torch_pickle import pickle_state
from fastckpt.foreign.write_torch import write_torch
from fastckpt.io.copying import FilePlace, copy_storages
from fastckpt.io.how import How
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.space import reserve_space
from fastckpt.layout.blocks import align
from fastckpt.layout.entries import Entry, contiguous_stride
from fastckpt.layout.names import flat_names
from fastckpt.layout.tree import Path, TensorRef, decode_tree, encode_tree, path_text
from fastckpt.nanochat.shard_pieces import Joined, ShardRange
from fastckpt.stored.fckpt import OpenedFckpt
from fastckpt.stored.opened import Opened

BLOCK: Final = 16 * 2**20
"""Bytes that are copied at a time."""
_PAGE: Final = 4096

Read = Callable[[int, int], bytearray | memoryview]
"""Bytes ``[start, end)`` of what is copied."""


class Options(NamedTuple):
    """How a file is written: codec and worker threads."""

    codec: str
    threads: int


def write_state(
    tree: Any, target: str, sources: Sequence[Opened], *, metadata: Mapping[str, Any], options: Options
) -> int:
    """Write a state whose tensors are `Joined` from pieces of ``sources``.

    Args:
        tree: The nesting.
        target: A ``.fckpt`` or ``.pt`` file. What torch writes into the latter names it, so it must have its
            final name; it is durable on return.
        sources: The open files that the pieces count in.
        metadata: For a ``.fckpt``.
        options: See `Options`.

    Returns:
        Bytes of tensor data.

    Raises:
        DamagedError: A source is damaged.
        OutOfSpaceError, CheckpointIOError
    """
    joined: list[Joined] = []
    paths: list[Path] = []

    def resolve(value: Any, path: Path) -> object:
        if type(value) is not Joined:
            raise UnsupportedStateError(f"{path_text(path)}: cannot store {type(value).__name__}")
        joined.append(value)
        paths.append(path)
        return TensorRef(len(joined) - 1)

    encoded = encode_tree(tree, resolve)
    entries = [
        Entry(name, each.dtype, each.shape, contiguous_stride(each.shape), number, 0, each.flags)
        for number, (name, each) in enumerate(zip(flat_names(paths), joined, strict=True))
    ]
    sizes = [entry.nbytes for entry in entries]
    with _scratch(target, sizes) as (fd, offsets):
        for start, each in zip(offsets, joined, strict=True):
            at = start
            for piece in each.pieces:
                _copy(piece_reader(piece, sources), piece.end - piece.start, fd, at)
                at += piece.end - piece.start
        if target.endswith(".fckpt"):
            content = Content(encoded, _metadata(metadata), entries, sizes, offsets, source=fd)
            write_checkpoint(content, target, codec=options.codec, durable=True, threads=options.threads)
        else:
            origins = [FilePlace(fd, offset) for offset in offsets]
            write_torch(
                target,
                pickle_state(decode_tree(encoded, len(entries)), entries, sizes),
                sizes,
                lambda sink, places: copy_storages(sink, origins, places, How(options.threads)),
                durable=True,
            )
    return sum(sizes)


def write_again(path: str, target: str, *, metadata: Mapping[str, Any], options: Options) -> None:
    """Write the state of a ``.fckpt`` file, bit for bit, with other metadata. Raises what `write_state` does."""
    with CheckpointFile(path) as file:
        stored = OpenedFckpt(file)
        manifest = file.manifest
        sizes = [place.nbytes for place in manifest.storages]
        with _scratch(target, sizes) as (fd, offsets):
            for storage, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
                _copy(lambda start, end, s=storage: stored.read(s, start, end), size, fd, offset)  # type: ignore[misc]
            content = Content(
                bytes(manifest.tree), _metadata(metadata), list(manifest.entries), sizes, offsets, source=fd
            )
            write_checkpoint(content, target, codec=options.codec, durable=True, threads=options.threads)


def piece_reader(piece: ShardRange, sources: Sequence[Opened]) -> Read:
    """Reads bytes of a piece, counted from its first one."""
    source = sources[piece.rank]
    first = piece.entry.span[0] + piece.start
    return lambda start, end: source.read(piece.entry.storage, first + start, first + end)


def _copy(read: Read, size: int, fd: int, offset: int) -> None:
    for start in range(0, size, BLOCK):
        block = memoryview(read(start, min(start + BLOCK, size)))
        at = offset + start
        while block.nbytes:
            count = os.pwrite(fd, block, at)
            block, at = block[count:], at + count


def _metadata(metadata: Mapping[str, Any]) -> bytes:
    def refuse(value: object, path: Path) -> object:
        raise UnsupportedStateError(f"metadata: {path_text(path)}: cannot store {type(value).__name__}")

    return encode_tree(dict(metadata), refuse)


@contextlib.contextmanager
def _scratch(target: str, sizes: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """An unnamed file of zeros beside ``target``, and where in it each storage has its place."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end = align(end + size, _PAGE)
    with typed_os_errors(target, doing="write the file"), tempfile.TemporaryFile(dir=os.path.dirname(target)) as file:
        reserve_space(file.fileno(), max(end, _PAGE), target)
        yield file.fileno(), offsets
