"""Lost leaves come back from a map of the file or, where that fails, from plain reading; and the same ones."""

from __future__ import annotations

import mmap
import random
from pathlib import Path

import pytest

import fastckpt
from fastckpt.constants import LEAF_SIZE as LEAF
from fastckpt.io.source import Source
from fastckpt.seals import healing
from fastckpt.seals.names import sums_path
from fastckpt.seals.remains import open_remains


@pytest.mark.parametrize("way", ["map", "map that was cut", "no map", "longer file"])
def test_leaves_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    data = random.Random(1).randbytes(130 * LEAF - 100)
    path, cut = tmp_path / "file", tmp_path / "cut"
    path.write_bytes(data)
    fastckpt.seal(path, parity="3%", durable=False)
    lost = [0, 4, 129]
    with open(path, "r+b") as file:
        for leaf in lost:
            file.seek(leaf * LEAF)
            file.write(b"rotten")
        if way == "longer file":
            file.seek(0, 2)
            file.write(bytes(100_000))
    if way == "map that was cut":
        cut.write_bytes(data)
        with open(cut, "r+b") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), len(data)))
            file.truncate(70 * LEAF)
        monkeypatch.setattr(healing, "_mapped", lambda *_: mapped)
    elif way == "no map":
        monkeypatch.setattr(healing, "_mapped", lambda *_: None)
    with Source(path) as source, open_remains(sums_path(path), threads=1) as remains:
        healed = list(healing.heal_leaves(source, remains, lost, threads=2))
    assert sorted(found.leaf for found in healed) == lost
    for leaf, found in healed:
        assert found == data[leaf * LEAF : (leaf + 1) * LEAF]
