"""A file's regions on a device: which proof and which engine, then the flow."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch

from fastckpt.errors import UsageError
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.kernels.dispatch import engine_for
from fastckpt.staging import kvikio_engine
from fastckpt.staging.check import LeafCheck
from fastckpt.staging.device import Device
from fastckpt.staging.fill import Filler, Suspect
from fastckpt.staging.pipeline import FLIGHTS, Arrival, Destination, Pipeline
from fastckpt.staging.regions import Piece, Region, cut
from fastckpt.staging.ring import Ring, borrowed_slots

Verify = bool | Literal["host", "device"]
"""True: where the bytes arrive if that device can do it, else in the slots. False: nowhere."""
EngineName = Literal["auto", "ring", "kvikio"]
"""How bytes get to the device: through the ring (``auto`` takes it too), or past the host (GPUDirect Storage)."""

Cargo = TypeVar("Cargo")


class Origin(Protocol):
    """A file whose bytes are wanted.

    Attributes:
        source: The file.
        witness: What its bytes are proven by: leaf digests, which a device can
            check too; CRCs, which only the host can; or nothing.
    """

    source: Source
    witness: Literal["leaves", "crcs", "nothing"]

    def regions(self) -> list[Region]:
        """What is wanted, in file order."""

    def filler(
        self, turns: Sequence[Sequence[Piece]], slots: Sequence[torch.Tensor], *, threads: int, verify: bool
    ) -> Filler:
        """What fills the slots; with ``verify`` it also finds what is not as written."""

    def raise_damage(self, suspects: Iterable[Suspect], *, verify: bool) -> None:
        """Raise DamagedError for what was found."""


@dataclass(frozen=True, slots=True)
class Staging:
    """How bytes are brought to a device (see `staging_for`).

    Attributes:
        device: Where to.
        proof: Where they are verified; None: nowhere.
        ring: The slots they pass through.
        engine: ``ring`` or ``kvikio``.
        threads: Threads that read; None takes what the medium wants.
        progress: Told of the bytes that have arrived.
    """

    device: Device
    proof: Literal["host", "device"] | None
    ring: Ring
    engine: Literal["ring", "kvikio"] = "ring"
    threads: int | None = None
    progress: Progress | None = None


def staging_for(
    device: Device,
    *,
    verify: Verify = True,
    ring: Ring | None = None,
    engine: EngineName = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Staging:
    """Check the arguments and choose what they leave open.

    Raises:
        UsageError: Unknown values; proof on a device that cannot give it; no kvikio.
    """
    if engine not in ("auto", "ring", "kvikio"):
        raise UsageError("unknown engine", expected='"auto", "ring" or "kvikio"', actual=engine)
    if ring is not None and not isinstance(ring, Ring):
        raise UsageError("ring must be a fastckpt.Ring", actual=ring)
    if threads is not None:
        thread_count(threads)
    if engine == "kvikio":
        kvikio_engine.require()
    proof = _proof(device, verify)
    return Staging(device, proof, ring or Ring(), "kvikio" if engine == "kvikio" else "ring", threads, progress)


def _proof(device: Device, verify: Verify) -> Literal["host", "device"] | None:
    if type(verify) is not bool and verify not in ("host", "device"):
        raise UsageError("unknown way to verify", expected='True, False, "host" or "device"', actual=verify)
    if verify is False or verify == "host":
        return "host" if verify else None
    live = engine_for(device.target)
    if live.name == "triton":
        return "device"
    if verify == "device":
        raise UsageError(
            f"{device.target} cannot verify what arrives on it: {live.why}",
            next_step='verify="host" checks the same digests before the bytes leave the host',
        )
    return "host"


def arrivals(origin: Origin, destination: Destination[Cargo], how: Staging) -> Generator[Arrival[Cargo], None, None]:
    """The regions of a file as they arrive. Closing the iterator stops everything and gives the slots back.

    Raises:
        DamagedError: The file changed meanwhile. Other damage is in the arrivals.
    """
    regions = origin.regions()
    if how.engine == "kvikio":
        found = kvikio_engine.arrivals(
            origin.source, regions, destination, how.device, None if origin.witness == "nothing" else how.proof
        )
        with closing(found):
            yield from _unchanged(origin.source, found)
        return
    turns = cut(regions, how.ring.slot_size)
    with borrowed_slots(how.ring, how.device) as slots:
        on_device = how.proof == "device" and origin.witness == "leaves"
        check = LeafCheck(how.device, turns, FLIGHTS) if on_device else None
        threads = reading_threads(origin.source, how.threads)
        filler = origin.filler(turns, slots, threads=threads, verify=how.proof is not None and not on_device)
        flow = iter(Pipeline(turns, slots, filler, how.device, destination, check, how.progress))
        # Closed before the slots go back: until then they are read and written.
        with closing(flow):
            yield from _unchanged(origin.source, flow)


def _unchanged(source: Source, flow: Iterator[Arrival[Cargo]]) -> Iterator[Arrival[Cargo]]:
    for arrival in flow:
        source.require_unchanged(next_step="load it again")
        yield arrival


def bring(origin: Origin, destination: Destination[Cargo], how: Staging) -> list[Cargo]:
    """Everything a file has, once all of it has arrived and is proven.

    Raises:
        DamagedError: A byte is missing or wrong; all damage is named.
    """
    cargo: list[Cargo] = []
    suspects: list[Suspect] = []
    with closing(arrivals(origin, destination, how)) as flow:
        for arrival in flow:
            cargo.append(arrival.cargo)
            suspects += arrival.suspects
    if suspects:
        origin.raise_damage(suspects, verify=how.proof is not None)
    return cargo


class FreshStorages:
    """A destination: memory of its own for each storage. Its cargo: the bytes of each, by number."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def place(self, region: Region) -> torch.Tensor:
        """See `Destination`."""
        return self._device.allocate([region.nbytes])[0]

    def complete(self, region: Region, memory: torch.Tensor) -> dict[int, torch.Tensor]:
        """See `Destination`."""
        if region.is_one_storage:
            return {region.placed[0].storage: memory}
        own = self._device.separate(memory, [(placed.offset, placed.nbytes) for placed in region.placed])
        return {placed.storage: part for placed, part in zip(region.placed, own, strict=True)}
