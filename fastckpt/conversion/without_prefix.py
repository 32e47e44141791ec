"""A checkpoint written anew, its tensors under their names without the prefix of a wrapper."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fastckpt import _core
from fastckpt.constants import STRIPPED_KEY
from fastckpt.conversion.arrays import array_reader
from fastckpt.conversion.result import Conversion, Format
from fastckpt.errors import UnsupportedStateError, UsageError
from fastckpt.fckpt.content import Content
from fastckpt.fckpt.writer import write_checkpoint
from fastckpt.foreign.pickle_named import note_of_classes, storages_beside
from fastckpt.foreign.torch_pickle import pickle_state
from fastckpt.foreign.write_torch import write_torch
from fastckpt.io.commit import Commit
from fastckpt.io.how import How
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.source import Source
from fastckpt.io.transfer import MEMORY, Move, transfer
from fastckpt.layout.prefixes import with_names, without_prefix
from fastckpt.layout.tree import encode_tree
from fastckpt.nanochat.save_mark import no_place_in_torch, note_of_metadata
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import Opened


def convert_without_prefix(
    source: Source, destination: str | os.PathLike[str], how: How, *, to: Format, codec: str, prefix: str
) -> Conversion:
    """Write the state of an open file of any format to a ``.fckpt`` or ``.pt``, without a prefix of its names.

    Raises:
        DamagedError: A tensor is damaged; nothing is committed.
        UnsupportedStateError: The file holds objects that cannot be stored.
        UsageError: No name has the prefix, or two names would be the same.
    """
    file = open_file(source)  # Not closed here: the source is the caller's.
    file.require_plain()
    if isinstance(file, OpenedForeign) and file.foreign.program:
        raise UnsupportedStateError(
            f"the program of {file.foreign.program} would be lost",
            path=file.path,
            next_step="convert it without --strip-prefix, or to .safetensors, which lists what is left out",
        )
    tree = without_prefix(file.tree, prefix) if prefix else file.tree
    entries = with_names(file.entries, tree)
    changed = sum(a.name != b.name for a, b in zip(entries, file.entries, strict=True))
    if prefix and not changed:
        raise UsageError(f"no tensor's name begins with {prefix!r}", path=file.path)
    sizes = list(file.storage_sizes)
    notes = [f"{changed} of {len(entries)} tensors had the prefix {prefix}"] if prefix else []
    if to == "pt":
        notes += note_of_metadata(no_place_in_torch(file.metadata, file.path))
        stored = storages_beside(tree, entries, len(sizes))
        write_torch(
            destination,
            pickle_state(tree, entries, sizes, read_array=array_reader(file, entries)),
            [sizes[storage] for storage in stored],
            lambda sink, places: _fill(file, sink, dict(zip(stored, places, strict=True)), how),
            durable=how.durable,
            keys=[str(storage) for storage in stored],
        )
    else:
        bytes_of = file.bring(range(len(sizes)), threads=how.threads, verify=True, progress=how.progress, mapped=True)
        regions = [bytes_of(storage) for storage in range(len(sizes))]
        content = Content(
            tree=encode_tree(tree),
            metadata_tree=encode_tree(_with_note(file.metadata, prefix)),
            entries=entries,
            storage_sizes=sizes,
            origins=[_core.address(region) + start if size else 0 for region, start, size in regions],
        )
        write_checkpoint(content, destination, codec=codec, durable=how.durable, threads=how.threads)
    source.require_unchanged(next_step="convert it again")
    return Conversion(
        file.path,
        os.fspath(destination),
        "torch-zip" if to == "pt" else "fckpt",
        sum(sizes),
        len(entries),
        source_verified=file.has_checksums(),
        exact=False,
        notes=(*notes, *(note_of_classes(tree) if to == "pt" else ())),
    )


def _with_note(metadata: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The metadata, and that the prefix was taken away. The mark of a nanochat step stays: the weights are the same."""
    before = metadata.get(STRIPPED_KEY)
    return {**metadata, STRIPPED_KEY: [*(before if isinstance(before, list) else []), prefix]}


def _fill(file: Opened, sink: Commit, places: Mapping[int, tuple[int, int]], how: How) -> list[int]:
    """Write storages to their places, each proven before, and return the CRC-32 of each; in bounded memory."""
    crcs = dict.fromkeys(places, 0)
    done = 0
    for batch in file.batches(places):
        bytes_of = file.bring(batch, threads=how.threads, verify=True, progress=None, mapped=False)
        full = [storage for storage in batch if places[storage][1]]
        moves = []
        for storage in full:
            region, start, size = bytes_of(storage)
            moves.append(Move(_core.address(region) + start, places[storage][0], size))
        with typed_os_errors(sink.path, doing="write the file"):
            moved = transfer(moves, source=MEMORY, sink=sink.fd, threads=how.threads, leaves=False, crcs=True)
        crcs.update(zip(full, moved.crcs, strict=True))
        done += sum(places[storage][1] for storage in full)
        if how.progress is not None:
            how.progress(done)
    file.source.require_unchanged(next_step="convert it again")
    return list(crcs.values())
