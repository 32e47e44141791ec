"""The profile of every tensor of a file, one piece of at most a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from fastckpt.errors import CheckpointIOError, DamagedError, UnsupportedStateError
from fastckpt.foreign.byte_order import read_numbers
from fastckpt.io.pool import map_in_order
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry, by_storage
from fastckpt.stored.element_pairs import PIECE_SIZE, ElementPairs, Tile, reach_a
from fastckpt.surveying.fates import THERE
from fastckpt.surveying.torch_zip.repacked import inflate_what_stands
from fastckpt.surveying.wreck import Wreck

if TYPE_CHECKING:
    from fastckpt.tensor.profile import Profile


_MAX_OVERLAP: Final = 8
_LEAST_OVERLAP: Final = 2**26
"""How often the bytes of all storages are gone through for tensors that overlap, and so many bytes more."""
_TOO_MUCH: Final = "it overlaps too many others"


class Measured(NamedTuple):
    """A tensor and its profile, or why there is none."""

    entry: Entry
    profile: Profile | None
    reason: str = ""


class Measurable(Protocol):
    """What measuring needs of a file: that part of an `Opened`."""

    @property
    def entries(self) -> Sequence[Entry]:
        """See `Opened`."""

    def prove(self, storage: int, *, threads: int) -> None:
        """See `Opened`."""

    def read(self, storage: int, start: int, end: int) -> bytearray | memoryview:
        """See `Opened`."""


class WreckTensors:
    """What still stands of a file whose structure is damaged, to be measured all the same; closes the file."""

    def __init__(self, wreck: Wreck) -> None:
        self.wreck = wreck
        self.entries, self.tree = wreck.entries, wreck.tree
        self.source = Source(wreck.path)
        if wreck.format == "torch-zip":
            inflate_what_stands(self.source)
        fates = wreck.fates()
        self.lost = {
            entry.storage: fates[entry.name].reason or fates[entry.name].status.value
            for entry in wreck.entries
            if fates[entry.name].status not in THERE
        }

    def __enter__(self) -> WreckTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()

    def prove(self, storage: int, *, threads: int) -> None:
        """Raise DamagedError unless the storage is there, and not encoded."""
        reason = self.lost.get(storage)
        if reason is None and self.wreck.storages[storage].offset is None:
            reason = "the file has to be salvaged before this can be decoded"
        if reason is not None:
            raise DamagedError(reason, path=self.source.path)

    def read(self, storage: int, start: int, end: int) -> bytearray | memoryview:
        """See `Opened.read`."""
        state = self.wreck.storages[storage]
        assert state.offset is not None
        return read_numbers(self.source, state.offset, state.nbytes, state.unit, start, end)


def measure(file: Measurable, *, threads: int, progress: Progress | None) -> Iterator[Measured]:
    """Measure all tensors, in order. Damage is a reason, never raised.

    Args:
        file: The open checkpoint.
        threads: Worker threads.
        progress: Called with the bytes of tensors done so far.
    """
    from fastckpt.tensor.difference import one_thread

    known: dict[Entry, Measured] = {}
    room = _LEAST_OVERLAP + _MAX_OVERLAP * sum(
        max(entry.span[1] for entry in entries) for entries in by_storage(file.entries).values()
    )
    done = 0
    with one_thread():
        for entry in file.entries:
            # Tied weights are one tensor under two names.
            key = entry._replace(name="")
            if key not in known:
                pairs = ElementPairs.of(entry, entry)
                room -= 0 if pairs.endless else pairs.count * entry.itemsize
                known[key] = _measure(file, entry, threads) if room >= 0 else Measured(entry, None, _TOO_MUCH)
            yield known[key]._replace(entry=entry)
            done += entry.nbytes
            if progress is not None:
                progress(done)


def _measure(file: Measurable, entry: Entry, threads: int) -> Measured:
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
