"""What is different between two checkpoints, of any format and without loading either.

First the structure, then the bytes of the tensors that both have: what is
called identical was read on both sides. Between two ``.fckpt`` files the
digests say which leaves of a tensor differ; where some do, the rest of it is
read from A alone, since the norm needs it. On demand digests are all that is
looked at. Equal bytes need no torch: it is imported for the first tensor that
differs.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, NamedTuple

from fastckpt.constants import ENTRY_FLAG_CONJ, ENTRY_FLAG_NEG, LEAF_SIZE
from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError, MissingPackageError, UnsupportedStateError
from fastckpt.io.pool import R, T, map_in_order
from fastckpt.io.source import Openable
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.layout.blocks import align
from fastckpt.layout.covered import Covered
from fastckpt.layout.entries import Entry
from fastckpt.needs import needs_torch
from fastckpt.stored.element_pairs import PIECE_SIZE, ElementPairs, Tile, reach_a, reach_b
from fastckpt.stored.object_comparison import ObjectDifference, compare_objects
from fastckpt.stored.open_file import open_file
from fastckpt.stored.opened import Opened
from fastckpt.stored.structure_difference import StructureDifference, compare_structure
from fastckpt.stored.unreferenced import compare_unreferenced

if TYPE_CHECKING:
    from fastckpt.tensor.difference import Elements, Tally

_MAX_OVERLAP: Final = 8
_LEAST_OVERLAP: Final = 2**26
"""How often the bytes of all storages are gone through for tensors that overlap, and so many bytes more."""

Range = tuple[int, int]
"""First byte and first byte after, counted from the first byte of a tensor."""


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """What was found about a tensor that both files have.

    Attributes:
        a, b: What it is in each.
        status: ``identical`` (every bit), ``differs``, ``damaged``, or ``unread`` (only the structure was wanted).
        compared: ``digests``, ``data``, or None if it was not compared.
        numbers: By how much it differs; None if it does not, or has no common shape and kind of number.
        error: The damage that kept it from being compared.
    """

    a: Entry
    b: Entry
    status: str
    compared: str | None = None
    numbers: Tally | None = None
    error: FastckptError | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two checkpoints, as a report has it."""

    path: str
    format: str
    size: int
    root: str | None
    tensors: int
    bytes_read: int


@dataclass(slots=True)
class Comparison:
    """All differences between two checkpoints.

    Attributes:
        a, b: The checkpoints.
        structure: Everything but the bytes of tensors.
        tensors: The common tensors by their names in A, in its order.
        objects: What is neither a tensor nor a plain value, by place, and what no tensor lies in, by its name in the
            file; empty where only some names were wanted.
        roots_equal: Whether equal root digests made any comparison needless, since no more was wanted.
    """

    a: Side
    b: Side
    structure: StructureDifference
    tensors: dict[str, TensorDifference] = field(default_factory=dict)
    objects: dict[str, ObjectDifference] = field(default_factory=dict)
    roots_equal: bool = False

    @property
    def same(self) -> bool | None:
        """Whether no difference was found; None if none was, but not everything could be compared."""
        found = self._statuses
        if self.structure.same is False or not found <= {"identical", "unread", "unknown"}:
            return False
        return None if self.structure.same is None or "unknown" in found else True

    @property
    def damaged(self) -> bool:
        """Whether damage kept something from being compared."""
        return "damaged" in self._statuses

    @property
    def _statuses(self) -> set[str]:
        return {part.status for part in self.tensors.values()} | {part.status for part in self.objects.values()}


def compare(
    checkpoint_a: Openable | Opened,
    checkpoint_b: Openable | Opened,
    *,
    keys: str | None = None,
    structure_only: bool = False,
    digests_only: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two checkpoints.

    Memory is bounded whatever their size: a piece of at most 1 MiB of each per
    thread. Only of a tensor that lies in another order in B (transposed, say)
    all of B's is held.

    Args:
        checkpoint_a: One checkpoint, a file or open already; differences are relative to it. It is closed in the end.
        checkpoint_b: The other one.
        keys: A glob: compare only tensors whose name matches.
        structure_only: Do not read the bytes of tensors.
        digests_only: Do not read those of which both files have digests that are the same.
        threads: Worker threads; None takes one per CPU.
        progress: Called now and then with the bytes of A's tensors done so far.

    Raises:
        NotACheckpointError, UnsupportedVersionError, UnsupportedStateError, CheckpointIOError
        DamagedError: The structure of a file is damaged. A damaged tensor is reported, not raised.
    """
    count = thread_count(threads)
    with _opened(checkpoint_a) as a, _opened(checkpoint_b) as b:
        structure = compare_structure(a, b, keys=keys)
        structure.notes += [f"{side}: {note}" for side, file in (("A", a), ("B", b)) for note in file.notes]
        # The root of a set is that of its manifest: of the file that this is it says something else.
        roots_equal = digests_only and a.root is not None and (a.format, a.root) == (b.format, b.root)
        tensors: dict[str, TensorDifference] = {}
        known: dict[tuple[Entry, Entry], TensorDifference] = {}
        overlaps = _Overlaps(sum(a.storage_sizes) + sum(b.storage_sizes))
        done = 0
        for name, (ours, theirs) in structure.pairs.items():
            if roots_equal:
                tensors[name] = TensorDifference(ours, theirs, "identical", "digests")
            elif structure_only:
                tensors[name] = TensorDifference(ours, theirs, "unread")
            else:
                # Tied weights are one tensor under two names.
                key = (ours._replace(name=""), theirs._replace(name=""))
                if key not in known:
                    known[key] = _compare_tensor(_Pair(a, ours, b, theirs, count, overlaps), digests_only=digests_only)
                tensors[name] = known[key]
                done += ours.nbytes
                if progress is not None:
                    progress(done)
        if find_spec("torch") is None and any(one.status == "differs" for one in tensors.values()):
            structure.notes.append("by how much tensors differ is said only with torch: pip install 'fastckpt[torch]'")
        objects = {}
        if keys is None and not roots_equal:
            objects = compare_objects(a, b)
            if not structure_only:
                objects |= compare_unreferenced(a, b, threads=count)
        for file in (a, b):
            file.require_unchanged(next_step="compare it again")
        return Comparison(_side(a), _side(b), structure, tensors, objects, roots_equal)


def _opened(checkpoint: Openable | Opened) -> Opened:
    return checkpoint if isinstance(checkpoint, Opened) else open_file(checkpoint)


def _side(file: Opened) -> Side:
    return Side(file.path, file.format, file.size, file.root, len(file.entries), file.bytes_read)


class _Overlaps:
    """What was read already for other tensors: thousands of them can lie in the same bytes.

    Attributes:
        equal: The bytes of a storage of A that are those of a storage of B, by both and how far from each other.
        room: Bytes that may yet be gone through to tell by how much tensors differ.
    """

    def __init__(self, storage_bytes: int) -> None:
        self.equal: dict[tuple[int, int, int], Covered] = {}
        self.room = _LEAST_OVERLAP + _MAX_OVERLAP * storage_bytes


class _Pair(NamedTuple):
    file_a: Opened
    a: Entry
    file_b: Opened
    b: Entry
    threads: int
    overlaps: _Overlaps


def _compare_tensor(pair: _Pair, *, digests_only: bool) -> TensorDifference:
    file_a, a, file_b, b, threads, _ = pair
    if a.shape != b.shape:
        return TensorDifference(a, b, "differs")
    if not a.numel:
        status = "identical" if a.dtype == b.dtype else "differs"
        return TensorDifference(a, b, status, "data")
    pairs = ElementPairs.of(a, b)
    ranges: list[Range] | None = None
    try:
        if _mean_alike(a, b) and pairs.alike:
            ranges = _differing_leaves(pair)
            if ranges == [] and digests_only:
                return TensorDifference(a, b, "identical", "digests")
        file_a.prove(a.storage, threads=threads)
        file_b.prove(b.storage, threads=threads)
        # With gaps between the elements, bytes that differ may belong to none of them.
        whole = [(0, a.span[1] - a.span[0])]
        if _mean_alike(a, b) and pairs.alike and _equal_bytes(pair, ranges or whole):
            return TensorDifference(a, b, "identical", "data")
        numbers = _measure(pair, pairs, ranges or None)
    except MissingPackageError:
        if not (_mean_alike(a, b) and pairs.alike and a.is_contiguous):
            raise  # Whether they differ at all, only the elements tell.
        return TensorDifference(a, b, "differs", "data")
    except (DamagedError, CheckpointIOError) as error:
        return TensorDifference(a, b, "damaged", error=error)
    identical = numbers is not None and numbers.differing_bits == 0
    return TensorDifference(a, b, "identical" if identical else "differs", "data", None if identical else numbers)


def _mean_alike(a: Entry, b: Entry) -> bool:
    """Whether equal bytes are equal elements."""
    return a.dtype == b.dtype and not (a.flags ^ b.flags) & (ENTRY_FLAG_CONJ | ENTRY_FLAG_NEG)


def _differing_leaves(pair: _Pair) -> list[Range] | None:
    """The parts of a tensor whose digests differ; None where the digests are not of the same bytes."""
    (start_a, end_a), (start_b, end_b) = pair.a.span, pair.b.span
    run_a = pair.file_a.leaf_run(pair.a.storage, start_a, end_a)
    run_b = pair.file_b.leaf_run(pair.b.storage, start_b, end_b)
    if run_a is None or run_b is None or run_a.skip != run_b.skip:
        return None
    ranges: list[Range] = []
    if run_a.digests == run_b.digests:
        return ranges
    for leaf, (one, other) in enumerate(zip(run_a.digests, run_b.digests, strict=True)):
        if one != other:
            start = max(leaf * LEAF_SIZE - run_a.skip, 0)
            end = min((leaf + 1) * LEAF_SIZE - run_a.skip, end_a - start_a)
            if ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, end))
    return ranges


def _equal_bytes(pair: _Pair, ranges: Iterable[Range]) -> bool:
    start_a, start_b = pair.a.span[0], pair.b.span[0]
    key = pair.a.storage, pair.b.storage, start_b - start_a
    seen = pair.overlaps.equal.setdefault(key, Covered())

    def equal(part: Range) -> bool:
        ours = pair.file_a.read(pair.a.storage, start_a + part[0], start_a + part[1])
        theirs = pair.file_b.read(pair.b.storage, start_b + part[0], start_b + part[1])
        # Comparing views goes byte by byte; bytes are compared at once.
        return bytes(ours) == bytes(theirs)

    new = [
        (begin - start_a, end - start_a)
        for part in ranges
        for begin, end in seen.missing(start_a + part[0], start_a + part[1])
    ]
    if not all(_map(equal, _cut(new, start_a), pair.threads)):
        return False
    for begin, end in new:
        seen.add(start_a + begin, start_a + end)
    return True


def _cut(ranges: Iterable[Range], start: int) -> Iterator[Range]:
    """The ranges in parts of at most PIECE_SIZE, cut where pieces of a storage meet; the tensor begins at ``start``."""
    for at, end in ranges:
        while at < end:
            stop = min(align(start + at + 1, PIECE_SIZE) - start, end)
            yield at, stop
            at = stop


def _touch(ranges: list[Range], begin: int, end: int) -> bool:
    """Whether one of the ranges, which ascend, has a byte in ``[begin, end)``."""
    before = bisect.bisect_left(ranges, (end, 0))
    return before > 0 and ranges[before - 1][1] > begin


def _map(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """``work(item)`` in order; on threads if there is more than one item."""
    iterator = iter(items)
    first = list(itertools.islice(iterator, 2))
    if len(first) < 2 or threads == 1:
        return map(work, itertools.chain(first, iterator))
    return map_in_order(work, itertools.chain(first, iterator), threads=threads)


def _measure(pair: _Pair, pairs: ElementPairs, ranges: list[Range] | None) -> Tally | None:
    """By how much a tensor differs; None if that cannot be said.

    ``ranges`` are the only parts that can differ: the others are taken from A for both.
    """
    with needs_torch("to compare tensors by their elements"):
        from fastckpt.tensor.difference import Tally, comparable, one_thread, tally

    file_a, a, file_b, b, threads, _ = pair
    pair.overlaps.room -= pairs.count * (a.itemsize + b.itemsize)
    if not comparable(a.dtype, b.dtype) or pairs.endless or pair.overlaps.room < 0:
        return None
    start_a, start_b = a.span[0], b.span[0]
    whole_b = None if pairs.alike else file_b.read(b.storage, *b.span)

    def measure(piece: Tile) -> Tally:
        begin, size = piece.start_a * a.itemsize, reach_a(piece.dims) * a.itemsize
        raw_a = file_a.read(a.storage, start_a + begin, start_a + begin + size)
        begin_b = piece.start_b * b.itemsize
        end_b = begin_b + reach_b(piece.dims) * b.itemsize
        if whole_b is not None:
            raw_b: bytearray | memoryview = memoryview(whole_b)[begin_b:end_b]
        elif ranges is not None and not _touch(ranges, begin, begin + size):
            raw_b = raw_a
        else:
            raw_b = file_b.read(b.storage, start_b + begin_b, start_b + end_b)
        return tally(_elements(raw_a, a, piece, 1), _elements(raw_b, b, piece, 2))

    total = Tally()
    try:
        with one_thread():
            for part in _map(measure, pairs.pieces(a.itemsize), threads):
                total.add(part)
    except UnsupportedStateError:
        return None  # An older torch lacks the dtype.
    return total.times(pairs.repeats)


def _elements(raw: bytearray | memoryview, entry: Entry, piece: Tile, side: int) -> Elements:
    from fastckpt.tensor.difference import Elements

    shape = tuple(dim.extent for dim in piece.dims)
    return Elements(raw, entry.dtype, shape, tuple(dim[side] for dim in piece.dims), entry.flags)
