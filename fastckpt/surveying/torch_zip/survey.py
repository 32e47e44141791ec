"""Taking stock of a damaged ``.pt``, which may hold several archives: each by itself, then all as one state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from fastckpt.findings import UNSETTLED, Finding, Kind
from fastckpt.foreign.last_record import CONTRADICTED
from fastckpt.foreign.torch_zip import name_in_row
from fastckpt.foreign.zip_account import unaccounted
from fastckpt.io.part import Part
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.layout.tree import TensorRef
from fastckpt.layout.walk import map_tensors
from fastckpt.surveying.blueprint import FindBlueprint
from fastckpt.surveying.torch_zip.archives import find_archives, holds_records
from fastckpt.surveying.torch_zip.evidence import read_directory
from fastckpt.surveying.torch_zip.one_archive import survey_archive
from fastckpt.surveying.torch_zip.repacked import inflate_what_stands
from fastckpt.surveying.wreck import Wreck

_STRUCTURES: Final = ("none", "damaged", "nanochat order", "sibling", "like", "whole")
"""Where a structure can come from, the least certain first."""
_UNSETTLED: Final = ("", UNSETTLED, CONTRADICTED)
"""What `Wreck.unsettled` can be, the best first."""


def survey_torch_zip(
    source: Source, find_blueprint: FindBlueprint, *, threads: int, progress: Progress | None
) -> Wreck:
    """What stands of a file of torch zip archives.

    Several archives one behind the other are the list of what they hold, as `open_torch_zip` reads whole ones.

    Args:
        source: The file.
        find_blueprint: Gives the structure of another checkpoint in which storages of these keys and sizes fit.
        threads: Worker threads.
        progress: Called with the bytes verified so far.

    Raises:
        UnsupportedStateError: A .pt2.
    """
    form = inflate_what_stands(source)
    parts = find_archives(source)
    archives = [part for part in parts if len(parts) == 1 or holds_records(part)]
    if not archives:
        parts = archives = [Part(source, 0, source.size)]
    wrecks = []
    for part in archives:
        told = None if progress is None else _told_from(part, progress)
        wrecks.append(survey_archive(part, find_blueprint, threads=threads, progress=told))
        _move(wrecks[-1], part.begin)
    wreck = wrecks[0] if len(wrecks) == 1 else _join(source, wrecks)
    if len(wrecks) > 1 and not read_directory(archives[-1]).stands:
        text = "the file ends inside of an archive: whether more of them followed is not known"
        wreck.findings.append(Finding(Kind.MISSING, text, source.size, 0))
        wreck.is_open = True
    wreck.findings += _strange(parts, archives)
    wreck.findings += source.unpacked.findings if source.unpacked is not None else ()
    wreck.size = source.file_size
    if form is not None:
        wreck.findings = form.in_file(wreck.findings)
    wreck.findings.sort(key=lambda finding: (finding.offset, finding.size))
    return wreck


def _told_from(part: Part, progress: Progress) -> Progress:
    return lambda count: progress(max(part.begin, 0) + count)


def _strange(parts: Sequence[Part], archives: Sequence[Part]) -> Iterator[Finding]:
    """Findings for what belongs to no archive."""
    for part in parts:
        if part not in archives:
            where = "in front of the archive" if part.begin < archives[0].begin else "behind an archive"
            yield from unaccounted(part.begin, part.begin + part.size, where)


def _move(wreck: Wreck, begin: int) -> None:
    """Let the offsets of a part of the file be those of the file."""
    if not begin:
        return
    states = {id(state): state for state in [*wreck.storages, *(unnamed.state for unnamed in wreck.unnamed)]}
    for state in states.values():
        if state.offset is not None:
            state.offset += begin
    wreck.findings = [replace(finding, offset=max(finding.offset + begin, 0)) for finding in wreck.findings]


def _join(source: Source, wrecks: Sequence[Wreck]) -> Wreck:
    """Archives in a row as one state: the list of theirs."""
    trees: list[object] = []
    joined = Wreck(source.path, "torch-zip", source.size, tree=trees)
    joined.structure = min((wreck.structure for wreck in wrecks), key=_STRUCTURES.index)
    for number, wreck in enumerate(wrecks):
        first, storages = len(joined.entries), len(joined.storages)
        trees.append(map_tensors(wreck.tree, lambda ref, first=first: TensorRef(first + ref.entry)))  # type: ignore[misc]
        alone = type(wreck.tree) is TensorRef
        names = {entry.name: name_in_row(number, entry.name, alone=alone) for entry in wreck.entries}
        joined.entries += [
            entry._replace(name=names[entry.name], storage=storages + entry.storage) for entry in wreck.entries
        ]
        for state in wreck.storages:
            state.doubt = wreck.doubt or state.doubt
        joined.storages += wreck.storages
        joined.unsettled = max(joined.unsettled, wreck.unsettled, key=_UNSETTLED.index)
        joined.unnamed += wreck.unnamed
        joined.opaque += [(f"{number}.{place}", what) for place, what in wreck.opaque]
        joined.notes += [f"archive {number}: {note}" for note in wreck.notes]
        joined.findings += [
            replace(
                finding,
                message=f"archive {number}: {finding.message}",
                tensors=tuple(names.get(name, name) for name in finding.tensors),
            )
            for finding in wreck.findings
        ]
    return joined
