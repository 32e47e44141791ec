"""What many small tensors cost: time, memory and bytes, from a thousand tensors to a million.

    python benchmarks/many.py --dir /path/on/the/disk/to/measure

Every job runs in a process of its own. CPU seconds are those of all its
threads; the memory is what the job takes at its peak on top of what the
process had before. The result goes to ``benchmarks/results/many.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

COUNTS: Final = (1_000, 10_000, 100_000, 1_000_000)
JOBS: Final = ("save", "open, one tensor", "load, one tensor", "names", "load", "load(mmap=True)", "verify")
PEERS: Final = ("safetensors.save_file", "safetensors.load_file", "safetensors.safe_open, one tensor")
PEER_LIMIT: Final = 100_000
"""Peers are measured up to this count."""

BARS: Final = (
    # Of 100,000 tensors: the job, and its CPU seconds at most.
    ("save", 1.5),
    ("open, one tensor", 0.3),
    ("load, one tensor", 0.3),
    ("verify", 1.0),
)
BYTES_PER_TENSOR: Final = 250
"""At most, beside the tensor's own bytes and their alignment to 64."""


def prepared(job: str, count: int, ours: str, st: str) -> Callable[[], object]:
    """A job, with all that it wants imported and made."""
    import safetensors.torch
    import torch
    from workloads import tiny_tensors

    import fastckpt

    torch.set_num_threads(2)
    one = "layers.7.scale.7"
    state = tiny_tensors(count) if job in ("save", "safetensors.save_file") else {}

    def one_of_peer() -> object:
        with safetensors.safe_open(st, framework="pt") as file:
            return file.get_tensor(one)

    jobs: dict[str, Callable[[], object]] = {
        "save": lambda: fastckpt.save(state, ours, durable=False),
        "open, one tensor": lambda: fastckpt.open(ours)[one],
        "load, one tensor": lambda: fastckpt.load(ours, keys=[one]),
        "names": lambda: len(list(fastckpt.open(ours))),
        "load": lambda: fastckpt.load(ours),
        "load(mmap=True)": lambda: fastckpt.load(ours, mmap=True),
        "verify": lambda: fastckpt.verify(ours),
        "safetensors.save_file": lambda: safetensors.torch.save_file(state, st),
        "safetensors.load_file": lambda: safetensors.torch.load_file(st),
        "safetensors.safe_open, one tensor": one_of_peer,
    }
    # What only the first use of a library costs is not what many tensors cost.
    small = ours + ".small"
    fastckpt.save({"a": torch.ones(2)}, small, durable=False)
    fastckpt.load(small, keys=["a"])
    fastckpt.load(small, mmap=True)
    fastckpt.open(small)["a"]
    fastckpt.verify(small)
    os.unlink(small)
    return jobs[job]


def memory(what: str) -> int:
    """Bytes of resident memory: ``VmRSS`` now, or ``VmHWM`` at its peak."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(what))


def work(job: str, count: int, ours: str, st: str) -> None:
    """Be the process of one job, and print its figures."""
    run = prepared(job, count, ours, st)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew.
    cpu, clock = time.process_time(), time.perf_counter()
    result = run()
    cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    figures = {"cpu_seconds": round(cpu, 4), "seconds": round(clock, 4), "peak_memory": memory("VmHWM") - before}
    del result
    print(json.dumps(figures))


def measure(directory: str, counts: list[int], tries: int) -> dict[str, Any]:
    """Of every count and job, the try that took least CPU time."""
    found: dict[str, Any] = {}
    for count in counts:
        ours, st = (os.path.join(directory, f"many.{suffix}") for suffix in ("fckpt", "safetensors"))
        rows: dict[str, Any] = {}
        for job in (*JOBS, *(PEERS if count <= PEER_LIMIT else ())):
            command = [sys.executable, __file__, "--work", job, str(count), ours, st]
            runs = [json.loads(subprocess.check_output(command, text=True)) for _ in range(tries)]
            rows[job] = min(runs, key=lambda run: float(run["cpu_seconds"]))
            print(f"{count:9,} {job:36} {rows[job]}", flush=True)
        rows["bytes_per_tensor"] = {
            "fastckpt": os.path.getsize(ours) / count - 64,
            **({"safetensors": os.path.getsize(st) / count - 64} if os.path.exists(st) else {}),
        }
        print(f"{count:9,} bytes beside the tensor's own 64: {rows['bytes_per_tensor']}", flush=True)
        found[str(count)] = rows
        for path in (ours, st):
            Path(path).unlink(missing_ok=True)
    return found


def bars(found: dict[str, Any]) -> dict[str, list[float]]:
    """What was measured of each bar, and what is wanted at most."""
    result: dict[str, list[float]] = {}
    if rows := found.get("100000"):
        result |= {f"100,000 tensors: {job}, CPU seconds": [rows[job]["cpu_seconds"], most] for job, most in BARS}
        result["100,000 tensors: bytes per tensor"] = [round(rows["bytes_per_tensor"]["fastckpt"], 1), BYTES_PER_TENSOR]
        if more := found.get("1000000"):
            for job in ("save", "load", "verify"):
                for figure in ("cpu_seconds", "peak_memory"):
                    growth = more[job][figure] / rows[job][figure]
                    result[f"10 times the tensors: {job}, times the {figure}"] = [round(growth, 2), 12]
    return result


def main() -> None:
    """Measure, or be the process of one job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="where the files are written (default: a temporary directory)")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=list(COUNTS), help="some only, into the result there is"
    )
    parser.add_argument("--tries", type=int, default=3, help="of each job; the best counts")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "many.json")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        job, count, ours, st = options.work
        work(job, int(count), ours, st)
        return
    from bench import machine

    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        host = machine(directory)
        found = measure(directory, options.counts, options.tries)
    if set(options.counts) != set(COUNTS) and options.output.exists():
        found = {**json.loads(options.output.read_text())["rows"], **found}
    found = dict(sorted(found.items(), key=lambda item: int(item[0])))
    result = bars(found)
    for name, (value, most) in result.items():
        print(f"{name:60} {value:9.2f}  (at most {most}) {'' if value <= most else 'MISSED'}")
    options.output.write_text(json.dumps({"machine": host, "bars": result, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
