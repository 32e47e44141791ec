"""Reshards copies of a directory, each killed at another change: ``killed_reshard.py SOURCE WORK MODE``.

The n-th copy is ``WORK/n/d12``; it is killed with SIGKILL before its n-th rename
or removal (of a temp file, too). MODE is ``in-place`` or ``elsewhere``, which writes into
``WORK/n/to``. Ends when a run comes through, and prints how many were killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch  # noqa: F401  # Once, here, and not in every child.

from fastckpt.nanochat import reshard

STEP, WORLD_SIZE = 12, 2


def main() -> None:
    source, work, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    number = 0
    while True:
        directory = work / str(number) / "d12"
        shutil.copytree(source, directory)
        # A child of a process that has done nothing yet but import: cheaper than an interpreter for each.
        child = os.fork()
        if child == 0:
            kill_at(number)
            reshard(
                directory, None if mode == "in-place" else directory.parent / "to", step=STEP, world_size=WORLD_SIZE
            )
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            print(number, flush=True)
            return
        if status != -signal.SIGKILL:
            sys.exit(f"run {number} ended with {status}")
        number += 1


def kill_at(number: int) -> None:
    count = 0
    os.fsync = lambda fd: None  # A killed process loses nothing for want of it.

    def killing(call: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*args: object, **named: object) -> None:
            nonlocal count
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            call(*args, **named)

        return wrapped

    for name in ("rename", "unlink", "rmdir"):
        setattr(os, name, killing(getattr(os, name)))


main()
