"""Taking stock of a damaged ``.fckpt``: any one copy of the structure is enough, every leaf is checked."""

from __future__ import annotations

from fastckpt.codec.registry import codec_for_reading
from fastckpt.constants import CODEC_NONE, LEAF_SIZE
from fastckpt.errors import FastckptError, UnsupportedVersionError
from fastckpt.fckpt.bad_ranges import BadRange, findings_of
from fastckpt.fckpt.losses import find_cuts, find_lost, whole_prefix
from fastckpt.fckpt.payload import Reading, Target, read_targets
from fastckpt.fckpt.remains import Remains, find_alternates
from fastckpt.fckpt.saves import belongs, records_of_one_save
from fastckpt.fckpt.shifted import scan_shifted
from fastckpt.findings import UNSETTLED, Finding, Kind
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry, by_storage, check_entry
from fastckpt.layout.manifest import Manifest
from fastckpt.layout.records import Record
from fastckpt.layout.tree import TensorRef, decode_tree
from fastckpt.surveying.holes import Hole, Holes, merge_holes
from fastckpt.surveying.wreck import StorageState, Wreck


def survey_fckpt(source: Source, *, threads: int, progress: Progress | None) -> Wreck:
    """What stands of a ``.fckpt`` file.

    Raises:
        UnsupportedVersionError: It needs a newer fastckpt.
    """
    remains = scan_shifted(source, threads=threads)
    wreck = Wreck(source.path, "fckpt", source.size)
    _take_structure(wreck, remains)
    records = [record for _, record in sorted(remains.records.items())]
    # Holes by record number, in its raw bytes.
    holes: dict[int, list[Hole]] = {record.number: _cut_off(record, source.size) for record in records}
    leaves: dict[int, list[int]] = {}
    targets = [Target(record, 0, whole_prefix(record, source.size), None) for record in _readable(records, wreck)]
    damage = read_targets(source, targets, Reading(threads, progress=progress))
    for bad in damage:
        holes[bad.record.number].append(_hole_of(bad))
        leaves.setdefault(bad.record.number, []).extend(range(bad.leaf, bad.leaf + bad.leaves))
    wreck.findings += findings_of(damage)
    wreck.findings += remains.findings
    wreck.findings += find_cuts(remains, source.size)
    wreck.findings += find_lost(remains, source.size)
    wreck.findings.sort(key=lambda finding: (finding.offset, finding.size))
    for _, record in sorted(remains.records.items()):
        states = [wreck.storages[packed.storage] for packed in record.storages]
        _mark_storages(states, record, merge_holes(holes[record.number]), leaves.get(record.number, []))
    if remains.footer is None and any(bad.kind is Kind.ROTTED for bad in damage):
        find_alternates(source, remains, threads=threads)
    one_save = set(remains.records) if remains.named else records_of_one_save(remains.records)
    if not remains.named and any(record.links is None for record in records):
        # Those of version 1 do not say what they were written behind.
        wreck.unsettled = UNSETTLED
        wreck.findings.append(Finding(Kind.UNPROVEN, UNSETTLED, source.size, 0, loss=False))
    _name_strangers(wreck, remains, one_save)
    _settle(source, wreck, remains, one_save, threads=threads)
    return wreck


NOT_SHOWN = "it is not shown to be of the same save as most of the file"


def _name_strangers(wreck: Wreck, remains: Remains, one_save: set[int]) -> None:
    """Records of two saves in one file: each may be whole, but they are not one state."""
    strangers = sorted(remains.records.keys() - one_save)
    on_storage = by_storage(wreck.entries) if strangers else {}
    for number in strangers:
        record = remains.records[number]
        for packed in record.storages:
            _doubt(wreck.storages[packed.storage])
        held = sorted({packed.storage for packed in record.storages})
        names = tuple(entry.name for storage in held for entry in on_storage.get(storage, ()))
        message = f"record {number} is not shown to be of the same save as most of the file"
        wreck.findings.append(Finding(Kind.INCONSISTENT, message, *record.header, record=number, tensors=names))
    wreck.findings.sort(key=lambda finding: (finding.offset, finding.size))


def _doubt(state: StorageState) -> None:
    state.proven = False
    state.reason = f"{state.reason}; {NOT_SHOWN}" if state.reason else NOT_SHOWN


def _settle(source: Source, wreck: Wreck, remains: Remains, one_save: set[int], *, threads: int) -> None:
    """Where a header and its mirror are of different saves, take storages of which the mirror proves more."""
    pairs = [(number, other) for number, others in sorted(remains.alternates.items()) for other in others]
    for number, other in pairs:
        own = remains.records.get(number)
        states = [] if own is None else [(packed, wreck.storages[packed.storage]) for packed in own.storages]
        if own is None or other.storages != own.storages or all(not state.holes for _, state in states):
            continue
        holes = _cut_off(other, source.size)
        leaves: list[int] = []
        for bad in read_targets(source, [Target(other, 0, whole_prefix(other, source.size), None)], Reading(threads)):
            holes.append(_hole_of(bad))
            leaves.extend(range(bad.leaf, bad.leaf + bad.leaves))
        theirs = [StorageState(packed.nbytes) for packed, _ in states]
        _mark_storages(theirs, other, merge_holes(holes), leaves)
        taken = 0
        for (packed, state), their in zip(states, theirs, strict=True):
            if _missing(their) < _missing(state):
                if not belongs(other, one_save, remains.records):
                    _doubt(their)
                wreck.storages[packed.storage] = their
                taken += 1
        if taken:
            wreck.notes.append(
                f"record {number} is a mixture of two saves: {taken} of its {len(states)} storages are those of the "
                "save that the index belongs to"
            )


def _missing(state: StorageState) -> int:
    """Bytes of a storage that are not proven."""
    return sum(hole.end - hole.start for hole in state.holes)


def _hole_of(bad: BadRange) -> Hole:
    start = bad.leaf * LEAF_SIZE
    return Hole(start, min(start + bad.leaves * LEAF_SIZE, bad.record.raw_size), bad.kind)


def _readable(records: list[Record], wreck: Wreck) -> list[Record]:
    """The records whose codecs are known; the others are noted and their storages lost."""
    readable = []
    for record in records:
        try:
            for codec in {chunk.codec for chunk in record.chunks} - {CODEC_NONE}:
                codec_for_reading(codec)
        except UnsupportedVersionError as error:
            wreck.notes.append(f"record {record.number} is left out: {error.message}")
            for storage in record.storages:
                wreck.storages[storage.storage].lose("its codec needs a newer fastckpt")
            continue
        readable.append(record)
    return readable


def _cut_off(record: Record, file_size: int) -> list[Hole]:
    there = whole_prefix(record, file_size)
    return [Hole(there, record.raw_size, Kind.MISSING)] if there < record.raw_size else []


def _take_structure(wreck: Wreck, remains: Remains) -> None:
    """Names, shapes and nesting: from the manifest, or flat from the entry tables of the headers."""
    manifest = remains.manifest
    if manifest is not None:
        try:
            _take_manifest(wreck, manifest)
        except FastckptError as error:
            wreck.findings.append(Finding(Kind.INCONSISTENT, f"the manifest contradicts itself: {error.message}", 0, 0))
            manifest = None
        else:
            _refuse_strangers(wreck, manifest, remains)
            return
    entries: list[Entry] = []
    numbers: dict[int, int] = {}
    states: list[StorageState] = []
    for _, record in sorted(remains.records.items()):
        for packed in record.storages:
            if packed.storage not in numbers:
                numbers[packed.storage] = len(states)
                states.append(StorageState(packed.nbytes, reason="its record is lost"))
    sizes = {number: states[place].nbytes for number, place in numbers.items()}
    names: set[str] = set()
    for _, record in sorted(remains.records.items()):
        try:
            found = [entry for entry in record.entries if entry.storage in sizes]
            for entry in found:
                check_entry(entry._replace(storage=0), [sizes[entry.storage]])
        except FastckptError as error:
            message = f"the entries of record {record.number} contradict its storages: {error.message}"
            wreck.findings.append(Finding(Kind.INCONSISTENT, message, *record.header, record=record.number))
            continue
        entries += [entry for entry in found if entry.name not in names]
        names.update(entry.name for entry in found)
    # Storages are numbered by first use, so this is about the order of the state.
    entries.sort(key=lambda entry: entry.storage)
    wreck.entries = [entry._replace(storage=numbers[entry.storage]) for entry in entries]
    wreck.storages = states
    wreck.tree = {entry.name: TensorRef(index) for index, entry in enumerate(wreck.entries)}
    wreck.structure = "from index/header" if remains.records else "none"
    wreck.is_open = bool(remains.records)
    for record in [*remains.records.values(), *(other for others in remains.alternates.values() for other in others)]:
        record.storages = [p._replace(storage=numbers.get(p.storage, -1)) for p in record.storages]
    if remains.records:
        wreck.notes.append(
            "no manifest is whole: tensors come back under their flat names, without nesting, plain values and metadata"
        )


def _take_manifest(wreck: Wreck, manifest: Manifest) -> None:
    entries = manifest.checked_entries()
    wreck.tree = decode_tree(manifest.tree, len(entries))
    wreck.metadata = manifest.metadata
    wreck.entries = entries
    wreck.storages = [StorageState(place.nbytes) for place in manifest.storages]
    for state in wreck.storages:
        state.lose("its record is lost")
    wreck.structure = "whole"


def _refuse_strangers(wreck: Wreck, manifest: Manifest, remains: Remains) -> None:
    """Leave out records that contradict the manifest."""
    for number, record in list(remains.records.items()):
        for packed in record.storages:
            place = (packed.nbytes, packed.offset, number)
            if packed.storage >= len(manifest.storages) or manifest.storages[packed.storage] != place:
                message = f"record {number} and the manifest disagree about storage {packed.storage}"
                wreck.findings.append(Finding(Kind.INCONSISTENT, message, *record.header, record=number))
                del remains.records[number]
                break


def _mark_storages(states: list[StorageState], record: Record, holes: list[Hole], leaves: list[int]) -> None:
    in_record, bad_leaves = Holes(holes), sorted(set(leaves))
    for packed, state in zip(record.storages, states, strict=True):
        if state.record is not None or state.reason.startswith("its codec"):
            continue
        start, end = packed.offset, packed.offset + packed.nbytes
        state.record, state.record_offset = record, start
        state.offset = record.payload.offset + start if record.is_raw else None
        state.proven = True
        state.holes = [
            hole._replace(start=max(hole.start, start) - start, end=min(hole.end, end) - start)
            for hole in in_record.within(start, end)
        ]
        state.bad_leaves = bad_leaves
        state.reason = _reason(state)


def _reason(state: StorageState) -> str:
    kinds = {hole.kind for hole in state.holes}
    texts = {
        Kind.MISSING: "the file ends before its end",
        Kind.TORN: "parts were never written (zeros)",
        Kind.ROTTED: "parts are not what was written",
        Kind.UNREADABLE: "parts cannot be read",
    }
    return ", ".join(text for kind, text in texts.items() if kind in kinds)
