"""Taking stock of a damaged ``.pt``: the pickle gives all offsets, CRC-32s prove the bytes found there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fastckpt.errors import UnsupportedStateError
from fastckpt.findings import Finding, Kind
from fastckpt.foreign.torch_state import TorchState
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.io.unreadable import can_read, read_there
from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import TensorRef
from fastckpt.surveying.blueprint import Blueprint, FindBlueprint
from fastckpt.surveying.torch_zip.evidence import Archive, local_header_at, read_directory, search_local_headers
from fastckpt.surveying.torch_zip.pickle import FoundPickle, find_pickle
from fastckpt.surveying.torch_zip.places import announced, arithmetic_places, find_storages, listed_places
from fastckpt.surveying.torch_zip.storages import Candidate, Sums
from fastckpt.surveying.wreck import Original, StorageState, Unnamed, Wreck

_BYTE_ORDER: Final = "/byteorder"
_NEAR: Final = 2**20
"""Bytes behind data.pkl in which the record with the byte order is looked for."""


def survey_torch_zip(
    source: Source, find_blueprint: FindBlueprint, *, threads: int, progress: Progress | None
) -> Wreck:
    """What stands of a torch zip archive.

    Args:
        source: The file.
        find_blueprint: Gives the structure of another checkpoint in which storages of these keys and sizes fit.
        threads: Worker threads.
        progress: Told of the bytes verified so far.

    Raises:
        UnsupportedStateError: TorchScript, or tensors in big-endian byte order.
    """
    wreck = Wreck(source.path, "torch-zip", source.size)
    archive = Archive(source, *read_directory(source))
    pickle = find_pickle(source, archive.directory)
    archive.prefix = pickle.prefix
    _refuse_others(archive, pickle)
    found = {} if pickle.state is not None and not pickle.contradicted else announced(archive)
    blueprint = _other_structure(wreck, pickle, found, find_blueprint)
    if blueprint is not None:
        sizes = blueprint.sizes
    elif pickle.state is not None:
        sizes = _sizes_in(pickle.state)
    else:
        sizes = list(found.items())
    known = pickle.state is not None
    first = arithmetic_places(archive, pickle, sizes) if known else listed_places(archive, sizes)
    sums = Sums(archive, threads=threads, progress=progress)
    # Of storages known only by what was found of them, some may be missing in between.
    in_order = blueprint is not None or known
    candidates, states = find_storages(archive, sizes, first, sums, in_order=in_order)
    for state in states:
        if state.nbytes > source.size and (pickle.doubt or blueprint is not None):
            state.lose("the file ends before its end, and its size is not certain")
    if blueprint is not None:
        _take_blueprint(wreck, blueprint, states)
    elif pickle.state is not None:
        _take_state(wreck, archive, pickle, pickle.state, candidates, states)
    else:
        _take_storages(wreck, candidates, states)
    if not pickle.proven:
        text = pickle.problem or pickle.doubt
        size = max(pickle.end - pickle.offset, 0)
        kind = Kind.UNPROVEN if pickle.not_computed else Kind.ROTTED
        if not can_read(source, pickle.offset, max(size, 1)):
            kind, text = Kind.UNREADABLE, "data.pkl, which has names, shapes and dtypes, cannot be read"
        lost = wreck.structure in ("none", "damaged") and kind is not Kind.UNPROVEN
        wreck.findings.append(Finding(kind, text, pickle.offset, size, loss=lost))
    if not archive.whole_directory:
        text = "the directory that a zip archive ends with is missing or damaged; tensors are found without it"
        wreck.findings.append(Finding(Kind.MISSING, text, max(source.size - 22, 0), min(source.size, 22), loss=False))
    _report_storages(wreck, candidates, states)
    return wreck


def _refuse_others(archive: Archive, pickle: FoundPickle) -> None:
    names = {name.partition("/")[2] for name in archive.directory}
    source = archive.source
    if "constants.pkl" in names:
        raise UnsupportedStateError(
            "this is a TorchScript archive (torch.jit.save): it holds a program, not only tensors", path=source.path
        )
    entry = archive.directory.get(f"{archive.prefix}/byteorder")
    header = local_header_at(source, entry.header) if entry is not None else None
    if header is None or not header.name.endswith(_BYTE_ORDER):
        # A cut file has no directory; torch has this record between data.pkl and the storages.
        near = search_local_headers(source, 0, min(pickle.end + _NEAR, source.size))
        header = next((found for _, found in near if found.name.endswith(_BYTE_ORDER)), None)
    if header is not None and read_there(source, header.data, 3) == b"big":
        raise UnsupportedStateError(
            "the tensors are stored in big-endian byte order; fastckpt salvages little-endian files",
            path=source.path,
            next_step="copy the file to a machine where torch can load it, and save it there again",
        )


def _sizes_in(state: TorchState) -> list[tuple[str, int]]:
    return [(key, storage.nbytes) for key, storage in state.all_storages.items()]


def _other_structure(
    wreck: Wreck, pickle: FoundPickle, found: Mapping[str, int], find_blueprint: FindBlueprint
) -> Blueprint | None:
    """The structure of another checkpoint, where data.pkl is lost or wrong.

    A pickle that nothing proves and nothing contradicts stands; another checkpoint may confirm it.
    """
    if pickle.proven or pickle.not_computed:
        return None
    state = pickle.state
    if state is None or pickle.contradicted:
        return find_blueprint(found, wreck.notes)
    blueprint = find_blueprint(dict(_sizes_in(state)), wreck.notes)
    if blueprint is None or not _is_same(state, blueprint):
        return blueprint
    pickle.doubt = ""
    wreck.notes.append(
        "nothing proves data.pkl; its names, shapes and dtypes are also those of another checkpoint of this kind, "
        "but plain values (such as lr and step) are only its own"
    )
    return None


def _is_same(state: TorchState, blueprint: Blueprint) -> bool:
    """Whether a pickle and another checkpoint have the same tensors in the same storages."""
    own = [(e, state.storages[e.storage].key) for e in state.entries]
    theirs = [(e, blueprint.sizes[e.storage][0]) for e in blueprint.entries]
    return sorted((key, e._replace(storage=0)) for e, key in own) == sorted(
        (key, e._replace(storage=0)) for e, key in theirs
    )


# --- what they are ------------------------------------------------------------


def _take_state(
    wreck: Wreck,
    archive: Archive,
    pickle: FoundPickle,
    state: TorchState,
    candidates: Sequence[Candidate],
    states: list[StorageState],
) -> None:
    by_key = {candidate.key: found for candidate, found in zip(candidates, states, strict=True)}
    wreck.tree, wreck.entries = state.tree, state.entries
    wreck.storages = [by_key[storage.key] for storage in state.storages]
    wreck.structure = "damaged" if pickle.contradicted else "whole"
    wreck.doubt = pickle.doubt
    wreck.opaque = state.opaque
    keys = [storage.key for storage in state.storages]
    named = set(keys)
    wreck.unnamed = [
        Unnamed(key, by_key[key], storage.type.dtype) for key, storage in state.all_storages.items() if key not in named
    ]
    if pickle.proven:
        raw = read_there(archive.source, pickle.offset, pickle.end - pickle.offset)
        wreck.original = Original(raw, keys, list(state.all_storages))


def _take_blueprint(wreck: Wreck, blueprint: Blueprint, states: list[StorageState]) -> None:
    wreck.tree, wreck.entries, wreck.storages = blueprint.tree, blueprint.entries, states
    wreck.structure = blueprint.structure
    wreck.doubt = blueprint.doubt
    wreck.notes += blueprint.notes


def _take_storages(wreck: Wreck, candidates: Sequence[Candidate], states: list[StorageState]) -> None:
    """No structure at all: the storages are listed under their keys, as bytes."""
    wreck.storages = states
    wreck.entries = [
        Entry(f"data/{candidate.key}", "uint8", (candidate.nbytes,), (1,), number, 0)
        for number, candidate in enumerate(candidates)
    ]
    wreck.tree = {entry.name: TensorRef(number) for number, entry in enumerate(wreck.entries)}
    wreck.structure = "none"
    if candidates:
        wreck.notes.append(
            "nothing tells names, shapes and dtypes: storages are listed by number, as bytes; "
            "name a checkpoint of the same structure with --like"
        )


def _report_storages(wreck: Wreck, candidates: Sequence[Candidate], states: Sequence[StorageState]) -> None:
    names: dict[int, list[str]] = {}
    for entry in wreck.entries:
        names.setdefault(id(wreck.storages[entry.storage]), []).append(entry.name)
    for candidate, state in zip(candidates, states, strict=True):
        tensors = tuple(names.get(id(state), ()))
        shown = ", ".join(tensors[:3]) + (f" and {len(tensors) - 3} more" if len(tensors) > 3 else "")
        offset = min(state.offset if state.offset is not None else wreck.size, wreck.size)
        size = min(state.nbytes, wreck.size - offset)
        if state.proven:
            if candidate.nbytes and not candidate.named:
                text = f"the local header of data/{candidate.key} is damaged; its place follows from the sizes"
                at = candidate.place.header if candidate.place is not None else offset
                wreck.findings.append(Finding(Kind.ROTTED, text, at, offset - at, loss=False))
            if candidate.is_disputed:
                text = (
                    f"data/{candidate.key} ({shown or 'no tensor'}): the descriptor behind it has another CRC-32 than "
                    "the directory, which matches"
                )
                wreck.findings.append(Finding(Kind.INCONSISTENT, text, offset, size, tensors=tensors, loss=False))
            continue
        kind = state.holes[0].kind if state.holes else Kind.UNPROVEN
        text = f"data/{candidate.key} ({shown or 'no tensor'}): {state.reason}"
        wreck.findings.append(Finding(kind, text, offset, size, tensors=tensors, loss=bool(state.holes)))
    disputed = sum(c.is_disputed and not state.proven for c, state in zip(candidates, states, strict=True))
    if disputed > 1:
        wreck.notes.append(
            f"the directory states other checksums than stand behind {disputed} tensors: the file mixes two saves"
        )
    wreck.findings.sort(key=lambda finding: (finding.offset, finding.size))
