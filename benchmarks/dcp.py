"""torch.distributed.checkpoint through `.fckpt` shards, beside its own FileSystemWriter and FileSystemReader.

    PYTHONPATH=. python benchmarks/dcp.py --dir DISK [--output results/dcp.json]

Two gloo ranks save and load the same FSDP2 state with AdamW, in turns within
one run. Before a load all files are read once (warm) or dropped from the page
cache (cold); ours verifies every byte, the other nothing.
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
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fastckpt.dcp

OURS, TORCHS = "fastckpt.dcp, every byte verified", "FileSystemWriter / Reader"


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


def measure(rank: int, options: argparse.Namespace, results: Any) -> None:
    """What one rank does; the first one reports."""
    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(options.port), "LOCAL_WORLD_SIZE": str(options.ranks)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=options.ranks)
    state = state_of(options.dim, options.layers)
    seconds: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):
        for name in (OURS, TORCHS):
            place = os.path.join(options.dir, "ours" if name == OURS else "torchs")
            if rank == 0:
                shutil.rmtree(place, ignore_errors=True)
                os.sync()
            # Its default is one thread; with several it is faster.
            torchs = dcp.FileSystemWriter(place, thread_count=2)
            writer = fastckpt.dcp.FastckptWriter(place) if name == OURS else torchs
            took = {"save, durable": timed(lambda writer=writer: dcp.save(state, storage_writer=writer))}
            for warm in (True, False):
                prepare(place, warm=warm)
                reader = fastckpt.dcp.FastckptReader(place) if name == OURS else dcp.FileSystemReader(place)
                job = timed(lambda reader=reader: dcp.load(state, storage_reader=reader))
                took["load, warm" if warm else "load, cold"] = job
            for what, second in took.items():
                if number:  # The first round does not count.
                    seconds.setdefault(f"{what}: {name}", []).append(second)
    if rank == 0:
        size = sum(path.stat().st_size for path in Path(options.dir, "torchs").iterdir())
        results.put((seconds, size))
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
        seconds, size = results.get()
        jobs = {
            name: {"bytes": size, "median": statistics.median(each), "seconds": each} for name, each in seconds.items()
        }
        ratios = {
            what: jobs[f"{what}: {TORCHS}"]["median"] / jobs[f"{what}: {OURS}"]["median"]
            for what in ("save, durable", "load, warm", "load, cold")
        }
        result = {"machine": machine(options.dir), "ranks": options.ranks, "ratios": ratios, "jobs": jobs}
    finally:
        shutil.rmtree(options.dir, ignore_errors=True)
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if options.output is not None:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
