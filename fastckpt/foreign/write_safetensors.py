"""Writing a ``.safetensors``: tensors out of memory or out of other files, each contiguous."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastckpt import _core
from fastckpt.errors import DamagedError
from fastckpt.foreign.safetensors_content import SafetensorsContent, is_plain
from fastckpt.foreign.safetensors_header import lay_out
from fastckpt.io.commit import Commit
from fastckpt.io.copying import FilePlace, copy_storages
from fastckpt.io.how import How
from fastckpt.io.memory import allocate
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.transfer import MEMORY, Move, transfer
from fastckpt.layout.entries import Entry, StorageBytes, by_storage
from fastckpt.needs import needs_torch


def write_safetensors(
    path: str, content: SafetensorsContent, origins: Sequence[FilePlace], sizes: Sequence[int], how: How
) -> None:
    """Write tensors whose storages lie in other files, of ``sizes`` bytes each.

    Raises:
        OutOfSpaceError, CheckpointIOError: The old file, if any, is untouched.
        DamagedError: A source changed meanwhile.
        UnsupportedStateError: A name or text is no JSON.
    """
    layout = lay_out(content.tensors, content.texts)
    placed = [(content.tensors[name], at) for name, at in layout.places]
    straight = [(entry, at) for entry, at in placed if is_plain(entry)]
    others = {entry: at for entry, at in placed if not is_plain(entry)}
    with Commit(path, durable=how.durable, reserve=layout.size) as sink:
        sink.preallocate(layout.size)
        sink.write(0, layout.header)
        copy_storages(
            sink,
            [FilePlace(origins[e.storage].fd, origins[e.storage].offset + e.span[0]) for e, _ in straight],
            [(at, entry.nbytes) for entry, at in straight],
            how,
        )
        for storage, entries in by_storage(others).items():
            whole = _read(origins[storage], sizes[storage], how), 0, sizes[storage]
            put_in_order([(e, others[e]) for e in entries], {storage: whole}.__getitem__, sink, threads=how.threads)
        sink.finish(layout.size)


def _read(origin: FilePlace, nbytes: int, how: How) -> memoryview:
    memory = allocate(nbytes)
    move = Move(origin.offset, _core.address(memory), nbytes)
    if transfer([move], source=origin.fd, sink=MEMORY, threads=how.threads, leaves=False).faults:
        raise DamagedError("a file became shorter or unreadable while it was read; nothing was written")
    return memory


def put_in_order(
    places: Sequence[tuple[Entry, int]], bytes_of: Callable[[int], StorageBytes], sink: Commit, *, threads: int
) -> int:
    """Write tensors that lie in memory to their offsets in ``sink``; returns how many bytes.

    torch is needed only where elements lie in another order.
    """
    moves: list[Move] = []
    kept: list[Any] = []
    others: list[tuple[Entry, int]] = []
    for entry, at in places:
        if is_plain(entry):
            region, start, _ = bytes_of(entry.storage)
            kept.append(region)
            moves.append(Move(_core.address(region) + start + entry.span[0], at, entry.nbytes))
        else:
            others.append((entry, at))
    if others:
        with needs_torch("to write a tensor that is not contiguous"):
            import torch

            from fastckpt.tensor.rebuild import build_tensors
        tensors = build_tensors([entry for entry, _ in others], bytes_of, torch.device("cpu"))
        for (entry, at), tensor in zip(others, tensors, strict=True):
            plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
            kept.append(plain)
            moves.append(Move(plain.data_ptr(), at, entry.nbytes))
    with typed_os_errors(sink.path, doing="write the file"):
        transfer(moves, source=MEMORY, sink=sink.fd, threads=threads, leaves=False)
    return sum(move.size for move in moves)
