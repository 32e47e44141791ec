"""Runs commands in children of one process, each under limits, and says what each took. Forking costs milliseconds.

Usage: ``python under_limits.py``. One JSON list of arguments per line comes in, one JSON object per line goes out.
The word ``load`` in front of a path loads it; all other words are commands of ``fastckpt``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
from typing import Any

import torch

import fastckpt
from fastckpt.cli import convert, diff, inspect, plot, salvage, verify  # noqa: F401 - before the fork, not in each child
from fastckpt.cli.main import main
from fastckpt.errors import FastckptError

CPU_SECONDS = 10
MEMORY = 2 * 2**30
FILE_SIZE = 256 * 2**20


def load(path: str) -> int:
    try:
        fastckpt.load(path)
    except FastckptError as error:
        print(f"fastckpt: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def limited(arguments: list[str]) -> int:
    """Run a command under limits; whoever reaches one is killed, or has no space."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    return load(arguments[1]) if arguments[0] == "load" else main(arguments)


def run(arguments: list[str]) -> dict[str, Any]:
    """What became of one command."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        err = io.StringIO()
        code: int | str = ""
        try:
            # What a command prints goes away, or holding it would count as memory of the command.
            with (
                open(os.devnull, "w") as out,
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                code = limited(arguments)
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
        with os.fdopen(writer, "w") as pipe:
            json.dump([code, err.getvalue()[:100_000]], pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status, usage = os.wait4(child, 0)
    code, err_text = json.loads(text) if text else (f"ended by signal {os.WTERMSIG(status)}", "")
    seconds = usage.ru_utime + usage.ru_stime
    return {"code": code, "err": err_text, "seconds": seconds, "memory": usage.ru_maxrss * 1024}


def serve() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
