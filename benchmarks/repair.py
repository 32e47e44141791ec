"""What parity costs, and how long a repair takes.

    python benchmarks/repair.py                    # 512 MiB
    python benchmarks/repair.py --size 4GB --directory /data

First the kernels alone, on one thread and every instruction set: parity (64 + 2) of bytes in memory, and the leaf hash
of the same. Then whole files, all jobs in turn: sealing and saving with and without parity, verifying, and repairing;
and par2, where it is installed, of a small part. Medians count; ratios are of one run. The result goes to
``benchmarks/results/repair.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
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
from fastckpt.seals.names import sums_path
from fastckpt.text import parse_size

TENSOR: Final = 64 * 2**20
PAR2_PART: Final = 32 * 2**20
"""Bytes that par2 gets: it takes seconds for these."""
BARS: Final = {
    "save, parity / save": ("save, durable", "save, durable, parity 3%", 0.85),
    "repair of a bit / verify": ("verify", "repair, a bit", 0.4),
    "repair --dry-run / verify": ("verify", "repair --dry-run", 0.9),
}
"""Ratios of times: the first by the second, and the least that it should be."""


def kernels(rounds: int) -> dict[str, dict[str, float]]:
    """Instruction set -> GB/s of the leaf hash and of parity, and their ratio."""
    memory = touched_memory(256 * 2**20)
    np.frombuffer(memory, dtype=np.uint64)[:] = np.arange(len(memory) // 8, dtype=np.uint64)
    groups = len(memory) // LEAF_SIZE // 64
    parity = bytearray(2 * groups * LEAF_SIZE)
    best = _core.simd_level()
    found: dict[str, dict[str, float]] = {}
    for level in _core.simd_levels():
        _core.set_simd_level(level)
        bench = Bench(rounds)
        bench.group(
            {
                f"{level}: leaf hash": lambda: _core.leaf_digests(memory),
                f"{level}: parity": lambda: _core.encode_parity(
                    memory, len(memory), groups, 2, 0, parity, None, threads=1
                ),
            },
            len(memory),
        )
        hashed, encoded = (bench.median(f"{level}: {what}") for what in ("leaf hash", "parity"))
        found[level] = {"ratio": round(hashed / encoded, 2), **{n: r["gb_per_s"] for n, r in bench.results.items()}}
    _core.set_simd_level(best)
    return found


def write_into(path: Path, offset: int, size: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(os.urandom(size))


def measure(directory: Path, size: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of every job on whole files."""
    state = {f"layer.{n}": torch.randint(0, 2**15, (TENSOR // 2,), dtype=torch.int16) for n in range(size // TENSOR)}
    plain, with_parity = directory / "plain.fckpt", directory / "parity.fckpt"
    fastckpt.save(state, plain)
    fastckpt.save(state, with_parity, parity="3%")
    whole = with_parity.stat().st_size
    damage = {"repair, a bit": 1, "repair, a burst of 2.9 %": int(0.029 * whole)}
    damaged = {name: directory / f"damaged-{number}.fckpt" for number, name in enumerate(damage)}
    for path in damaged.values():
        shutil.copyfile(with_parity, path)
        fastckpt.seal(path, parity="3%")

    def before() -> None:
        Path(sums_path(plain)).unlink(missing_ok=True)
        for name, path in damaged.items():
            write_into(path, whole // 2, damage[name])

    jobs: dict[str, Any] = {
        "verify": lambda: fastckpt.verify(with_parity),
        "repair --dry-run": lambda: fastckpt.repair(damaged["repair, a bit"], dry_run=True),
        **{name: lambda path=path: fastckpt.repair(path, keep=False, durable=False) for name, path in damaged.items()},
        "repair, a bit, durable": lambda: fastckpt.repair(damaged["repair, a bit"], keep=False),
        "copy (shutil)": lambda: shutil.copyfile(with_parity, directory / "copy"),
        "seal": lambda: fastckpt.seal(plain, durable=False),
        "seal --parity 3%": lambda: fastckpt.seal(plain, parity="3%", durable=False),
        "save, durable": lambda: fastckpt.save(state, directory / "saved.fckpt"),
        "save, durable, parity 3%": lambda: fastckpt.save(state, directory / "saved-too.fckpt", parity="3%"),
    }
    bench = Bench(rounds)
    bench.group(jobs, whole, before)
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
    found["ratios"] = {what: round(results[a]["median"] / results[b]["median"], 2) for what, (a, b, _) in BARS.items()}
    for level, row in found["kernels"].items():
        print(f"{level:10} parity / leaf hash {row['ratio']:6.2f}")
    for what, ratio in found["ratios"].items():
        print(f"{what:26} {ratio:6.2f}  (at least {BARS[what][2]})")
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
