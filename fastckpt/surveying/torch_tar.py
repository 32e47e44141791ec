"""Taking stock of a damaged tar file of torch: no checksums, but places follow from what stands in front of them."""

from __future__ import annotations

from fastckpt.findings import Finding, Kind
from fastckpt.foreign.torch_objects import Storage
from fastckpt.foreign.torch_tar import TarParts, read_parts
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.surveying.wreck import NO_CHECKSUM, StorageState, Unnamed, Wreck, mark_unreadable, name_holes


def survey_torch_tar(source: Source, *, threads: int, progress: Progress | None) -> Wreck:
    """What stands of a tar file of torch. Nothing in it is ever proven."""
    wreck = Wreck(source.path, "torch-legacy", source.size, doubt=NO_CHECKSUM)
    parts = read_parts(source)
    if parts.problem is not None:
        at = min(parts.problem.offset or 0, source.size)
        loss = parts.state is None
        wreck.findings.append(Finding(Kind.ROTTED, parts.problem.message, at, source.size - at, loss=loss))
    elif parts.end < source.size:
        text = f"{source.size - parts.end} bytes follow the tar archive"
        wreck.findings.append(Finding(Kind.INCONSISTENT, text, parts.end, source.size - parts.end, loss=False))
    if parts.state is None:
        wreck.notes.append("nothing tells names and sizes of its tensors")
        return wreck
    wreck.structure = "whole"
    wreck.tree, wreck.entries, wreck.opaque = parts.state.tree, parts.state.entries, parts.state.opaque
    used = {storage.key for storage in parts.state.storages}
    wreck.storages = [_state(source, parts, storage) for storage in parts.state.storages]
    wreck.unnamed = [
        Unnamed(key, _state(source, parts, storage), storage.type.dtype)
        for key, storage in parts.state.all_storages.items()
        if key not in used
    ]
    storages = [*wreck.storages, *(storage.state for storage in wreck.unnamed)]
    mark_unreadable(source, storages, threads=threads, progress=progress)
    name_holes(wreck, storages)
    return wreck


def _state(source: Source, parts: TarParts, storage: Storage) -> StorageState:
    place = parts.places.get(storage.key)
    state = StorageState(storage.nbytes, reason=NO_CHECKSUM)
    if place is None:
        state.lose("what says where it lies is lost")
        return state
    state.offset = place.offset
    if source.size - place.offset < storage.nbytes:
        state.cut(source.size - place.offset)
    return state
