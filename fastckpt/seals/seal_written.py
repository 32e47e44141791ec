"""The seal of a ``.fckpt`` that this process has just written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastckpt.errors import DamagedError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.io.how import How
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.tally import Tally
from fastckpt.seals.encoded import Encoded, encoded, of_tally
from fastckpt.seals.names import sealed_name, sums_path
from fastckpt.seals.parity import Parity
from fastckpt.seals.sums import Sums, write_sums
from fastckpt.seals.tensor_ranges import tensors_in_fckpt


def tally_for(parity: Parity) -> Tally:
    """What the writer shall sum up for `seal_written`."""
    return Tally(parity.groups, parity.rows)


def seal_written(path: str, parity: Parity, tally: Tally, *, durable: bool, threads: int | None) -> None:
    """Write the sums file, with parity, of a checkpoint that was saved just now.

    Its parity is what was summed up while it was written. Of one that is encoded, so that its length was not known
    before, or that has more parity than may be in memory, all is read again.

    Raises:
        OutOfSpaceError, CheckpointIOError: It cannot be read, or the sums file not be written.
        DamagedError: It was changed or replaced meanwhile.
    """
    advice = "save it when nobody else writes to it"
    with Source(path) as source:
        count = reading_threads(source, threads)
        tensors = list(tensors_in_fckpt(CheckpointFile(source)))
        with _parity_of(source, parity, tally, count) as rows:
            source.require_unchanged(next_step=advice)
            source.require_in_place(next_step=advice)
            sums = Sums(sealed_name(path), source.size, rows.leaves, None, tensors, parity)
            write_sums(sums, sums_path(path), How(count, durable), encoded=rows)


@contextmanager
def _parity_of(source: Source, parity: Parity, tally: Tally, threads: int) -> Iterator[Encoded]:
    if tally.identity is None:
        with encoded(source, parity, beside=source.path, threads=threads) as rows:
            yield rows
        return
    if tally.identity != source.identity:
        raise DamagedError("another file has taken its place", path=source.path)
    yield of_tally(tally, parity, source.size)
