"""A durable save writes past the page cache all that it writes while payloads are under way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import fastckpt
from fastckpt import _core
from fastckpt.io.commit import Commit
from fastckpt.io.direct import open_direct


@pytest.fixture
def direct_directory(tmp_path: Path) -> Path:
    """A directory whose files can be written with O_DIRECT, and asked how much of them is in the page cache."""
    with open(tmp_path / "probe", "wb+") as file:
        file.write(bytes(4096))
        file.flush()
        direct = open_direct(file.fileno(), os.O_RDWR)
        if direct < 0 or _core.cached_bytes(file.fileno(), 4096) is None:
            pytest.skip("no O_DIRECT here")
        os.close(direct)
    return tmp_path


def cached(path: Path) -> int:
    with open(path, "rb") as file:
        return _core.cached_bytes(file.fileno(), path.stat().st_size) or 0


def test_neither_ends_of_payloads_nor_headers_go_through_the_page_cache(
    direct_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastckpt.fckpt.turns.BATCH", 4 * 2**20)
    # None of these sizes is a multiple of 4 KiB; the small ones share a record.
    state = {str(n): torch.full((300_001 + 100 * n,), n, dtype=torch.int32) for n in range(40)}
    state |= {f"small {n}": torch.full((7,), n) for n in range(3)}
    path = direct_directory / "a.fckpt"
    fastckpt.save(state, path)
    # Superblock and manifest, and what follows the last record: the index has all headers once more, 4 KiB each.
    assert cached(path) < (40 + 16) * 4096
    fastckpt.save(state, direct_directory / "b.fckpt", durable=False)
    assert path.read_bytes() == (direct_directory / "b.fckpt").read_bytes()


def test_blocks_are_written_where_they_belong_directly_or_not(direct_directory: Path) -> None:
    blocks = [(4096 * place, bytes([place]) * 4096 * size) for place, size in ((3, 1), (0, 2), (5, 700))]
    for durable in (True, False):
        path = direct_directory / f"blocks {durable}"
        with Commit(path, durable=durable) as sink:
            sink.preallocate(705 * 4096)
            sink.write_blocks(blocks, 4)
            sink.finish(705 * 4096)
        if durable:
            assert cached(path) == 0
        content = path.read_bytes()
        for offset, block in blocks:
            assert content[offset : offset + len(block)] == block
        assert not any(content[2 * 4096 : 3 * 4096])
