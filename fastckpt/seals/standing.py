"""How a whole file stands to its seal: as it was sealed, changed in places, or another one altogether.

The rule (docs/seal.md): a seal is of a file if that has the name in it, and if at least half of the leaves that both
have are as they were. Then every leaf that differs is named. Otherwise the seal is stale, and nothing is said of
leaves: a file that was written anew is not called damaged, and one that is damaged beyond that is not called whole.
Whoever can see that a file's own checksums prove all of it calls a seal that differs stale, too (`WRITTEN_ANEW`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from fastckpt.constants import LEAF_SIZE
from fastckpt.findings import Finding, Kind
from fastckpt.io.anew import until_right
from fastckpt.io.source import Source
from fastckpt.io.sums import hash_parts
from fastckpt.io.transfer import Move, Progress
from fastckpt.seals.bad_leaves import BadLeaves, differing, findings_of, merged
from fastckpt.seals.beside import why_of_another
from fastckpt.seals.names import sealed_name
from fastckpt.seals.reading import prove_again
from fastckpt.seals.sums import Sums
from fastckpt.text import count_text

WRITTEN_ANEW: Final = "its own checksums match, so it was written anew"
"""Why a seal is not of a file that has checksums of its own which prove all of it, whatever leaves differ."""

_WINDOW: Final = 2**34
"""Bytes that are hashed at a time: their digests take 8 MiB."""


@dataclass(slots=True)
class Standing:
    """How a file stands to its seal.

    Attributes:
        sums: The seal.
        size: Bytes of the file.
        stale: Why the seal is of other content; "" if it is of this file.
        bad: Leaves that are not as they were sealed, ascending; empty where it is stale.
        other: The same where it is stale: leaves that are not those of the file that was sealed.
        behind: Bytes of the file behind all that was sealed.
    """

    sums: Sums
    size: int
    stale: str = ""
    bad: list[BadLeaves] = field(default_factory=list)
    other: list[BadLeaves] = field(default_factory=list)
    behind: int = 0

    @property
    def is_as_sealed(self) -> bool:
        """Whether every byte is the one that was sealed, and none is missing or added."""
        return not (self.stale or self.bad or self.behind)

    def of_another(self, why: str) -> Standing:
        """The same, once it is known from elsewhere that the seal is of another file."""
        return Standing(self.sums, self.size, why, other=self.bad or self.other)

    @property
    def bad_numbers(self) -> list[int]:
        """The number of each bad leaf, ascending."""
        return [leaf for run in self.bad for leaf in range(run.first, run.end)]

    def bad_among(self, numbers: Iterable[int]) -> list[BadLeaves]:
        """The bad leaves that are among those with these numbers."""
        wanted = set(numbers)
        runs = [BadLeaves(n, 1, *run[2:]) for run in self.bad for n in range(run.first, run.end) if n in wanted]
        return merged(runs)

    def findings(self) -> list[Finding]:
        """What is to be said of it."""
        if self.stale:
            return [Finding(Kind.STALE, f"this is not the file that was sealed: {self.stale}", 0, 0, loss=False)]
        found = findings_of(self.sums, self.bad, size=self.size)
        if self.behind:
            text = f"{count_text(self.behind, 'byte')} behind all that was sealed"
            found.append(Finding(Kind.CHANGED, text, self.sums.size, self.behind, loss=False))
        return found


def standing_of(source: Source, sums: Sums, *, threads: int, progress: Progress | None = None) -> Standing:
    """Compare every byte of an open file with its seal. Raises KeyboardInterrupt within 0.2 s of Ctrl-C."""
    size = source.size
    common = min(size, sums.size)
    # A leaf that the file has only in part proves nothing: zeros that are missing have the same digest.
    whole = sums.leaves if size >= sums.size else size // LEAF_SIZE
    end = min(whole * LEAF_SIZE, common)
    bad: list[BadLeaves] = []
    for begin in range(0, end, _WINDOW):
        stop = min(begin + _WINDOW, end)
        leaves = sums.leaves_around(begin, stop)
        told = None if progress is None else _told_from(begin, progress)
        moved = hash_parts(source, [Move(begin, 0, stop - begin)], threads=threads, progress=told)
        found = differing(moved.leaves, sums.digests_of(leaves), begin // LEAF_SIZE, moved.faults)
        bad += until_right(source, found, lambda found: prove_again(source, sums, found, threads=threads))
    changed = sum(run.leaves for run in bad if run.kind is Kind.CHANGED)
    compared = whole - sum(run.leaves for run in bad if run.kind is not Kind.CHANGED)
    standing = Standing(sums, size)
    missing = [BadLeaves(whole, sums.leaves - whole, Kind.MISSING)] if whole < sums.leaves else []
    every = merged([*bad, *missing])
    if sealed_name(source.path) != sums.name:
        standing.stale = why_of_another(source, sums) or ""
    elif 2 * changed > compared or (not compared and size != sums.size):
        standing.stale = why_of_another(source, sums) or f"{changed} of {compared} leaves differ"
    if standing.stale:
        standing.other = every
    else:
        standing.bad = every
        standing.behind = max(size - sums.size, 0)
    return standing


def _told_from(begin: int, progress: Progress) -> Progress:
    return lambda count: progress(begin + count)
