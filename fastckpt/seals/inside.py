"""What the parity inside of a ``.fckpt`` still proves, whatever happened to the file; SPEC.md, section 13.2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from fastckpt import _core
from fastckpt.constants import (
    ALIGNMENT,
    FOOTER_SIZE,
    LEAF_DIGEST_SIZE,
    LEAF_SIZE,
    MAGIC_PARITY_PAGE,
    SECTION_PARITY,
    SUPERBLOCK_SIZE,
)
from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError, UnsupportedVersionError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.footer import footer_at_the_end, footer_if_whole
from fastckpt.fckpt.remains import scan
from fastckpt.fckpt.sections import SECTION_KINDS, finding_of, require_sealed
from fastckpt.findings import Finding
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.beginning import Beginning
from fastckpt.io.memory import allocate
from fastckpt.io.source import Source
from fastckpt.io.transfer import MEMORY, Move, Progress
from fastckpt.layout.blocks import Extent
from fastckpt.layout.frame import Footer
from fastckpt.seals.made_again import copy_behind, make_again
from fastckpt.seals.names import sealed_name
from fastckpt.seals.parity import share_of
from fastckpt.seals.parity_section import ParitySection, decode_page
from fastckpt.seals.parity_source import Rows
from fastckpt.seals.standing import Standing, standing_of
from fastckpt.seals.sums import Sums
from fastckpt.seals.tensor_ranges import tensors_in_records


class InsideRemains:
    """The parity inside of an open file, read as far as it proves something; made by `open_inside`.

    Attributes:
        section: What it is of.
        sums: What it says of the bytes that it covers. All its digests are proven.
    """

    def __init__(self, source: Source, section: ParitySection, digests: memoryview, threads: int) -> None:
        self.section = section
        leaves = section.leaves * LEAF_DIGEST_SIZE
        self._source, self._threads = source, threads
        self._rows_digests = digests[leaves:]
        tensors = list(tensors_in_records(scan(source, threads=threads).records.values()))
        inside = [tensor for tensor in tensors if tensor.end <= section.covered]
        self.sums = Sums(
            sealed_name(source.path),
            section.covered,
            digests[:leaves],
            tensors=inside,
            parity=section.parity,
            made="saved",
        )

    def rows(self, groups: Sequence[int]) -> Rows:
        """See `ParitySource`."""
        section, count = self.section, len(groups)
        leaves = allocate(section.parity.rows * count * LEAF_SIZE)
        known = bytearray(section.parity.rows * count)
        base = _core.address(leaves)
        moves, numbers = [], []
        for row in range(section.parity.rows):
            for at, group in enumerate(groups):
                place = row * section.groups + section.position(group)
                begin = section.rows_offset + place * LEAF_SIZE
                if begin + LEAF_SIZE <= self._source.size:
                    moves.append(Move(begin, base + (row * count + at) * LEAF_SIZE, LEAF_SIZE))
                    numbers.append((row * count + at, place))
        moved = self._source.transfer(moves, sink=MEMORY, threads=self._threads)
        unread = {fault.move for fault in moved.faults}
        for move, (at, place) in enumerate(numbers):
            actual = moved.leaves[move * LEAF_DIGEST_SIZE : (move + 1) * LEAF_DIGEST_SIZE]
            expected = self._rows_digests[place * LEAF_DIGEST_SIZE : (place + 1) * LEAF_DIGEST_SIZE]
            known[at] = move not in unread and actual == expected
        return Rows(leaves, known)

    def standing(self, source: Source, *, threads: int, progress: Progress | None = None) -> Standing:
        """See `ParitySource`. It stands in the file itself, so it is of no other one, however much differs."""
        covered = Beginning(source.fd, source.path, min(self.section.covered, source.size), direct_fd=source.direct_fd)
        found = standing_of(covered, self.sums, threads=threads, progress=progress)
        return Standing(self.sums, source.size, bad=found.bad or found.other)

    def damage_behind(self, source: Source) -> list[Finding]:
        """See `ParitySource`: the sections behind, this one among them, and the footer."""
        try:
            footer = footer_at_the_end(source)
        except (DamagedError, CheckpointIOError) as error:
            error.expected = None  # What stands there instead tells nobody anything.
            end = Extent(max(source.size - FOOTER_SIZE, 0), min(source.size, FOOTER_SIZE))
            return [finding_of(error, end)]
        found = []
        for section in footer.sections:
            if section.extent.offset >= self.section.covered:
                try:
                    require_sealed(source, section)
                except (DamagedError, CheckpointIOError) as error:
                    found.append(finding_of(error, section.extent))
        return found

    def complete(self, fd: int, source: Source, unhealed: Sequence[int], *, threads: int) -> int:
        """See `ParitySource`: what is damaged behind is made again, if all that it follows from is healed."""
        if unhealed or not self.damage_behind(source):
            return copy_behind(fd, source, self.section.covered)
        return make_again(fd, source, self.section, self.sums.digests, threads=threads)


def share_inside(file: CheckpointFile) -> str | None:
    """How much parity an open file has inside, by its first page or its last one; ``damaged`` if both are; or None."""
    section = file.footer.section(SECTION_PARITY)
    if section is None:
        return None
    begin, end = section.extent.offset + ALIGNMENT, section.extent.end - 2 * ALIGNMENT
    for offset in (begin, end):
        with suppress(FastckptError):
            page = decode_page(file.source.read(offset, ALIGNMENT))
            if page.section.root == file.footer.root:
                return share_of(page.section.parity)
    return "damaged"


def open_inside(source: Source, *, threads: int) -> InsideRemains | None:
    """The parity inside of an open file that may be damaged; None if there is none.

    Raises:
        DamagedError: There is some, and it does not prove any more what was saved.
        UnsupportedVersionError: A later version saved it, with more than this one can make again.
        CheckpointIOError: It cannot be read.
    """
    if source.far or source.unpacked is not None or kind_of(source) not in (None, "fckpt"):
        return None
    footer = footer_if_whole(source)
    if footer is not None:
        section = footer.section(SECTION_PARITY)
        if section is None:
            return None
        _require_known(footer, source.path)
        found = {
            page
            for page in _sections(source, *section.extent, threads)
            if page.root == footer.root and (page.covered, page.end) == (section.extent.offset, section.extent.end)
        }
    else:
        found = set(_sections(source, SUPERBLOCK_SIZE, source.size - SUPERBLOCK_SIZE, threads))
    if not found and footer is None:
        return None
    whole = [(section, digests) for section in found if (digests := _digests(source, section)) is not None]
    if len(whole) != 1:
        what = "parity of several saves stands in it" if whole else "the digests in the parity inside are damaged"
        raise DamagedError(f"{what}, so nothing proves what was saved", path=source.path)
    return InsideRemains(source, *whole[0], threads)


def _require_known(footer: Footer, path: str) -> None:
    """What stands behind the parity is made again from all in front: nothing else may be there."""
    unknown = {section.kind for section in footer.sections} - SECTION_KINDS
    if unknown:
        raise UnsupportedVersionError(
            f"this file has a section of kind {min(unknown)}, which repair does not know",
            path=path,
            next_step="pip install --upgrade fastckpt",
        )


def _sections(source: Source, begin: int, size: int, threads: int) -> Iterator[ParitySection]:
    """The sections that pages in a part of the file are of, each where it belongs; of equal ones one for each page."""
    end = min(begin + size, source.size)
    if begin >= end:
        return
    for offset in _core.find_blocks(source.fd, MAGIC_PARITY_PAGE, begin, end, threads=threads):
        with suppress(FastckptError):
            page = decode_page(source.read(offset, ALIGNMENT))
            if offset in page.section.page_offsets(page.number):
                yield page.section


def _digests(source: Source, section: ParitySection) -> memoryview | None:
    """All digests of a section, if each of its pages is left in one of its places."""
    found = bytearray()
    for number in range(section.pages):
        digests = _page(source, section, number, section.page_offsets(number))
        if digests is None:
            return None
        found += digests
    return memoryview(bytes(found))


def _page(source: Source, section: ParitySection, number: int, places: Iterable[int]) -> memoryview | None:
    for place in places:
        with suppress(FastckptError):
            page = decode_page(source.read(place, ALIGNMENT))
            if (page.section, page.number) == (section, number):
                return page.digests
    return None
