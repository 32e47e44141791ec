"""What a sums file still proves, whatever happened to it: the digests of the sealed file, and leaves of its parity.

A sums file is a ``.fckpt``, so its structure stands in it more than once, and each leaf of its tensors is proven alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby

from fastckpt.constants import LEAF_DIGEST_SIZE, LEAF_SIZE
from fastckpt.errors import DamagedError, FastckptError
from fastckpt.fckpt.shifted import scan_shifted
from fastckpt.findings import Finding
from fastckpt.io.memory import allocate
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry
from fastckpt.layout.records import Record
from fastckpt.seals.parity_source import Rows
from fastckpt.seals.proven import Place, proven_digests, read_proven_bytes
from fastckpt.seals.standing import Standing, standing_of
from fastckpt.seals.sums import DIGEST_TENSORS, Sums, is_of_bytes, sums_said, tensors_of


class SumsRemains:
    """An open sums file, read as far as it proves something; made by `open_remains`.

    Attributes:
        sums: What it says. All its digests are proven.
    """

    def __init__(self, source: Source, threads: int) -> None:
        self._source = source
        self._threads = threads
        found = scan_shifted(source, threads=threads)
        if found.manifest is None:
            raise DamagedError("nothing is left of what this seal says")
        said = sums_said(found.manifest.metadata)
        shapes = tensors_of(said)
        self._places = {
            entry.name: place
            for record in found.records.values()
            for entry, place in _places(record)
            if entry.shape == shapes.get(entry.name)
        }
        self.sums = replace(said, digests=self._digests(said))

    def _digests(self, said: Sums) -> memoryview:
        places = [(self._places[name], begins) for name, begins in DIGEST_TENSORS if name in self._places]
        return proven_digests(self._source, places, said.leaves * LEAF_DIGEST_SIZE, threads=self._threads)

    def rows(self, groups: Sequence[int]) -> Rows:
        """See `ParitySource`."""
        parity = self.sums.parity
        assert parity is not None
        leaves = allocate(parity.rows * len(groups) * LEAF_SIZE)
        known = bytearray(parity.rows * len(groups))
        for row, name in enumerate(parity.names):
            place = self._places.get(name)
            if place is None:
                continue
            for first, count, at in _runs(groups):
                begin = row * len(groups) + at
                span = first * LEAF_SIZE, (first + count) * LEAF_SIZE
                region, bad = read_proven_bytes(self._source, place, *span, threads=self._threads)
                leaves[begin * LEAF_SIZE : (begin + count) * LEAF_SIZE] = region
                known[begin : begin + count] = bytes([1]) * count
                for low, high in bad:
                    lost = range(low // LEAF_SIZE, -(-high // LEAF_SIZE))
                    known[begin + lost.start : begin + lost.stop] = bytes(len(lost))
        return Rows(leaves, known)

    def standing(self, source: Source, *, threads: int, progress: Progress | None = None) -> Standing:
        """See `ParitySource`."""
        return standing_of(source, self.sums, threads=threads, progress=progress)

    def damage_behind(self, source: Source) -> list[Finding]:
        """See `ParitySource`: it covers all."""
        return []

    def complete(self, fd: int, source: Source, unhealed: Sequence[int], *, threads: int) -> int:
        """See `ParitySource`."""
        return self.sums.size


@contextmanager
def open_remains(path: str, *, threads: int) -> Iterator[SumsRemains]:
    """Open a sums file that may be damaged.

    Raises:
        DamagedError: It does not prove any more what was sealed, or is no sums file.
        NotACheckpointError, UnsupportedVersionError: So.
        CheckpointNotFoundError: There is none.
        CheckpointIOError: It cannot be read.
    """
    with Source(path) as source:
        try:
            remains = SumsRemains(source, threads)
        except FastckptError as error:
            error.path = error.path or path
            raise
        yield remains


def _places(record: Record) -> Iterator[tuple[Entry, Place]]:
    """The tensors of a record that are all bytes of their storage, and where these lie."""
    places = {packed.storage: packed for packed in record.storages} if record.is_raw else {}
    for entry in _entries(record):
        place = places.get(entry.storage)
        if place is not None and is_of_bytes(entry) and entry.nbytes == place.nbytes:
            yield entry, Place(record, place.offset)


def _entries(record: Record) -> Sequence[Entry]:
    try:
        return list(record.entries)
    except FastckptError:
        return ()  # A header whose entries contradict each other names nothing.


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of numbers that follow each other: the first, how many, and its position."""
    at = 0
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        own = [number for _, number in run]
        yield own[0], len(own), at
        at += len(own)
