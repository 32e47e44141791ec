"""The profile of every tensor of a file, one piece of at most a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from fastckpt.errors import CheckpointIOError, DamagedError, UnsupportedStateError
from fastckpt.io.pool import map_in_order
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry
from fastckpt.stored.element_pairs import PIECE_SIZE, ElementPairs, Tile, reach_a
from fastckpt.stored.opened import Opened
from fastckpt.surveying.fates import Status
from fastckpt.surveying.wreck import Wreck

if TYPE_CHECKING:
    from fastckpt.tensor.profile import Profile


class Measured(NamedTuple):
    """A tensor and its profile, or why there is none."""

    entry: Entry
    profile: Profile | None
    reason: str = ""


class WreckTensors(Opened):
    """What still stands of a file whose structure is damaged, to be measured all the same."""

    def __init__(self, wreck: Wreck) -> None:
        sizes = [state.nbytes for state in wreck.storages]
        super().__init__(Source(wreck.path), wreck.format, lambda: wreck.tree, wreck.entries, sizes)
        self.wreck = wreck
        self.lost = {
            self.by_name[name].storage: fate.reason or fate.status.value
            for name, fate in wreck.fates().items()
            if fate.status not in (Status.INTACT, Status.UNVERIFIED)
        }

    @property
    def metadata(self) -> dict[str, Any]:
        """See `Opened`."""
        return self.wreck.metadata

    def prove(self, storage: int, *, threads: int) -> None:
        """Raise DamagedError unless the storage is there, and not encoded."""
        reason = self.lost.get(storage)
        if reason is None and self.wreck.storages[storage].offset is None:
            reason = "the file has to be salvaged before this can be decoded"
        if reason is not None:
            raise DamagedError(reason, path=self.path)

    def read(self, storage: int, start: int, end: int) -> bytearray:
        """See `Opened.read`."""
        offset = self.wreck.storages[storage].offset
        assert offset is not None
        return bytearray(self.source.read(offset + start, end - start))


def measure(file: Opened, *, threads: int, progress: Progress | None) -> Iterator[Measured]:
    """Measure all tensors, in order. Damage is a reason, never raised.

    Args:
        file: The open checkpoint.
        threads: Worker threads.
        progress: Told of the bytes of tensors done so far.
    """
    from fastckpt.tensor.difference import one_thread

    known: dict[Entry, Measured] = {}
    done = 0
    with one_thread():
        for entry in file.entries:
            # Tied weights are one tensor under two names.
            key = entry._replace(name="")
            if key not in known:
                known[key] = _measure(file, entry, threads)
            yield known[key]._replace(entry=entry)
            done += entry.nbytes
            if progress is not None:
                progress(done)


def _measure(file: Opened, entry: Entry, threads: int) -> Measured:
    from fastckpt.tensor.difference import Elements
    from fastckpt.tensor.profile import Profile, profile

    total = Profile()
    if not entry.numel:
        return Measured(entry, total)
    pairs = ElementPairs.of(entry, entry)
    if pairs.endless:
        return Measured(entry, None, "its elements overlap many times over")
    start = entry.span[0]

    def measure_piece(piece: Tile) -> Profile:
        begin = start + piece.start_a * entry.itemsize
        raw = file.read(entry.storage, begin, begin + reach_a(piece.dims) * entry.itemsize)
        shape, stride = tuple(dim.extent for dim in piece.dims), tuple(dim.step_a for dim in piece.dims)
        return profile(Elements(raw, entry.dtype, shape, stride, entry.flags))

    try:
        file.prove(entry.storage, threads=threads)
        pieces = pairs.pieces(entry.itemsize)
        # A small tensor is one piece, and threads would take longer to start than it takes to read.
        few = entry.nbytes <= PIECE_SIZE
        for part in map(measure_piece, pieces) if few else map_in_order(measure_piece, pieces, threads=threads):
            total.add(part, pairs.repeats)
    except (DamagedError, CheckpointIOError, UnsupportedStateError) as error:
        return Measured(entry, None, error.message)
    return Measured(entry, total)
