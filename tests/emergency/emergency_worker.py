"""A run that is sent signals: ``emergency_worker.py MODE DIRECTORY``.

A step changes ``first``, waits, and changes ``last``: they are equal only
between steps. It prints a line when it is ready, at each save, and at its end.

With ``serve`` for a mode, it takes modes and directories from stdin, one request
a line, and forks a run for each, which writes into the FIFOs ``out`` and ``err``
beside the directory; the exit code goes to stdout. To import torch once is
cheaper than for every run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

import torch

import fastckpt

STEP_SECONDS = 0.05

first, last = torch.zeros(1000), torch.zeros(1000)


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def save(path: str) -> None:
    fastckpt.save({"first": first, "last": last}, path)


def save_slowly_in_python(path: str) -> None:
    fastckpt.save({"first": first, "more": torch.zeros(1 << 20)}, path, progress=lambda count: time.sleep(3))


def save_slowly_in_native_code(path: str) -> None:
    state = {"first": first, "more": torch.arange(24 << 20, dtype=torch.int32) * 2654435761}
    fastckpt.save(state, path, codec="zstd:19", threads=1)


def save_badly(path: str) -> None:
    raise ValueError("no save today")


def train(guard: fastckpt.EmergencySave, steps: int = 400) -> None:
    for number in range(steps):
        first.add_(1)
        time.sleep(STEP_SECONDS)
        last.add_(1)
        if number == 0:
            say("ready", os.getpid())
        if guard.step():
            say("on")
    say("end")


def save_late(path: str) -> None:
    time.sleep(2)
    save(path)


SAVES: dict[str, Callable[[str], None]] = {
    "slow python": save_slowly_in_python,
    "slow native": save_slowly_in_native_code,
    "bad": save_badly,
    "slow rank": save_late,
}


def guarding(mode: str, directory: str, *, name: str = "state", every: int = 1) -> fastckpt.EmergencySave:
    """A guard that saves in the way of this mode."""

    def call() -> None:
        say("saving", int(first[0]))
        SAVES.get(mode, save)(os.path.join(directory, f"{name}.fckpt"))

    return fastckpt.EmergencySave(call, every=every)


def run(mode: str, directory: str) -> None:
    if mode.startswith("rank"):
        run_ranks(mode, directory)
        return
    if mode == "torchrun":
        torch.distributed.init_process_group("gloo")
        rank = torch.distributed.get_rank()
        with guarding("slow rank" if rank else "plain", directory, name=f"rank{rank}") as guard:
            train(guard)
        return
    with guarding(mode, directory) as guard:
        if mode == "no boundary":
            say("ready", os.getpid())
            time.sleep(30)
        elif mode == "end of the block":
            say("ready", os.getpid())
            time.sleep(1)
        elif mode == "workers":
            loader = torch.utils.data.DataLoader(list(range(4000)), num_workers=2, batch_size=4)
            for number, batch in enumerate(loader):
                assert len(batch) == 4
                first.add_(1)
                time.sleep(STEP_SECONDS)
                last.add_(1)
                if number == 2:
                    say("ready", os.getpid())
                guard.step()
        else:
            train(guard)
    say("after")


def run_ranks(mode: str, directory: str) -> None:
    """Four ranks under gloo, one process each; says what each of them ended with."""
    ranks = []
    for rank in range(4):
        pid = os.fork()
        if pid == 0:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{directory}/store", rank=rank, world_size=4
            )
            own = {"ranks": "plain", "ranks, one bad": "bad" if rank == 2 else "plain"}.get(mode, "slow python")
            with guarding(own, directory, name=f"rank{rank}", every=3) as guard:
                say("rank", rank, os.getpid())
                train(guard)
        ranks.append(pid)
    for rank, pid in enumerate(ranks):
        say("code", rank, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def serve() -> None:
    for line in sys.stdin:
        mode, directory = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(os.path.join(os.path.dirname(directory), name), os.O_WRONLY), number)
            os.close(0)
            return run(mode, directory)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if sys.argv[1] == "serve":
    serve()
else:
    run(sys.argv[1], sys.argv[2])
