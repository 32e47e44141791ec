"""Taking stock of a damaged ``.pt``: the pickle gives all offsets, CRC-32s prove the bytes found there."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

from fastckpt.errors import UnsupportedStateError
from fastckpt.findings import Finding, Kind
from fastckpt.foreign.torch_state import TorchState
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry
from fastckpt.layout.tree import TensorRef
from fastckpt.salvaging.blueprint import Blueprint, FindBlueprint
from fastckpt.salvaging.wreck import StorageState, Wreck
from fastckpt.salvaging.zip_evidence import (
    descriptor_at,
    local_header_at,
    read_directory,
    read_there,
    search_local_headers,
)
from fastckpt.salvaging.zip_layout import (
    BIG,
    LOCAL_HEADER,
    DirectoryEntry,
    LocalHeader,
    Place,
    end_of,
    layouts,
    next_place,
)
from fastckpt.salvaging.zip_pickle import FoundPickle, find_pickle
from fastckpt.salvaging.zip_storages import Candidate, judge

_SAMPLE: Final = 48
"""Local headers looked at to tell which layout a file has."""
_PREFIX_SEARCH: Final = 2**20
"""Bytes after data.pkl in which local headers are looked for when its own is damaged."""
_STORAGE_NAME: Final = re.compile(r"([^/]+)/data/([0-9]{1,18})")


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
    directory, whole_end = read_directory(source)
    pickle = find_pickle(source, directory)
    _refuse_others(source, pickle.prefix, directory)
    blueprint = None
    candidates: list[Candidate]
    if pickle.state is not None:
        candidates = _locate(source, pickle, pickle.state, directory)
    if pickle.state is None or not pickle.proven:
        records = _search(source, pickle, directory)
        blueprint = find_blueprint({key: size for key, _, size in records if size is not None})
        if blueprint is not None or pickle.state is None:
            candidates = _from_search(source, pickle.prefix, records, blueprint)
    states = judge(source, pickle.prefix, candidates, directory, threads=threads, progress=progress)
    _relocate(source, pickle.prefix, candidates, states, directory, threads=threads)
    for state in states:
        if state.nbytes > source.size and (pickle.doubt or blueprint is not None):
            state.lose("the file ends before its end, and its size is not certain")
    if blueprint is not None:
        _take_blueprint(wreck, blueprint, states)
    elif pickle.state is not None:
        _take_state(wreck, pickle, pickle.state, candidates, states)
    else:
        _take_storages(wreck, candidates, states)
    if not pickle.proven:
        text = pickle.problem or pickle.doubt
        size = max(pickle.end - pickle.offset, 0)
        kind = Kind.UNPROVEN if pickle.not_computed else Kind.ROTTED
        lost = wreck.structure in ("none", "damaged") and kind is Kind.ROTTED
        wreck.findings.append(Finding(kind, text, pickle.offset, size, loss=lost))
    if not whole_end:
        text = "the directory that a zip archive ends with is missing or damaged; tensors are found without it"
        wreck.findings.append(Finding(Kind.MISSING, text, max(source.size - 22, 0), min(source.size, 22), loss=False))
    _report_storages(wreck, candidates, states)
    return wreck


def _refuse_others(source: Source, prefix: str, directory: dict[str, DirectoryEntry]) -> None:
    names = {name.partition("/")[2] for name in directory}
    if "constants.pkl" in names:
        raise UnsupportedStateError(
            "this is a TorchScript archive (torch.jit.save): it holds a program, not only tensors", path=source.path
        )
    entry = directory.get(f"{prefix}/byteorder")
    header = local_header_at(source, entry.header) if entry is not None else None
    if header is not None and read_there(source, header.data, 3) == b"big":
        raise UnsupportedStateError("the tensors are stored in big-endian byte order", path=source.path)


# --- where the storages are --------------------------------------------------


def _locate(
    source: Source, pickle: FoundPickle, state: TorchState, directory: dict[str, DirectoryEntry]
) -> list[Candidate]:
    """A candidate for every storage that the pickle names."""
    sizes = [(key, storage.nbytes) for key, storage in state.all_storages.items()]
    best: dict[str, Place] = {}
    best_score = -1
    sample = sizes[:: max(len(sizes) // _SAMPLE, 1)] + sizes[:4]
    prefix = pickle.prefix
    for candidate in _prefixes(source, pickle, directory):
        for layout in layouts(pickle.end + 16, candidate, sizes):
            score = sum(_evidence(source, layout[key], candidate, key, size) for key, size in sample)
            if score > best_score:
                best, best_score, prefix = layout, score, candidate
            if score == 2 * len(sample):
                break
        if best_score > len(sample):
            break
    pickle.prefix = prefix
    if best_score < len(sample) / 2:
        # Not as torch lays out: another program packed it, or most headers are lost.
        stated = _stated_places(source, pickle.prefix, sizes, directory)
        if sum(key in stated for key, _ in sample) > best_score:
            best |= stated
        elif best_score == 0 and source.size > pickle.end:
            found = {key: place for key, place, size in _search(source, pickle, directory)}
            best |= {key: place for key, place in found.items() if key in best}
    return [Candidate(key, size, best[key]) for key, size in sizes]


def _prefixes(source: Source, pickle: FoundPickle, directory: dict[str, DirectoryEntry]) -> Iterator[str]:
    """What the top directory may be called: a damaged header can have it wrong."""
    yield pickle.prefix
    if f"{pickle.prefix}/data.pkl" in directory:
        return
    votes: dict[str, int] = {}
    for name in directory:
        votes[name.partition("/")[0]] = votes.get(name.partition("/")[0], 0) + 1
    for _, header in search_local_headers(source, 0, min(pickle.end + _PREFIX_SEARCH, source.size)):
        prefix = header.name.partition("/")[0]
        votes[prefix] = votes.get(prefix, 0) + 1
    yield from sorted(votes, key=lambda prefix: -votes[prefix])[:3]


def _evidence(source: Source, place: Place, prefix: str, key: str, size: int) -> int:
    """How many witnesses say that a storage is at a place: its local header, its descriptor."""
    header = local_header_at(source, place.header)
    found = int(header is not None and header.data == place.data and _is_named(header, prefix, key))
    if not size:
        return 2 * found
    descriptor = descriptor_at(source, place.data + size, size, place.descriptor)
    return found + int(descriptor is not None and descriptor.signed)


def _is_named(header: LocalHeader, prefix: str, key: str) -> bool:
    match = _STORAGE_NAME.fullmatch(header.name)
    return match is not None and match[2] == key and (not prefix or match[1] == prefix)


def _stated_places(
    source: Source, prefix: str, sizes: Sequence[tuple[str, int]], directory: dict[str, DirectoryEntry]
) -> dict[str, Place]:
    """The places that the central directory gives, where a local header of that name stands."""
    places = {}
    for key, size in sizes:
        entry = directory.get(f"{prefix}/data/{key}")
        if entry is not None and entry.size == size and entry.method == 0:
            header = local_header_at(source, entry.header)
            if header is not None and _is_named(header, prefix, key):
                places[key] = Place(entry.header, header.data, 16)
    return places


_Found = tuple[str, Place, int | None]
"""Key, place and (if anything tells) size of a storage."""


def _search(source: Source, pickle: FoundPickle, directory: dict[str, DirectoryEntry]) -> list[_Found]:
    """The storages that local headers announce, in file order. Sizes come from directory or descriptors."""
    headers = [(at, header) for at, header in search_local_headers(source)]
    by_offset = {entry.header: entry for entry in directory.values()}
    votes: dict[str, int] = {}
    for _, header in headers:
        if match := _STORAGE_NAME.fullmatch(header.name):
            votes[match[1]] = votes.get(match[1], 0) + 1
    if not pickle.prefix and votes:
        pickle.prefix = max(votes, key=lambda prefix: votes[prefix])
    known = {at for at, _ in headers}
    for entry in directory.values():
        # A record whose local header is lost, but not its place in the directory.
        match = _STORAGE_NAME.fullmatch(entry.name)
        if match and match[1] == pickle.prefix and entry.header not in known:
            data = next_place(entry.header, entry.name, entry.size).data
            headers.append((entry.header, LocalHeader(entry.name, data, 0, entry.method, entry.crc, entry.size)))
    headers.sort(key=lambda item: item[0])
    found: list[_Found] = []
    end = 0
    for number, (at, stated) in enumerate(headers):
        there = by_offset.get(at)
        # Of a name in two places, that in the directory has not been touched by what damaged the header.
        header = stated._replace(name=there.name) if there is not None else stated
        match = _STORAGE_NAME.fullmatch(header.name)
        if match is None or match[1] != pickle.prefix or at < end or header.method:
            continue
        size, width = _size_of(source, header, there, [at for at, _ in headers[number + 1 : number + 9]])
        found.append((match[2], Place(at, header.data, width), size))
        if size is not None:
            end = header.data + size
    return found


def _size_of(
    source: Source, header: LocalHeader, entry: DirectoryEntry | None, following: Sequence[int]
) -> tuple[int | None, int]:
    """Size of a record and of the descriptor behind it, as far as anything tells."""
    if entry is not None and entry.name == header.name:
        return entry.size, 16
    for at in following:
        for width in (16, 24):
            size = at - width - header.data
            if size > 0:
                descriptor = descriptor_at(source, header.data + size, size, width)
                if descriptor is not None and descriptor.signed:
                    return size, width
        if at == header.data:
            return 0, 0
    return None, 16


def _from_search(
    source: Source, prefix: str, records: Sequence[_Found], blueprint: Blueprint | None
) -> list[Candidate]:
    """Candidates for storages that were found by their headers."""
    if blueprint is None:
        # A damaged header can have the number of another record: the one with a descriptor counts.
        best = {key: (key, place, size) for key, place, size in reversed(records) if size is not None}
        ordered = sorted(best.values(), key=lambda record: (len(record[0]), record[0]))
        return [Candidate(key, size, place) for key, place, size in ordered if size is not None]
    found: dict[str, list[Place]] = {}
    for key, place, _ in records:
        found.setdefault(key, []).append(place)
    chosen: dict[str, tuple[int, Place]] = {}

    def consider(key: str, size: int, *options: Place | None) -> None:
        """Keep the place of a storage for which most witnesses speak."""
        for place in options:
            if place is not None and place.header >= 0:
                score = _evidence(source, place, prefix, key, size)
                if key not in chosen or score > chosen[key][0]:
                    chosen[key] = (score, place)

    # A record whose own header is lost follows the one before it, and ends where the one after it begins.
    before: Place | None = None
    for key, size in blueprint.sizes:
        follows = next_place(before.header, f"{prefix}/data/{key}", size) if before is not None else None
        consider(key, size, follows, *found.get(key, ()))
        before = Place(end_of(chosen[key][1], size), 0, 0) if key in chosen else None
    after: Place | None = None
    for key, size in reversed(blueprint.sizes):
        if after is not None and (key not in chosen or chosen[key][0] == 0) and size:
            width = 24 if max(size, after.header) >= BIG else 16
            data = after.header - width - size
            consider(key, size, Place(data - LOCAL_HEADER.size - len(f"{prefix}/data/{key}") - 4, data, width))
        after = chosen[key][1] if key in chosen else None
    return [Candidate(key, size, chosen[key][1] if key in chosen else None) for key, size in blueprint.sizes]


def _relocate(
    source: Source,
    prefix: str,
    candidates: list[Candidate],
    states: list[StorageState],
    directory: dict[str, DirectoryEntry],
    *,
    threads: int,
) -> None:
    """Look for storages that are not where they should be: bytes were put in or taken out before them."""
    absent = {}
    for number, (candidate, state) in enumerate(zip(candidates, states, strict=True)):
        place = candidate.place
        if not state.proven and not candidate.is_witnessed and place is not None and place.header < source.size:
            absent[candidate.key] = number
    if not absent:
        return
    whole = sorted((s.offset or 0, (s.offset or 0) + s.nbytes) for s in states if s.proven and s.nbytes)
    first = min(candidates[number].place.header for number in absent.values())  # type: ignore[union-attr]
    start = max((end for _, end in whole if end <= first), default=0)
    starts = [begin for begin, _ in whole]
    moved: dict[int, Candidate] = {}
    for at, header in search_local_headers(source, start):
        match = _STORAGE_NAME.fullmatch(header.name)
        if match is None or match[1] != prefix or match[2] not in absent:
            continue
        inside = bisect_right(starts, at) - 1
        if inside >= 0 and at < whole[inside][1]:
            continue  # It is in the bytes of a tensor.
        number = absent[match[2]]
        width = 24 if max(candidates[number].nbytes, at) >= BIG else 16
        moved.setdefault(number, Candidate(match[2], candidates[number].nbytes, Place(at, header.data, width)))
    numbers = sorted(moved)
    found = judge(source, prefix, [moved[n] for n in numbers], directory, threads=threads, progress=None)
    for number, state in zip(numbers, found, strict=True):
        # A header by itself may have been moved without its data.
        if state.proven:
            candidates[number], states[number] = moved[number], state


# --- what they are ------------------------------------------------------------


def _take_state(
    wreck: Wreck, pickle: FoundPickle, state: TorchState, candidates: Sequence[Candidate], states: list[StorageState]
) -> None:
    by_key = {candidate.key: found for candidate, found in zip(candidates, states, strict=True)}
    wreck.tree, wreck.entries = state.tree, state.entries
    wreck.storages = [by_key[storage.key] for storage in state.storages]
    wreck.structure = "whole" if pickle.proven else "damaged"
    wreck.doubt = pickle.doubt
    for path, name in state.opaque[:20]:
        wreck.notes.append(f"{path} is a {name}: it was not imported or run, and is left out")


def _take_blueprint(wreck: Wreck, blueprint: Blueprint, states: list[StorageState]) -> None:
    wreck.tree, wreck.entries, wreck.storages = blueprint.tree, blueprint.entries, states
    wreck.structure = blueprint.structure
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
            if len(candidate.stated_crcs()) > 1:
                text = (
                    f"data/{candidate.key} ({shown or 'no tensor'}): its descriptor and the directory state different "
                    "CRC-32s, and one matches: one of them is damaged, or parts of two saves stand in the file"
                )
                wreck.findings.append(Finding(Kind.INCONSISTENT, text, offset, size, tensors=tensors, loss=False))
            continue
        kind = state.holes[0].kind if state.holes else Kind.UNPROVEN
        text = f"data/{candidate.key} ({shown or 'no tensor'}): {state.reason}"
        wreck.findings.append(Finding(kind, text, offset, size, tensors=tensors, loss=bool(state.holes and tensors)))
    disputed = sum(candidate.is_disputed for candidate in candidates)
    if disputed:
        text = f"the directory states other checksums than stand behind {disputed} tensors: the file mixes two saves"
        wreck.findings.append(Finding(Kind.INCONSISTENT, text, max(wreck.size - 22, 0), 0, loss=False))
        wreck.notes.append(text)
    wreck.findings.sort(key=lambda finding: (finding.offset, finding.size))
