"""What the host has to do for each turn of a load to a GPU, on a device whose copies do nothing.

    python benchmarks/gpu_host.py --dir /tmp

A slot of 32 MiB takes 0.6 ms on a link of 55 GB/s. What the host does per turn must be a small part of that, or
the link waits for it. Here everything is real but the device and the threads that read: the file, its plan, the
tables of digests, the flow. Measured is the CPU time of the one thread that does all of it; what a CUDA call or a
launch of Triton costs is not in it, since there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from cpu import machine

import fastckpt
import fastckpt.staging.check
from fastckpt.layout.entries import by_storage
from fastckpt.loading.opening import opened
from fastckpt.staging.check import LeafCheck
from fastckpt.staging.device import Copy, HostDevice, Work
from fastckpt.staging.pipeline import FLIGHTS
from fastckpt.staging.regions import Region, Suspect, cut, joined
from fastckpt.staging.ring import Ring
from fastckpt.staging.stage import FreshStorages, Origin, Staging, arrivals
from fastckpt.tensor.rebuild import build_on

SHAPES = {"4 of 8 MiB": 8 << 20, "14 of 2.4 MB (a GPT of depth 12)": 768 * 768 * 4, "100 of 0.33 MB": 327_680}
"""Name of a row: bytes of each tensor, as many of them as a turn takes."""
AIMS = {"4 of 8 MiB": 30, "100 of 0.33 MB": 60}
"""Microseconds a turn."""


class NoDevice(HostDevice):
    """Copies do not happen, nothing is hashed, and memory is there already, as it is in the allocator of CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = torch.empty(1 << 30, dtype=torch.uint8)  # Never touched: it takes addresses, no pages.

    def host_memory(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def allocate(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        return [self._memory[:size] for size in sizes]

    def send(self, copies: Sequence[Copy], works: Sequence[Work] = ()) -> None:
        for work in works:
            work()


class NoFiller:
    """Slots that are always full.

    Attributes:
        began: CPU time of the thread when it first asked for one.
    """

    began = 0.0

    def wait(self, turn: int) -> list[Suspect]:
        if not turn:
            self.began = time.thread_time()
        return []

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass


def save_tensors(path: str, nbytes: int, gigabytes: float) -> None:
    """A file of tensors of one size."""
    zeros = torch.zeros(nbytes // 4)
    fastckpt.save({f"layers.{i}": zeros.clone() for i in range(int(gigabytes * 1e9 / nbytes))}, path, durable=False)


class Longer:
    """A file as if it were longer: what it has comes several times. Its slots are filled by nobody."""

    def __init__(self, origin: Origin, times: int, filler: NoFiller) -> None:
        self.source, self.witness, self.on_host = origin.source, origin.witness, origin.on_host
        self._origin, self._times, self._filler = origin, times, filler

    def regions(self) -> list[Region]:
        found = self._origin.regions()
        return [Region(one.nbytes, one.placed, one.parts) for _ in range(self._times) for one in found]

    def filler(self, *arguments: object, **options: object) -> NoFiller:
        return self._filler

    def raise_damage(self, suspects: Iterable[Suspect], *, verify: bool) -> None:
        raise AssertionError("nothing is damaged")


def one_load(path: str, ring: Ring, times: int) -> tuple[dict[str, float], int, int]:
    """CPU seconds of each step of a load, and how many turns and tensors it has."""
    device, filler = NoDevice(), NoFiller()
    destination = FreshStorages(device)
    with opened(path, None) as file:
        origin = file.origin_of(file.entries)
        origin.regions()  # The index of the file is decoded.
        longer = Longer(origin, times, filler)
        start = time.thread_time()
        regions = joined(longer.regions(), ring.slot_size, destination.alone)
        turns = cut(regions, ring.slot_size)
        planned = time.thread_time()
        slots = [torch.empty(ring.slot_size, dtype=torch.uint8) for _ in range(ring.slots)]
        with closing(origin.filler(turns, slots, threads=1, verify=False)):
            ready = time.thread_time()
        arrived = list(arrivals(longer, destination, Staging(device, "device", ring, threads=1)))
        landed = time.thread_time()
        on_storage = by_storage(file.entries)
        count = 0
        for arrival in arrived:
            storages = destination.storages(arrival.region, arrival.take())
            count += len(list(build_on([on_storage[n][0] for n in storages], storages.__getitem__)))
        made = time.thread_time()
        LeafCheck(device, turns, FLIGHTS)
        tables = time.thread_time() - made
    steps = {"plan": planned - start, "filler": ready - planned, "tables": tables}
    return steps | {"flow": landed - filler.began, "tensors": made - landed}, len(turns), count


def measure(path: str, ring: Ring, times: int, rounds: int) -> dict[str, Any]:
    """Medians for one file."""
    loads = [one_load(path, ring, times) for _ in range(rounds + 1)][1:]
    _, turns, tensors = loads[0]
    steps = {name: statistics.median(seconds[name] for seconds, _, _ in loads) for name in loads[0][0]}
    return {
        "turns": turns,
        "tensors": tensors,
        "flow_us_per_turn": round(steps.pop("flow") / turns * 1e6, 1),
        "tensors_us_each": round(steps.pop("tensors") / tensors * 1e6, 2),
        "before_the_first_turn_us_per_turn": {name: round(s / turns * 1e6, 1) for name, s in steps.items()},
    }


def main() -> int:
    """Measure and write the result; 1 if an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", help="where the files are written (default: a temporary directory)")
    parser.add_argument("--gb", type=float, default=0.25, help="size of each file")
    parser.add_argument("--times", type=int, default=16, help="how often its tensors come")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu_host.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    fastckpt.staging.check.check_leaves = lambda *columns: columns[-1].zero_()  # Nothing is wrong.
    ring = Ring()
    rows = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        found = machine(directory)
        for name, nbytes in SHAPES.items():
            path = os.path.join(directory, "state.fckpt")
            save_tensors(path, nbytes, options.gb)
            row = rows[name] = measure(path, ring, options.times, options.rounds)
            aim = AIMS.get(name)
            row |= {"aim_us_per_turn": aim, "met": row["flow_us_per_turn"] <= aim} if aim else {}
            print(f"{name:34} {row['flow_us_per_turn']:7.1f} us a turn", row, flush=True)
    result = {
        "machine": found,
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "slot_bytes": ring.slot_size,
        "note": "CPU time of one thread; copies and kernels do nothing, no CUDA call is made",
        "rows": rows,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(row.get("met", True) for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
