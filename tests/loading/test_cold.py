"""A file that the page cache does not hold gives what one that it holds does, by every way to read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from states import assert_same

import fastckpt
from fastckpt.io.source import Source

SIZES = [3_000_001, 5, 16_384, 70_001, 0, 2_200_000, 65_536, 1000, 300_000]
"""Bytes: read in place, copied, neighbours in one request; no element type makes them come out even."""


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {f"t{n}": torch.randint(0, 256, (size,), dtype=torch.uint8) for n, size in enumerate(SIZES)}


def _into(path: Path) -> dict[str, torch.Tensor]:
    there = {name: torch.zeros_like(tensor) for name, tensor in state().items()}
    fastckpt.load_into(there, path)
    return there


WAYS: dict[str, Callable[[Path], Any]] = {
    "load": fastckpt.load,
    "map": lambda path: fastckpt.load(path, mmap=True),
    "into": _into,
    "stream": lambda path: dict(sorted(fastckpt.stream(path))),
    "small slots": lambda path: dict(sorted(fastckpt.stream(path, ring=fastckpt.Ring(slots=2, slot_size=2**14)))),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["s.fckpt", "s.pt", "s.safetensors"])
def test_a_cold_file_loads_as_what_it_is(tmp_path: Path, name: str, way: str) -> None:
    path = tmp_path / name
    save: Callable[[Any, Path], object] = {".fckpt": fastckpt.save, ".pt": torch.save}.get(
        path.suffix, safetensors.torch.save_file
    )
    save(state(), path)
    with Source(path) as source:
        os.fsync(source.fd)
        source.drop_cache()
    assert_same(WAYS[way](path), state())
    with Source(path) as source:
        source.drop_cache()
    assert fastckpt.verify(path).ok
