"""Taking stock of a damaged legacy ``.pt``: no checksums, but every place follows from the pickles."""

from __future__ import annotations

from fastckpt.errors import FastckptError
from fastckpt.findings import Finding, Kind
from fastckpt.foreign.pickle_input import PickleCutError
from fastckpt.foreign.sniff import LEGACY_MAGIC
from fastckpt.foreign.torch_state import TorchState, read_state
from fastckpt.io.source import Source
from fastckpt.salvaging.blueprint import FindBlueprint
from fastckpt.salvaging.wreck import Hole, StorageState, Wreck
from fastckpt.salvaging.zip_evidence import read_there

_FIRST_WINDOW = 4 * 2**20
_MAX_PICKLES = 64 * 2**20
_LENGTH_SIZE = 8
_NO_CHECKSUM = "the format has no checksums"


def survey_torch_legacy(source: Source, find_blueprint: FindBlueprint) -> Wreck:
    """What stands of a legacy torch file. Nothing in it is ever proven."""
    wreck = Wreck(source.path, "torch-legacy", source.size, doubt=_NO_CHECKSUM)
    state, keys, at, problem = _read_pickles(source)
    if problem:
        wreck.findings.append(Finding(Kind.MISSING, problem, min(at, source.size), 0, loss=True))
    if state is None:
        blueprint = find_blueprint({})
        if blueprint is not None:
            wreck.tree, wreck.entries, wreck.structure = blueprint.tree, blueprint.entries, blueprint.structure
            wreck.storages = [StorageState(size) for _, size in blueprint.sizes]
            for place in wreck.storages:
                place.lose("the pickles that say where it lies are lost")
        return wreck
    wreck.structure = "whole"
    wreck.tree, wreck.entries = state.tree, state.entries
    for path, name in state.opaque[:20]:
        wreck.notes.append(f"{path} is a {name}: it was not imported or run, and is left out")
    found: dict[str, StorageState] = {}
    for key in keys:
        storage = state.all_storages.get(key)
        if storage is None:
            wreck.findings.append(Finding(Kind.INCONSISTENT, f"the storage {key[:80]!r} belongs to no tensor", at, 0))
            break
        found[key] = _at(source, at, storage.nbytes, storage.nbytes // storage.type.itemsize)
        at += _LENGTH_SIZE + storage.nbytes
    for used in state.storages:
        if used.key not in found:
            found[used.key] = StorageState(used.nbytes)
            found[used.key].lose("the list of storages, which says where it lies, is lost")
        wreck.storages.append(found[used.key])
    for number, place in enumerate(wreck.storages):
        names = tuple(entry.name for entry in wreck.entries if entry.storage == number)
        if place.holes:
            offset = min(place.offset or source.size, source.size)
            text = f"{', '.join(names[:3])}: {place.reason}"
            size = min(place.nbytes, source.size - offset)
            wreck.findings.append(Finding(place.holes[0].kind, text, offset, size, tensors=names))
    if at < source.size and not problem:
        wreck.findings.append(
            Finding(
                Kind.INCONSISTENT, f"{source.size - at} bytes follow the last storage", at, source.size - at, loss=False
            )
        )
    return wreck


def _at(source: Source, at: int, nbytes: int, numel: int) -> StorageState:
    """The state of a storage whose length should stand at ``at``."""
    state = StorageState(nbytes, at + _LENGTH_SIZE, reason=_NO_CHECKSUM)
    there = source.size - at - _LENGTH_SIZE
    if there <= 0 and nbytes:
        state.lose("the file ends before it")
    elif there < nbytes:
        state.holes = [Hole(there, nbytes, Kind.MISSING)]
        state.reason = f"the file ends inside it: {there} of {nbytes} bytes are there, unproven"
    elif read_there(source, at, _LENGTH_SIZE) != numel.to_bytes(_LENGTH_SIZE, "little", signed=True):
        state.reason = "the length in front of it is damaged, and the format has no checksums"
    return state


def _read_pickles(source: Source) -> tuple[TorchState | None, list[str], int, str]:
    """The object, the storage keys in file order, where the first storage begins, and what is wrong with them."""
    window = _FIRST_WINDOW
    while True:
        raw = read_there(source, 0, min(window, _MAX_PICKLES))
        state: TorchState | None = None
        at = 0
        try:
            magic, at = read_state(raw)
            _, at = read_state(raw, at)
            _, at = read_state(raw, at)
            if magic.tree != LEGACY_MAGIC:
                return None, [], 0, "the magic number of a legacy torch file is damaged"
            state, at = read_state(raw, at)
            listed, at = read_state(raw, at)
        except PickleCutError as error:
            if len(raw) < window or window >= _MAX_PICKLES:
                return state, [], at, f"the pickles are cut or damaged: {error.message}"
            window *= 4
        except FastckptError as error:
            return state, [], at, f"the pickles are damaged: {error.message}"
        else:
            keys = listed.tree
            if not isinstance(keys, list) or not all(type(key) is str for key in keys) or len(set(keys)) != len(keys):
                return state, [], at, "the list of storage keys is damaged"
            return state, keys, at, ""
