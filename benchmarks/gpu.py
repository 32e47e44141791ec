"""The GPU benchmark: fastckpt beside its peers and beside the limits of the link, in one run.

    python benchmarks/gpu.py --dir /path/on/the/disk/to/measure

Correctness comes first (`gpu_checks`). Then every job runs once per round, all
jobs of a group in turn, so that noise hits all alike; medians count. The
result, with the ratios that are aimed at, goes to ``benchmarks/results/``: it is
written anew after each group, and what fails is written down and left out, so
that a run that is cut short has not been for nothing. The exit code is 1 if a
check or a job of ours failed.
``--device cpu --gb 0.1`` runs all of it without a GPU; its figures mean nothing.
Where the package is built in place and not installed, ``PYTHONPATH=.`` finds it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import limits
import safetensors.torch
import torch
from bench import Bench, Job, flat_tensors, fsync, machine
from gpu_checks import run_checks
from gpu_peers import peers
from gpu_planes import DECODED, decode_job
from workloads import gpt_state, state_bytes

import fastckpt
from fastckpt.io.transfer import default_threads, direct_threads
from fastckpt.kernels.dispatch import engine_for
from fastckpt.staging.ring import Ring

MINUTES = 8
"""The whole run, on one GPU and a disk of 1 GB/s or more."""
SHARES = {"device": 0.2, "warm": 0.45, "matrices": 0.6, "saves": 0.7, "cold": 0.82, "durable": 0.9}
"""When a group begins no further round, as a part of all the time. What matters most comes first."""

LIMIT_H2D, LIMIT_D2H = "limit: pinned H2D copy", "limit: pinned D2H copy"
LIMIT_PREAD, LIMIT_DIRECT = "limit: pread into pinned slots", "limit: O_DIRECT read into pinned slots"
LIMIT_COPY, LIMIT_SUM = "limit: device copy (read + write)", "limit: device sum (read)"
KERNEL = "verify kernel alone"
DECODE_KERNEL = "planes decoded, kernels alone"
LOAD_PLANES = "fastckpt.load of codec planes"
STALL = "fastckpt.save_async, until it returns"
MATRICES = "2.4 MB matrices"
"""Of a GPT of depth 12: small enough that what is done for each tensor counts."""


class OneTry(Bench):
    """A run that goes on whatever fails, and can be read whenever it ends.

    Args:
        rounds: Of each group.
        minutes: For all of it.
        began: When it began (`time.monotonic`).
        write: Called after each group.
    """

    def __init__(self, rounds: int, minutes: float, began: float, write: Callable[[], None]) -> None:
        super().__init__(rounds)
        self.failures: dict[str, str] = {}
        self._seconds, self._began, self._write = minutes * 60, began, write

    def failed(self, name: str, error: Exception) -> None:
        """Write a job down as left out."""
        self.failures[name] = f"{type(error).__name__}: {error}"[:500]
        print(f"{name}: left out: {self.failures[name]}", flush=True)

    def share(
        self, share: str, jobs: dict[str, Job], nbytes: int, before: Job | None = None, *, warm_up: bool = True
    ) -> None:
        """A group that may take its share of the time."""
        self.deadline = self._began + SHARES[share] * self._seconds
        self.group(jobs, nbytes, before, warm_up=warm_up)
        self._write()


class Place:
    """The device under test, with what its jobs need: a way to wait for it, and slots to copy through."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        ring = Ring()
        self.slots = [
            torch.zeros(ring.slot_size, dtype=torch.uint8, pin_memory=True)
            if self.on_gpu
            else torch.frombuffer(limits.touched_memory(ring.slot_size), dtype=torch.uint8)
            for _ in range(ring.slots)
        ]
        self.there = torch.zeros(ring.slot_size, dtype=torch.uint8, device=device)

    def done(self, work: Callable[[], Any]) -> Job:
        """The job that ends when the device has ended it."""

        def job() -> Any:
            result = work()
            if self.on_gpu:
                torch.cuda.synchronize(self.device)
            return result

        return job

    def copy_slots(self, nbytes: int, *, to_device: bool) -> None:
        """Copy ``nbytes`` between the slots and the device, one slot after the other."""
        for number in range(-(-nbytes // self.there.nbytes)):
            slot = self.slots[number % len(self.slots)]
            if to_device:
                self.there.copy_(slot, non_blocking=True)
            else:
                slot.copy_(self.there, non_blocking=True)

    def read_into_slots(self, path: str, *, direct: bool) -> None:
        """Read a file into the slots, over and over, by several threads."""
        memory = [memoryview(slot.numpy()) for slot in self.slots]
        size = self.there.nbytes
        fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        try:

            def work(at: int, count: int) -> None:
                slot = memory[at // size % len(memory)][at % size : at % size + count]
                done = 0
                while done < count:
                    done += os.preadv(fd, [slot[done:]], at + done)

            whole = os.fstat(fd).st_size // limits.BLOCK * limits.BLOCK
            limits._blocks(whole, direct_threads(None) if direct else default_threads(), work)
        finally:
            os.close(fd)


def state_on(device: torch.device, gigabytes: float) -> Any:
    """A GPT of about this size, made on the device."""
    depth, vocab = 1, 32768 if gigabytes >= 1 else 2048
    while True:
        with torch.device("meta"):
            if state_bytes(gpt_state(depth + 1, vocab=vocab)) > gigabytes * 1e9:
                break
        depth += 1
    with torch.device(device):
        return gpt_state(depth, vocab=vocab)


def ours(path: str, into: Any, place: Place) -> dict[str, Job]:
    """The ways to load."""
    device = place.device

    def streamed() -> int:
        return sum(tensor.nbytes for _, tensor in fastckpt.stream(path, device=device))

    jobs: dict[str, Job] = {
        "fastckpt.load": lambda: fastckpt.load(path, device=device),
        "fastckpt.load(verify=False)": lambda: fastckpt.load(path, device=device, verify=False),
        "fastckpt.load(verify='host')": lambda: fastckpt.load(path, device=device, verify="host"),
        "fastckpt.load_into": lambda: fastckpt.load_into(into, path),
        "fastckpt.stream": streamed,
    }
    return {name: place.done(job) for name, job in jobs.items()}


def kernel_job(tensor: torch.Tensor) -> Job:
    """Hash the leaves of a tensor and compare them, in one launch."""
    from fastckpt.kernels.launch import check_leaves, leaf_table

    addresses, sizes = (column.to(tensor.device) for column in leaf_table(tensor.data_ptr(), tensor.nbytes))
    expected = torch.zeros(len(addresses), dtype=torch.int64, device=tensor.device)
    bad = torch.empty(len(addresses), dtype=torch.int32, device=tensor.device)
    return lambda: check_leaves(addresses, sizes, expected, bad)


def files_of(state: Any, directory: str) -> dict[str, str]:
    """The state as a file of ours, raw and with the codec planes, of torch and of safetensors."""
    paths = {kind: os.path.join(directory, f"state.{kind}") for kind in ("fckpt", "planes", "pt", "st")}
    fastckpt.save(state, paths["fckpt"], durable=False)
    fastckpt.save(state, paths["planes"], codec="planes", durable=False)
    torch.save(state, paths["pt"])
    safetensors.torch.save_file(flat_tensors(state), paths["st"])
    for path in paths.values():
        fsync(path)
        limits.warm(path)
    return paths


def measure_device(bench: OneTry, place: Place, nbytes: int) -> None:
    """The device's own memory, and the verify kernel on it."""
    large = torch.ones(nbytes // 8, dtype=torch.int64, device=place.device)
    jobs: dict[str, Job] = {
        LIMIT_COPY: place.done(lambda: large.clone()),
        LIMIT_SUM: place.done(lambda: large.sum()),
    }
    if place.on_gpu and engine_for(place.device, "check_kernel").name == "triton":
        jobs[KERNEL] = place.done(kernel_job(large))
    bench.share("device", jobs, large.nbytes)
    if place.on_gpu and engine_for(place.device, "decode_planes").name == "triton":
        try:
            bench.share("device", {DECODE_KERNEL: place.done(decode_job(place.device))}, DECODED)
        except (AssertionError, RuntimeError) as error:
            bench.failed(DECODE_KERNEL, error)
    if LIMIT_COPY not in bench.failures:
        bench.results[LIMIT_COPY]["gb_per_s"] *= 2  # It reads and it writes.


def measure_loads(
    bench: OneTry, place: Place, state: Any, paths: dict[str, str], into: Any
) -> tuple[Callable[[], None], Callable[[], None]]:
    """All ways to bring the state to the device: what measures them from a warm and from a cold page cache."""
    path, nbytes = paths["fckpt"], state_bytes(state)
    others = {name: place.done(job) for name, job in peers(paths, place.device).items()}
    warm: dict[str, Job] = {
        LIMIT_H2D: place.done(lambda: place.copy_slots(nbytes, to_device=True)),
        LIMIT_PREAD: lambda: place.read_into_slots(path, direct=False),
        **ours(path, into, place),
        LOAD_PLANES: place.done(lambda: fastckpt.load(paths["planes"], device=place.device)),
        **others,
        "fastckpt.verify_tensors": place.done(lambda: fastckpt.verify_tensors(state, path)),
    }

    def settle() -> None:
        if not place.on_gpu:
            limits.settle(nbytes)

    def evict() -> None:
        settle()
        for each in paths.values():
            limits.evict(each)

    def from_disk() -> None:
        cold: dict[str, Job] = {LIMIT_DIRECT: lambda: place.read_into_slots(path, direct=True)}
        cold |= {
            name: job
            for name, job in warm.items()
            if name not in bench.failures and "verify" not in name and not name.startswith("limit")
        }
        bench.share("cold", {f"{name}, cold": job for name, job in cold.items()}, nbytes, evict, warm_up=False)

    return lambda: bench.share("warm", warm, nbytes, settle), from_disk


def matrices_on(device: torch.device, gigabytes: float) -> dict[str, torch.Tensor]:
    """So many bytes of them, made on the device."""
    count = max(int(gigabytes * 1e9) // (768 * 768 * 4), 1)
    return {f"transformer.h.{number}.weight": torch.randn(768, 768, device=device) for number in range(count)}


def measure_matrices(bench: OneTry, place: Place, state: dict[str, torch.Tensor], directory: str) -> Callable[[], None]:
    """All ways to bring many small tensors to the device, from a warm page cache."""
    os.makedirs(directory)
    paths, nbytes = files_of(state, directory), state_bytes(state)
    jobs: dict[str, Job] = {
        LIMIT_H2D: place.done(lambda: place.copy_slots(nbytes, to_device=True)),
        LIMIT_PREAD: lambda: place.read_into_slots(paths["fckpt"], direct=False),
        **ours(paths["fckpt"], state, place),
        **{name: place.done(job) for name, job in peers(paths, place.device).items()},
    }
    named = {f"{name}, {MATRICES}": job for name, job in jobs.items()}
    return lambda: bench.share("matrices", named, nbytes, None if place.on_gpu else lambda: limits.settle(nbytes))


def measure_saves(bench: OneTry, place: Place, state: Any, new: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """All ways to save it, and how long training stands still for one in the background: to the cache, to the disk."""
    nbytes = state_bytes(state)
    pending: list[fastckpt.Pending] = []

    def settle() -> None:
        while pending:
            pending.pop().result()
        Path(new).unlink(missing_ok=True)

    def begin(snapshot: str) -> None:
        pending.append(fastckpt.save_async(state, new, durable=False, snapshot=snapshot))

    def to_cache() -> None:
        jobs: dict[str, Job] = {
            LIMIT_D2H: place.done(lambda: place.copy_slots(nbytes, to_device=False)),
            STALL: lambda: begin("host"),
            f"{STALL} (snapshot='device')": lambda: begin("device"),
            "fastckpt.save(durable=False)": lambda: fastckpt.save(state, new, durable=False),
            "torch.save": lambda: torch.save(state, new),
        }
        bench.share("saves", jobs, nbytes, settle)
        settle()

    def to_disk() -> None:
        durable: dict[str, Job] = {
            "fastckpt.save": lambda: fastckpt.save(state, new),
            "torch.save + fsync": lambda: (torch.save(state, new), fsync(new)),
        }
        bench.share("durable", durable, nbytes, settle, warm_up=False)
        settle()

    return to_cache, to_disk


def ratios(bench: Bench) -> dict[str, list[float]]:
    """What is aimed at: ``name: [measured, aim]``, each at least the aim; only those whose jobs have run."""
    rows = {name: row for name, row in bench.results.items() if "median" in row}
    seconds = {name: row["median"] for name, row in rows.items()}
    slower = "the slower of pinned H2D and pread"
    for of in ("", f", {MATRICES}"):
        seconds[slower + of] = max(seconds.get(LIMIT_H2D + of, 0), seconds.get(LIMIT_PREAD + of, 0))
    rivals = [
        name
        for name in seconds
        if name.startswith(("torch.load", "safetensors", "fastsafe", "instant", "runai"))
        and not name.endswith(("cold", MATRICES))
    ]
    seconds["the best peer"] = min((seconds[name] for name in rivals), default=0)
    load, unverified = "fastckpt.load", "fastckpt.load(verify=False)"
    wanted = {
        f"load / {slower}": (slower, load, 0.90),
        f"load of {MATRICES} / {slower}": (f"{slower}, {MATRICES}", f"{load}, {MATRICES}", 0.90),
        "load(verify=False) / load: what verification leaves": (unverified, load, 0.97),
        "load / safetensors.load_file": ("safetensors.load_file", load, 3),
        "load / the best peer": ("the best peer", load, 1.3),
        "load of planes / pinned H2D copy of the raw bytes": (LIMIT_H2D, LOAD_PLANES, 1.2),
        "D2H copy / stall of save_async": (LIMIT_D2H, STALL, 1 / 1.2),
    }
    found = {
        name: [seconds[other] / seconds[own], aim]
        for name, (other, own, aim) in wanted.items()
        if seconds.get(other) and own in seconds
    }
    rates = [rows[name]["gb_per_s"] for name in (LIMIT_COPY, LIMIT_SUM) if name in rows]
    if KERNEL in rows and rates:
        found["verify kernel / device read bandwidth"] = [rows[KERNEL]["gb_per_s"] / max(rates), 0.5]
    return {name: [round(value, 3), round(aim, 3)] for name, (value, aim) in found.items()}


def versions(place: Place, directory: str) -> dict[str, Any]:
    """What the figures were taken on and with."""
    found = machine(directory)
    found["engine"] = engine_for(place.device, "check_kernel").why
    for package in ("triton", "fastsafetensors", "instanttensor", "runai-model-streamer"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if place.on_gpu:
        properties = torch.cuda.get_device_properties(place.device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 1e9),
            "cuda": torch.version.cuda,
        }
    return found


def result_of(bench: OneTry, place: Place, checks: dict[str, str], found: dict[str, Any], began: float) -> Any:
    """All that is known by now, as it is written to the file."""
    result: dict[str, Any] = {"machine": found, "checks": checks, "correct": all_right(checks)}
    result["ratios"] = {
        name: {"measured": value, "aim": aim, "met": value >= aim if place.on_gpu else None}
        for name, (value, aim) in ratios(bench).items()
    }
    if not place.on_gpu:
        result["note"] = "no GPU: this shows that the script runs; nothing in it says how fast anything is"
    finished = {name: row for name, row in bench.results.items() if "median" in row}
    return result | {"left_out": bench.failures, "seconds": round(time.monotonic() - began), "jobs": finished}


def all_right(checks: dict[str, str]) -> bool:
    """Whether no check failed."""
    return not any(showed.startswith("FAILED") for showed in checks.values())


def main() -> int:
    """Check, measure, and write the result; 1 if a check or a job of ours failed."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--gb", type=float, default=6, help="size of the checkpoint (default: 6)")
    parser.add_argument("--dir", help="where the files are written (default: a temporary directory)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all of it; rounds are left out to keep it")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu.json, or gpu_cpu_mode.json")
    options = parser.parse_args()
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu --gb 0.1 shows that the script runs")
    place = Place(torch.device(options.device))
    default = "gpu.json" if place.on_gpu else "gpu_cpu_mode.json"
    output: Path = options.output or Path(__file__).parent / "results" / default
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(default_threads())
    checks: dict[str, str] = {}

    def write() -> None:
        output.write_text(json.dumps(result_of(bench, place, checks, found, began), indent=1) + "\n")

    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        found = versions(place, directory)
        bench = OneTry(options.rounds, options.minutes, began, write)
        print(f"engine: {found['engine']}", flush=True)
        for name, showed in run_checks(place.device, Path(directory)):
            checks[name] = showed
            print(f"{name}: {showed}", flush=True)
            write()
        state, into = (state_on(place.device, options.gb) for _ in range(2))
        measure_device(bench, place, min(state_bytes(state), 4 << 30))
        warm, cold = measure_loads(bench, place, state, files_of(state, directory), into)
        many = matrices_on(place.device, min(options.gb, 2))
        matrices = measure_matrices(bench, place, many, os.path.join(directory, "matrices"))
        saves, durable = measure_saves(bench, place, state, os.path.join(directory, "new"))
        for measure in (warm, matrices, saves, cold, durable):
            measure()
    result = result_of(bench, place, checks, found, began)
    for name, row in result["ratios"].items():
        verdict = {True: "", False: "MISSED", None: "(no GPU)"}[row["met"]]
        print(f"{name:54} {row['measured']:7.2f}  (at least {row['aim']}) {verdict}")
    write()
    return 0 if result["correct"] and not any(name.startswith("fastckpt") for name in bench.failures) else 1


if __name__ == "__main__":
    sys.exit(main())
