"""`fastckpt.load_into`: a checkpoint's bytes go straight into tensors that exist."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from fastckpt.fckpt.file import CheckpointFile
from fastckpt.fckpt.payload import Reading, Target, raise_damage, read_targets
from fastckpt.fckpt.storages import read_storages
from fastckpt.io.residency import reading_threads
from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry
from fastckpt.layout.selection import require_match
from fastckpt.loading.origins import opened
from fastckpt.staging.device import device_of
from fastckpt.staging.existing import ExistingTensors, apart, copy_pairs, without_repeats
from fastckpt.staging.ring import Ring
from fastckpt.staging.stage import bring, staging_for
from fastckpt.tensor.flatten import flatten
from fastckpt.tensor.rebuild import build_tensors


def load_into(
    destination: object,
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    ring: Ring | None = None,
    progress: Progress | None = None,
) -> None:
    """Copy a checkpoint into the tensors of ``destination``, in place.

    Names, shapes and dtypes must agree exactly. They are compared first, and
    nothing is written if any differ. A contiguous tensor is filled straight
    from the file (on a device: from the slots of the ring, and verified there);
    only strided ones and small ones pass through a buffer.

    Args:
        destination: A module, or a state (any nesting with tensors in it). Its
            tensors may be on several devices.
        path: What `fastckpt.load` takes.
        threads: Worker threads; None takes one per CPU.
        ring: To a device, or from another format: the slots that the bytes pass through.
        progress: Called now and then with the bytes done so far (for each device from 0 on).

    Raises:
        MismatchError: All differences are listed; nothing was written.
        DamagedError: The file is damaged. The destination may be partly
            overwritten by then: load it again before use.
        NotACheckpointError, UnsupportedVersionError, CheckpointIOError
    """
    state = destination.state_dict(keep_vars=True) if isinstance(destination, torch.nn.Module) else destination
    flat = flatten(state)
    tensors = {entry.name: tensor.detach() for entry, tensor in zip(flat.entries, flat.tensors, strict=True)}
    stagings = {
        device: staging_for(device_of(device), ring=ring, threads=threads, progress=progress)
        for device in dict.fromkeys(tensor.device for tensor in tensors.values())
    }
    with opened(path, None) as file:
        require_match(file.entries, flat.entries, os.fspath(path))
        try:
            for device, how in stagings.items():
                entries = [entry for entry in file.entries if tensors[entry.name].device == device]
                if device.type == "cpu" and file.records is not None:
                    reading = Reading(reading_threads(file.records.source, threads), progress=progress)
                    _read_directly(file.records, entries, tensors, reading)
                else:
                    bring(file.origin_of(entries), ExistingTensors(how.device, entries, tensors), how)
        except BaseException as error:
            if hasattr(error, "message"):
                error.message += "; the destination is partly overwritten and must not be used"
            raise


def _read_directly(
    file: CheckpointFile, entries: Sequence[Entry], tensors: dict[str, torch.Tensor], reading: Reading
) -> None:
    """Fill tensors in host memory: large contiguous ones by the reading threads themselves."""
    targets = [(_direct_target(file, entry, tensors[entry.name]), entry) for entry in entries]
    found = {target for target, _ in targets if target is not None}
    direct = apart(found, lambda target: (target.place or 0, target.size))
    placed = set(direct)
    buffered = [entry for target, entry in targets if target not in placed]
    raise_damage(file.source, read_targets(file.source, direct, reading))
    _copy_buffered(file, buffered, tensors, reading)


def _direct_target(file: CheckpointFile, entry: Entry, tensor: torch.Tensor) -> Target | None:
    """Where the file's bytes can go as they are, if they can."""
    place = file.manifest.storages[entry.storage]
    record = file.records[place.record]
    whole_record = place.nbytes == record.raw_size == entry.nbytes > 0
    plain = tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
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
        loaded = build_tensors(group, bytes_of, torch.device("cpu"))
        copy_pairs(
            [without_repeats(tensors[entry.name], tensor.detach()) for entry, tensor in zip(group, loaded, strict=True)]
        )
