"""Durable saves and cold loads of a bfloat16 model with planes, beside what the disk does with its raw bytes.

The limits are those of `limits.py`: the same raw bytes, moved past the page cache by nothing but system calls, on the
best of several numbers of threads. A ratio is the median over rounds in which both ran: above 1, planes is faster than
the disk could ever be with bytes as they are.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import Any, Final

import cpu_ratios
import limits
import torch
from bench import Bench, Job
from workloads import state_bytes

import fastckpt
from fastckpt.io.transfer import default_threads

WANTED: Final = 1.2
BARS: Final = (
    ("durable save", "fastckpt.save, planes", "limit: O_DIRECT write + fsync"),
    ("cold load", "fastckpt.load, planes, cold", "limit: O_DIRECT into fresh huge pages"),
)


def model(megabytes: int) -> dict[str, torch.Tensor]:
    """Matrices of bfloat16, normally distributed as weights are, each with a spread of its own."""
    generator = torch.Generator().manual_seed(0)
    rows = 4096
    columns = 1024
    count = max(1, megabytes * 1_000_000 // (rows * columns * 2))
    return {
        f"layers.{n}.weight": (torch.randn(rows, columns, generator=generator) * 0.01 * (1 + n % 5)).bfloat16()
        for n in range(count)
    }


def disk(directory: str | None, megabytes: int, rounds: int) -> dict[str, Any]:
    """All rows: seconds of each round, medians, and what the two bars come to. Speeds are GB/s of raw bytes."""
    state = model(megabytes)
    nbytes = state_bytes(state)
    pages = limits.whole_pages(state.values())
    bench = Bench(rounds)
    threads = default_threads()
    many = sorted({threads, 2 * threads, 4 * threads})
    with tempfile.TemporaryDirectory(dir=directory) as place:
        names = ("raw", "plain.fckpt", "small.fckpt", "new.fckpt")
        raw, plain, small, new = (os.path.join(place, name) for name in names)

        def clean() -> None:
            """Nothing there that an earlier save wrote, nothing left to write."""
            with suppress(FileNotFoundError):
                os.unlink(new)
            os.sync()
            limits.settle(nbytes)

        def cool() -> None:
            """Files that only the disk has."""
            for path in (raw, plain, small):
                limits.evict(path)
            limits.settle(nbytes)

        saves: dict[str, Job] = {
            f"limit: O_DIRECT write + fsync, {n} threads": lambda n=n: limits.write_file(  # type: ignore[misc]
                new, pages, n, direct=True, sync=True
            )
            for n in many
        }
        saves["fastckpt.save, planes"] = lambda: fastckpt.save(state, new, codec="planes")
        saves["fastckpt.save, none"] = lambda: fastckpt.save(state, new)
        bench.group(saves, nbytes, before=clean)
        clean()
        limits.write_file(raw, pages, threads, direct=True, sync=True)
        fastckpt.save(state, plain)
        fastckpt.save(state, small, codec="planes")
        sizes = {name: os.path.getsize(path) for name, path in (("none", plain), ("planes", small))}
        loads: dict[str, Job] = {
            f"limit: O_DIRECT into fresh huge pages, {n} threads": lambda n=n: limits.read_fresh(  # type: ignore[misc]
                raw, n, direct=True
            )
            for n in many
        }
        loads["fastckpt.load, planes, cold"] = lambda: fastckpt.load(small)
        loads["fastckpt.load, none, cold"] = lambda: fastckpt.load(plain)
        bench.group(loads, nbytes, before=cool)
    found = {}
    for what, ours, limit in BARS:
        one, best = cpu_ratios.row_of(bench.results, ours), cpu_ratios.row_of(bench.results, limit)
        assert one is not None
        assert best is not None
        found[what] = [round(cpu_ratios.ratio(one, best), 3), WANTED]
    return {"raw bytes": nbytes, "file bytes": sizes, "ratios": found, "jobs": bench.results}
