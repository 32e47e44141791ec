"""The tensors of any checkpoint as a ``.safetensors`` file: chosen, renamed, contiguous; what is left out is listed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from fastckpt.conversion.all_or_none import all_or_none
from fastckpt.conversion.request import Request
from fastckpt.conversion.result import Conversion
from fastckpt.errors import MismatchError, UnsupportedStateError, UsageError, errors_about
from fastckpt.foreign.safetensors_content import SafetensorsContent, content_of
from fastckpt.foreign.safetensors_header import lay_out
from fastckpt.foreign.suffixes import INDEX_SUFFIX
from fastckpt.foreign.write_safetensors import put_in_order
from fastckpt.io.commit import Commit, make_directory, publish_bytes
from fastckpt.io.how import How
from fastckpt.io.os_errors import exists
from fastckpt.layout.entries import Entry
from fastckpt.layout.selection import select
from fastckpt.layout.tree import NamedRef
from fastckpt.stored.foreign import OpenedForeign
from fastckpt.stored.opened import Opened


def convert_to_safetensors(
    file: Opened,
    destination: str | os.PathLike[str],
    how: How,
    request: Request,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> Conversion:
    """Write tensors of an open checkpoint of any format; memory is bounded by a batch of storages.

    Of tensors that are the same bytes one is written, and ``__metadata__`` says which other names it has. It also has
    the plain values, as JSON, unless only some tensors are wanted; and ``metadata``, or that of the checkpoint.

    Raises:
        DamagedError: A tensor is damaged; nothing is committed.
        TensorNotFoundError: No tensor has a name that ``request.keys`` matches.
        UsageError: No name has the prefix, or two names would be the same.
    """
    content = _content(file, request, metadata)
    return _write(file, content, destination, how)


def convert_to_shards(
    file: Opened, directory: str, how: How, request: Request, *, metadata: Mapping[str, Any] | None = None
) -> list[Conversion]:
    """The same in files of about ``request.shard_size`` bytes, as Hugging Face lays out a model, the index last.

    Args:
        file: The open checkpoint.
        directory: The directory of the shards; it is made.
        how: Threads, durability, progress.
        request: What to convert.
        metadata: What to say of the whole; None is what the checkpoint says.

    Raises:
        As `convert_to_safetensors`.
        MismatchError: A file of such a name is there.
    """
    content = _content(file, request, metadata)
    groups = _groups(content.tensors, request.shard_size or 0)
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    names = names if len(groups) > 1 else ["model.safetensors"]
    index = os.path.join(directory, f"model.safetensors{INDEX_SUFFIX}")
    for path in (*(os.path.join(directory, name) for name in names), index):
        if exists(path):
            raise MismatchError("this file is there already", path=path, next_step="name another directory")
    if not os.path.isdir(directory):
        make_directory(directory)
    made: list[Conversion] = []
    with all_or_none() as written:
        for name, group in zip(names, groups, strict=True):
            # What is said of the whole is said once, in the first.
            part = content if len(groups) == 1 else _part(content, group, is_first=not made)
            made.append(_write(file, part, os.path.join(directory, name), how))
            written.append(os.path.join(directory, name))
    if len(groups) > 1:
        total = sum(entry.nbytes for entry in content.tensors.values())
        rows = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": rows}, indent=2) + "\n"
        publish_bytes(index, text.encode(), durable=how.durable)
        made.append(Conversion(file.path, index, "meta", len(text), 0, source_verified=True, exact=False))
    return made


def _groups(tensors: Mapping[str, Entry], size: int) -> list[dict[str, Entry]]:
    """Tensors in their order, so many together that they have at most ``size`` bytes; a larger one stands alone."""
    groups: list[dict[str, Entry]] = [{}]
    room = size
    for name, entry in tensors.items():
        if entry.nbytes > room and groups[-1]:
            groups.append({})
            room = size
        groups[-1][name] = entry
        room -= entry.nbytes
    return groups


def _part(content: SafetensorsContent, group: dict[str, Entry], *, is_first: bool) -> SafetensorsContent:
    if is_first:
        return content._replace(tensors=group)
    return SafetensorsContent(group, {}, [], [])


def _content(file: Opened, request: Request, metadata: Mapping[str, Any] | None) -> SafetensorsContent:
    entries = list(file.entries) if request.keys is None else select(file.entries, request.keys, file.path)
    if isinstance(file, OpenedForeign) and file.foreign.kind == "safetensors" and file.opaque:
        _refuse_elements(file, {entry.name for entry in entries})
    names = _names(entries, request.strip_prefix or "", file.path)
    with errors_about(file.path):
        content = content_of(
            file.tree if request.keys is None else {},
            entries,
            file.storage_sizes,
            file.metadata if metadata is None else metadata,
            names=names,
            copy_shared=request.copy_shared,
        )
    if isinstance(file, OpenedForeign) and file.foreign.program:
        content.left_out.append(f"the program of {file.foreign.program}")
    return content


def _write(file: Opened, content: SafetensorsContent, destination: str | os.PathLike[str], how: How) -> Conversion:
    with errors_about(file.path):
        layout = lay_out(content.tensors, content.texts)
    with Commit(destination, durable=how.durable, reserve=layout.size) as sink:
        sink.preallocate(layout.size)
        sink.write(0, layout.header)
        placed = [(content.tensors[name], at) for name, at in layout.places]
        _fill(file, sink, [(entry, at) for entry, at in placed if entry.nbytes], how)
        file.require_unchanged(next_step="convert it again")
        sink.finish(layout.size)
    return Conversion(
        file.path,
        os.fspath(destination),
        "safetensors",
        sum(entry.nbytes for entry in content.tensors.values()),
        len(content.tensors),
        source_verified=file.has_checksums(entry.storage for entry in content.tensors.values()),
        exact=False,
        notes=tuple(content.notes),
        left_out=tuple(content.left_out),
    )


def _refuse_elements(file: OpenedForeign, chosen: set[str]) -> None:
    """Raise UnsupportedStateError if torch has no type for a tensor that is wanted: its bytes would lose theirs."""
    for number, (key, node) in enumerate(file.tree.items()):
        if type(node) is NamedRef and file.entries[number].name in chosen:
            raise UnsupportedStateError(
                f"{key} is a {node.payload[0]}, which torch cannot hold",
                path=file.path,
                next_step="leave it out, with --keys; or convert the whole file to .fckpt and back",
            )


def _names(entries: Sequence[Entry], prefix: str, path: str) -> list[str]:
    if prefix and not any(entry.name.startswith(prefix) for entry in entries):
        raise UsageError(f"no tensor's name begins with {prefix!r}", path=path)
    names = [entry.name.removeprefix(prefix) or entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise UsageError(f"without the prefix {prefix!r} two tensors would have the same name", path=path)
    if "__metadata__" in names:
        raise UsageError("a tensor cannot be called __metadata__ in a .safetensors", path=path)
    return names


def _fill(file: Opened, sink: Commit, places: Sequence[tuple[Entry, int]], how: How) -> None:
    by_storage: dict[int, list[tuple[Entry, int]]] = {}
    for entry, at in places:
        by_storage.setdefault(entry.storage, []).append((entry, at))
    done = 0
    for batch in file.batches(sorted(by_storage)):
        bytes_of = file.bring(batch, threads=how.threads, verify=True, progress=None, mapped=False)
        wanted = [place for storage in batch for place in by_storage[storage]]
        done += put_in_order(wanted, bytes_of, sink, threads=how.threads)
        if how.progress is not None:
            how.progress(done)
