"""`fastckpt.load`: a checkpoint file becomes the state it was saved from."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from typing import Any, Literal

import torch

from fastckpt.collector import collector_paused
from fastckpt.errors import UsageError
from fastckpt.io.file_object import Readables, name_of
from fastckpt.io.transfer import Progress
from fastckpt.io.unpacked import is_directory_of_checkpoints
from fastckpt.loading.opening import opened
from fastckpt.remote.path import Options, as_place, located
from fastckpt.staging.device import device_of, parse_device
from fastckpt.staging.ring import Ring
from fastckpt.staging.stage import staging_for
from fastckpt.tensor.rebuild import build_tensors


def load(
    path: Readables,
    *,
    device: str | torch.device = "cpu",
    map_location: str | torch.device | None = None,
    mmap: bool = False,
    verify: bool | Literal["host", "device"] = True,
    keys: str | Iterable[str] | None = None,
    threads: int | None = None,
    ring: Ring | None = None,
    engine: Literal["auto", "ring", "kvikio"] = "auto",
    opaque: Literal["error", "keep"] = "error",
    share: Literal["broadcast"] | None = None,
    group: Any = None,
    progress: Progress | None = None,
    storage_options: Options | None = None,
) -> Any:
    """Load the state saved in ``path``, every byte verified.

    To a device, bytes go file -> pinned slot -> device while the next slot is
    read, and are verified where they arrive: host memory is bounded by the
    ring, device memory by the tensors and two slots. Neighbours of less than
    4 MiB share an allocation of at most a slot, as they do in host memory:
    clone one before its storage is resized or sent to another process.

    Args:
        path: A ``.fckpt`` file; also a ``.pt`` (its CRCs are checked, nothing
            in it is executed) or a ``.safetensors`` file. Or a binary file object (BytesIO, an object of a store):
            it is copied to a temporary file from where it stands to its end. Or a directory with a model in shards
            (which gives a flat dict), or with a checkpoint of torch.distributed.checkpoint, put together.
            Or the URL of a file in a bucket, on a web server or the hub: ranges of it are read, as many as are needed.
            Or a URL that ends with a slash, of such a directory: of its files, too, only the ranges that are needed.
        device: Where the tensors shall be.
        map_location: torch's word for ``device``; of a place for each tensor (a dict, a function) it knows nothing.
        mmap: Map the file instead of reading it. The tensors are writable but
            private: what is written to them never reaches the file. Encoded
            records cannot be mapped and are read. To a device, the map is copied.
        verify: Compare every leaf digest (or CRC), of a file with a seal beside it those of that. With False, damage
            goes unnoticed.
            On the way to a device: ``"device"`` compares them there, ``"host"``
            in the slots; True the device if it can, in the slots until its kernel is compiled (`fastckpt.kernels`).
        keys: Flat names or globs; only these tensors are read, and the result
            is a flat dict from name to tensor, in file order.
        threads: Worker threads; None takes one per CPU.
        ring: To a device: the slots that the bytes pass through; None is ``Ring()``.
        engine: To a device: ``"ring"`` (also ``"auto"``), or ``"kvikio"``, which
            reads past the host (GPUDirect Storage) if it is installed.
        opaque: What to do about objects of classes that are not known (a whole module, a DTensor, a namedtuple), which
            are never imported: ``"error"`` names all of them, ``"keep"`` puts a read-only `Placeholder` in the place
            of each. With ``keys`` there is nothing to decide: their tensors have names, too.
        share: ``"broadcast"``: a collective call of all processes of ``group``.
            The first of them reads and verifies; the others receive. What goes
            wrong in one is raised in all.
        group: The process group that shares; None is torch.distributed's default one.
        progress: Called now and then with the bytes done so far.
        storage_options: For a URL: what obstore (or fsspec) takes by name, or a store of obstore that is open already.

    Returns:
        The state: types, order, aliases, views and strides as they were. A
        `Placeholder` stands for what is of a class that was not registered;
        without NumPy, tensors stand for arrays.

    Raises:
        DamagedError: A byte is missing or wrong; names the tensors. Nothing is returned.
        NotACheckpointError, UnsupportedVersionError, CheckpointIOError
        TensorNotFoundError: A key matches no tensor.
        UnsupportedStateError: It holds objects that are not understood; see ``opaque``.
        UsageError: An argument is wrong, or what it asks for is not there.
        KeyboardInterrupt: Within 0.2 s of Ctrl-C.

    Example:
        >>> fastckpt.load("state.fckpt")["w"]
        tensor([0., 1., 2., 3.])
    """
    path = located(path, storage_options)
    target = _one_device(device, map_location)
    if opaque not in ("error", "keep"):
        raise UsageError("unknown value of opaque", expected='"error" or "keep"', actual=opaque)
    if share is not None:
        from fastckpt.loading.broadcast import load_shared

        options: dict[str, Any] = {"ring": ring, "engine": engine, "threads": threads, "progress": progress}
        read = functools.partial(load, path, device=target, mmap=mmap, verify=verify, **options)
        return load_shared(read, name_of(path), share=share, device=target, keys=keys, group=group)
    if isinstance(path, str | os.PathLike) and is_directory_of_checkpoints(path):
        from fastckpt.loading.load_set import load_set

        one = functools.partial(
            load, device=target, mmap=mmap, verify=verify, threads=threads, ring=ring, engine=engine, progress=progress
        )
        return load_set(as_place(path), keys, one, device=target, threads=threads, opaque=opaque)
    how = staging_for(device_of(target), verify=verify, ring=ring, engine=engine, threads=threads, progress=progress)
    if how.engine == "kvikio" or (target.type != "cpu" and not mmap):
        from fastckpt.loading.stream import load_through

        return load_through(path, how, keys, opaque=opaque)
    with opened(path, keys, opaque=opaque, sealed=how.proof is not None) as wanted:
        storages = [entry.storage for entry in wanted.entries]
        bytes_of = wanted.file.bring(
            storages, threads=threads, verify=how.proof is not None, progress=progress, mapped=mmap
        )
        with collector_paused():
            return wanted.state(build_tensors(wanted.entries, bytes_of, target))


def _one_device(device: str | torch.device, map_location: object) -> torch.device:
    """The device that either of two arguments names."""
    named = parse_device(device)
    if map_location is None:
        return named
    if not isinstance(map_location, str | torch.device):
        raise UsageError(
            "map_location takes one device",
            actual=type(map_location).__name__,
            next_step='device="cpu", then move what is to lie elsewhere with x.to(...)',
        )
    mapped = parse_device(map_location)
    if named not in (mapped, torch.device("cpu")):
        raise UsageError("device and map_location name two devices", expected=device, actual=map_location)
    return mapped
