"""Leaves of a file that are not as they were, had again from the others and its parity.

A leaf that was computed counts only if it has the digest that was sealed: whatever else in the file or its seal is
wrong, no other byte comes out of here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from fastckpt import _core
from fastckpt.constants import LEAF_DIGEST_SIZE, LEAF_SIZE
from fastckpt.errors import FastckptError
from fastckpt.io.memory import allocate
from fastckpt.io.residency import is_warm
from fastckpt.io.source import Source
from fastckpt.seals.names import sums_path
from fastckpt.seals.parity import Parity
from fastckpt.seals.parity_source import ParitySource
from fastckpt.seals.remains import open_remains
from fastckpt.seals.standing import Standing
from fastckpt.text import quoted

_GROUPS: Final = 64
"""Groups that are healed at a time: with their parity they take 8 MiB at most."""


class Healed(NamedTuple):
    """A leaf as it was sealed: its number, and its bytes."""

    leaf: int
    data: memoryview


def losses_by_group(lost: Sequence[int], parity: Parity, size: int) -> dict[int, list[int]]:
    """The lost leaves of each group that has some, by the number of the group, both ascending."""
    groups = parity.groups(size)
    by_group: dict[int, list[int]] = {}
    for leaf in lost:
        by_group.setdefault(leaf % groups, []).append(leaf)
    return dict(sorted(by_group.items()))


def hopeless_leaves(remains: ParitySource, lost: Sequence[int]) -> list[int]:
    """Which of the lost leaves do not come back: more are lost of their groups than leaves of parity are proven."""
    sums = remains.sums
    if sums.parity is None:
        return list(lost)
    by_group = losses_by_group(lost, sums.parity, sums.size)
    hopeless: list[int] = []
    numbers = iter(by_group)
    while groups := list(islice(numbers, _GROUPS)):
        known = remains.rows(groups).known
        for at, group in enumerate(groups):
            if len(by_group[group]) > sum(known[at :: len(groups)]):
                hopeless += by_group[group]
    return sorted(hopeless)


def would_heal(source: Source, standing: Standing, *, threads: int) -> bool:
    """Whether all of an open file that is not as it was sealed comes back by the parity in its seal."""
    if standing.stale or standing.is_as_sealed or (standing.bad and standing.sums.parity is None):
        return False
    try:
        with open_remains(sums_path(source.path), threads=threads) as remains:
            return not hopeless_leaves(remains, standing.bad_numbers)
    except FastckptError:
        return False


def repair_of_seal(path: str) -> str | None:
    """``fastckpt repair PATH``, if the damaged seal of a file still proves all that was sealed."""
    try:
        with open_remains(sums_path(path), threads=1):
            return f"fastckpt repair {quoted(path)}"
    except FastckptError:
        return None


def advice_for_damaged_seal(path: str) -> str:
    """What to do about the damaged seal of a file."""
    return repair_of_seal(path) or f"fastckpt seal --update {quoted(path)}, if that is as it should be"


def heal_leaves(source: Source, remains: ParitySource, lost: Sequence[int], *, threads: int) -> Iterator[Healed]:
    """Yield every lost leaf that comes back, proven; group after group.

    Args:
        source: The damaged file.
        remains: Where its parity is.
        lost: The numbers of all leaves that are not as they were sealed, ascending. They are not read.
        threads: Worker threads.

    Raises:
        CheckpointIOError, DamagedError: A leaf that was there cannot be read any more.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.
    """
    sums = remains.sums
    if sums.parity is None:
        return
    by_group = losses_by_group(lost, sums.parity, sums.size)
    hopeful = iter([(group, own) for group, own in by_group.items() if len(own) <= sums.parity.rows])
    while batch := list(islice(hopeful, _GROUPS)):
        yield from _heal(
            source, remains, [group for group, _ in batch], sorted(n for _, own in batch for n in own), threads
        )


def _heal(
    source: Source, remains: ParitySource, groups: Sequence[int], lost: Sequence[int], threads: int
) -> Iterator[Healed]:
    sums = remains.sums
    assert sums.parity is not None
    rows = remains.rows(groups)
    found = allocate(len(lost) * LEAF_SIZE)
    solved = bytearray(len(lost))

    def recover(where: int | memoryview) -> list[tuple[int, int, int, int]]:
        assert sums.parity is not None
        return _core.recover_leaves(
            where,
            sums.size,
            sums.parity.groups(sums.size),
            sums.parity.rows,
            array("Q", groups),
            rows.leaves,
            rows.known,
            array("Q", lost),
            found,
            solved,
            threads=threads,
            source_direct_fd=-1 if is_warm(source) else source.direct_fd,
            mapped=True,
        )

    mapped = _mapped(source, sums.size)
    faults = recover(mapped) if mapped is not None else recover(source.fd)
    if faults and mapped is not None:
        faults = recover(source.fd)  # What of it is not there, plain reading says.
    for _, offset, _, errno in faults:
        source.raise_fault(offset, errno)
    digests = _core.leaf_digests(found, threads)
    for at, leaf in enumerate(lost):
        expected = sums.digests[leaf * LEAF_DIGEST_SIZE : (leaf + 1) * LEAF_DIGEST_SIZE]
        if solved[at] and digests[at * LEAF_DIGEST_SIZE : (at + 1) * LEAF_DIGEST_SIZE] == expected:
            begin = at * LEAF_SIZE
            yield Healed(leaf, found[begin : begin + sums.leaf_extent(leaf).size])


def _mapped(source: Source, size: int) -> memoryview | None:
    """The first bytes of a file that lies in the page cache, where they are; None where they cannot be had that way."""
    if source.size < size or not is_warm(source):
        return None
    try:
        return memoryview(source.map())[:size]
    except FastckptError:
        return None
