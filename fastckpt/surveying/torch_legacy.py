"""Taking stock of a damaged legacy ``.pt``: no checksums, but every place follows from the pickles.

The pickles stand in front: magic number, protocol, system, the object, the
list of storage keys. Then, for each key, its length in elements and its bytes.

Each of these makes up for another one. The object is found without the ones
before it; the list is nothing but the sorted keys that the object names. If
the object itself is lost, a file of the same structure gives the sizes, and
the lengths in front of the storages tell which is which, as far as they differ.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fastckpt.errors import FastckptError
from fastckpt.findings import Finding, Kind
from fastckpt.foreign.pickle_input import PickleCutError
from fastckpt.foreign.sniff import LEGACY_MAGIC
from fastckpt.foreign.torch_state import TorchState, read_state
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.io.unreadable import can_read, read_there
from fastckpt.surveying.blueprint import Blueprint, FindBlueprint
from fastckpt.surveying.wreck import NO_CHECKSUM, StorageState, Unnamed, Wreck, mark_unreadable, name_holes

_FIRST_WINDOW: Final = 4 * 2**20
_MAX_PICKLES: Final = 64 * 2**20
_HEAD: Final = 4096
_MAX_STARTS: Final = 16
"""Places in the first bytes where the object's pickle may begin that are tried."""
_PICKLE_START: Final = re.compile(re.escape(b"\x80\x02"))
_LENGTH: Final = struct.Struct("<q")


@dataclass(slots=True)
class _Pickles:
    """What stands of the pickles.

    Attributes:
        state: The object; None if it cannot be read.
        keys: The storage keys in file order.
        end: Where the first storage begins, or as far as could be read.
        listed: Whether the list of keys is whole.
        problem: What is wrong with them.
    """

    state: TorchState | None = None
    keys: list[str] = field(default_factory=list)
    end: int = 0
    listed: bool = False
    problem: str = ""


def survey_torch_legacy(
    source: Source, find_blueprint: FindBlueprint, *, threads: int, progress: Progress | None
) -> Wreck:
    """What stands of a legacy torch file. Nothing in it is ever proven."""
    wreck = Wreck(source.path, "torch-legacy", source.size, doubt=NO_CHECKSUM)
    found = _read_pickles(source)
    if found.problem:
        kind = Kind.ROTTED if can_read(source, 0, max(found.end, _HEAD)) else Kind.UNREADABLE
        wreck.findings.append(Finding(kind, found.problem, min(found.end, source.size), 0, loss=not found.keys))
    if found.state is not None:
        end = _take_state(wreck, source, found, found.state)
    else:
        blueprint = find_blueprint({}, wreck.notes)
        if blueprint is None:
            wreck.notes.append("nothing tells names and sizes; name a checkpoint of the same structure with --like")
            return wreck
        end = _take_blueprint(wreck, source, blueprint)
    storages = [*wreck.storages, *(storage.state for storage in wreck.unnamed)]
    mark_unreadable(source, storages, threads=threads, progress=progress)
    name_holes(wreck, storages)
    if end < source.size and found.listed:
        text = f"{source.size - end} bytes follow the last storage"
        wreck.findings.append(Finding(Kind.INCONSISTENT, text, end, source.size - end, loss=False))
    return wreck


def is_headless(source: Source) -> bool:
    """Whether a file that does not begin like a legacy one has its other pickles."""
    return _read_pickles(source).listed


# --- with the object -----------------------------------------------------------


def _take_state(wreck: Wreck, source: Source, found: _Pickles, state: TorchState) -> int:
    """Take structure and places from the pickles; returns where the last storage ends."""
    wreck.structure = "whole"
    wreck.tree, wreck.entries = state.tree, state.entries
    wreck.opaque = state.opaque
    places: dict[str, StorageState] = {}
    at = found.end
    for key in found.keys:
        storage = state.all_storages.get(key)
        if storage is None:
            wreck.findings.append(Finding(Kind.INCONSISTENT, f"the storage {key[:80]!r} belongs to no tensor", at, 0))
            break
        places[key] = _at(source, at, storage.nbytes, storage.nbytes // storage.type.itemsize)
        at += _LENGTH.size + storage.nbytes
    for used in state.storages:
        if used.key not in places:
            places[used.key] = StorageState(used.nbytes)
            places[used.key].lose("the list of storages, which says where it lies, is lost")
        wreck.storages.append(places[used.key])
    named = {used.key for used in state.storages}
    for key, storage in state.all_storages.items():
        if key not in named:
            lost = StorageState(storage.nbytes)
            lost.lose("the list of storages, which says where it lies, is lost")
            wreck.unnamed.append(Unnamed(key, places.get(key, lost), storage.type.dtype))
    return at


def _at(source: Source, at: int, nbytes: int, numel: int) -> StorageState:
    """The state of a storage whose length should stand at ``at``."""
    state = StorageState(nbytes, at + _LENGTH.size, reason=NO_CHECKSUM)
    there = source.size - at - _LENGTH.size
    if there < nbytes:
        state.cut(there)
    elif _length_at(source, at) != numel:
        state.reason = "the length in front of it is damaged, and the format has no checksums"
    return state


def _length_at(source: Source, at: int) -> int:
    raw = read_there(source, at, _LENGTH.size)
    return int(_LENGTH.unpack(raw)[0]) if len(raw) == _LENGTH.size else -1


def _read_pickles(source: Source) -> _Pickles:
    window = _FIRST_WINDOW
    while True:
        raw = read_there(source, 0, min(window, _MAX_PICKLES))
        try:
            return _parse(raw, source)
        except PickleCutError as error:
            if len(raw) < window or window >= _MAX_PICKLES:
                return _Pickles(problem=f"the pickles are cut or damaged: {error.message}")
            window *= 4


def _parse(raw: bytes, source: Source) -> _Pickles:
    """Read the object and the list. Raises PickleCutError if the object, or all, ends beyond ``raw``."""
    result = _Pickles(problem="the magic number of a legacy torch file is damaged")
    cut: PickleCutError | None = None
    for at, problem in _starts_of_object(raw):
        try:
            state, end = read_state(raw, at)
        except PickleCutError as error:
            cut = cut or error
            continue
        except FastckptError as error:
            if not problem:
                result.problem = f"the pickles are damaged: {error.message}"
            continue
        if not problem or state.all_storages:
            return _with_list(raw, source, _Pickles(state, end=end, problem=problem))
    if cut is not None:
        raise cut
    return result


def _starts_of_object(raw: bytes) -> Iterator[tuple[int, str]]:
    """Where the pickle of the object may begin, and what that says about those before it."""
    try:
        magic, at = read_state(raw)
        _, at = read_state(raw, at)
        _, at = read_state(raw, at)
        if magic.tree == LEGACY_MAGIC:
            yield at, ""
            return
    except FastckptError:
        pass
    problem = "the magic number, or what describes the system, is damaged; the object behind them is there"
    for match in list(_PICKLE_START.finditer(raw[:_HEAD]))[:_MAX_STARTS]:
        yield match.start(), problem


def _with_list(raw: bytes, source: Source, found: _Pickles) -> _Pickles:
    """Add the list of keys that follows the object: as it stands, or as torch must have written it."""
    assert found.state is not None
    keys = sorted(found.state.all_storages)
    start = found.end
    try:
        listed, end = read_state(raw, start)
        if listed.tree == keys or (not found.problem and _is_list_of_keys(listed.tree)):
            found.keys, found.end, found.listed = list(listed.tree), end, True  # type: ignore[call-overload]
            return found
    except FastckptError:
        pass
    # torch sorts the keys, and a pickle of the same texts has the same length.
    end = start + len(pickle.dumps(keys, protocol=2))
    found.problem = "the list of storages is cut or damaged"
    if keys and _length_at(source, end) == _first_length(found.state, keys[0]):
        found.keys, found.end = keys, end
        found.problem += "; it follows from the tensors"
    return found


def _first_length(state: TorchState, key: str) -> int:
    storage = state.all_storages[key]
    return storage.nbytes // storage.type.itemsize


def _is_list_of_keys(value: object) -> bool:
    return isinstance(value, list) and all(type(key) is str for key in value) and len(set(value)) == len(value)


# --- without the object ----------------------------------------------------------


def _take_blueprint(wreck: Wreck, source: Source, blueprint: Blueprint) -> int:
    """Take the structure of another checkpoint; returns where the last storage ends."""
    wreck.tree, wreck.entries, wreck.structure = blueprint.tree, blueprint.entries, blueprint.structure
    wreck.notes += blueprint.notes
    places, alike = _places_by_length(source, blueprint)
    for number, (_, size) in enumerate(blueprint.sizes):
        state = StorageState(size)
        if number in places:
            state.offset = places[number]
            state.reason = "its place follows from its length, and the format has no checksums"
        elif size and number in alike:
            state.lose("the pickles are lost, and other storages have the same length: nothing tells which is which")
        elif size:
            state.lose(
                "the pickles that say where it lies are lost, and the lengths in the file are not those expected"
            )
        wreck.storages.append(state)
    return source.size


def _places_by_length(source: Source, blueprint: Blueprint) -> tuple[dict[int, int], set[int]]:
    """The places of the storages whose length no other one has, counted back from the end; and the other storages.

    Both are empty unless the file ends with exactly these storages, in whatever order.
    """
    itemsizes = {entry.storage: entry.itemsize for entry in blueprint.entries}
    by_length: dict[int, list[int]] = {}
    for number, (_, size) in enumerate(blueprint.sizes):
        by_length.setdefault(size // itemsizes.get(number, 1), []).append(number)
    left = {length: len(numbers) for length, numbers in by_length.items()}
    places: dict[int, int] = {}
    at = source.size - sum(_LENGTH.size + size for _, size in blueprint.sizes)
    while 0 <= at < source.size:
        length = _length_at(source, at)
        sizes = {blueprint.sizes[number][1] for number in by_length.get(length, ())}
        if len(sizes) != 1 or not left[length]:
            return {}, set()
        left[length] -= 1
        if len(by_length[length]) == 1:
            places[by_length[length][0]] = at + _LENGTH.size
        at += _LENGTH.size + sizes.pop()
    if any(left.values()) or at != source.size:
        return {}, set()
    return places, set(range(len(blueprint.sizes))) - places.keys()
