"""Two versions of fastckpt beside each other, in one run: is the newer one slower anywhere?

    python benchmarks/versions.py OLD_TREE NEW_TREE --dir /path/on/the/disk/to/measure

A tree is a checkout with its core built. Each version works in a process of its own; they take turns, job by job and
round by round, so that noise hits both alike. Medians count; above 1 the new one is faster.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

ROUNDS = 5


class Job(NamedTuple):
    """What is timed, and what happens before: a file that is put out of the page cache, or removed."""

    work: Callable[[], object]
    cold: str = ""
    removed: str = ""


def jobs_in(directory: str) -> dict[str, Job]:
    """The jobs of the fastckpt that is imported, on 500 MB of its own, and on 50,000 small tensors."""
    import torch

    import fastckpt

    chance = torch.Generator().manual_seed(0)
    state = {f"weight.{i}": torch.randn(2048, 2048, generator=chance).bfloat16() for i in range(40)}
    state |= {f"moment.{i}": torch.randn(1024, 2048, generator=chance) for i in range(20)}
    state |= {f"small.{i}": torch.randn(100, generator=chance) for i in range(400)}
    many = {f"block.{i}.weight": torch.full((16,), float(i)) for i in range(50_000)}
    there = {name: torch.ones_like(tensor) for name, tensor in state.items()}
    own, small, pt, out, made = (
        os.path.join(directory, name) for name in ("s.fckpt", "many.fckpt", "s.pt", "out.fckpt", "made.fckpt")
    )
    fastckpt.save(state, own)
    fastckpt.save(many, small)
    torch.save(state, pt)
    return {
        "save": Job(lambda: fastckpt.save(state, out)),
        "save, not durable": Job(lambda: fastckpt.save(state, out, durable=False)),
        "load": Job(lambda: fastckpt.load(own)),
        "load(mmap=True)": Job(lambda: fastckpt.load(own, mmap=True)),
        "load_into": Job(lambda: fastckpt.load_into(there, own)),
        "verify": Job(lambda: fastckpt.verify(own)),
        "load of a .pt": Job(lambda: fastckpt.load(pt)),
        "convert of a .pt": Job(lambda: fastckpt.convert(pt, made), removed=made),
        "verify, cold": Job(lambda: fastckpt.verify(own), cold=own),
        "load, cold": Job(lambda: fastckpt.load(own), cold=own),
        "load_into, cold": Job(lambda: fastckpt.load_into(there, own), cold=own),
        "load of a .pt, cold": Job(lambda: fastckpt.load(pt), cold=pt),
        "50,000 tensors: save": Job(lambda: fastckpt.save(many, out, durable=False)),
        "50,000 tensors: load": Job(lambda: fastckpt.load(small)),
        "50,000 tensors: verify": Job(lambda: fastckpt.verify(small)),
        "50,000 tensors: one": Job(lambda: fastckpt.load(small, keys=["block.777.weight"])),
    }


def put_out_of_cache(path: str) -> None:
    """The next reader finds the file on the disk only."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def work(directory: str) -> None:
    """Run the jobs that are named on the input, and answer with the seconds of each."""
    jobs = jobs_in(directory)
    print(json.dumps(list(jobs)), flush=True)
    for line in sys.stdin:
        job = jobs[json.loads(line)]
        with suppress(FileNotFoundError):
            os.unlink(job.removed)
        if job.cold:
            put_out_of_cache(job.cold)
        gc.collect()
        start = time.perf_counter()
        result = job.work()
        seconds = time.perf_counter() - start
        del result
        print(json.dumps(seconds), flush=True)


def ask(process: subprocess.Popen[str], job: str) -> float:
    """The seconds that a job takes in this process."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    return float(json.loads(process.stdout.readline()))


def compare(trees: dict[str, Path], directory: str, rounds: int) -> dict[str, Any]:
    """Medians of both versions for every job, and how much faster the new one is."""
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        workers = {}
        for version, tree in trees.items():
            own = stack.enter_context(tempfile.TemporaryDirectory(dir=directory))
            command = [sys.executable, __file__, "--work", own]
            environment = {**os.environ, "PYTHONPATH": str(tree.resolve())}
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            workers[version] = stack.enter_context(process)
            assert process.stdin is not None
            stack.callback(process.stdin.close)
        for process in workers.values():
            assert process.stdout is not None
            names = json.loads(process.stdout.readline())
        for name in names:
            seconds: dict[str, list[float]] = {"old": [], "new": []}
            for number in range(rounds + 1):
                for version in ("old", "new") if number % 2 else ("new", "old"):
                    taken = ask(workers[version], name)
                    if number:  # The first round does not count.
                        seconds[version].append(taken)
            old, new = (statistics.median(seconds[version]) for version in ("old", "new"))
            found[name] = {"old": old, "new": new, "faster": old / new, "seconds": seconds}
            print(f"{name:26} {old:.3f} s {new:.3f} s  {old / new:.2f}", flush=True)
    return found


def main() -> None:
    """Compare, or be one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", type=Path, help="checkout of the older version")
    parser.add_argument("new", nargs="?", type=Path, help="checkout of the newer version")
    parser.add_argument("--dir", default=".", help="where to put the files")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "versions.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    if arguments.old is None or arguments.new is None:
        parser.error("two checkouts are needed")
    found = compare({"old": arguments.old, "new": arguments.new}, arguments.dir, arguments.rounds)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
