"""`fastckpt.load_into`: a checkpoint's bytes go straight into tensors that exist."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

import torch

from fastckpt.checkpoint_file import CheckpointFile
from fastckpt.errors import MismatchError
from fastckpt.io.residency import reading_threads
from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry
from fastckpt.payload import Reading, Target, raise_damage, read_targets
from fastckpt.reader import is_foreign, load, read_storages
from fastckpt.tensor.flatten import flatten
from fastckpt.tensor.rebuild import build_tensors


def load_into(
    destination: object,
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Copy a checkpoint into the tensors of ``destination``, in place.

    Names, shapes and dtypes must agree exactly. They are compared first, and
    nothing is written if any differ. A contiguous tensor is filled straight
    from the file; only strided ones and small ones pass through a buffer.

    Args:
        destination: A module, or a state (any nesting with tensors in it).
        path: What `fastckpt.load` takes.
        threads: Worker threads; None takes one per CPU.
        progress: Called now and then with the bytes done so far.

    Raises:
        MismatchError: All differences are listed; nothing was written.
        DamagedError: The file is damaged. The destination may be partly
            overwritten by then: load it again before use.
        NotACheckpointError, UnsupportedVersionError, CheckpointIOError
    """
    state = destination.state_dict(keep_vars=True) if isinstance(destination, torch.nn.Module) else destination
    flat = flatten(state)
    tensors = {entry.name: tensor.detach() for entry, tensor in zip(flat.entries, flat.tensors, strict=True)}
    if is_foreign(path):
        loaded = flatten(load(path, threads=threads, progress=progress))
        require_match(loaded.entries, flat.entries, os.fspath(path))
        for entry, tensor in zip(loaded.entries, loaded.tensors, strict=True):
            _copy(tensors[entry.name], tensor.detach())
        return
    with CheckpointFile(path) as file:
        reading = Reading(reading_threads(file.source, threads), progress=progress)
        entries = file.checked_entries()
        require_match(entries, flat.entries, file.path)
        targets = [(_direct_target(file, entry, tensors[entry.name]), entry) for entry in entries]
        direct = _apart([target for target, _ in targets if target is not None])
        placed = set(direct)
        buffered = [entry for target, entry in targets if target not in placed]
        try:
            raise_damage(file.source, read_targets(file.source, direct, reading))
            _copy_buffered(file, buffered, tensors, reading)
        except BaseException as error:
            if hasattr(error, "message"):
                error.message += "; the destination is partly overwritten and must not be used"
            raise


def require_match(entries: Sequence[Entry], destination: Sequence[Entry], path: str) -> None:
    """Raise MismatchError, with every difference, unless names, shapes and dtypes agree."""
    have = {entry.name: entry for entry in entries}
    want = {entry.name: entry for entry in destination}
    problems = [f"{name}: not in the checkpoint" for name in want if name not in have]
    problems += [f"{name}: not in the destination" for name in have if name not in want]
    for name in want.keys() & have.keys():
        a, b = have[name], want[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            problems.append(f"{name}: {a.dtype}{list(a.shape)} in the checkpoint, {b.dtype}{list(b.shape)} here")
        elif any(n > 1 and s and not t for n, s, t in zip(a.shape, a.stride, b.stride, strict=True)) and a.nbytes:
            problems.append(f"{name}: elements that differ in the checkpoint share their memory here (stride 0)")
    if problems:
        raise MismatchError(
            f"{len(problems)} differences, nothing was written:\n  " + "\n  ".join(sorted(problems)),
            path=path,
            next_step=f"fastckpt inspect {shlex.quote(path)}",
        )


def _apart(targets: Sequence[Target]) -> list[Target]:
    """The targets, each once, without those whose places overlap: these must be written one after the other."""
    ordered = sorted(set(targets), key=lambda target: target.place or 0)
    shared: set[Target] = set()
    last: Target | None = None
    for target in ordered:
        if last is not None and (target.place or 0) < (last.place or 0) + last.size:
            shared |= {last, target}
        if last is None or (target.place or 0) + target.size > (last.place or 0) + last.size:
            last = target
    return [target for target in ordered if target not in shared]


def _copy(destination: torch.Tensor, loaded: torch.Tensor) -> None:
    """Copy in place; where many elements share their memory (stride 0, in both), one of them."""
    for dimension, step in enumerate(destination.stride()):
        if step == 0 and destination.shape[dimension] > 1:
            destination, loaded = destination.narrow(dimension, 0, 1), loaded.narrow(dimension, 0, 1)
    destination.copy_(loaded)


def _direct_target(file: CheckpointFile, entry: Entry, tensor: torch.Tensor) -> Target | None:
    """Where the file's bytes can go as they are, if they can."""
    place = file.manifest.storages[entry.storage]
    record = file.records[place.record]
    whole_record = place.nbytes == record.raw_size == entry.nbytes > 0
    plain = tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
    if not (whole_record and plain and entry.is_contiguous and entry.flags < 4):
        return None
    return Target(record, 0, record.raw_size, tensor.data_ptr())


def _copy_buffered(
    file: CheckpointFile, entries: Sequence[Entry], tensors: dict[str, torch.Tensor], reading: Reading
) -> None:
    """Read one record at a time, so that the buffer is never larger than the largest of them."""
    by_record: dict[int, list[Entry]] = {}
    for entry in entries:
        by_record.setdefault(file.manifest.storages[entry.storage].record, []).append(entry)
    for group in by_record.values():
        bytes_of = read_storages(file, group, reading, mapped=False)
        for entry, tensor in zip(group, build_tensors(group, bytes_of, torch.device("cpu")), strict=True):
            _copy(tensors[entry.name], tensor.detach())
