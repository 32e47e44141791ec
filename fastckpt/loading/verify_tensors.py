"""`fastckpt.verify_tensors`: are these tensors, where they are now, still those of the file?

The file's data is not read. Its index holds the digest of every leaf; the same
digests are computed from the tensors, on the device where its engine is live,
and compared. So a bit that flipped in device memory, an edit that was not
meant, or the wrong model is found at the speed of the device's memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple, cast

import torch

from fastckpt.constants import LEAF_SIZE, LEAVES_PER_CHUNK
from fastckpt.errors import for_file_object
from fastckpt.fckpt.bad_ranges import BadRange, differing_runs, findings_of
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.findings import Finding, FindingFacts, Kind, Report
from fastckpt.io.file_object import Readables, refuse_swapped
from fastckpt.io.transfer import thread_count
from fastckpt.layout.covered import Covered
from fastckpt.layout.entries import Entry, by_storage
from fastckpt.layout.places import StoragePlace
from fastckpt.layout.records import Record, count_leaves
from fastckpt.layout.selection import require_match, select
from fastckpt.loading.storage_images import Image, is_dense, record_images, storage_images
from fastckpt.staging.fetching import digests_of
from fastckpt.tensor.flatten import flatten
from fastckpt.text import quoted

_BATCH = 1024 * 1024 * 1024
"""Bytes that are hashed between two looks at the result; what had to be rebuilt in memory is freed then."""


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """Bytes ``[start, end)`` of a tensor, counted from its first one.

    Attributes:
        name: Flat name.
        start, end: In the order of the tensor's memory.
        row: The first index along dimension 0 that is touched; None where rows are not one after the other.
    """

    name: str
    start: int
    end: int
    row: int | None


@dataclass(frozen=True, slots=True)
class TensorFinding(Finding):
    """A finding about tensors in memory.

    Attributes:
        spans: Which bytes of which tensors; a leaf may hold several. The
            difference is somewhere among them.
    """

    spans: tuple[TensorSpan, ...] = ()

    def as_dict(self) -> FindingFacts:
        """Plain values, for JSON."""
        facts = Finding.as_dict(self)
        return cast(FindingFacts, {**facts, "spans": [asdict(span) for span in self.spans]})


class _Run(NamedTuple):
    """The raw bytes of a record, as they are here."""

    record: Record
    image: Image


def verify_tensors(
    destination: object,
    path: Readables,
    *,
    keys: str | Iterable[str] | None = None,
    threads: int | None = None,
) -> Report:
    """Prove that tensors are bit for bit those of a checkpoint file, by its digests alone.

    Args:
        destination: A module, an optimizer, or a state that may hold some, on any device.
        path: A ``.fckpt`` file.
        keys: Flat names or globs; only these tensors are compared. Other
            tensors may be there too, and should be where they share a record:
            a leaf can be proven only if all of its bytes are here.
        threads: Threads for what is hashed in host memory; None takes one per CPU.

    Returns:
        A report. ``ok`` is True if nothing differs; ``verified`` counts the raw bytes proven. A difference is a
        `TensorFinding` of kind ROTTED (TORN, where zeros are) that names tensors, byte ranges and rows.
        UNPROVEN are leaves with bytes that are not here, beside a view of a
        larger storage for example.

    Raises:
        MismatchError: Names, shapes or dtypes differ; all differences are listed.
        TensorNotFoundError: A key matches no tensor of the file.
        NotACheckpointError: It is no ``.fckpt`` file; other formats have no leaf digests.
        DamagedError, UnsupportedVersionError, CheckpointIOError: About the file's own index.

    Example:
        >>> fastckpt.verify_tensors(fastckpt.load("state.fckpt"), "state.fckpt").ok
        True
    """
    refuse_swapped(destination, path, "fastckpt.verify_tensors")
    count = thread_count(threads)
    flat = flatten(destination)
    here = {entry.name: tensor.detach() for entry, tensor in zip(flat.entries, flat.tensors, strict=True)}
    with CheckpointFile(path) as file:
        entries = file.entries()
        wanted = entries if keys is None else select(entries, keys, file.path)
        names = {entry.name for entry in wanted}
        require_match(wanted, [e for e in flat.entries if keys is None or e.name in names], file.path)
        usable = _alike(entries, flat.entries, here)
        report = Report(file.path, "fckpt", file.source.size, root=file.footer.root.hex())
        places = file.manifest.storages
        proven: dict[int, int] = {}
        for batch in _batches(_runs(file, entries, usable, names)):
            digests = digests_of([run.image.raw for run in batch], threads=count)
            for run, actual in zip(batch, digests, strict=True):
                size, findings = _compare(run, actual, names, places)
                # A record is as good as the worst of its images.
                proven[run.record.number] = min(size, proven.get(run.record.number, size))
                report.findings += findings
    report.verified = sum(proven.values())
    # Where tensors share a record and only some of them were doubled, a difference shows in every variant.
    report.findings = list(dict.fromkeys(report.findings))
    _conclude(report)
    return report


def _alike(
    entries: Sequence[Entry], here: Sequence[Entry], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors that can stand for those of the file, by name."""
    shapes = {entry.name: (entry.shape, entry.dtype) for entry in here}
    return {e.name: tensors[e.name] for e in entries if shapes.get(e.name) == (e.shape, e.dtype)}


def _runs(
    file: CheckpointFile, entries: Sequence[Entry], tensors: Mapping[str, torch.Tensor], names: set[str]
) -> Iterator[_Run]:
    """All that is to be hashed: of each record with a wanted tensor, every image of its bytes."""
    places = file.manifest.storages
    on_storage = by_storage(entries)
    touched = {places[entry.storage].record for entry in entries if entry.name in names and entry.nbytes}
    for record in file.records_of(sorted(touched)):
        images: dict[int, list[Image]] = {}
        hidden: set[str] = set()
        for storage, _, nbytes in record.storages:
            images[storage], not_shown = storage_images(nbytes, on_storage.get(storage, ()), tensors)
            hidden |= not_shown
        devices = {image.raw.device for ways in images.values() for image in ways}
        device = devices.pop() if len(devices) == 1 else torch.device("cpu")
        if len(record.storages) == 1:
            whole = images[record.storages[0].storage]
        else:
            whole = record_images(record, images, device)
        for image in whole:
            yield _Run(record, image)
        if hidden:
            yield _Run(record, Image(torch.zeros(record.raw_size, dtype=torch.uint8, device=device), shown=hidden))


def _batches(runs: Iterator[_Run]) -> Iterator[list[_Run]]:
    batch: list[_Run] = []
    size = 0
    for run in runs:
        batch.append(run)
        size += run.record.raw_size
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def _compare(run: _Run, actual: bytes, names: set[str], places: Sequence[StoragePlace]) -> tuple[int, list[Finding]]:
    """Bytes of the record that are proven, and findings about the others."""
    record = run.record
    unknown = _unknown_leaves(run.image.known, record.raw_size)
    digests = bytearray(actual)
    for leaf in unknown:
        digests[leaf * 8 : leaf * 8 + 8] = record.leaves[leaf * 8 : leaf * 8 + 8]
    bad = [
        BadRange(record, leaf, count, kind) for leaf, count, kind in differing_runs(memoryview(digests), record.leaves)
    ]
    shown = run.image.shown
    findings: list[Finding] = [
        finding
        for finding, whole in _told(record, bad, shown, places)
        # A difference is about a wanted tensor of this image, or about bytes that belong to no tensor.
        if not names.isdisjoint(finding.tensors) or not whole.tensors
    ]
    if unknown:
        touched = _leaves_of(record, names & shown, places)
        ranges = list(_ranges(record, [leaf for leaf in unknown if leaf in touched]))
        findings += [finding for finding, _ in _told(record, ranges, names & shown, places, unproven=True)]
    not_proven = {*unknown, *(leaf for item in bad for leaf in range(item.leaf, item.leaf + item.leaves))}
    lost = sum(min(LEAF_SIZE, record.raw_size - leaf * LEAF_SIZE) for leaf in not_proven)
    return record.raw_size - lost, findings


def _unknown_leaves(known: Covered, size: int) -> list[int]:
    """Leaves that have a byte outside of ``known``."""
    leaves: list[int] = []
    at = 0
    for start, end in [*known, (size, size)]:
        if at < start:
            first = max(at // LEAF_SIZE, leaves[-1] + 1 if leaves else 0)
            leaves += range(first, count_leaves(start))
        at = max(at, end)
    return leaves


def _leaves_of(record: Record, names: set[str], places: Sequence[StoragePlace]) -> set[int]:
    """The leaves of a record in which these tensors have bytes."""
    leaves: set[int] = set()
    for entry in record.entries:
        if entry.name in names and entry.nbytes:
            start, end = (places[entry.storage].offset + at for at in entry.span)
            leaves.update(range(start // LEAF_SIZE, count_leaves(end)))
    return leaves


def _ranges(record: Record, leaves: Sequence[int]) -> Iterator[BadRange]:
    """Runs of neighbouring leaves; of encoded ones inside one chunk, which is where they lie in the file."""
    first = count = 0
    for leaf in leaves:
        if count and (leaf != first + count or (leaf % LEAVES_PER_CHUNK == 0 and not record.is_raw)):
            yield BadRange(record, first, count, Kind.ROTTED)
            count = 0
        first = first if count else leaf
        count += 1
    if count:
        yield BadRange(record, first, count, Kind.ROTTED)


def _told(
    record: Record, bad: Sequence[BadRange], shown: set[str], places: Sequence[StoragePlace], *, unproven: bool = False
) -> Iterator[tuple[TensorFinding, Finding]]:
    """The findings about ranges of leaves of a record: as far as they concern these tensors, and in full."""
    entries = {entry.name: entry for entry in record.entries if entry.name in shown} if bad else {}
    for item, found in zip(bad, findings_of(bad), strict=True):
        touched = [entries[name] for name in found.tensors if name in entries]
        yield _finding(item, found, touched, places, unproven=unproven), found


def _finding(
    bad: BadRange, found: Finding, entries: Sequence[Entry], places: Sequence[StoragePlace], *, unproven: bool
) -> TensorFinding:
    record = bad.record
    start = bad.leaf * LEAF_SIZE
    end = min(start + bad.leaves * LEAF_SIZE, record.raw_size)
    spans = tuple(
        _span(entry, start - places[entry.storage].offset, end - places[entry.storage].offset) for entry in entries
    )
    leaves = f"leaf {bad.leaf}" if bad.leaves == 1 else f"leaves {bad.leaf} to {bad.leaf + bad.leaves - 1}"
    what = "differ from the file"
    if unproven:
        what = "cannot be proven: their leaf holds bytes that are not here"
    elif bad.kind is Kind.TORN:
        what = "are zeros, not what the file has"
    message = f"record {record.number}, chunk {found.chunk}, {leaves}: bytes between tensors {what}"
    if spans:
        row = "" if spans[0].row is None else f" (from row {spans[0].row} on)"
        more = f", or of one of {len(spans) - 1} more tensors there," if len(spans) > 1 else ""
        message = (
            f"{spans[0].name}: bytes {spans[0].start} to {spans[0].end}{row}{more} {what}"
            f" (record {record.number}, chunk {found.chunk}, {leaves})"
        )
    values = {item.name: getattr(found, item.name) for item in fields(Finding)}
    values |= {"message": message, "tensors": tuple(span.name for span in spans), "loss": bool(spans) and not unproven}
    if unproven:
        values["kind"] = Kind.UNPROVEN
    return TensorFinding(**values, spans=spans)


def _span(entry: Entry, start: int, end: int) -> TensorSpan:
    """Which bytes of a tensor lie in ``[start, end)`` of its storage."""
    first, last = entry.span
    a, b = max(start, first) - first, min(end, last) - first
    row = None
    if entry.shape and is_dense(entry):
        row = 0
        if entry.shape[0] > 1:
            period = entry.stride[0] * entry.shape[0]  # After so many elements, dimension 0 begins anew.
            begin, stop = a // entry.itemsize, -(-b // entry.itemsize)
            row = begin % period // entry.stride[0] if begin // period == (stop - 1) // period else 0
    return TensorSpan(entry.name, a, b, row)


def _conclude(report: Report) -> None:
    """1: they differ from a file that is none the worse for it."""
    if not report.ok:
        report.exit_code = 1
        report.next_step = for_file_object(f"fastckpt verify {quoted(report.path)}; if it is intact, load it again")
