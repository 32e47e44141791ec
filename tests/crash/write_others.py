"""Every command that writes a file besides save: which one, is the version."""

from __future__ import annotations

import contextlib
import io
import os

import torch

from fastckpt.cli.main import main
from fastckpt.errors import CheckpointIOError

# Before any fork: threads that torch keeps would not exist in a child.
torch.set_num_threads(1)

COMMANDS = (
    ["convert", "in.fckpt", "out.pt"],
    ["convert", "in.pt", "out.fckpt"],
    ["convert", "in.fckpt", "out.safetensors"],
    ["salvage", "in.fckpt", "-o", "out.pt"],
    ["salvage", "in.pt", "-o", "out.fckpt"],
    ["plot", "in.pt", "-o", "out.html"],
)


def save(path: str, version: int) -> None:
    os.chdir(path)
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = main(COMMANDS[version])
    text = errors.getvalue()
    if code == 5 and "unexpected" not in text:
        raise CheckpointIOError(text)
    if code:
        raise RuntimeError(f"exit code {code}: {text}")
