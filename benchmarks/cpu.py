"""The CPU benchmark: fastckpt beside its peers and beside the limits of the machine, in one run.

    python benchmarks/cpu.py --dir /path/on/the/disk/to/measure
    python benchmarks/cpu.py --dir DIR --only cold durable --keep    # some of it, into the result that is there

Every job runs once per round, all jobs of a group in turn, so that noise hits
all of them alike; medians count. A library that is not installed has a row
that says so. The result goes to ``benchmarks/results/``;
``benchmarks/table.py`` turns it into the table of docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from contextlib import ExitStack, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import scaling
import torch
from bench import Bench, machine
from cpu_groups import GROUPS
from cpu_inputs import Inputs
from cpu_ratios import ratios
from workloads import state_bytes, tiny_tensors

import fastckpt
from fastckpt.io.transfer import default_threads

OTHER_GROUPS = ("tiny", "scaling")


class _Optional(Bench):
    """Peers may be missing."""

    def failed(self, name: str, error: Exception) -> None:
        """Write down that a job's package is not installed; what else fails is the end of the run."""
        if not isinstance(error, ModuleNotFoundError):
            raise error
        package = (error.name or name).split(".")[0]
        self.results[name] = {"not_installed": package}
        print(f"{name:46} not installed: {package}", flush=True)


def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of those packages that are there."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def measure_tiny(bench: Bench, directory: str, count: int) -> None:
    """Many tiny tensors: what the structure costs when there is hardly any data."""
    state = tiny_tensors(count)
    ours, st = os.path.join(directory, "tiny.fckpt"), os.path.join(directory, "tiny.safetensors")
    fastckpt.save(state, ours)
    safetensors.torch.save_file(state, st)
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


def measure(options: argparse.Namespace, directory: str) -> dict[str, Any]:
    """The groups that were asked for, each with its part of the time."""
    bench = _Optional(options.rounds, time.monotonic() + 60 * options.minutes)
    names = [name for name in (*GROUPS, *OTHER_GROUPS) if name in options.only]
    inputs = Inputs(directory, options.depth)
    for number, name in enumerate(names):
        bench.allot(1 / (len(names) - number))
        before = set(bench.results)
        if name == "tiny":
            measure_tiny(bench, directory, options.tiny)
        elif name == "scaling":
            scaling.measure(bench, directory, tuple(options.sizes))
        else:
            GROUPS[name](bench, inputs)
        for job in bench.results.keys() - before:
            bench.results[job]["group"] = name
    return bench.results


def main() -> None:
    """Run what was asked for and write the result."""
    every = (*GROUPS, *OTHER_GROUPS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="where the files are written (default: a temporary directory)")
    parser.add_argument("--keep", action="store_true", help="leave the files in --dir, and use those that are there")
    parser.add_argument("--only", nargs="+", choices=every, default=every, metavar="GROUP", help=", ".join(every))
    parser.add_argument("--depth", type=int, default=12, help="depth of the GPT (12: 1.7 GB)")
    parser.add_argument("--tiny", type=int, default=200_000, help="how many tiny tensors")
    parser.add_argument("--sizes", type=int, nargs="+", default=scaling.SIZES_MB, metavar="MB", help="of scaling")
    parser.add_argument("--rounds", type=int, default=7, help="at most this many of each group")
    parser.add_argument("--minutes", type=float, default=15, help="groups end early rather than take longer in all")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    options = parser.parse_args()
    if options.keep and options.dir is None:
        parser.error("--keep wants --dir")
    torch.set_num_threads(default_threads())
    with ExitStack() as stack:
        directory = options.dir if options.keep else stack.enter_context(tempfile.TemporaryDirectory(dir=options.dir))
        os.makedirs(directory, exist_ok=True)
        host = machine(directory) | {"peers": installed(("ztensor", "runai-model-streamer", "moonclip"))}
        jobs = measure(options, directory)
    if set(options.only) != set(every) and options.output.exists():
        old = json.loads(options.output.read_text())["jobs"]
        # Of a group that was measured anew nothing old stays: a limit of another run would count with the new ones.
        jobs = {name: row for name, row in old.items() if row.get("group") not in options.only} | jobs
    found = ratios(jobs)
    for name, (value, wanted) in found.items():
        print(f"{name:62} {value:7.2f}  (at least {wanted}) {'' if value >= wanted else 'MISSED'}")
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps({"machine": host, "ratios": found, "jobs": jobs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
