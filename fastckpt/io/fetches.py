"""Ranges of a remote object on their way, fetched on several threads."""

from __future__ import annotations

import _thread
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Generic, TypeAlias, TypeVar

from fastckpt.io.landing import Landing
from fastckpt.io.ranges import Piece, Range, ranges_of, without_gaps
from fastckpt.io.slots import SlotRequest
from fastckpt.io.transfer import Move, default_threads
from fastckpt.layout.blocks import Extent
from fastckpt.outcome import AbandonedError, Outcome
from fastckpt.remote.waiting import call

T = TypeVar("T")

Get: TypeAlias = Callable[[int, int], memoryview]
"""Fetches bytes ``[start, stop)`` of an object. It hears no Ctrl-C: it is called on threads that nobody waits for."""


class Fetches(Generic[T]):
    """Ranges on their way. Iterate over it once: what ``use`` made of each, in their order.

    Args:
        get: See `Get`.
        ranges: What to fetch.
        threads: How many are fetched at a time, each by a thread that also calls ``use`` when it has come.
        use: Takes a range and its bytes.
        most: How many are begun before the first is taken, so that few wait in memory; None is all, for a ``use`` that
            keeps nothing.
    """

    def __init__(
        self,
        get: Get,
        ranges: Sequence[Range],
        *,
        threads: int,
        use: Callable[[Range, memoryview], T],
        most: int | None,
    ) -> None:
        self._get = get
        self._ranges = ranges
        self._use = use
        self._outcomes: list[Outcome[T]] = [Outcome() for _ in ranges]
        self._threads = max(1, min(threads, len(ranges)))
        self._most = len(ranges) if most is None else max(1, most)
        self._turns: SimpleQueue[int | None] = SimpleQueue()
        self._admissions: SimpleQueue[None] = SimpleQueue()
        for _ in range(self._threads):
            self._admissions.put(None)
        self._closed = False

    def __iter__(self) -> Iterator[T]:
        for number in range(-self._most, 0):
            self._begin_behind(number)
        for _ in range(self._threads):
            _thread.start_new_thread(self._work, ())
        for number in range(len(self._ranges)):
            taken = self._outcomes[number].result()
            self._begin_behind(number)
            yield taken
            del taken

    def _begin_behind(self, number: int) -> None:
        following = number + self._most
        if following < len(self._ranges):
            self._turns.put(following)
        elif following == len(self._ranges):
            self._end_threads()

    def _end_threads(self) -> None:
        for _ in range(self._threads):
            self._turns.put(None)

    def _work(self) -> None:
        while (number := self._turns.get()) is not None:
            self._outcomes[number].take(lambda found=self._ranges[number]: self._fetch(found))  # type: ignore[misc]

    def _fetch(self, found: Range) -> T:
        data = self._get(found.start, found.stop)
        try:
            self._admissions.get_nowait()
        except Empty:
            raise AbandonedError from None
        try:
            return self._use(found, data)
        finally:
            self._admissions.put(None)

    def close(self) -> None:
        """Nothing is used any more when this returns. What is under way is left to itself; who waits gets an error."""
        if self._closed:
            return
        self._closed = True
        while not self._turns.empty():
            with suppress(Empty):
                self._turns.get_nowait()
        self._end_threads()
        for _ in range(self._threads):
            self._admissions.get()
        for outcome in self._outcomes:
            outcome.abandon()


def as_it_came(found: Range, data: memoryview) -> tuple[Range, memoryview]:
    """For `Fetches`: whoever takes a range uses it."""
    return found, data


class RemoteSlots:
    """See `fastckpt.io.slots.SlotReads`: what is under way is in memory of its own, and lands when it is waited for."""

    def __init__(self, get: Get, wanted: SlotRequest, size: int, *, ahead: int) -> None:
        rows = wanted.rows
        moves = [Move(*rows[at : at + 3]) for at in range(0, len(rows), 4)]
        self._landing = Landing(moves, size, first_leaf=rows[3::4], leaves=wanted.leaves, crcs=wanted.crcs)
        self._wanted = wanted
        ranges = ranges_of(enumerate(self._landing.inside), size)
        self._fetches = Fetches(get, ranges, threads=ahead, use=as_it_came, most=ahead)
        self._arriving = iter(self._fetches)
        self._pieces: deque[Piece] = deque()
        self._data = memoryview(b"")

    def wait(self, turn: int, /) -> list[tuple[int, int, int, int]]:
        end = self._wanted.ends[turn]
        begin = self._wanted.ends[turn - 1] if turn else 0
        left = sum(move.size for move in self._landing.inside[begin:end])
        while left:
            if not self._pieces:
                found, self._data = next(self._arriving)
                self._pieces.extend(found.pieces)
            here = []
            while self._pieces and self._pieces[0].move < end:
                here.append(self._pieces.popleft())
            self._landing.land(self._data, here, threads=default_threads(), hashed=bool(self._wanted.hashed[turn]))
            left -= sum(piece.size for piece in here)
        return [fault for fault in self._landing.faults if begin <= fault.move < end]

    def release(self) -> None:
        """Nothing waits for a slot: what is read ahead is beside them."""

    def close(self) -> None:
        self._fetches.close()
        self._pieces.clear()
        self._data = memoryview(b"")


class Ahead:
    """Extents that several threads will read, about in this order, in ranges of many of them.

    A range is dropped when each of its extents was read as often as it was named.

    Args:
        get: See `Get`.
        extents: What will be read.
        size: Bytes of the object.
        ahead: Ranges under way at a time.
        dropped: Is given each range that was read, before it is dropped; what lies between two comes with the first.
    """

    def __init__(
        self,
        get: Get,
        extents: Sequence[Extent],
        size: int,
        *,
        ahead: int,
        dropped: Callable[[Range, memoryview], None] | None = None,
    ) -> None:
        moves = [Move(extent.offset, 0, extent.size) for extent in extents]
        self._get = get
        self._ranges = ranges_of(enumerate(moves), size, whole=True)
        if dropped is not None:
            self._ranges = without_gaps(self._ranges)
        self._of = {moves[piece.move]: n for n, found in enumerate(self._ranges) for piece in found.pieces}
        self._left = [len(found.pieces) for found in self._ranges]
        self._arrivals: dict[int, _Arrival] = {}
        self._ahead = max(ahead, 1)
        self._begun = 0
        self._closed = False
        self._dropped = dropped
        self._lock = Lock()

    def read(self, offset: int, size: int) -> memoryview | None:
        """The bytes of an extent; None if it was not named."""
        number = self._of.get(Move(offset, 0, size))
        with self._lock:
            if self._closed:
                raise AbandonedError
            if number is None or not self._left[number]:
                return None
            while self._begun < min(number + self._ahead, len(self._ranges)):
                found = self._ranges[self._begun]
                self._arrivals[self._begun] = _Arrival(self._get, found)
                self._begun += 1
            arrival = self._arrivals[number]
            self._left[number] -= 1
        begin = offset - self._ranges[number].start
        data = arrival.data()
        with self._lock:
            if not self._left[number] and self._arrivals.pop(number, None) is not None and self._dropped is not None:
                self._dropped(self._ranges[number], data)
        return data[begin : begin + size]

    def close(self) -> None:
        """Leave what is under way to itself; who waits for it gets an error."""
        with self._lock:
            self._closed = True
            for arrival in self._arrivals.values():
                arrival.abandon()
            self._arrivals.clear()


class _Arrival:
    """A range on its way to several threads."""

    def __init__(self, get: Get, found: Range) -> None:
        self._outcome = call(lambda: get(found.start, found.stop))
        self._lock = Lock()
        self._data: memoryview | None = None
        self._error: BaseException | None = None

    def data(self) -> memoryview:
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._data is None:
                try:
                    self._data = self._outcome.result()
                except BaseException as error:
                    self._error = error
                    raise
            return self._data

    def abandon(self) -> None:
        self._outcome.abandon()
