"""How fast leaves are hashed, on every instruction set that the machine has, beside the xxhash package.

    python benchmarks/hashing.py

One thread hashes memory that is larger than every cache, and some that stays in one. The package hashes it as one
stream, where leaves of 16 KiB have a digest each, and always with the best instructions that the machine has. Each
call of ours starts its thread. Both take turns; medians count. The result goes to ``benchmarks/results/hashing.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import xxhash
from bench import machine
from limits import touched_memory

from fastckpt import _core

SIZES: Final = {"memory": 512 * 2**20, "cache": 16 * 2**20}
"""Bytes: far more than a cache has, and what stays in the one that cores share."""
SPAN: Final = 512 * 2**20
"""Bytes that one measurement hashes, if need be the same ones again."""


def gb_per_s(hash_all: Callable[[memoryview], bytes], memory: memoryview) -> float:
    """One measurement."""
    times = max(1, SPAN // len(memory))
    start = time.perf_counter()
    for _ in range(times):
        hash_all(memory)
    return times * len(memory) / (time.perf_counter() - start) / 1e9


def measure(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Where the bytes are -> instruction set -> GB/s of ours and of the package, and their ratio."""
    best = _core.simd_level()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for where, size in SIZES.items():
        memory = touched_memory(size)
        np.frombuffer(memory, dtype=np.uint64)[:] = np.arange(size // 8, dtype=np.uint64)
        for level in _core.simd_levels():
            ours: list[float] = []
            package: list[float] = []
            _core.set_simd_level(level)
            for _ in range(rounds):
                ours.append(gb_per_s(_core.leaf_digests, memory))
                package.append(gb_per_s(xxhash.xxh3_64_digest, memory))
            one, other = statistics.median(ours), statistics.median(package)
            row = {"fastckpt": round(one, 2), "xxhash": round(other, 2), "ratio": round(one / other, 3)}
            found.setdefault(where, {})[level] = row
            print(f"{where:8} {level:10} {row}", flush=True)
    _core.set_simd_level(best)
    return found


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "hashing.json")
    options = parser.parse_args()
    found = measure(options.rounds)
    options.output.write_text(
        json.dumps({"machine": machine(tempfile.gettempdir()), "hashing": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
