"""Saves that are cut short by a signal or a limit, in children of this process.

Reads one request as JSON per line, and answers with how the child ended. The state is made once, and torch is imported
once. Keys of a request: ``how`` (torch, safetensors, fckpt or fckpt-zstd), ``path``, ``signal`` and ``at`` (sent when
this share of ``size`` bytes is written), ``limit`` (the largest size of a file that the system allows).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
from typing import Any

import safetensors.torch
import torch

import fastckpt
import fastckpt.fckpt.turns
from fastckpt.errors import OutOfSpaceError


def state() -> dict[str, Any]:
    """A model and its optimizer, about 31 MB: large enough to be hit in the middle."""
    r = random.Random(0)

    def noise(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        size = torch.Size(shape).numel() * dtype.itemsize
        return torch.frombuffer(bytearray(r.randbytes(size)), dtype=torch.uint8).view(dtype).reshape(shape)

    model = {}
    for layer in range(8):
        model[f"h.{layer}.attn"] = noise(torch.float32, 512, 768)
        model[f"h.{layer}.norm"] = noise(torch.float32, 768)
        model[f"h.{layer}.mlp"] = noise(torch.bfloat16, 768, 1024)
    model["wte"] = noise(torch.bfloat16, 4001, 768)
    model["lambda"] = noise(torch.float32, 1)
    return model


def save(how: str, tensors: dict[str, Any], path: str, at: float | None = None, number: int = 0) -> None:
    """Save; ``fckpt`` sends itself the signal, as its file has its full size from the beginning."""

    size = sum(tensor.nbytes for tensor in tensors.values())

    def progress(done: int) -> None:
        if at is not None and done >= at * size:
            os.kill(os.getpid(), number)

    if how == "torch":
        torch.save(tensors, path)
    elif how == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        # Headers are written batch by batch; with the usual size this state would be a single one.
        vars(fastckpt.fckpt.turns)["BATCH"] = 4 * 2**20
        codec = "zstd" if how == "fckpt-zstd" else "none"
        fastckpt.save(tensors, path, codec=codec, threads=2, progress=progress)


def _child(request: dict[str, Any], tensors: dict[str, Any]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request.get("limit"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    try:
        save(request["how"], tensors, request["path"], request.get("at"), request.get("signal", 0))
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3 if isinstance(error, OutOfSpaceError) else 1
    return 0


def _strike(pid: int, request: dict[str, Any]) -> int:
    """Send the signal when enough of the file is written; returns how the child ended."""
    wanted = request["at"] * request["size"]
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if _written(os.path.dirname(request["path"])) >= wanted:
            os.kill(pid, request["signal"])
            return os.waitpid(pid, 0)[1]
        time.sleep(0.0001)


def _written(directory: str) -> int:
    """Bytes that the files in a directory take. Their sizes may be set before anything is written; -1 without files."""
    written = -1
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                written = max(written, entry.stat().st_blocks * 512)
    return written


def main() -> None:
    """Serve requests until the input ends."""
    torch.set_num_threads(1)
    tensors = state()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(_child(request, tensors))
        watched = "signal" in request and request["how"] in ("torch", "safetensors")
        status = _strike(pid, request) if watched else os.waitpid(pid, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
