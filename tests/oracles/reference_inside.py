"""Parity inside of a file as SPEC.md, section 13.2, says it: a second reader, which knows the text alone."""

from __future__ import annotations

import struct
from typing import NamedTuple

import reference_parity
import reference_reader
import xxhash
from reference_tree import need

PAGE, LEAF, IN_PAGE = 4096, 16384, 503


class Inside(NamedTuple):
    """A parity section.

    Attributes:
        covered, k, m, root: What its pages state.
        groups: How many there are.
        digests: Of all leaves, those of parity last.
        pages, rows, again: Where in the file the pages, the leaves of parity and the pages again begin.
        end: Where it ends.
    """

    covered: int
    k: int
    m: int
    root: bytes
    groups: int
    digests: list[int]
    pages: int
    rows: int
    again: int
    end: int

    @property
    def leaves(self) -> int:
        return -(-self.covered // LEAF)

    def group_of(self, place: int) -> int:
        """The group of the leaf of parity that stands there, counted over all rows."""
        return (self.leaves + place % self.groups) % self.groups

    def lost(self, good: bytes, now: bytes) -> dict[int, tuple[list[int], int]]:
        """Of each group that lost some: the covered leaves, and how many of parity."""
        found: dict[int, tuple[list[int], int]] = {}
        for leaf in range(self.leaves):
            begin, end = leaf * LEAF, min((leaf + 1) * LEAF, self.covered)
            if good[begin:end] != now[begin:end]:
                covered, parity = found.get(leaf % self.groups, ([], 0))
                found[leaf % self.groups] = ([*covered, leaf], parity)
        for place in range(self.m * self.groups):
            begin = self.rows + place * LEAF
            if good[begin : begin + LEAF] != now[begin : begin + LEAF]:
                covered, parity = found.get(self.group_of(place), ([], 0))
                found[self.group_of(place)] = (covered, parity + 1)
        return found

    def has_digests(self, good: bytes, now: bytes) -> bool:
        """Whether each page is left in one of its places."""
        ranges = [(at, at + PAGE) for at in range(0, self.rows - self.pages, PAGE)]
        return all(
            any(
                good[start + begin : start + end] == now[start + begin : start + end]
                for start in (self.pages, self.again)
            )
            for begin, end in ranges
        )


def read(data: bytes) -> Inside:
    """The section of a whole file; all that the text says of it is checked."""
    _, root, sections, _ = reference_reader.footer(data)
    ((offset, size, digest),) = [row[2:] for row in sections if row[0] == 5]
    block = reference_reader.sealed(data, offset, b"FCKPTPAR")
    need(len(block) == size and block[-16:] == digest, "not the section that the footer names")
    need(not any(block[16:PAGE]) and not any(block[-PAGE:-16]), "reserved bytes")
    covered, _, k, m = struct.unpack_from("<QQBB", block, PAGE + 16)
    n = -(-covered // LEAF)
    groups = -(-n // k)
    p = -(-(n + m * groups) // IN_PAGE)
    digests: list[int] = []
    for number in range(p):
        page = block[PAGE * (1 + number) : PAGE * (2 + number)]
        need(page[:8] == b"FCKPTPDG" and xxhash.xxh3_128_digest(page[:-16]) == page[-16:], "a page")
        need(page[16:56] == struct.pack("<QQBB6x16s", covered, number, k, m, root), "what a page says")
        digests += struct.unpack_from(f"<{IN_PAGE}Q", page, 56)
    need(covered == offset, "it covers all in front of it")
    rows = offset + PAGE * (1 + p)
    again = rows + m * groups * LEAF
    need(data[again : again + PAGE * p] == data[offset + PAGE : rows], "the pages again")
    need(size == again + PAGE * (p + 1) - offset, "its size")
    need(not any(digests[n + m * groups :]), "digests behind the last leaf")
    found = Inside(covered, k, m, root, groups, digests, offset + PAGE, rows, again, offset + size)
    parity = reference_parity.parity_of(data[:covered], groups, m)
    for place in range(m * groups):
        leaf = data[rows + place * LEAF : rows + (place + 1) * LEAF]
        need(leaf == parity[place // groups, found.group_of(place)].tobytes(), f"leaf {place} of the parity")
        need(xxhash.xxh3_64_intdigest(leaf) == digests[n + place], f"the digest of leaf {place} of the parity")
    for number in range(n):
        leaf = data[number * LEAF : min((number + 1) * LEAF, covered)].ljust(LEAF, b"\0")
        need(xxhash.xxh3_64_intdigest(leaf) == digests[number], f"the digest of leaf {number}")
    return found
