"""`fastckpt.load`: a checkpoint file becomes the state it was saved from."""

from __future__ import annotations

import fnmatch
import functools
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch

from fastckpt import _core
from fastckpt.checkpoint_file import CheckpointFile
from fastckpt.collector import collector_paused
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import DamagedError, FastckptError, TensorNotFoundError
from fastckpt.foreign.sniff import kind_of
from fastckpt.io.memory import allocate, allocate_regions
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.layout.blocks import align
from fastckpt.layout.entries import Entry
from fastckpt.payload import Reading, Target, covering_targets, raise_damage, read_targets
from fastckpt.staging.device import device_of, parse_device
from fastckpt.staging.ring import Ring
from fastckpt.staging.stage import staging_for
from fastckpt.tensor.dtypes import require_dtypes
from fastckpt.tensor.rebuild import StorageBytes, build_tensors, named, unflatten


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    mmap: bool = False,
    verify: bool | Literal["host", "device"] = True,
    keys: str | Iterable[str] | None = None,
    threads: int | None = None,
    ring: Ring | None = None,
    engine: Literal["auto", "ring", "kvikio"] = "auto",
    share: Literal["broadcast"] | None = None,
    group: Any = None,
    progress: Progress | None = None,
) -> Any:
    """Load the state saved in ``path``, every byte verified.

    To a device, bytes go file -> pinned slot -> device while the next slot is
    read, and are verified where they arrive: host memory is bounded by the
    ring, device memory by the tensors and two slots.

    Args:
        path: A ``.fckpt`` file; also a ``.pt`` (its CRCs are checked, nothing
            in it is executed) or a ``.safetensors`` file.
        device: Where the tensors shall be.
        mmap: Map the file instead of reading it. The tensors are writable but
            private: what is written to them never reaches the file. Encoded
            records cannot be mapped and are read. To a device, the map is copied.
        verify: Compare every leaf digest (or CRC). With False, damage goes unnoticed.
            On the way to a device: ``"device"`` compares them there, ``"host"``
            in the slots; True takes the device if it can (`fastckpt.kernels`).
        keys: Flat names or globs; only these tensors are read, and the result
            is a flat dict from name to tensor, in file order.
        threads: Worker threads; None takes one per CPU.
        ring: To a device: the slots that the bytes pass through; None is ``Ring()``.
        engine: To a device: ``"ring"`` (also ``"auto"``), or ``"kvikio"``, which
            reads past the host (GPUDirect Storage) if it is installed.
        share: ``"broadcast"``: a collective call of all processes of ``group``.
            The first of them reads and verifies; the others receive. What goes
            wrong in one is raised in all.
        group: The process group that shares; None is torch.distributed's default one.
        progress: Called now and then with the bytes done so far.

    Returns:
        The state: types, order, aliases, views and strides as they were.

    Raises:
        DamagedError: A byte is missing or wrong; names the tensors. Nothing is returned.
        NotACheckpointError, UnsupportedVersionError, CheckpointIOError
        TensorNotFoundError: A key matches no tensor.
        UsageError: An argument is wrong, or what it asks for is not there.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.
    """
    target = parse_device(device)
    if share is not None:
        from fastckpt.sharing import load_shared

        options: dict[str, Any] = {"ring": ring, "engine": engine, "threads": threads, "progress": progress}
        read = functools.partial(load, path, device=device, mmap=mmap, verify=verify, **options)
        return load_shared(read, os.fspath(path), share=share, device=target, keys=keys, group=group)
    how = staging_for(device_of(target), verify=verify, ring=ring, engine=engine, threads=threads, progress=progress)
    if how.engine == "kvikio" or (target.type != "cpu" and not mmap):
        from fastckpt.streaming import load_through

        return load_through(path, how, keys)
    proven = how.proof is not None
    if is_foreign(path):
        from fastckpt.conversion.load import load_foreign

        return load_foreign(
            path, device=device, mmap=mmap, verify=proven, keys=keys, threads=threads, progress=progress
        )
    with CheckpointFile(path) as file:
        with collector_paused():
            entries = file.checked_entries()
            wanted = entries if keys is None else select(entries, keys, file.path)
            require_dtypes(wanted, file.path)
        count = thread_count(threads) if mmap else reading_threads(file.source, threads)
        bytes_of = read_storages(file, wanted, Reading(count, verify=proven, progress=progress), mapped=mmap)
        try:
            with collector_paused():
                tensors = build_tensors(wanted, bytes_of, target)
                return unflatten(file.manifest.tree, tensors) if keys is None else named(wanted, tensors)
        except FastckptError as error:
            error.path = error.path or file.path
            raise


def is_foreign(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a checkpoint of another format. Raises CheckpointIOError if it cannot be read."""
    with Source(path) as source:
        return kind_of(source) not in (None, "fckpt")


def select(entries: Sequence[Entry], keys: str | Iterable[str], path: str) -> list[Entry]:
    """The entries that a key names or a glob matches, in file order.

    Raises:
        TensorNotFoundError: A key matches nothing; the closest names are shown.
    """
    patterns = [keys] if isinstance(keys, str) else list(keys)
    by_name = {entry.name: entry for entry in entries}
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {pattern} if pattern in by_name else set(fnmatch.filter(by_name, pattern))
        if not matched:
            import difflib

            close = difflib.get_close_matches(pattern, list(by_name), 3)
            raise TensorNotFoundError(
                f"no tensor is called or matches {pattern!r}",
                path=path,
                expected=f"one of {', '.join(close or list(by_name)[:3])}"
                if by_name
                else "a name; there are no tensors",
                actual=pattern,
                next_step=f"fastckpt inspect {shlex.quote(path)}",
            )
        chosen |= matched
    return [entry for entry in entries if entry.name in chosen]


def read_storages(
    file: CheckpointFile, entries: Sequence[Entry], reading: Reading, *, mapped: bool
) -> Callable[[int], StorageBytes]:
    """Read and verify every storage that an entry lies in; tells where the bytes of a storage now are.

    Raises:
        DamagedError: A byte is missing or wrong.
    """
    places = file.manifest.storages
    wanted = sorted({entry.storage for entry in entries})
    by_record: dict[int, list[int]] = {}
    for storage in wanted:
        by_record.setdefault(places[storage].record, []).append(storage)
    records = [file.records[number] for number in sorted(by_record)]
    regions: dict[int, memoryview] = {}
    targets: list[Target] = []
    if mapped:
        whole = memoryview(file.source.map(private_writable=True))
        reading = Reading(reading.threads, reading.verify, reading.progress, _core.address(whole))
        for record in records:
            if record.is_raw:
                regions[record.number] = whole[record.payload.offset : record.payload.end]
                if reading.verify:
                    targets += covering_targets(record, [places[s] for s in by_record[record.number]], None)
    fresh = [record for record in records if record.number not in regions]
    for record, region in zip(fresh, allocate_regions([record.raw_size for record in fresh]), strict=True):
        regions[record.number] = region
        if record.raw_size:
            targets += covering_targets(record, [places[s] for s in by_record[record.number]], _core.address(region))
    raise_damage(file.source, read_targets(file.source, targets, reading))
    if not file.source.unchanged():
        raise DamagedError("the file changed while it was read", path=file.path, next_step="load it again")

    def bytes_of(storage: int) -> StorageBytes:
        nbytes, offset, record = places[storage]
        return regions[record], offset, nbytes

    return bytes_of


def read_span(file: CheckpointFile, storage: int, start: int, end: int, *, threads: int) -> memoryview:
    """The verified bytes ``[start, end)`` of a storage, reading no more leaves than they touch.

    Raises:
        DamagedError: A leaf among them is not as written.
    """
    place = file.manifest.storages[storage]
    record = file.records[place.record]
    first = (place.offset + start) // LEAF_SIZE * LEAF_SIZE
    last = min(align(place.offset + end, LEAF_SIZE), record.raw_size)
    if start == end:
        return memoryview(bytearray())
    region = allocate(last - first)
    target = Target(record, first, last - first, _core.address(region))
    raise_damage(file.source, read_targets(file.source, [target], Reading(threads)))
    skip = place.offset + start - first
    return region[skip : skip + end - start]
