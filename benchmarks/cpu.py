"""The CPU benchmark: fastckpt beside its peers and beside the limits of the machine, in one run.

    python benchmarks/cpu.py --dir /path/on/the/disk/to/measure

Every job runs once per round, all jobs of a group in turn, so that noise hits
all of them alike; medians count. The result goes to ``benchmarks/results/``;
``benchmarks/table.py`` turns it into the table of the README.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import limits
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from workloads import gpt_state, state_bytes, tiny_tensors

import fastckpt
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

    def group(self, jobs: dict[str, Job], nbytes: int, before: Job | None = None, *, warm_up: bool = True) -> None:
        """Run all jobs in turn, once per round; ``before`` runs, not timed, ahead of each.

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


def peak_rss_of_conversion(source: str, destination: str) -> int:
    """Peak resident memory in bytes of a process that converts and does nothing else."""
    # VmHWM starts anew with the program; getrusage's figure is inherited from the parent.
    program = (
        "import sys, fastckpt; fastckpt.convert(sys.argv[1], sys.argv[2]);"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, source, destination], capture_output=True, text=True, check=True
    )
    return int(run.stdout) * 1024


def measure_large(bench: Bench, directory: str, depth: int) -> dict[str, Any]:
    """All jobs on one large state. Returns the ratios the issue of speed is judged by."""
    state = gpt_state(depth)
    nbytes = state_bytes(state)
    threads = default_threads()
    many = sorted({threads, 2 * threads, 4 * threads})
    at = lambda name: os.path.join(directory, name)  # noqa: E731
    ours, pt, st = at("state.fckpt"), at("state.pt"), at("state.safetensors")
    flat = flat_tensors(state)
    fastckpt.save(state, ours)
    torch.save(state, pt)
    safetensors.torch.save_file(flat, st)
    dcp.save({"state": state}, checkpoint_id=at("dcp"), no_dist=True)
    # Writers leave pages of different sizes in the page cache, which alone makes reading one file half as fast as
    # another: all are brought in anew, in the same way.
    for path in (ours, pt, st):
        limits.evict(path)
        limits.warm(path)
    size = os.path.getsize(ours)
    touched = limits.touched_memory(size)

    def settle() -> None:
        # A system short of memory drops cached files that nobody reads: all of them are read again. That may
        # take memory, so it comes first: what the job takes is what was settled last.
        for path in (ours, pt, st):
            limits.warm(path)
        limits.settle(size)

    other = limits.touched_memory(size)
    bench.group({"limit: memcpy into touched memory": lambda: limits.copy_memory(other, touched, threads)}, size)

    bench.allot(0.18)
    bench.group(
        {
            "limit: read the warm map": lambda: limits.read_map(ours, threads, populate=False),
            "limit: read the warm map, populated": lambda: limits.read_map(ours, threads, populate=True),
            "fastckpt.load(mmap=True)": lambda: fastckpt.load(ours, mmap=True),
            "fastckpt.verify": lambda: fastckpt.verify(ours),
            "torch.load": lambda: torch.load(pt),
            "torch.load(mmap=True) + touch": lambda: touch(torch.load(pt, mmap=True)),
            "safetensors.load_file + touch": lambda: touch(safetensors.torch.load_file(st)),
        },
        nbytes,
        before=settle,
    )
    into = gpt_state(depth, seed=1)
    bench.allot(0.12)
    bench.group(
        {
            "limit: pread into touched memory": lambda: limits.read_file(ours, touched, threads, direct=False),
            "fastckpt.load_into": lambda: fastckpt.load_into(into, ours),
        },
        nbytes,
        before=settle,
    )
    assert torch.equal(into["model"]["lm_head.weight"], state["model"]["lm_head.weight"])  # type: ignore[index]
    bench.allot(0.2)
    bench.group(
        {
            "limit: pread into fresh huge pages": lambda: limits.read_fresh(ours, threads, direct=False),
            "fastckpt.load": lambda: fastckpt.load(ours),
            "fastckpt.load (.pt, CRCs checked)": lambda: fastckpt.load(pt),
            "dcp.load": lambda: dcp.load({"state": gpt_like(state)}, checkpoint_id=at("dcp"), no_dist=True),
        },
        nbytes,
        before=settle,
    )

    def evict_all() -> None:
        for path in (ours, pt, st):
            limits.evict(path)
        limits.settle(size)

    cold: dict[str, Job] = {
        f"limit: O_DIRECT read, {n} threads": lambda n=n: limits.read_file(ours, touched, n, direct=True)  # type: ignore[misc]
        for n in many
    }
    cold |= {
        "limit: O_DIRECT into fresh huge pages": lambda: limits.read_fresh(ours, many[-1], direct=True),
        "fastckpt.load_into, cold": lambda: fastckpt.load_into(into, ours),
        "fastckpt.load, cold": lambda: fastckpt.load(ours),
        "fastckpt.load(mmap=True), cold": lambda: fastckpt.load(ours, mmap=True),
        "torch.load, cold": lambda: torch.load(pt),
        "safetensors.load_file + touch, cold": lambda: touch(safetensors.torch.load_file(st)),
    }
    bench.allot(0.25)
    bench.group(cold, nbytes, before=evict_all)
    evict_all()

    new = at("new")

    def clean() -> None:
        for path in Path(directory).glob("new*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.sync()
        limits.settle(size)

    durable: dict[str, Job] = {
        f"limit: O_DIRECT write + fsync, {n} threads": lambda n=n: limits.write_file(
            new, touched, n, direct=True, sync=True
        )  # type: ignore[misc]
        for n in many
    }
    durable |= {
        "fastckpt.save": lambda: fastckpt.save(state, new),
        "torch.save + fsync": lambda: (torch.save(state, new), fsync(new)),
        "safetensors.save_file + fsync": lambda: (safetensors.torch.save_file(flat, new), fsync(new)),
        "dcp.save (syncs)": lambda: dcp.save({"state": state}, checkpoint_id=at("new_dcp"), no_dist=True),
    }
    bench.allot(0.3)
    bench.group(durable, nbytes, before=clean)
    buffered: dict[str, Job] = {
        f"limit: buffered pwrite, {n} threads": lambda n=n: limits.write_file(new, touched, n, direct=False, sync=False)  # type: ignore[misc]
        for n in (1, threads)
    }
    buffered |= {
        "fastckpt.save(durable=False)": lambda: fastckpt.save(state, new, durable=False),
        "torch.save": lambda: torch.save(state, new),
        "safetensors.save_file": lambda: safetensors.torch.save_file(flat, new),
    }
    bench.allot(0.4)
    bench.group(buffered, nbytes, before=clean)

    def convert_with_torch() -> None:
        torch.save(torch.load(pt), new)
        fsync(new)

    def clean_and_warm() -> None:
        limits.warm(pt)
        clean()

    bench.allot(0.5)
    bench.group(
        {
            "fastckpt.convert (.pt, durable)": lambda: fastckpt.convert(pt, at("new.fckpt")),
            "torch.load + torch.save + fsync": convert_with_torch,
        },
        nbytes,
        before=clean_and_warm,
    )
    clean()
    bench.results["convert: peak memory"] = {"bytes": peak_rss_of_conversion(pt, at("new.fckpt")), "of": nbytes}
    back = subprocess.run(["cmp", pt, fastckpt.convert(at("new.fckpt"), at("new.pt"))[0].destination], check=False)
    assert back.returncode == 0, "the way back is not exact"
    clean()

    m, best = bench.median, bench.best
    map_limit = best("limit: read the warm map", "limit: read the warm map, populated")
    direct_read = best(*(f"limit: O_DIRECT read, {n} threads" for n in many))
    direct_write = best(*(f"limit: O_DIRECT write + fsync, {n} threads" for n in many))
    pwrite = best("limit: buffered pwrite, 1 threads", f"limit: buffered pwrite, {threads} threads")
    ratio = lambda ours_s, other: round(other / ours_s, 3)  # noqa: E731
    return {
        "load(mmap=True) / reading the warm map": [ratio(m("fastckpt.load(mmap=True)"), map_limit), 0.85],
        "load(mmap=True) / torch.load": [ratio(m("fastckpt.load(mmap=True)"), m("torch.load")), 8],
        "load_into / pread into touched memory": [
            ratio(m("fastckpt.load_into"), m("limit: pread into touched memory")),
            0.8,
        ],
        "load / pread into fresh huge pages": [ratio(m("fastckpt.load"), m("limit: pread into fresh huge pages")), 0.8],
        "load / torch.load": [ratio(m("fastckpt.load"), m("torch.load")), 2],
        "load cold / O_DIRECT read": [ratio(m("fastckpt.load, cold"), direct_read), 0.85],
        "load cold / O_DIRECT into fresh huge pages": [
            ratio(m("fastckpt.load, cold"), m("limit: O_DIRECT into fresh huge pages")),
            0.85,
        ],
        "load_into cold / O_DIRECT read": [ratio(m("fastckpt.load_into, cold"), direct_read), 0.85],
        "save / O_DIRECT write + fsync": [ratio(m("fastckpt.save"), direct_write), 0.8],
        "save / torch.save + fsync": [ratio(m("fastckpt.save"), m("torch.save + fsync")), 2],
        "save(durable=False) / buffered pwrite": [ratio(m("fastckpt.save(durable=False)"), pwrite), 0.8],
        "verify / reading the warm map": [ratio(m("fastckpt.verify"), map_limit), 0.8],
        "convert / torch.load + torch.save + fsync": [
            ratio(m("fastckpt.convert (.pt, durable)"), m("torch.load + torch.save + fsync")),
            1.5,
        ],
    }


def gpt_like(state: Any) -> Any:
    """The same nesting with empty tensors of the same shapes, which dcp.load fills."""
    if isinstance(state, torch.Tensor):
        return torch.empty_like(state)
    if isinstance(state, dict):
        return {key: gpt_like(item) for key, item in state.items()}
    return state


def measure_tiny(bench: Bench, directory: str, count: int) -> None:
    """Many tiny tensors: what the structure costs when there is hardly any data."""
    state = tiny_tensors(count)
    ours, st = os.path.join(directory, "tiny.fckpt"), os.path.join(directory, "tiny.safetensors")
    fastckpt.save(state, ours)
    safetensors.torch.save_file(state, st)
    bench.allot(0.9)
    bench.group(
        {
            f"tiny: fastckpt.save, {count} tensors": lambda: fastckpt.save(state, ours),
            f"tiny: fastckpt.open, {count} tensors": lambda: len(list(fastckpt.open(ours))),
            f"tiny: fastckpt.load, {count} tensors": lambda: fastckpt.load(ours),
            f"tiny: safetensors.save_file, {count} tensors": lambda: safetensors.torch.save_file(state, st),
            f"tiny: safetensors.load_file, {count} tensors": lambda: safetensors.torch.load_file(st),
        },
        state_bytes(state),
    )


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
        "simd": __import__("fastckpt._core")._core.simd_level(),
    }


def main() -> None:
    """Run everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", help="where the files are written (default: a temporary directory)")
    parser.add_argument("--depth", type=int, default=12, help="depth of the GPT (12: 1.7 GB)")
    parser.add_argument("--tiny", type=int, default=200_000, help="how many tiny tensors")
    parser.add_argument("--rounds", type=int, default=7, help="at most this many of each group")
    parser.add_argument("--minutes", type=float, default=11, help="groups end early rather than take longer in all")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(default_threads())
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        bench = Bench(options.rounds, end)
        ratios = measure_large(bench, directory, options.depth)
        measure_tiny(bench, directory, options.tiny)
        result = {"machine": machine(directory), "ratios": ratios, "jobs": bench.results}
    for name, (value, wanted) in ratios.items():
        print(f"{name:46} {value:7.2f}  (at least {wanted}) {'' if value >= wanted else 'MISSED'}")
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
