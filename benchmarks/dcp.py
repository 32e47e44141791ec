"""torch.distributed.checkpoint through `.fckpt` shards, beside its own FileSystemWriter and FileSystemReader.

    PYTHONPATH=. python benchmarks/dcp.py --dir DISK [--output results/dcp.json]

Two gloo ranks save and load the same FSDP2 state with AdamW, in turns within
one run. Before a load all files are read once (warm) or dropped from the page
cache (cold); ours verifies every byte, the other nothing. Both save in the
background through the same stager. At the end one rank loads what two have
saved, and two what one has, and the bytes are counted that this reads.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as multiprocessing
from cpu import machine
from dcp_ratios import DIRECTORY, ONE_BY_ONE, OURS, TORCHS, may_read, ratios
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import fastckpt.dcp
from fastckpt.sets.judge import judge
from fastckpt.sets.recognise import recognise

WRITER_THREADS = 2
"""Of FileSystemWriter, on each rank. Its default is one; with several it is faster."""


def state_of(dim: int, layers: int) -> dict[str, Any]:
    """An FSDP2 model and its AdamW state, after one step."""
    torch.manual_seed(0)
    blocks = [torch.nn.Sequential(torch.nn.Linear(dim, 4 * dim), torch.nn.Linear(4 * dim, dim)) for _ in range(layers)]
    net = torch.nn.Sequential(*blocks)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(2, dim)).sum().backward()
    optimizer.step()
    model, optim = get_state_dict(net, optimizer)
    return {"model": model, "optim": optim, "step": 1}


def timed(job: Callable[[], object]) -> float:
    """Seconds until the last rank is done."""
    dist.barrier()
    begin = time.perf_counter()
    job()
    dist.barrier()
    return time.perf_counter() - begin


def prepare(directory: str, *, warm: bool) -> None:
    """Read all files of a directory, or let the system forget them."""
    if dist.get_rank() == 0:
        for path in Path(directory).iterdir():
            fd = os.open(path, os.O_RDONLY)
            if warm:
                while os.read(fd, 1 << 24):
                    pass
            else:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
    dist.barrier()


class Counting(fastckpt.dcp.FastckptReader):
    """Knows from how many parts it reads."""

    parts = 0

    def read_data(self, plan: Any, planner: Any) -> Any:
        self.parts += len(plan.items)
        return super().read_data(plan, planner)


def writer_of(name: str, place: str) -> Any:
    """The storage that a name stands for."""
    ours = name == OURS
    return fastckpt.dcp.FastckptWriter(place) if ours else dcp.FileSystemWriter(place, thread_count=WRITER_THREADS)


def save_and_load(name: str, place: str, state: dict[str, Any]) -> dict[str, float]:
    """Seconds of each job."""
    fresh(place)
    took = {"save, durable": timed(lambda: dcp.save(state, storage_writer=writer_of(name, place)))}
    for warm in (True, False):
        prepare(place, warm=warm)
        reader = fastckpt.dcp.FastckptReader(place) if name == OURS else dcp.FileSystemReader(place)
        took["load, warm" if warm else "load, cold"] = timed(
            lambda reader=reader: dcp.load(state, storage_reader=reader)
        )
    fresh(place)
    begin = time.perf_counter()
    # What goes on behind it uses the group: nothing else may until it has ended.
    pending = dcp.async_save(state, storage_writer=writer_of(name, place))
    took["async_save, until it returns"] = time.perf_counter() - begin
    pending.result()
    dist.barrier()
    return took


def verify(place: str) -> dict[str, float]:
    """Seconds that the first rank takes, while the others wait."""
    prepare(place, warm=True)
    first = dist.get_rank() == 0
    paths = sorted(map(str, Path(place).iterdir())) if first else []
    threads = len(os.sched_getaffinity(0))
    return {
        f"verify, warm: {DIRECTORY}": timed(lambda: first and judge(recognise(place)[0], threads=threads)),
        f"verify, warm: {ONE_BY_ONE}": timed(lambda: [fastckpt.verify(path) for path in paths]),
    }


def fresh(place: str) -> None:
    """Nothing is there, and nothing waits to be written."""
    if dist.get_rank() == 0:
        shutil.rmtree(place, ignore_errors=True)
        os.sync()
    dist.barrier()


def whole(value: Any) -> Any:
    """A state with memory for all of every tensor."""
    if isinstance(value, DTensor):
        return torch.zeros(value.shape, dtype=value.dtype)
    if isinstance(value, dict):
        return {key: whole(each) for key, each in value.items()}
    return [whole(each) for each in value] if isinstance(value, list) else value


def nbytes_of(value: Any) -> int:
    """The bytes of the tensors of this rank."""
    if isinstance(value, torch.Tensor):
        return (value.to_local() if isinstance(value, DTensor) else value).nbytes
    if isinstance(value, dict | list):
        return sum(map(nbytes_of, value.values() if isinstance(value, dict) else value))
    return 0


def other_ranks(place: str, state: dict[str, Any]) -> dict[str, dict[str, int]]:
    """What is read when all ranks' state is loaded by one, and one rank's by all."""
    found: dict[str, dict[str, int]] = {}
    alone, world = f"{place}-alone", dist.get_world_size()
    fresh(alone)
    if dist.get_rank() == 0:
        full, reader = whole(state), Counting(place)
        dcp.load(full, storage_reader=reader, no_dist=True)
        row = {"read": reader.bytes_read, "needed": nbytes_of(full), "parts": reader.parts}
        found[f"{world} -> 1 ranks"] = row
        dcp.save(full, storage_writer=fastckpt.dcp.FastckptWriter(alone), no_dist=True)
    dist.barrier()
    reader = Counting(alone)
    dcp.load(state, storage_reader=reader)
    own = [reader.bytes_read, nbytes_of(state), reader.parts]
    of_all: list[Any] = [None] * world
    dist.all_gather_object(of_all, own)
    read, needed, parts = map(sum, zip(*of_all, strict=True))
    return found | {f"1 -> {world} ranks": {"read": read, "needed": needed, "parts": parts}}


def measure(rank: int, options: argparse.Namespace, results: Any) -> None:
    """What one rank does; the first one reports."""
    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(options.port), "LOCAL_WORLD_SIZE": str(options.ranks)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=options.ranks)
    state = state_of(options.dim, options.layers)
    ours, torchs = (os.path.join(options.dir, name) for name in ("ours", "torchs"))
    seconds: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):
        took: dict[str, float] = {}
        for name, place in ((OURS, ours), (TORCHS, torchs)):
            took |= {f"{job}: {name}": second for job, second in save_and_load(name, place, state).items()}
        took |= verify(ours)
        if number:  # The first round does not count.
            for job, second in took.items():
                seconds.setdefault(job, []).append(second)
    reads = other_ranks(ours, state)
    if rank == 0:
        size = sum(path.stat().st_size for path in Path(torchs).iterdir())
        results.put((seconds, size, reads))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Run the ranks, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", default=".", help="where to write")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--port", type=int, default=29541)
    options = parser.parse_args()
    options.dir = os.path.join(options.dir, "fastckpt-dcp-benchmark")
    os.makedirs(options.dir, exist_ok=True)
    results = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        multiprocessing.spawn(measure, (options, results), options.ranks)
        seconds, size, reads = results.get()
        jobs = {
            name: {"bytes": size, "median": statistics.median(each), "seconds": each} for name, each in seconds.items()
        }
        result = {
            "machine": machine(options.dir),
            "ranks": options.ranks,
            "writer_threads": WRITER_THREADS,
            "ratios": ratios(jobs),
            "reads": {what: {**row, "at_most": may_read(row)} for what, row in reads.items()},
            "jobs": jobs,
        }
    finally:
        shutil.rmtree(options.dir, ignore_errors=True)
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if options.output is not None:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
