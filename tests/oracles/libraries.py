"""What the tests with the libraries that write checkpoints share."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastckpt


def needs(library: str) -> pytest.MarkDecorator:
    """Skip the tests of a library that is not here. Looking for it does not import it, which takes seconds."""
    return pytest.mark.skipif(
        importlib.util.find_spec(library) is None, reason=f"{library} is not installed: pip install '.[libraries]'"
    )


def there_and_back(directory: Path, room: Path, suffixes: tuple[str, ...]) -> Path:
    """A copy of a directory in which each checkpoint file was converted to .fckpt and back: the same bytes."""
    copy = room / directory.name
    found = 0
    for path in sorted(directory.rglob("*")):
        target = copy / path.relative_to(directory)
        if path.is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix not in suffixes:
            target.write_bytes(path.read_bytes())
            continue
        own = room / f"{target.name}.fckpt"
        fastckpt.convert(path, own, durable=False)
        assert fastckpt.verify(own).ok
        fastckpt.convert(own, target, to="safetensors" if path.suffix == ".safetensors" else "pt", durable=False)
        assert target.read_bytes() == path.read_bytes(), path.name
        found += 1
    assert found
    return copy


def same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether two models have the same parameters, to the bit."""
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )


def copy_of(model: Any) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a model as they are now."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def begun(work: Callable[[], object]) -> int:
    """Begin something in a forked process, which has all libraries already: its number. It ends with 0 or 1."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)  # The threads of before the fork are not there.
        work()
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def kill(child: int) -> None:
    """Raises AssertionError if it had ended by then."""
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended, and was not killed"


def killed_after(seconds: float, work: Callable[[], object], *, once: Callable[[], bool] = lambda: True) -> None:
    """Begin something, and kill it a while after something has come about."""
    child = begun(work)
    while not once():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before"
        time.sleep(0.002)
    time.sleep(seconds)
    kill(child)


def flip_in(path: Path, tensor: torch.Tensor) -> None:
    """One bit of a tensor flips in the file that holds it."""
    content = bytearray(path.read_bytes())
    raw = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    assert content.count(raw) == 1
    content[content.index(raw) + len(raw) // 2] ^= 1
    path.write_bytes(content)
