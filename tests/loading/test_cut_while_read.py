"""A file that is cut while it is read is cut, by whatever way it is read: in a map, to memory, in the cache or not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastckpt
import fastckpt.fckpt.payload
import fastckpt.foreign.storages
import fastckpt.io.source
from fastckpt.errors import DamagedError
from fastckpt.findings import Kind
from fastckpt.io.source import Source
from fastckpt.io.transfer import Moved, transfer

STATE = {"a": torch.arange(200_000), "b": torch.arange(200_000)}
ENDS = [2_000_000, 2_000_100]
"""Bytes that stay, all of them behind what opening reads: whole pages and not."""


@pytest.fixture
def cut_by_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Cut a file when its payload is about to be read."""

    def arm(path: Path, end: int) -> None:
        def cut_and_move(*arguments: Any, **options: Any) -> Moved:
            if options["leaves"] or options["crcs"]:  # Others are of the structure.
                os.truncate(path, end)
            return transfer(*arguments, **options)

        for module in (fastckpt.fckpt.payload, fastckpt.foreign.storages, fastckpt.io.source):
            monkeypatch.setattr(module, "transfer", cut_and_move)

    return arm


def _into(path: Path) -> None:
    fastckpt.load_into({name: torch.zeros_like(tensor) for name, tensor in STATE.items()}, path)


WAYS: dict[str, Callable[[Path], object]] = {
    "load": fastckpt.load,
    "map": lambda path: fastckpt.load(path, mmap=True),
    "into": _into,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", ["s.fckpt", "s.pt"])
def test_it_is_said_to_be_cut(
    tmp_path: Path, name: str, end: int, way: str, cut_by_reading: Callable[[Path, int], None]
) -> None:
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(STATE, path)
    else:
        fastckpt.save(STATE, path)
    cut_by_reading(path, end)
    with pytest.raises(DamagedError, match=r"the file ends before it|became shorter"):
        WAYS[way](path)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("warm", [True, False])
def test_verify_finds_the_same_in_the_cache_as_on_the_disk(
    tmp_path: Path, warm: bool, end: int, cut_by_reading: Callable[[Path, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.fckpt"
    fastckpt.save(STATE, path)
    cut_by_reading(path, end)
    with Source(path) as source:
        source.warm = warm
        found = fastckpt.verify(source).findings
    assert {finding.kind for finding in found} == {Kind.MISSING}
    assert {name for finding in found for name in finding.tensors} == {"b"}
    first = min(finding.offset for finding in found)
    assert first <= end < first + 16 * 1024
