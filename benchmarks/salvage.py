"""How fast damaged files are looked through and their tensors proven, beside the limits of the machine in one run.

    python benchmarks/salvage.py --dir /path/on/a/disk

A ``.fckpt`` whose ends are lost, so that its records are found by scanning, is
set against plainly reading it; ``.pt`` files, against ISA-L's CRC-32 of as many
bytes: of a file, and of memory, into which nothing has to be read. All files
are warm, and all jobs run in turn, as in ``cpu.py``. Peak memory is that of a
process that salvages and does nothing else.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import limits
import torch
from bench import Bench, machine
from isal import isal_zlib
from workloads import gpt_state, state_bytes

import fastckpt
from fastckpt.io.transfer import default_threads

BLOCK = 1 << 20
MEMORY_LIMIT = 300e6


def crc_of_memory(memory: memoryview | mmap.mmap, threads: int) -> None:
    """ISA-L's CRC-32 of memory, on several threads."""
    memory = memoryview(memory)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda at: isal_zlib.crc32(memory[at : at + BLOCK]), range(0, len(memory), BLOCK)))


def crc_of_map(path: str, threads: int) -> None:
    """The same of a file, through a map of its own: what it takes at least to check a file."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
    crc_of_memory(mapped, threads)


def overwrite(path: str, at: int, size: int) -> None:
    """Destroy a part of a file; a negative offset counts from its end."""
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        file.write(b"\xaa" * size)


def damaged_files(directory: str, depth: int) -> tuple[dict[str, str], str, int]:
    """Damaged files by name, an intact ``.pt``, and how many bytes of tensors each has."""
    state = gpt_state(depth)
    at = lambda name: os.path.join(directory, name)  # noqa: E731
    files = {"cut": at("cut.fckpt"), "holes": at("holes.pt"), "nameless": at("nameless.pt")}
    fastckpt.save(state, files["cut"], durable=False)
    os.truncate(files["cut"], os.path.getsize(files["cut"]) - 8192)
    overwrite(files["cut"], 0, 4096)
    good = at("good.pt")
    torch.save(state, good)
    size = os.path.getsize(good)
    # Without a directory, and with a tensor that is damaged, a header and a descriptor in every tenth of the file.
    shutil.copyfile(good, files["holes"])
    os.truncate(files["holes"], size - 30_000)
    for tenth in range(1, 10):
        overwrite(files["holes"], tenth * size // 10, 4096)
    # Without data.pkl: names are those of the other file, places are searched for.
    shutil.copyfile(good, files["nameless"])
    overwrite(files["nameless"], 0, 4096)
    return files, good, state_bytes(state)


def peak_memory(source: str, destination: str, *options: str) -> int:
    """Peak resident memory in bytes of ``fastckpt salvage``."""
    program = (
        "import sys; from fastckpt.cli.main import main; main(sys.argv[1:]);"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    command = [sys.executable, "-c", program, "salvage", source, "-o", destination, "--no-durable", *options]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    os.unlink(destination)
    return int(run.stdout.split()[-1]) * 1024


def measure(bench: Bench, directory: str, depth: int) -> dict[str, Any]:
    """All jobs; returns the ratios the issue is judged by."""
    files, good, nbytes = damaged_files(directory, depth)
    threads = default_threads()
    memory = limits.touched_memory(os.path.getsize(files["cut"]))

    def settle() -> None:
        for path in (*files.values(), good):
            limits.warm(path)

    # As in cpu.py: all files are brought into the page cache in the same way.
    for path in (*files.values(), good):
        limits.evict(path)

    bench.group(
        {
            "limit: pread into touched memory": lambda: limits.read_file(files["cut"], [memory], threads, direct=False),
            "limit: read the warm map": lambda: limits.read_map(files["cut"], threads),
            "limit: ISA-L CRC-32 of memory": lambda: crc_of_memory(memory, threads),
            "limit: ISA-L CRC-32 of the warm map": lambda: crc_of_map(good, threads),
            "salvage .fckpt, both ends lost": lambda: fastckpt.salvage(files["cut"]),
            "salvage .pt, directory lost, holes": lambda: fastckpt.salvage(files["holes"]),
            "salvage .pt, data.pkl lost": lambda: fastckpt.salvage(files["nameless"], like=good),
        },
        nbytes,
        before=settle,
    )
    m = bench.median
    read = m("limit: pread into touched memory")
    ratios = {"salvage .fckpt / pread into touched memory": [read / m("salvage .fckpt, both ends lost"), 0.7]}
    for job in ("salvage .pt, directory lost, holes", "salvage .pt, data.pkl lost"):
        for what in ("the warm map", "memory"):
            ratios[f"{job} / ISA-L CRC-32 of {what}"] = [m(f"limit: ISA-L CRC-32 of {what}") / m(job), 0.7]
    for name, path in files.items():
        options = ("--like", good) if name == "nameless" else ()
        for suffix in (".fckpt", ".pt", ".safetensors"):
            peak = peak_memory(path, os.path.join(directory, f"out{suffix}"), *options, "--include", "damaged,partial")
            bench.results[f"peak memory: {os.path.basename(path)} -> {suffix}"] = {"bytes": peak, "of": nbytes}
            ratios[f"300 MB / peak memory, {os.path.basename(path)} -> {suffix}"] = [MEMORY_LIMIT / peak, 1]
    return ratios


def main() -> None:
    """Run everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", help="where the files are written (default: a temporary directory)")
    parser.add_argument("--depth", type=int, default=9, help="depth of the GPT (9: 1.1 GB)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "salvage.json")
    options = parser.parse_args()
    torch.set_num_threads(default_threads())
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        bench = Bench(options.rounds)
        ratios = measure(bench, directory, options.depth)
        ratios = {name: [round(value, 3), wanted] for name, (value, wanted) in ratios.items()}
        result = {"machine": machine(directory), "ratios": ratios, "jobs": bench.results}
    for name, (value, wanted) in ratios.items():
        print(f"{name:60} {value:7.2f}  (at least {wanted}) {'' if value >= wanted else 'MISSED'}")
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
