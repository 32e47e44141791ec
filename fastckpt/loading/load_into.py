"""`fastckpt.load_into`: a checkpoint's bytes go straight into tensors that exist."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from fastckpt.io.transfer import Progress
from fastckpt.layout.entries import Entry, by_storage
from fastckpt.layout.selection import require_match
from fastckpt.loading.opening import opened
from fastckpt.staging.device import device_of
from fastckpt.staging.existing import ExistingTensors, copy_pairs, direct_places, without_repeats
from fastckpt.staging.ring import Ring
from fastckpt.staging.stage import bring, staging_for
from fastckpt.stored.opened import Opened
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
        ring: To a device: the slots that the bytes pass through.
        progress: Called now and then with the bytes done so far (for each device from 0 on).

    Raises:
        MismatchError: All differences are listed; nothing was written.
        DamagedError: The file is damaged. The destination may be partly
            overwritten by then: load it again before use.
        NotACheckpointError, UnsupportedVersionError, CheckpointIOError

    Example:
        >>> fastckpt.load_into({"w": torch.empty(4)}, "weights.fckpt")
    """
    state = destination.state_dict(keep_vars=True) if isinstance(destination, torch.nn.Module) else destination
    flat = flatten(state)
    tensors = {entry.name: tensor.detach() for entry, tensor in zip(flat.entries, flat.tensors, strict=True)}
    stagings = {
        device: staging_for(device_of(device), ring=ring, threads=threads, progress=progress)
        for device in dict.fromkeys(tensor.device for tensor in tensors.values())
    }
    with opened(path, None) as wanted:
        require_match(wanted.entries, flat.entries, wanted.file.path)
        try:
            for device, how in stagings.items():
                entries = [entry for entry in wanted.entries if tensors[entry.name].device == device]
                if device.type == "cpu":
                    _fill_host_memory(wanted.file, entries, tensors, threads=threads, progress=progress)
                else:
                    bring(wanted.origin_of(entries), ExistingTensors(how.device, entries, tensors), how)
        except BaseException as error:
            if hasattr(error, "message"):
                error.message += "; the destination is partly overwritten and must not be used"
            raise


def _fill_host_memory(
    file: Opened,
    entries: Sequence[Entry],
    tensors: Mapping[str, torch.Tensor],
    *,
    threads: int | None,
    progress: Progress | None,
) -> None:
    """Fill tensors in host memory without slots: the bytes of large ones are read to where they belong.

    The others pass through memory, batch by batch, so that it is never more than a batch needs.
    """
    on_storage = by_storage(entries)
    alone = {number: group for number, group in on_storage.items() if file.stands_alone(number)}
    places = {
        number: memory.data_ptr()
        for number, memory in direct_places(alone, tensors).items()
        if file.storage_sizes[number] == memory.numel()
    }
    file.fill(places, threads=threads, progress=progress)
    done = sum(file.storage_sizes[number] for number in places)
    for batch in file.batches([number for number in on_storage if number not in places]):

        def report(count: int, done: int = done) -> None:
            assert progress is not None
            progress(done + count)

        bytes_of = file.bring(
            batch, threads=threads, verify=True, progress=None if progress is None else report, mapped=False
        )
        group = [entry for number in batch for entry in on_storage[number]]
        loaded = build_tensors(group, bytes_of, torch.device("cpu"))
        copy_pairs(
            [without_repeats(tensors[entry.name], tensor.detach()) for entry, tensor in zip(group, loaded, strict=True)]
        )
        done += sum(file.storage_sizes[number] for number in batch)
