"""The seal of a ``.fckpt`` that this process has just written."""

from __future__ import annotations

from fastckpt.fckpt.file import CheckpointFile
from fastckpt.io.how import How
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.seals.encoded import encoded
from fastckpt.seals.names import sealed_name, sums_path
from fastckpt.seals.parity import Parity
from fastckpt.seals.sums import Sums, write_sums
from fastckpt.seals.tensor_ranges import tensors_in_fckpt


def seal_written(path: str, parity: Parity, *, durable: bool, threads: int | None) -> None:
    """Write the sums file, with parity, of a checkpoint that was saved just now.

    Raises:
        OutOfSpaceError, CheckpointIOError: It cannot be read, or the sums file not be written.
        DamagedError: It was changed or replaced meanwhile.
    """
    with Source(path) as source:
        count = reading_threads(source, threads)
        tensors = list(tensors_in_fckpt(CheckpointFile(source)))
        with encoded(source, parity, beside=path, threads=count) as rows:
            source.require_unchanged(next_step="save it when nobody else writes to it")
            source.require_in_place(next_step="save it when nobody else writes to it")
            sums = Sums(sealed_name(path), source.size, rows.leaves, None, tensors, parity)
            write_sums(sums, sums_path(path), How(count, durable), encoded=rows)
