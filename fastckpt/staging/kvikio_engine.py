"""The engine ``kvikio``: GPUDirect Storage reads from the disk into the device, past the host.

Same regions, same proof on the device, no ring. What can only be done on the
host it refuses: decoding, and the CRCs of ``.pt`` files. Only with
``kvikio`` installed, and only when asked for: without a file system and a
driver set up for it, kvikio itself reads through host memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Sequence
from typing import Any, Final, Literal, TypeVar

import torch

from fastckpt.errors import CheckpointIOError, UsageError
from fastckpt.io.source import Source
from fastckpt.staging.check import LeafCheck
from fastckpt.staging.device import Copy, Device, Work
from fastckpt.staging.pipeline import Arrival, Destination
from fastckpt.staging.regions import Piece, Region, Suspect, cut

_WINDOW: Final = 256 * 1024 * 1024
"""Bytes that are asked for at a time; kvikio cuts them into tasks of its own."""

Cargo = TypeVar("Cargo")


def require() -> Any:
    """The kvikio module. Raises UsageError, with the reason, where it cannot be imported."""
    try:
        return importlib.import_module("kvikio")
    except (ImportError, OSError, RuntimeError) as error:  # It loads the driver's libraries.
        raise UsageError(
            f'engine="kvikio" needs the kvikio package: {error}',
            next_step='pip install kvikio-cu12 (for CUDA 12), or engine="ring"',
        ) from None


def arrivals(
    source: Source,
    regions: Sequence[Region],
    destination: Destination[Cargo],
    device: Device,
    proof: Literal["host", "device"] | None,
) -> Generator[Arrival[Cargo], None, None]:
    """The regions of a file as they arrive; see `stage.arrivals`.

    Raises:
        UsageError: Something here needs the host.
        CheckpointIOError: A read came back short or failed.
    """
    kvikio = require()
    records = [part.record for region in regions for part in region.parts]
    if any(record is not None and not record.is_raw for record in records):
        raise UsageError('engine="kvikio" cannot read compressed records; use engine="ring"', path=source.path)
    if proof == "host" or (proof is not None and None in records):
        reason = "its CRCs are checked on the host" if proof == "device" else "bytes are to be verified on the host"
        raise UsageError(
            f'{reason}, and engine="kvikio" goes past it; use engine="ring", or verify=False', path=source.path
        )
    windows = cut(regions, _WINDOW)
    check = LeafCheck(device, windows, 1) if proof == "device" else None
    memories: dict[Region, torch.Tensor] = {}
    suspects: dict[Region, list[Suspect]] = {}
    with _open(kvikio, source) as file:
        try:
            for number, window in enumerate(windows):
                device.take_over()
                arrived: list[tuple[Piece, torch.Tensor]] = []
                for piece in window:
                    if piece.region not in memories:
                        memories[piece.region] = destination.place(piece.region)
                    arrived.append((piece, memories[piece.region]))
                # kvikio's reads belong to no stream: the memory must be free by now.
                device.synchronize()
                _read(file, source, arrived)
                copies: list[Copy] = []
                works: list[Work] = []
                if check is not None:
                    check.queue(number, [memory for _, memory in arrived], copies, works)
                ended = [piece.region for piece in window if piece.ends_region]
                cargo = [destination.complete(region, memories[region], works.append) for region in ended]
                device.wait(device.send(copies, works))
                for suspect in check.bad(number) if check is not None else []:
                    suspects.setdefault(suspect.region, []).append(suspect)
                for region in ended:
                    del memories[region]
                    yield Arrival(region, cargo.pop(0), suspects.pop(region, []))
        finally:
            device.synchronize()


def _open(kvikio: Any, source: Source) -> Any:
    """By descriptor: it is the file that was opened, even if its name now means another."""
    try:
        return kvikio.CuFile(f"/proc/self/fd/{source.fd}", "r")
    except (OSError, RuntimeError) as error:
        raise CheckpointIOError(
            f"kvikio cannot open the file: {error}", path=source.path, next_step='engine="ring" needs no kvikio'
        ) from None


def _read(file: Any, source: Source, arrived: Sequence[tuple[Piece, torch.Tensor]]) -> None:
    """Ask for all pieces at once, and wait for every one of them, whatever becomes of the others."""
    reads = []
    try:
        for piece, memory in arrived:
            for origin, offset, size, _, _ in piece.parts():
                start = piece.offset + offset
                reads.append((origin, size, file.pread(memory[start : start + size], size, origin)))
    finally:
        failed: CheckpointIOError | None = None
        for origin, size, read in reads:
            try:
                done = read.get()
            except RuntimeError as error:
                failed = failed or CheckpointIOError(f"kvikio: {error}", path=source.path, offset=origin)
            else:
                if done != size:
                    failed = failed or CheckpointIOError(
                        f"kvikio read {done} of {size} bytes", path=source.path, offset=origin
                    )
    if failed is not None:
        raise failed
