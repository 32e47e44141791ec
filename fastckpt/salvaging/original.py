"""A rescued ``.pt`` with the structure of the damaged one, as its own bytes.

A pickle that matches its CRC-32 says all that was saved, also what fastckpt does not understand: namespaces, states of
random number generators, tensors of other kinds, whole modules. Written again, it would lose that. So it is kept, with
every storage that it refers to. What was not to come back is filled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from fastckpt.findings import Kind
from fastckpt.layout.entries import Entry, by_storage
from fastckpt.salvaging.plain import has_values
from fastckpt.salvaging.selection import Part, Selection
from fastckpt.surveying.fates import THERE, Status
from fastckpt.surveying.holes import Hole
from fastckpt.surveying.wreck import StorageState, Wreck, storage_status
from fastckpt.text import some


def keep_original(selection: Selection, wreck: Wreck, include: Collection[Status], donor: Wreck | None) -> None:
    """Let a selection be all of the file with its own pickle, where the selection alone would lose something.

    Without anything that is not understood, tensors that are not whole are left out of the structure as chosen, so
    that no one trains on filled ones without having asked for it.
    """
    original = wreck.original
    if original is None:
        return
    understood = not wreck.opaque and not wreck.unnamed and not has_values(wreck.tree)
    if understood and (len(selection.entries) < len(wreck.entries) or selection.backfilled):
        return
    numbers = {key: number for number, key in enumerate(original.order)}
    users = by_storage(wreck.entries)
    parts: dict[str, Part] = {}
    filled: list[str] = []
    backfilled: dict[str, str] = {}
    for storage, key in enumerate(original.keys):
        entries, state = users[storage], wreck.storages[storage]
        if _is_wanted(state, include):
            parts[key] = Part(wreck, state)
            continue
        instead = _same_in(donor, entries, state.nbytes) if donor is not None else None
        if donor is not None and instead is not None:
            parts[key] = Part(donor, donor.storages[instead])
            backfilled.update((entry.name, donor.path) for entry in entries)
            continue
        parts[key] = Part(wreck, _emptied(state))
        filled += [entry.name for entry in entries]
    for unnamed in wreck.unnamed:
        wanted = _is_wanted(unnamed.state, include)
        parts[unnamed.key] = Part(wreck, unnamed.state if wanted else _emptied(unnamed.state), unnamed.dtype)
        filled += [] if wanted else [f"data/{unnamed.key}, which no tensor names"]
    selection.tree = wreck.tree
    selection.entries = [entry._replace(storage=numbers[original.keys[entry.storage]]) for entry in wreck.entries]
    selection.pieces = [parts[key] for key in original.order]
    selection.backfilled = backfilled
    selection.original = original
    selection.notes = []
    if filled:
        selection.notes.append(
            f"the structure is kept as it was saved; what is lost in it is filled: {some(filled, 5)}"
        )


def _is_wanted(state: StorageState, include: Collection[Status]) -> bool:
    """Whether a storage comes back as it stands. What nothing disproves does: to fill it would lose it."""
    status = storage_status(state)
    return status in THERE or status in include


def _emptied(state: StorageState) -> StorageState:
    """The same storage with nothing left of it."""
    return replace(state, proven=False, holes=[Hole(0, state.nbytes, Kind.MISSING)])


def _same_in(donor: Wreck, entries: Iterable[Entry], nbytes: int) -> int | None:
    """The storage of another checkpoint that has the same tensors at the same places, whole; None if none has."""
    theirs = {entry.name: entry for entry in donor.entries}
    found = {theirs[entry.name].storage if entry.name in theirs else -1 for entry in entries}
    if len(found) != 1 or -1 in found:
        return None
    (storage,) = found
    same = all(theirs[entry.name]._replace(storage=0) == entry._replace(storage=0) for entry in entries)
    state = donor.storages[storage]
    return storage if same and state.nbytes == nbytes and not state.holes else None
