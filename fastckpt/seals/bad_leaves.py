"""Leaves of a file that are not as they were sealed, and what is said of them: where they are, and in which tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastckpt.constants import LEAF_SIZE
from fastckpt.fckpt.bad_ranges import differing_runs, names_in_each
from fastckpt.findings import Finding, Kind, damage_of
from fastckpt.io.source import Source
from fastckpt.io.transfer import Fault
from fastckpt.seals.sums import Sums
from fastckpt.text import quoted, some


class BadLeaves(NamedTuple):
    """``leaves`` leaves from ``first`` on: changed, missing or unreadable (then ``errno`` is the system's error)."""

    first: int
    leaves: int
    kind: Kind
    errno: int = 0

    @property
    def end(self) -> int:
        """The first leaf after them."""
        return self.first + self.leaves


def differing(actual: memoryview, expected: memoryview, first: int, faults: Sequence[Fault] = ()) -> list[BadLeaves]:
    """The leaves from ``first`` on whose digests differ, and those that could not be read, ascending.

    Args:
        actual: The digests that the leaves have.
        expected: Those that they had.
        first: The number of the first of them.
        faults: What could not be read, counted from the first byte of the first leaf.
    """
    unread: list[BadLeaves] = []
    for fault in faults:
        begin, end = fault.offset // LEAF_SIZE, -(-(fault.offset + fault.size) // LEAF_SIZE)
        kind = Kind.UNREADABLE if fault.errno else Kind.MISSING
        unread.append(BadLeaves(first + begin, end - begin, kind, fault.errno))
    skipped = {leaf for bad in unread for leaf in range(bad.first, bad.end)}
    changed = []
    if bytes(actual) != bytes(expected):
        for at, count, _ in differing_runs(actual, expected):
            changed += [
                BadLeaves(first + at + leaf, 1, Kind.CHANGED)
                for leaf in range(count)
                if first + at + leaf not in skipped
            ]
    return merged([*unread, *changed])


def merged(bad: Sequence[BadLeaves]) -> list[BadLeaves]:
    """The same leaves, ascending; neighbours of one kind are one run, and no leaf is in two."""
    runs: list[BadLeaves] = []
    for run in sorted(bad):
        last = runs[-1] if runs else None
        if last is not None and last.end >= run.first and last[2:] == run[2:]:
            runs[-1] = last._replace(leaves=max(last.end, run.end) - last.first)
        elif last is None or last.end <= run.first:
            runs.append(run)
        elif last.end < run.end:
            runs.append(run._replace(first=last.end, leaves=run.end - last.end))
    return runs


def findings_of(sums: Sums, bad: Sequence[BadLeaves], *, size: int) -> list[Finding]:
    """A finding for each run of bad leaves of a file that has ``size`` bytes now."""
    ranges = [sums.leaf_extent(run.first, run.leaves) for run in bad]
    names = names_in_each(((t.name, t.offset, t.end) for t in sums.tensors), [(r.offset, r.end) for r in ranges])
    return [
        Finding(
            run.kind,
            _message(run, named, sums.made),
            min(extent.offset, size),
            max(min(extent.end, size) - extent.offset, 0),
            tensors=tuple(named),
        )
        for run, extent, named in zip(bad, ranges, names, strict=True)
    ]


def _message(run: BadLeaves, names: Sequence[str], made: str) -> str:
    leaves = f"leaf {run.first}" if run.leaves == 1 else f"leaves {run.first} to {run.end - 1}"
    be = "is" if run.leaves == 1 else "are"
    what = {
        Kind.CHANGED: f"{be} not what was {made}",
        Kind.MISSING: f"{be} missing: the file ends before, which was longer when it was {made}",
        Kind.UNREADABLE: f"cannot be read (error {run.errno})",
    }[run.kind]
    return f"{leaves} {what}: {some(names) or 'no tensor'}"


def require_as_sealed(source: Source, sums: Sums, bad: Sequence[BadLeaves]) -> None:
    """Raise DamagedError (CheckpointIOError for what cannot be read) if there are bad leaves; names the tensors."""
    if not bad:
        return
    unread = next((run for run in bad if run.kind is not Kind.CHANGED), None)
    if unread is not None:
        source.raise_fault(sums.leaf_extent(unread.first).offset, unread.errno)
    findings = findings_of(sums, bad, size=source.size)
    next_step = f"fastckpt verify {quoted(source.path)} tells whether it is damaged or was written anew"
    raise damage_of(findings, path=source.path, are="concerned", next_step=next_step)
