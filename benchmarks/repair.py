"""What parity costs, and how long a repair takes.

    python benchmarks/repair.py                    # 512 MiB
    python benchmarks/repair.py --size 4GB --directory /data

First the kernels alone, on one thread and every instruction set: parity (64 + 2) of bytes in memory, and the leaf hash
of the same, in turn. Then whole files, all jobs in turn: sealing and saving with and without parity, verifying, and
repairing; and sha256sum, and par2 of a small part, where they are installed. Last the memory of each. Medians count;
ratios are of one run. The result goes to ``benchmarks/results/repair.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from bench import Bench, machine
from limits import touched_memory

import fastckpt
from fastckpt import _core
from fastckpt.constants import LEAF_SIZE
from fastckpt.io.source import drop_cache
from fastckpt.seals.names import sums_path
from fastckpt.text import parse_size

TENSOR: Final = 64 * 2**20
IN_CACHE: Final = 2**20
"""Bytes of a group of leaves: they stay in the second cache of a core."""
PAR2_PART: Final = 8 * 2**20
"""Bytes that par2 gets: it takes seconds for these."""
BARS: Final = {
    "save, parity / save": ("save, durable", "save, durable, parity 3%", 0.85),
    "in place, a bit / verify": ("verify", "repair --in-place, a bit", 0.4),
    "in place, durable / verify": ("verify", "repair --in-place, a bit, durable", 0.4),
    "in place, 2.9 % / verify": ("verify", "repair --in-place, a burst of 2.9 %", 0.4),
    "kept, a bit / verify": ("verify", "repair, a bit, the damaged file kept", 0.4),
    "in place, durable / verify, cold": ("verify, cold", "repair --in-place, a bit, durable, cold", 0.4),
    "kept, durable / verify, cold": ("verify, cold", "repair, a bit, the damaged file kept, durable, cold", 0.4),
    "dry run / verify": ("verify", "repair --dry-run", 0.9),
}
"""Ratios of times: the first by the second, and the least that it should be. What is verified has no seal."""
MEMORY: Final = """
import resource, sys
import fastckpt.sealing.check, fastckpt.sealing.seal, fastckpt.sealing.repair
what, path, cold = sys.argv[1:]
if cold == "cold":
    import os
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if what == "seal":
    fastckpt.sealing.seal.seal(path, parity="3%", update=True)
elif what == "check":
    fastckpt.sealing.check.check(path)
else:
    assert fastckpt.sealing.repair.repair(path, keep=what == "repair").state == "healed"
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(before * 1024, after * 1024)
"""


def kernel_jobs(where: str, source: memoryview, times: int) -> dict[str, Any]:
    """The leaf hash and parity of the same bytes, as often as that."""
    groups = len(source) // LEAF_SIZE // 64
    parity = bytearray(2 * groups * LEAF_SIZE)
    arguments = (source, len(source), groups, 2, 0, parity, None)
    return {
        f"leaf hash{where}": lambda: [_core.leaf_digests(source) for _ in range(times)],
        f"parity{where}": lambda: [_core.encode_parity(*arguments, threads=1) for _ in range(times)],
    }


def kernels(rounds: int) -> dict[str, dict[str, float]]:
    """Instruction set -> GB/s of the leaf hash and of parity, and their ratio: from memory, and in a core's cache."""
    memory = touched_memory(256 * 2**20)
    np.frombuffer(memory, dtype=np.uint64)[:] = np.arange(len(memory) // 8, dtype=np.uint64)
    best = _core.simd_level()
    found: dict[str, dict[str, float]] = {}
    for level in _core.simd_levels():
        _core.set_simd_level(level)
        row = found[level] = {}
        for where, size in (("", len(memory)), (", in cache", IN_CACHE)):
            bench = Bench(rounds)
            bench.group(kernel_jobs(where, memoryview(memory)[:size], len(memory) // size), len(memory))
            row[f"ratio{where}"] = round(bench.median(f"leaf hash{where}") / bench.median(f"parity{where}"), 2)
            row |= {f"{level}: {name}": result["gb_per_s"] for name, result in bench.results.items()}
    _core.set_simd_level(best)
    return found


def write_into(path: Path, offset: int, size: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(os.urandom(size))


def memory_of(path: Path) -> dict[str, dict[str, int]]:
    """Bytes of a process that does it: before, with all that is imported, and at most. Runs in a shell of its own.

    A child begins with what its parent had at most, so it must be one that had little.
    """
    found = {}
    for what in ("seal", "check", "repair --in-place", "repair"):
        for where in ("warm", "cold"):
            if what.startswith("repair"):
                write_into(path, path.stat().st_size // 3, int(0.029 * path.stat().st_size))
            command = ["/bin/sh", "-c", '"$@" & wait', "-", sys.executable, "-c", MEMORY, what, str(path), where]
            before, most = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
            found[f"{what}, {where}"] = {"imported": before, "most": most}
    return found


def measure(directory: Path, size: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of every job on whole files."""
    state = {f"layer.{n}": torch.randint(0, 2**15, (TENSOR // 2,), dtype=torch.int16) for n in range(size // TENSOR)}
    plain, with_parity = directory / "plain.fckpt", directory / "parity.fckpt"
    fastckpt.save(state, plain)
    fastckpt.save(state, with_parity, parity="3%")
    whole = with_parity.stat().st_size
    bit, burst = directory / "bit.fckpt", directory / "burst.fckpt"
    for path in (bit, burst):
        shutil.copyfile(with_parity, path)
        fastckpt.seal(path, parity="3%")

    def before() -> None:
        Path(sums_path(plain)).unlink(missing_ok=True)
        for kept in directory.glob("*.damaged*"):
            kept.unlink()
        write_into(bit, whole // 2, 1)
        write_into(burst, whole // 2, int(0.029 * whole))
        # What was written past the page cache is not in it, nor are sums files.
        for path in (bit, burst, plain, Path(sums_path(bit)), Path(sums_path(burst))):
            path.read_bytes()

    jobs: dict[str, Any] = {
        "verify": lambda: fastckpt.verify(plain),
        "verify, sealed": lambda: fastckpt.verify(with_parity),
        "repair --dry-run": lambda: fastckpt.repair(bit, dry_run=True),
        "repair --in-place, a bit": lambda: fastckpt.repair(bit, keep=False, durable=False),
        "repair --in-place, a bit, durable": lambda: fastckpt.repair(bit, keep=False),
        "repair --in-place, a burst of 2.9 %": lambda: fastckpt.repair(burst, keep=False, durable=False),
        "repair, a bit, the damaged file kept": lambda: fastckpt.repair(bit, durable=False),
        "repair, a bit, the damaged file kept, durable": lambda: fastckpt.repair(bit),
        "copy (shutil)": lambda: shutil.copyfile(plain, directory / "copy"),
        "seal": lambda: fastckpt.seal(plain, durable=False),
        "seal --parity 3%": lambda: fastckpt.seal(plain, parity="3%", durable=False),
        "save, durable": lambda: fastckpt.save(state, directory / "saved.fckpt"),
        "save, durable, parity 3%": lambda: fastckpt.save(state, directory / "saved-too.fckpt", parity="3%"),
    }
    if shutil.which("sha256sum"):
        jobs["sha256sum"] = lambda: subprocess.run(["sha256sum", plain], check=True, stdout=subprocess.DEVNULL)
    bench = Bench(rounds)
    bench.group(jobs, whole, before)

    def before_cold() -> None:
        before()
        for path in (bit, plain, Path(sums_path(bit))):
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
                drop_cache(file.fileno())

    cold: dict[str, Any] = {
        "verify, cold": lambda: fastckpt.verify(plain),
        "repair --in-place, a bit, durable, cold": lambda: fastckpt.repair(bit, keep=False),
        "repair, a bit, the damaged file kept, durable, cold": lambda: fastckpt.repair(bit),
    }
    bench.group(cold, whole, before_cold)
    if shutil.which("par2"):
        part = directory / "part"
        with open(plain, "rb") as file:
            part.write_bytes(file.read(PAR2_PART))
        command = ["par2", "create", "-q", "-q", "-r3", "-b2000", str(directory / "part.par2"), str(part)]
        small = Bench(1)
        small.group({"par2 create -r3": lambda: subprocess.run(command, check=True)}, PAR2_PART, warm_up=False)
        bench.results |= small.results
    return bench.results


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=2**29)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", default=tempfile.gettempdir())
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "repair.json")
    options = parser.parse_args()
    found: dict[str, Any] = {"kernels": kernels(options.rounds)}
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        found["machine"] = machine(name)
        results = found["files"] = measure(Path(name), options.size, options.rounds)
        fastckpt.repair(Path(name) / "burst.fckpt", keep=False)
        found["memory"] = memory_of(Path(name) / "burst.fckpt")
    found["ratios"] = {what: round(results[a]["median"] / results[b]["median"], 2) for what, (a, b, _) in BARS.items()}
    for level, row in found["kernels"].items():
        print(f"{level:10} parity / leaf hash {row['ratio']:6.2f}, in cache {row['ratio, in cache']:.2f}")
    for what, ratio in found["ratios"].items():
        print(f"{what:34} {ratio:6.2f}  (at least {BARS[what][2]})")
    for what, used in found["memory"].items():
        print(f"memory of {what:24} {used['most'] / 1e6:4.0f} MB, {used['imported'] / 1e6:.0f} MB of it before")
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
