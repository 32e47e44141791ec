"""The GPU benchmark: fastckpt beside its peers and beside the limits of the link, in one run.

    python benchmarks/gpu.py --dir /path/on/the/disk/to/measure

Correctness comes first (`gpu_checks`). Then every job runs once per round, all
jobs of a group in turn, so that noise hits all alike; medians count. The
result, with the ratios that the issue asks for, goes to ``benchmarks/results/``.
``--device cpu --gb 0.1`` runs all of it without a GPU; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import limits
import safetensors.torch
import torch
from cpu import Bench, Job, flat_tensors, fsync, machine
from gpu_checks import run_checks
from workloads import gpt_state, state_bytes

import fastckpt
from fastckpt.io.transfer import default_threads, direct_threads
from fastckpt.kernels.dispatch import engine_for
from fastckpt.staging.ring import Ring

MINUTES = 8
"""The whole run, on one GPU and a disk of 2 GB/s."""

LIMIT_H2D, LIMIT_D2H = "limit: pinned H2D copy", "limit: pinned D2H copy"
LIMIT_PREAD, LIMIT_DIRECT = "limit: pread into pinned slots", "limit: O_DIRECT read into pinned slots"
LIMIT_COPY, LIMIT_SUM = "limit: device copy (read + write)", "limit: device sum (read)"
KERNEL = "verify kernel alone"
STALL = "fastckpt.save_async, until it returns"


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
                slot = memory[at // size % len(memory)]
                os.preadv(fd, [slot[at % size : at % size + count]], at)

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


def peers(paths: dict[str, str], place: Place) -> dict[str, Job]:
    """What others need to bring the same tensors to the device, as their documentation has it."""
    device = place.device
    jobs: dict[str, Job] = {
        "torch.load": lambda: torch.load(paths["pt"], map_location=device),
        "torch.load(mmap=True)": lambda: moved_to(torch.load(paths["pt"], mmap=True), device),
        "safetensors.load_file": lambda: safetensors.torch.load_file(paths["st"], device=str(device)),
    }
    if place.on_gpu and importlib.util.find_spec("fastsafetensors"):
        jobs["fastsafetensors"] = lambda: fast_safetensors(paths["st"], device)
    if importlib.util.find_spec("runai_model_streamer"):
        jobs["runai-model-streamer"] = lambda: run_ai(paths["st"], device)
    return {
        name: place.done(job) for name, job in jobs.items() if name.startswith(("torch", "safe")) or works(name, job)
    }


def works(name: str, job: Job) -> bool:
    """Whether an optional peer runs here at all; a benchmark must not end because one does not."""
    try:
        job()
    except Exception as error:
        print(f"{name}: left out: {error}", flush=True)
        return False
    return True


def moved_to(state: Any, device: torch.device) -> Any:
    """A mapped state, copied to the device tensor by tensor."""
    if isinstance(state, torch.Tensor):
        return state.to(device, copy=True)
    if isinstance(state, dict):
        return {key: moved_to(item, device) for key, item in state.items()}
    return state


def fast_safetensors(path: str, device: torch.device) -> Any:
    """All tensors through fastsafetensors, without GPUDirect."""
    module: Any = importlib.import_module("fastsafetensors")
    loader = module.SafeTensorsFileLoader(module.SingleGroup(), str(device), nogds=True)
    loader.add_filenames({0: [path]})
    buffers = loader.copy_files_to_device()
    tensors = {name: buffers.get_tensor(name).clone() for name in loader.get_keys()}
    buffers.close()
    loader.close()
    return tensors


def run_ai(path: str, device: torch.device) -> Any:
    """All tensors through the Run:ai streamer."""
    module: Any = importlib.import_module("runai_model_streamer")
    with module.SafetensorsStreamer() as streamer:
        streamer.stream_file(path)
        return {name: tensor.to(device, copy=True) for name, tensor in streamer.get_tensors()}


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
    bad = torch.empty(len(addresses), dtype=torch.uint8, device=tensor.device)
    return lambda: check_leaves(addresses, sizes, expected, bad)


def files_of(state: Any, directory: str) -> dict[str, str]:
    """The state as a file of ours, of torch and of safetensors."""
    paths = {kind: os.path.join(directory, f"state.{kind}") for kind in ("fckpt", "pt", "st")}
    fastckpt.save(state, paths["fckpt"], durable=False)
    torch.save(state, paths["pt"])
    safetensors.torch.save_file(flat_tensors(state), paths["st"])
    for path in paths.values():
        fsync(path)
        limits.warm(path)
    return paths


def measure_device(bench: Bench, place: Place, nbytes: int) -> None:
    """The device's own memory, and the verify kernel on it."""
    large = torch.ones(nbytes // 8, dtype=torch.int64, device=place.device)
    jobs: dict[str, Job] = {
        LIMIT_COPY: place.done(lambda: large.clone()),
        LIMIT_SUM: place.done(lambda: large.sum()),
    }
    if place.on_gpu and engine_for(place.device).name == "triton":
        jobs[KERNEL] = place.done(kernel_job(large))
    bench.group(jobs, large.nbytes)
    bench.results[LIMIT_COPY]["gb_per_s"] *= 2  # It reads and it writes.


def measure_loads(bench: Bench, place: Place, state: Any, paths: dict[str, str], into: Any) -> None:
    """All ways to bring the state to the device, from a warm and from a cold page cache."""
    path, nbytes = paths["fckpt"], state_bytes(state)
    warm: dict[str, Job] = {
        LIMIT_H2D: place.done(lambda: place.copy_slots(nbytes, to_device=True)),
        LIMIT_PREAD: lambda: place.read_into_slots(path, direct=False),
        **ours(path, into, place),
        **peers(paths, place),
        "fastckpt.verify_tensors": place.done(lambda: fastckpt.verify_tensors(state, path)),
    }

    def settle() -> None:
        if not place.on_gpu:
            limits.settle(nbytes)

    def evict() -> None:
        settle()
        for each in paths.values():
            limits.evict(each)

    bench.group(warm, nbytes, before=settle)

    cold: dict[str, Job] = {LIMIT_DIRECT: lambda: place.read_into_slots(path, direct=True)}
    cold |= {name: job for name, job in warm.items() if "verify" not in name and not name.startswith("limit")}
    rounds, bench.rounds = bench.rounds, min(bench.rounds, 2)
    bench.group({f"{name}, cold": job for name, job in cold.items()}, nbytes, before=evict)
    bench.rounds = rounds


def measure_saves(bench: Bench, place: Place, state: Any, new: str) -> None:
    """All ways to save it, and how long training stands still for one in the background."""
    nbytes = state_bytes(state)
    pending: list[fastckpt.Pending] = []

    def settle() -> None:
        while pending:
            pending.pop().result()
        Path(new).unlink(missing_ok=True)

    def begin(snapshot: str) -> None:
        pending.append(fastckpt.save_async(state, new, durable=False, snapshot=snapshot))

    jobs: dict[str, Job] = {
        LIMIT_D2H: place.done(lambda: place.copy_slots(nbytes, to_device=False)),
        STALL: lambda: begin("host"),
        f"{STALL} (snapshot='device')": lambda: begin("device"),
        "fastckpt.save(durable=False)": lambda: fastckpt.save(state, new, durable=False),
        "torch.save": lambda: torch.save(state, new),
    }
    bench.group(jobs, nbytes, before=settle)
    rounds, bench.rounds = bench.rounds, min(bench.rounds, 2)
    durable: dict[str, Job] = {
        "fastckpt.save": lambda: fastckpt.save(state, new),
        "torch.save + fsync": lambda: (torch.save(state, new), fsync(new)),
    }
    bench.group(durable, nbytes, before=settle)
    bench.rounds = rounds
    settle()


def ratios(bench: Bench) -> dict[str, list[float]]:
    """What the issue aims at: ``name: [measured, aim]``, each at least the aim."""
    median = bench.median
    limit = max(median(LIMIT_H2D), median(LIMIT_PREAD))
    rivals = [name for name in bench.results if name.startswith(("torch.load", "safetensors", "fastsafe", "runai"))]
    best = min(median(name) for name in rivals if not name.endswith("cold"))
    load = median("fastckpt.load")
    found = {
        "load / the slower of pinned H2D and pread": [limit / load, 0.90],
        "load(verify=False) / load: what verification leaves": [median("fastckpt.load(verify=False)") / load, 0.97],
        "load / safetensors.load_file": [median("safetensors.load_file") / load, 3],
        "load / the best peer": [best / load, 1.3],
        "D2H copy / stall of save_async": [median(LIMIT_D2H) / median(STALL), 1 / 1.2],
    }
    if KERNEL in bench.results:
        rate = max(bench.results[name]["gb_per_s"] for name in (LIMIT_COPY, LIMIT_SUM))
        found["verify kernel / device read bandwidth"] = [bench.results[KERNEL]["gb_per_s"] / rate, 0.5]
    return {name: [round(value, 3), round(aim, 3)] for name, (value, aim) in found.items()}


def versions(place: Place, directory: str) -> dict[str, Any]:
    """What the figures were taken on and with."""
    found = machine(directory)
    found["engine"] = engine_for(place.device).why
    for package in ("triton", "fastsafetensors", "runai-model-streamer"):
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


def main() -> None:
    """Check, measure, and write the result."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--gb", type=float, default=8, help="size of the checkpoint (default: 8)")
    parser.add_argument("--dir", help="where the files are written (default: a temporary directory)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no further rounds when 3/4 of these are over")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu.json, or gpu_cpu_mode.json")
    options = parser.parse_args()
    place = Place(torch.device(options.device))
    default = "gpu.json" if place.on_gpu else "gpu_cpu_mode.json"
    output: Path = options.output or Path(__file__).parent / "results" / default
    torch.set_num_threads(default_threads())
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        checks = {}
        for name, showed in run_checks(place.device, Path(directory)):
            checks[name] = showed
            print(f"{name}: {showed}", flush=True)
        bench = Bench(options.rounds, began + options.minutes * 60 * 0.75)
        state, into = (state_on(place.device, options.gb) for _ in range(2))
        measure_device(bench, place, min(state_bytes(state), 4 << 30))
        measure_loads(bench, place, state, files_of(state, directory), into)
        del into
        measure_saves(bench, place, state, os.path.join(directory, "new"))
        result: dict[str, Any] = {"machine": versions(place, directory), "checks": checks}
    judged = ratios(bench)
    result["ratios"] = {
        name: {"measured": value, "aim": aim, "met": value >= aim if place.on_gpu else None}
        for name, (value, aim) in judged.items()
    }
    if not place.on_gpu:
        result["note"] = "no GPU: this shows that the script runs; nothing in it says how fast anything is"
    result |= {"seconds": round(time.monotonic() - began), "jobs": bench.results}
    for name, row in result["ratios"].items():
        verdict = {True: "", False: "MISSED", None: "(no GPU)"}[row["met"]]
        print(f"{name:54} {row['measured']:7.2f}  (at least {row['aim']}) {verdict}")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
