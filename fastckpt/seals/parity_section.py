"""The parity section of a ``.fckpt``: where what stands in it, and its pages of digests; SPEC.md, section 13.2.

A page is a sealed block of its own that says what the whole section is, so one that is left tells where all else is.
Each stands twice, in front of the parity and behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from fastckpt.constants import (
    ALIGNMENT,
    DIGEST_SIZE,
    LEAF_DIGEST_SIZE,
    LEAF_SIZE,
    MAGIC_PARITY_PAGE,
    PARITY_PAGE_DIGESTS,
)
from fastckpt.errors import DamagedError
from fastckpt.layout.blocks import require_zero, seal, unseal
from fastckpt.layout.records import count_leaves
from fastckpt.seals.parity import Parity

_PAGE: Final = struct.Struct(f"<QQBB6x{DIGEST_SIZE}s")
_IN_PAGE: Final = PARITY_PAGE_DIGESTS * LEAF_DIGEST_SIZE
"""Bytes of digests in a page."""


class ParitySection(NamedTuple):
    """What a parity section is of; everything about it follows.

    Attributes:
        covered: Bytes of the file in front of it: those that its parity is made of. It begins there.
        parity: How much of it there is.
        root: The root digest of the file.
    """

    covered: int
    parity: Parity
    root: bytes

    @property
    def leaves(self) -> int:
        """Leaves that it covers."""
        return count_leaves(self.covered)

    @property
    def groups(self) -> int:
        """Groups that they are dealt out to."""
        return self.parity.groups(self.covered)

    @property
    def digests_size(self) -> int:
        """Bytes of the digests of all leaves: those that are covered, and then those of parity."""
        return (self.leaves + self.parity.rows * self.groups) * LEAF_DIGEST_SIZE

    @property
    def pages(self) -> int:
        """Pages that these fill."""
        return -(-self.digests_size // _IN_PAGE)

    @property
    def rows_offset(self) -> int:
        """Where in the file the first leaf of parity stands."""
        return self.covered + (1 + self.pages) * ALIGNMENT

    @property
    def second_pages(self) -> int:
        """Where in the file the pages stand the second time."""
        return self.rows_offset + self.parity.rows * self.groups * LEAF_SIZE

    @property
    def end(self) -> int:
        """The first byte of the file behind it."""
        return self.second_pages + (self.pages + 1) * ALIGNMENT

    def page_offsets(self, number: int) -> tuple[int, int]:
        """Where in the file a page stands, both times."""
        return self.covered + (1 + number) * ALIGNMENT, self.second_pages + number * ALIGNMENT

    def position(self, group: int) -> int:
        """Which leaf of each row is that of a group: they are dealt on where the covered leaves end."""
        return (group - self.leaves) % self.groups

    def encode_pages(self, digests: bytes | memoryview) -> bytes:
        """All pages, once."""
        heads = (_PAGE.pack(self.covered, number, *self.parity, self.root) for number in range(self.pages))
        return b"".join(
            seal(MAGIC_PARITY_PAGE, head, digests[number * _IN_PAGE : (number + 1) * _IN_PAGE])
            for number, head in enumerate(heads)
        )

    def digests_on(self, number: int) -> slice:
        """Which bytes of all digests stand on a page."""
        return slice(number * _IN_PAGE, min((number + 1) * _IN_PAGE, self.digests_size))


class ParityPage(NamedTuple):
    """A page: which section it is of, its number, and the digests on it."""

    section: ParitySection
    number: int
    digests: memoryview


def decode_page(block: bytes) -> ParityPage:
    """Decode a sealed page. Raises DamagedError: its digest does not match, or what it says cannot be."""
    body = unseal(block, MAGIC_PARITY_PAGE, what="page of a parity section")
    covered, number, depth, rows, root = _PAGE.unpack_from(body)
    section = ParitySection(covered, Parity(depth, rows), root)
    require_zero(body[18:24], what="reserved bytes of a page")
    if not section.parity.is_possible or covered % ALIGNMENT or not covered or number >= section.pages:
        raise DamagedError("a page of a parity section says what cannot be")
    on = section.digests_on(number)
    digests = body[_PAGE.size : _PAGE.size + on.stop - on.start]
    require_zero(body[_PAGE.size + len(digests) :], what="padding of a page")
    return ParityPage(section, number, digests)


def runs_of_rows(section: ParitySection, at_most: int) -> Iterator[tuple[int, int, int]]:
    """The leaves of parity in the order in which they stand: row, first group and how many groups, so few at a time."""
    first = section.leaves % section.groups
    for row in range(section.parity.rows):
        for begin, end in ((first, section.groups), (0, first)):
            for group in range(begin, end, at_most):
                yield row, group, min(at_most, end - group)
