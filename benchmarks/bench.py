"""What the benchmarks share: jobs run in turn and timed, and the machine they ran on."""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import torch

import fastckpt
from fastckpt import _core
from fastckpt.io.transfer import default_threads

Job = Callable[[], object]


class Bench:
    """Named jobs, each with the seconds it took in every round and the bytes it moves.

    After ``deadline`` (`time.monotonic`), a group ends with the round it is in.
    `allot` sets it from ``end``, by which the whole run shall be over.
    """

    def __init__(self, rounds: int, deadline: float = math.inf) -> None:
        self.rounds = rounds
        self.deadline = self.end = deadline
        self.results: dict[str, dict[str, Any]] = {}

    def group(
        self,
        jobs: dict[str, Job],
        nbytes: int,
        before: Job | None = None,
        *,
        after: Callable[[Any], object] | None = None,
        warm_up: bool = True,
    ) -> None:
        """Run all jobs in turn, once per round; ``before`` runs, not timed, ahead of each, ``after`` on its result.

        With ``warm_up``, a first round that does not count brings memory and files into the state that the others find.
        """
        left = dict(jobs)
        for round_number in range(0 if warm_up else 1, self.rounds + 1):
            if round_number > 1 and time.monotonic() > self.deadline:
                break
            for name, job in list(left.items()):
                if before is not None:
                    before()
                gc.collect()
                start = time.perf_counter()
                try:
                    result = job()
                except Exception as error:
                    self.failed(name, error)
                    del left[name]
                    continue
                seconds = time.perf_counter() - start
                if after is not None:
                    after(result)
                del result
                if round_number:
                    self.results.setdefault(name, {"bytes": nbytes, "seconds": []})["seconds"].append(seconds)
        for name in left:
            row = self.results[name]
            row["median"] = statistics.median(row["seconds"])
            row["gb_per_s"] = nbytes / row["median"] / 1e9 if nbytes else None
            print(f"{name:46} {row['median']:8.3f} s  {row['gb_per_s'] or 0:7.2f} GB/s", flush=True)

    def allot(self, part: float) -> None:
        """Give the groups that follow this part of the time left; what they do not use is there for later ones."""
        now = time.monotonic()
        self.deadline = now + part * (self.end - now)

    def failed(self, name: str, error: Exception) -> None:
        """What becomes of a job that raises: here it is the end of the run."""
        raise error

    def median(self, name: str) -> float:
        """Median seconds of a job."""
        return float(self.results[name]["median"])

    def best(self, *names: str) -> float:
        """The smallest median among jobs: a limit is what the best way of doing it reaches."""
        return min(map(self.median, names))


def touch(state: Any) -> Any:
    """Read every byte, as training would on first use; lazy loaders pay here."""
    if isinstance(state, torch.Tensor):
        flat = state.detach().reshape(-1).view(torch.uint8)
        if flat.numel() >= 8:
            flat[: flat.numel() // 8 * 8].view(torch.int64).sum()
    elif isinstance(state, dict):
        for item in state.values():
            touch(item)
    elif isinstance(state, list | tuple):
        for item in state:
            touch(item)
    return state


def fsync(path: str) -> None:
    """Make a file durable, as `fastckpt.save` does by itself."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def flat_tensors(state: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors by flat name, which is all that safetensors can hold."""
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {
        k: v for key, item in items for k, v in flat_tensors(item, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def machine(directory: str) -> dict[str, Any]:
    """What the figures were taken on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    file_system = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=False)
    return {
        "cpu": model,
        "cpus": default_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "kernel": platform.release().split("-")[0],
        "file_system": file_system.stdout.strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
        "fastckpt": fastckpt.__version__,
        "simd": _core.simd_level(),
        "load_average": os.getloadavg()[0],
    }
