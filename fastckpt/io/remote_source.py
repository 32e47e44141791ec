"""A remote object as an open file: ranges of it, each of the one version that was opened."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate
from typing import Any, Final, TypeVar

from fastckpt.constants import LEAF_DIGEST_SIZE
from fastckpt.errors import DamagedError, NotACheckpointError, UsageError
from fastckpt.io.fetches import Ahead, Fetches, RemoteSlots
from fastckpt.io.landing import Landing
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.passed_over import PassedOver
from fastckpt.io.ranges import Piece, Range, ranges_of, without_gaps
from fastckpt.io.slots import SlotReads, SlotRequest
from fastckpt.io.source import Identity, Source
from fastckpt.io.space import check_space
from fastckpt.io.transfer import Move, Moved, Progress
from fastckpt.layout.blocks import Extent
from fastckpt.layout.records import count_leaves
from fastckpt.remote import failures
from fastckpt.remote.path import RemotePath
from fastckpt.remote.waiting import call
from fastckpt.text import quoted

T = TypeVar("T")

TAIL: Final = 2**20
"""Bytes at the end that come with the first request: footer, manifest and index of all but huge files."""
_FRONT: Final = 256 * 1024
"""Bytes at the beginning that come when the first of them are asked for: most headers of a .safetensors."""


REQUESTS: Final = 8
"""Requests under way at a time, where nobody says how many: one connection alone fills few links."""


class RemoteSource(Source):
    """A remote object, as `Source` is a file.

    Its size and what tells versions of it apart come with the first request, which brings its last bytes. Every
    later one is for that version: of an object that was replaced, DamagedError says so.

    What only a file can give (a descriptor, a map) is given by a copy of the object in a temporary file without a name.
    It is made when that is first asked for, and read from then on.

    Attributes:
        place: Where it lies.

    Raises:
        NotACheckpointError: It is empty, or a URL that ends with a slash.
        CheckpointNotFoundError, CheckpointIOError
    """

    far = True
    attempts = 3

    def __init__(self, place: RemotePath, *, may_be_empty: bool = False) -> None:
        self.place = place
        self.path = os.fspath(place)
        self._local = -1
        self._file_fd = -1
        self._direct_fd: int | None = -1
        self._closed = False
        self.warm: bool | None = False
        self.unread_head = None
        self.unpacked = None
        self.remembered = {}
        if place.is_directory:
            raise NotACheckpointError(
                "this is a directory, not a checkpoint file",
                path=self.path,
                next_step=f"fastckpt inspect {quoted(self.path)}, which shows what is in it",
            )
        self.version, self._tail = place.store.tail(place.key, TAIL)
        self.size = self.version.size
        if place.seen is not None and not place.seen.may_be(self.version):
            raise failures.changed(self.path)
        self._front = memoryview(b"")
        self._under_way: set[Fetches[Any]] = set()
        self._ahead: list[Ahead] = []
        self._passed_over: PassedOver | None = None
        if self.size == 0 and not may_be_empty:
            raise NotACheckpointError(
                "the object is empty (0 bytes)", path=self.path, next_step="use another copy of this checkpoint"
            )

    def __del__(self) -> None:
        if self._local >= 0:
            self.close()

    @property
    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Nothing can be read any more; the local copy, if there is one, is gone."""
        self._closed = True
        for fd in (self._local, self._file_fd):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)
        self._local = self._file_fd = -1

    # What only a file has: the copy.

    @property
    def fd(self) -> int:
        """A descriptor of the local copy, which is made now if there is none."""
        if self._local < 0:
            self._require_open()
            self._local = self._copy()
            self.warm, self._direct_fd = None, None
            self.attempts = 1
        return self._local

    @fd.setter
    def fd(self, fd: int) -> None:
        self._local = fd

    def _copy(self) -> int:
        directory = tempfile.gettempdir()
        with (
            typed_os_errors(self.path, doing=f"copy it to a temporary file in {directory}"),
            tempfile.TemporaryFile(buffering=0) as there,
        ):
            check_space(there.fileno(), self.size, directory)
            self.copy_to(there.fileno())
            return os.dup(there.fileno())

    def copy_to(self, fd: int) -> None:
        """Write all of it to the beginning of an open file."""
        self.transfer([Move(0, 0, self.size)], sink=fd, threads=REQUESTS, leaves=False)
        self.require_unchanged(next_step="try it again")

    @property
    def origin(self) -> RemotePath:
        return self.place

    def beside(self, suffix: str) -> RemotePath:
        return self.place.beside(suffix)

    def read_instead(self, fd: int) -> None:
        self._file_fd, self._local = self._local if self._local >= 0 else os.dup(fd), fd
        self.warm, self._direct_fd, self.size = None, None, os.fstat(fd).st_size

    @property
    def file_size(self) -> int:
        return self.version.size

    # What is asked of the store.

    def read(self, offset: int, size: int, *, what: str = "") -> bytes:
        if self._local >= 0:
            return super().read(offset, size, what=what)
        self._check_bounds(offset, size, what)
        self._require_open()
        if not size:
            return b""
        if offset + size <= min(_FRONT, self.size - self._tail.nbytes) and not self._front.nbytes:
            self._front = call(lambda: self._get(0, min(_FRONT, self.size))).result()
        if (here := self._here(offset, offset + size)) is not None:
            return bytes(here)
        if (kept := self._kept(offset, size)) is not None:
            return bytes(kept)
        for ahead in self._ahead[::-1]:  # Who asks anew wants no answer to an earlier question.
            if (data := ahead.read(offset, size)) is not None:
                return bytes(data)
        with self._fetches([Move(offset, 0, size)], lambda found, data: data) as fetches:
            return b"".join(fetches)

    def _here(self, start: int, stop: int) -> memoryview | None:
        tail, front = self._tail, self._front  # Another thread may drop them meanwhile.
        tail_at = self.size - tail.nbytes
        if start >= tail_at:
            return tail[start - tail_at : stop - tail_at]
        return front[start:stop] if stop <= front.nbytes else None

    def _get(self, start: int, stop: int) -> memoryview:
        here = self._here(start, stop)
        return here if here is not None else self.place.store.get(self.place.key, start, stop, self.version)

    @contextmanager
    def _fetches(
        self,
        moves: Iterable[Move],
        use: Callable[[Range, memoryview], T],
        *,
        threads: int = REQUESTS,
    ) -> Iterator[Fetches[T]]:
        in_order = sorted(enumerate(moves), key=lambda move: move[1].source)
        ranges = ranges_of(in_order, self.size)
        if self._passed_over is not None:
            ranges = without_gaps(ranges)
        fetches = Fetches(self._get, ranges, threads=threads, use=use, most=None)
        self._under_way.add(fetches)
        try:
            yield fetches
        finally:
            self._under_way.discard(fetches)
            fetches.close()

    def keep_passed_over(self) -> None:
        self._passed_over = PassedOver()

    def _kept(self, offset: int, size: int) -> memoryview | None:
        return self._passed_over.read(offset, size) if self._passed_over is not None else None

    def bring_near(self) -> None:
        _ = self.fd

    def abandon_reads(self) -> None:
        for fetches in [*self._under_way]:
            fetches.close()
        for ahead in [*self._ahead]:
            ahead.close()

    @contextmanager
    def ahead(self, extents: Iterable[Extent], *, threads: int) -> Iterator[None]:
        if self._local >= 0:
            yield
            return
        dropped = self._passed_over.keep if self._passed_over is not None else None
        ahead = Ahead(self._get, [*extents], self.size, ahead=threads, dropped=dropped)
        self._ahead.append(ahead)
        try:
            yield
        finally:
            self._ahead.remove(ahead)
            ahead.close()

    def transfer(
        self,
        moves: Iterable[Move],
        *,
        sink: int,
        threads: int,
        leaves: bool = True,
        crcs: bool = False,
        sink_direct: int = -1,
        past_the_cache: bool = True,
        progress: Progress | None = None,
    ) -> Moved:
        """As of a file; ``threads`` are requests under way at a time.

        What does not come at all is raised, and no fault: nobody knows whether it is there.
        """
        if self._local >= 0:
            return super().transfer(
                moves,
                sink=sink,
                threads=threads,
                leaves=leaves,
                crcs=crcs,
                sink_direct=sink_direct,
                past_the_cache=past_the_cache,
                progress=progress,
            )
        self._require_open()
        moves = [*moves]
        first_leaf = [0, *accumulate(count_leaves(move.size) for move in moves)]
        digests = bytearray(LEAF_DIGEST_SIZE * first_leaf[-1] if leaves else 0)
        sums = array("I", bytes(4 * len(moves) if crcs else 0))
        landing = Landing(
            moves,
            self.size,
            sink=sink,
            sink_direct=sink_direct,
            first_leaf=first_leaf,
            leaves=digests if leaves else None,
            crcs=sums if crcs else None,
        )
        wanted = landing.inside.copy()
        for number, move in enumerate(wanted):
            if (kept := self._kept(move.source, move.size)) is not None:
                landing.land(kept, [Piece(number, 0, 0, move.size)])
                wanted[number] = move._replace(size=0)

        def land(found: Range, data: memoryview) -> None:
            landing.land(data, found.pieces)
            if self._passed_over is not None:
                self._passed_over.keep(found, data)

        with self._fetches(wanted, land, threads=threads) as fetches:
            for _ in fetches:
                if progress is not None:
                    progress(landing.done)
        return Moved(memoryview(digests), sums, landing.faults)

    def fill_slots(self, wanted: SlotRequest, *, threads: int, past_the_cache: bool) -> SlotReads:
        if self._local >= 0:
            return super().fill_slots(wanted, threads=threads, past_the_cache=past_the_cache)
        self._require_open()
        return RemoteSlots(self._get, wanted, self.size, ahead=threads)

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError("the checkpoint is closed", path=self.path)

    # Whether it is still the same one.

    @property
    def identity(self) -> Identity:
        version = self.version
        return 0, hash((self.path, version.etag)), version.size, int(version.modified * 10**9)

    def unchanged(self) -> bool:
        """Whether all that was read is of the version that was opened, as each answer of most stores was itself."""
        store, place = self.place.store, self.place
        return store.conditional or self._local >= 0 or store.head(place.key) == self.version

    def require_in_place(self, *, next_step: str) -> None:
        if self.place.store.head(self.place.key) != self.version:
            raise DamagedError("another object has taken its place", path=self.path, next_step=next_step)

    def drop_cache(self) -> None:
        """What is read next comes from the store: the last bytes at once, as who reads them reads few at a time."""
        self._front = memoryview(b"")
        if size := self._tail.nbytes:
            get, key = self.place.store.get, self.place.key
            self._tail = call(lambda: get(key, self.size - size, self.size, self.version)).result()
