"""How long it takes to seal a file and to check it, beside verifying a .fckpt of the same size and other checksums.

    python benchmarks/seal.py                    # 1 GiB in the page cache and from the disk
    python benchmarks/seal.py --size 4GB --directory /data

All take turns; medians count, and ratios are of medians of one run. What is sealed has a hard link of its own, so that
each measurement writes a new sums file for a file whose bytes are where those of the others are. The result goes to
``benchmarks/results/seal.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
import xxhash
from bench import Bench, machine

import fastckpt
from fastckpt.io.source import drop_cache
from fastckpt.sealing.check import check
from fastckpt.seals.names import sums_path
from fastckpt.text import parse_size

TENSOR: Final = 64 * 2**20
BARS: Final = {
    "seal / verify": ("verify of a .fckpt", "seal", 0.9),
    "check / verify": ("verify of a .fckpt", "seal --check", 0.9),
    "check / sha256sum": ("sha256sum", "seal --check", 8.0),
}
"""Ratios of times: the first by the second, and the least that it should be."""
MEMORY: Final = """
import resource, sys
from fastckpt.sealing.check import check
from fastckpt.sealing.seal import seal
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
check(sys.argv[1])
seal(sys.argv[1])  # There is a seal that says just this: all is read, and nothing written.
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def write(directory: Path, size: int) -> dict[str, Path]:
    """A .safetensors, sealed; a link to it that is not; and a .fckpt of its tensors."""
    count = max(size // TENSOR, 1)
    state = {f"layer.{n}": torch.randint(0, 2**15, (TENSOR // 2,), dtype=torch.int16) for n in range(count)}
    paths = {name: directory / name for name in ("sealed.safetensors", "link.safetensors", "model.fckpt")}
    safetensors.torch.save_file(state, paths["sealed.safetensors"])
    os.link(paths["sealed.safetensors"], paths["link.safetensors"])
    fastckpt.save(state, paths["model.fckpt"])
    fastckpt.seal(paths["sealed.safetensors"])
    return paths


def hash_in_pieces(path: Path, digest: Any) -> str:
    """One thread, as programs do it that use a package."""
    with open(path, "rb", buffering=0) as file:
        while data := file.read(2**22):
            digest.update(data)
    return str(digest.hexdigest())


def measure(paths: dict[str, Path], rounds: int, *, cold: bool) -> dict[str, dict[str, Any]]:
    """Seconds of every job."""
    sealed, link, own = paths.values()
    for path in (sealed, own):  # What was written past the page cache is not in it.
        hash_in_pieces(path, xxhash.xxh3_64())

    def before() -> None:
        Path(sums_path(link)).unlink(missing_ok=True)
        for path in paths.values() if cold else ():
            with open(path, "rb") as file:
                drop_cache(file.fileno())

    jobs: dict[str, Any] = {
        "verify of a .fckpt": lambda: fastckpt.verify(own),
        "seal": lambda: fastckpt.seal(link, durable=False),
        "seal, durable": lambda: fastckpt.seal(link),
        "seal --check": lambda: check(sealed),
        "verify of a sealed .safetensors": lambda: fastckpt.verify(sealed),
        "load, sealed": lambda: fastckpt.load(sealed),
        "load, verify=False": lambda: fastckpt.load(sealed, verify=False),
        "SHA-256, hashlib": lambda: hash_in_pieces(sealed, hashlib.sha256()),
        "XXH3-128, xxhash": lambda: hash_in_pieces(sealed, xxhash.xxh3_128()),
    }
    for program in ("sha256sum", "xxh128sum", "b3sum"):
        if shutil.which(program):
            jobs[program] = lambda program=program: subprocess.run(
                [program, sealed], check=True, stdout=subprocess.DEVNULL
            )
    bench = Bench(rounds)
    bench.group(jobs, sealed.stat().st_size, before)
    return bench.results


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=2**30)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", default=tempfile.gettempdir())
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "seal.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        paths = write(Path(name), options.size)
        sealed = paths["sealed.safetensors"]
        size = sealed.stat().st_size
        found: dict[str, Any] = {"machine": machine(name), "bytes": size}
        for where, cold in (("warm", False), ("cold", True)):
            print(where)
            results = found[where] = measure(paths, options.rounds, cold=cold)
            found[f"{where} ratios"] = {
                what: round(results[a]["median"] / results[b]["median"], 2)
                for what, (a, b, _) in BARS.items()
                if a in results
            }
        # A child begins with what its parent had at most: a shell has little.
        command = ["/bin/sh", "-c", '"$@" & wait', "-", sys.executable, "-c", MEMORY, str(sealed)]
        found["memory"] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        found["sums"] = os.path.getsize(sums_path(sealed)) / size
    for where in ("warm", "cold"):
        for what, ratio in found[f"{where} ratios"].items():
            print(f"{where}  {what:20} {ratio:6.2f}  (at least {BARS[what][2]})")
    print(f"sums: {found['sums']:.4%} of the file; memory: {found['memory'] / 1e6:.0f} MB beyond the program")
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
