"""`fastckpt.load`: a checkpoint file becomes the state it was saved from."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from typing import Any, Literal

import torch

from fastckpt.collector import collector_paused
from fastckpt.io.transfer import Progress
from fastckpt.loading.opening import opened
from fastckpt.staging.device import device_of, parse_device
from fastckpt.staging.ring import Ring
from fastckpt.staging.stage import staging_for
from fastckpt.tensor.rebuild import build_tensors


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

    Example:
        >>> fastckpt.load("state.fckpt")["w"]
        tensor([0., 1., 2., 3.])
    """
    target = parse_device(device)
    if share is not None:
        from fastckpt.loading.broadcast import load_shared

        options: dict[str, Any] = {"ring": ring, "engine": engine, "threads": threads, "progress": progress}
        read = functools.partial(load, path, device=device, mmap=mmap, verify=verify, **options)
        return load_shared(read, os.fspath(path), share=share, device=target, keys=keys, group=group)
    how = staging_for(device_of(target), verify=verify, ring=ring, engine=engine, threads=threads, progress=progress)
    if how.engine == "kvikio" or (target.type != "cpu" and not mmap):
        from fastckpt.loading.stream import load_through

        return load_through(path, how, keys)
    with opened(path, keys) as wanted:
        storages = [entry.storage for entry in wanted.entries]
        bytes_of = wanted.file.bring(
            storages, threads=threads, verify=how.proof is not None, progress=progress, mapped=mmap
        )
        with collector_paused():
            return wanted.state(build_tensors(wanted.entries, bytes_of, target))
