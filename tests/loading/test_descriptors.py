"""Whatever is opened and dropped, whole or halfway, gives its descriptors back: at once, without the collector."""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fastckpt
from fastckpt.errors import FastckptError
from fastckpt.stored.comparison import compare
from fastckpt.stored.inspection import inspect_file

STATE = {"a": torch.arange(30_000.0), "b": torch.ones(300, 7)}
FORMATS = ["raw.fckpt", "zstd.fckpt", "zip.pt", "legacy.pt", "m.safetensors"]
TIMES = 40
"""Of each of the 5 formats, whole and damaged, and of each of the operations: more than 2,000 in all."""


def write(path: Path) -> Path:
    if path.suffix == ".pt":
        torch.save(STATE, path, _use_new_zipfile_serialization=path.name == "zip.pt")
    elif path.suffix == ".safetensors":
        save_file(STATE, path)
    else:
        fastckpt.save(STATE, path, codec="zstd:1" if path.name == "zstd.fckpt" else "none", durable=False)
    return path


def opened(path: Path) -> object:
    return fastckpt.open(path)


def rows(path: Path) -> object:
    return fastckpt.open(path).rows("a", 0, 2)


def first_of_a_stream(path: Path) -> object:
    return next(iter(fastckpt.stream(path)))


def into_what_does_not_fit(path: Path) -> object:
    return fastckpt.load_into({"a": torch.zeros(3)}, path)


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "open": opened,
    "rows": rows,
    "load": fastckpt.load,
    "load, mapped": lambda path: fastckpt.load(path, mmap=True),
    "load, a name that is not there": lambda path: fastckpt.load(path, keys="none"),
    "stream": lambda path: dict(fastckpt.stream(path)),
    "the first of a stream": first_of_a_stream,
    "load_into what does not fit": into_what_does_not_fit,
    "verify": fastckpt.verify,
    "inspect": inspect_file,
    "salvage": fastckpt.salvage,
    "diff": lambda path: compare(path, path),
}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.sampled(4)
@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("damage", ["", "flip", "cut"])
@pytest.mark.parametrize("name", FORMATS)
def test_no_descriptor_is_left(name: str, damage: str, tmp_path: Path) -> None:
    path = write(tmp_path / name)
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
    path.write_bytes(raw[: len(raw) // 2] if damage == "cut" else raw)
    left: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for what, operation in OPERATIONS.items():
            # The first time threads and tables are made that stay.
            for times in (2, TIMES):
                before = descriptors()
                for _ in range(times):
                    with contextlib.suppress(FastckptError):
                        operation(path)
                left[what] = descriptors() - before
    assert not any(left.values()), left
