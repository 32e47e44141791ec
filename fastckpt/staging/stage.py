"""A file's regions on a device: which proof and which engine, then the flow."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch

from fastckpt.errors import UsageError
from fastckpt.io.residency import reading_threads
from fastckpt.io.source import Source
from fastckpt.io.transfer import Progress, thread_count
from fastckpt.kernels.dispatch import Engine, engine_for, engine_now
from fastckpt.layout.dtypes import WIDEST
from fastckpt.staging import kvikio_engine
from fastckpt.staging.as_stored import has_planes
from fastckpt.staging.check import LeafCheck
from fastckpt.staging.decoding import Decoding
from fastckpt.staging.device import Device, Work
from fastckpt.staging.fill import Filler
from fastckpt.staging.handover import Handover
from fastckpt.staging.pipeline import FLIGHTS, Arrival, Check, Destination, Pipeline
from fastckpt.staging.records import RecordOrigin
from fastckpt.staging.regions import Piece, Region, Suspect, cut, joined
from fastckpt.staging.ring import ON_HOST, Ring, borrowed_slots

Verify = bool | Literal["host", "device"]
"""True: where the bytes arrive if that device can do it, else in the slots. False: nowhere."""
Proof = Literal["host", "device", "best"]
"""Where bytes are proven; see `Staging`."""
EngineName = Literal["auto", "ring", "kvikio"]
"""How bytes get to the device: through the ring (``auto`` takes it too), or past the host (GPUDirect Storage)."""

Cargo = TypeVar("Cargo")


class Origin(Protocol):
    """A file whose bytes are wanted.

    Attributes:
        source: The file.
        witness: What its bytes are proven by: leaf digests, which a device can
            check too; CRCs, which only the host can; or nothing.
        on_host: Whether the bytes have to be changed on the host, as those of big-endian files.
    """

    source: Source
    witness: Literal["leaves", "crcs", "nothing"]
    on_host: bool

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
        proof: Where they are verified; ``best``: where they arrive as soon as that is possible, in the slots until
            then; None: nowhere.
        ring: The slots they pass through.
        engine: ``ring`` or ``kvikio``.
        threads: Threads that read; None takes what the medium wants.
        progress: Called with the bytes that have arrived.
    """

    device: Device
    proof: Proof | None
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
    ring = ring or (Ring() if device.pinned else ON_HOST)
    return Staging(device, proof, ring, "kvikio" if engine == "kvikio" else "ring", threads, progress)


def _proof(device: Device, verify: Verify) -> Proof | None:
    if type(verify) is not bool and verify not in ("host", "device"):
        raise UsageError("unknown way to verify", expected='True, False, "host" or "device"', actual=verify)
    if type(verify) is bool:
        return "best" if verify else None
    if verify == "device":
        live = engine_for(device.target, "check_kernel")
        if live.name != "triton":
            raise UsageError(
                f"{device.target} cannot verify what arrives on it: {live.why}",
                next_step='verify="host" checks the same digests before the bytes leave the host',
            )
    return verify


def _proof_past_the_host(device: Device, proof: Proof | None) -> Literal["host", "device"] | None:
    """Where bytes are proven that never are in a slot: there is no other place to begin with."""
    if proof != "best":
        return proof
    return "device" if engine_for(device.target, "check_kernel").name == "triton" else "host"


def arrivals(origin: Origin, destination: Destination[Cargo], how: Staging) -> Generator[Arrival[Cargo], None, None]:
    """The regions of a file as they arrive. Closing the iterator stops everything and gives the slots back.

    Raises:
        DamagedError: The file changed meanwhile. Other damage is in the arrivals.
    """
    regions = joined(origin.regions(), how.ring.slot_size, destination.alone)
    if how.engine == "kvikio":
        if origin.on_host:
            raise UsageError('it is big-endian, and its bytes are turned round on the host: engine="ring"')
        there = None if origin.witness == "nothing" else _proof_past_the_host(how.device, how.proof)
        found = kvikio_engine.arrivals(origin.source, regions, destination, how.device, there)
        with closing(found):
            for arrival in found:
                origin.source.require_unchanged(next_step="load it again")
                yield arrival
        return
    turns = cut(regions, how.ring.slot_size)
    nbytes = sum(region.nbytes for region in regions)

    def ask() -> Engine | None:
        return engine_now(how.device.target, "check_kernel", nbytes=nbytes)

    def landed(count: int) -> None:
        origin.source.require_unchanged(next_step="load it again")
        if how.progress is not None:
            how.progress(count)

    proof = how.proof
    if proof is not None and origin.witness != "leaves":
        proof = "host"
    if proof == "best" and (live := ask()) is not None:
        proof = "device" if live.name == "triton" else "host"
    check: Check | None = None

    def ask_to_decode() -> Engine | None:
        live = engine_now(how.device.target, "decode_planes", nbytes=nbytes)
        # What is decoded on the device can only be proven there.
        return live if not isinstance(check, Handover) or check.is_live else None

    encoded = origin if isinstance(origin, RecordOrigin) and proof != "host" and has_planes(regions) else None
    decodes = ask_to_decode() if encoded is not None else None
    at_once = decodes is not None and decodes.name == "triton" and proof != "best"
    with borrowed_slots(how.ring, how.device) as slots:
        threads = reading_threads(origin.source, how.threads)
        verify = proof in ("host", "best")
        # It begins at once, and is closed before the slots go back: until then it writes to them.
        leaving = (
            encoded.filler_for_decoding(turns, slots, threads=threads, verify=verify, decode=not at_once)
            if encoded is not None
            else None
        )
        with closing(leaving or origin.filler(turns, slots, threads=threads, verify=verify)) as filler:
            if proof == "device":
                check = LeafCheck(how.device, turns, FLIGHTS)
            elif proof == "best":
                check = Handover(how.device, turns, FLIGHTS, filler, ask)
            decoding = None
            if leaving is not None:
                first = 0 if at_once else None
                decoding = Decoding(
                    how.device, turns, FLIGHTS, how.ring.slot_size, filler=leaving, ask=ask_to_decode, first=first
                )
            flow = Pipeline(turns, slots, filler, how.device, destination, decoding, check, landed)
            with closing(iter(flow)) as arriving:
                yield from arriving


def bring(
    origin: Origin,
    destination: Destination[Cargo],
    how: Staging,
    use: Callable[[Region, Cargo], object] | None = None,
) -> None:
    """Bring everything a file has; returns when all of it has arrived and is proven.

    Args:
        origin: The file.
        destination: Where to.
        how: See `Staging`.
        use: Called with each region and its cargo as it arrives. Nothing may be handed out before the end.

    Raises:
        DamagedError: A byte is missing or wrong; all damage is named.
    """
    suspects: list[Suspect] = []
    with closing(arrivals(origin, destination, how)) as flow:
        for arrival in flow:
            suspects += arrival.suspects
            if use is not None:
                use(arrival.region, arrival.take())
    if suspects:
        origin.raise_damage(suspects, verify=how.proof is not None)


class FreshStorages:
    """A destination: new memory, shared by small neighbours. Its cargo: that of a region."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def alone(self, region: Region) -> bool:
        """See `Destination`."""
        return False

    def place(self, region: Region) -> torch.Tensor:
        """See `Destination`."""
        return self._device.allocate([region.nbytes])[0]

    def complete(self, region: Region, memory: torch.Tensor, then: Callable[[Work], None]) -> torch.Tensor:
        """See `Destination`."""
        return memory

    def storages(self, region: Region, memory: torch.Tensor) -> dict[int, torch.Tensor]:
        """The bytes of each storage of a region that has arrived in this memory, by number."""
        if region.is_one_storage:
            return {region.placed[0].storage: memory}
        own = self._device.separate(memory, [(placed.offset, placed.nbytes) for placed in region.placed])
        # In a sealed file of another format a tensor can lie anywhere; kernels want it aligned.
        return {
            placed.storage: part if placed.offset % WIDEST == 0 else part.clone()
            for placed, part in zip(region.placed, own, strict=True)
        }
