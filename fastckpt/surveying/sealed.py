"""What a seal proves of a damaged file: each storage, leaf by leaf, and its structure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from fastckpt.errors import DamagedError, NotACheckpointError, UnsupportedVersionError
from fastckpt.findings import Finding, Kind
from fastckpt.io.source import Source
from fastckpt.seals.beside import seal_beside, unusable
from fastckpt.seals.standing import Standing, standing_of
from fastckpt.surveying.fates import Status
from fastckpt.surveying.holes import Hole, merge_holes
from fastckpt.surveying.wreck import StorageState, Wreck


class _Bad(NamedTuple):
    """Bytes ``[begin, end)`` of the file that are not as they were sealed."""

    begin: int
    end: int
    kind: Kind


def find_standing(source: Source, *, threads: int) -> tuple[Standing | None, list[Finding]]:
    """How an open file stands to its seal, if there is one that can be used; and a finding if it cannot.

    Raises:
        CheckpointIOError: The seal cannot be read.
    """
    try:
        sums = seal_beside(source)
    except (DamagedError, NotACheckpointError, UnsupportedVersionError) as error:
        return None, [unusable(source.path, error)]
    if sums is None:
        return None, []
    standing = standing_of(source, sums, threads=threads)
    return (None, standing.findings()) if standing.stale else (standing, [])


def use_seal(wreck: Wreck, standing: Standing) -> None:
    """Let a seal of this file prove what it can, where the file's own checksums do not.

    A storage of which every leaf is as sealed is proven; of another one the leaves that differ are holes. Where nothing
    outside of the storages differs, names, shapes and dtypes are proven, too.
    """
    if wreck.format == "fckpt" or wreck.is_inflated:
        return  # That has leaves of its own; or the bytes that were looked at are not those of the file.
    bad = list(_bad_ranges(standing))
    every = {id(state): state for state in [*wreck.storages, *(unnamed.state for unnamed in wreck.unnamed)]}
    placed = [state for state in every.values() if state.offset is not None and state.nbytes]
    # A zip archive is read from its end, which must be the one that was sealed.
    if wreck.format == "torch-legacy":
        is_proven = _beginning_is_as_sealed(placed, bad, standing)
    else:
        is_proven = _structure_is_as_sealed(placed, bad, standing)
        is_proven = is_proven and not (wreck.format == "torch-zip" and standing.behind)
    for state in placed:
        _prove_storage(state, bad, standing, clear_doubt=is_proven)
    for state in every.values():
        if not state.nbytes and is_proven:
            state.proven, state.reason = True, ""
    if is_proven and wreck.structure == "whole":
        wreck.doubt = ""
    wreck.findings = [finding for finding in wreck.findings if not _is_refuted(finding, bad, standing)]
    intact = {name for name, fate in wreck.fates().items() if fate.status is Status.INTACT}
    for finding in standing.findings():
        kept = finding.tensors or wreck.structure == "whole"
        wreck.findings.append(
            replace(finding, loss=bool(wreck.doubt) or not (kept and intact.issuperset(finding.tensors)))
        )
    wreck.findings.sort(key=lambda finding: (finding.offset, finding.size))


def _bad_ranges(standing: Standing) -> Iterator[_Bad]:
    for run in standing.bad:
        extent = standing.sums.leaf_extent(run.first, run.leaves)
        yield _Bad(extent.offset, extent.end, run.kind)


def _within(bad: Sequence[_Bad], begin: int, end: int) -> Sequence[_Bad]:
    """The bad ranges, which ascend, that have a byte in ``[begin, end)``."""
    return bad[bisect_right(bad, begin, key=lambda b: b.end) : bisect_left(bad, end, key=lambda b: b.begin)]


def _structure_is_as_sealed(placed: Sequence[StorageState], bad: Sequence[_Bad], standing: Standing) -> bool:
    """Whether no byte outside of the storages is in a leaf that differs. What is missing has misled nobody."""
    bad = [b._replace(end=min(b.end, standing.size)) for b in bad if b.begin < standing.size]
    at = 0
    for begin, end in sorted((state.offset or 0, (state.offset or 0) + state.nbytes) for state in placed):
        if at < begin and _within(bad, at, begin):
            return False
        at = max(at, end)
    return not (at < standing.sums.size and _within(bad, at, standing.sums.size))


def _beginning_is_as_sealed(placed: Sequence[StorageState], bad: Sequence[_Bad], standing: Standing) -> bool:
    """The same of a legacy file: the pickles in front say all, the lengths between storages only repeat it."""
    return not _within(bad, 0, min((state.offset or 0 for state in placed), default=standing.sums.size))


def _prove_storage(state: StorageState, bad: Sequence[_Bad], standing: Standing, *, clear_doubt: bool) -> None:
    begin, end = state.offset or 0, (state.offset or 0) + state.nbytes
    if state.proven or end > standing.sums.size:
        return
    found = _within(bad, begin, end)
    if not found:
        if state.holes:
            return  # By its own checksum it was not whole when it was sealed.
        state.proven, state.reason = True, ""
    else:
        holes = [Hole(max(b.begin, begin) - begin, min(b.end, end) - begin, b.kind) for b in found]
        state.holes = merge_holes([*(hole for hole in state.holes if hole.kind is not Kind.ROTTED), *holes])
        state.proven, state.reason = True, "some of its leaves are not what was sealed"
    if clear_doubt:
        state.doubt = ""


def _is_refuted(finding: Finding, bad: Sequence[_Bad], standing: Standing) -> bool:
    """Whether a finding only says that nothing proves some bytes, and the seal does; or it is about what differs."""
    end = finding.offset + finding.size
    if finding.kind is not Kind.UNPROVEN or not finding.size or end > min(standing.size, standing.sums.size):
        return False
    return not _within(bad, finding.offset, end)
