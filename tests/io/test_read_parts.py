"""Many parts read at once are what each is alone; those that cannot be had are for the plain read to explain."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from fastckpt.errors import DamagedError
from fastckpt.io.read_parts import read_parts
from fastckpt.io.source import Source
from fastckpt.layout.blocks import Extent

DATA = random.Random(3).randbytes(5_000_001)


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize("threads", [1, None])
def test_each_part_is_as_it_is_alone(tmp_path: Path, cold: bool, threads: int | None) -> None:
    rng = random.Random(5)
    parts = [Extent(rng.randrange(len(DATA) - 70_000), rng.choice([1, 30, 4096, 70_000])) for _ in range(300)]
    parts += [Extent(at, 4096) for at in range(0, 1 << 20, 8192)]
    parts.append(Extent(len(DATA) - 5, 5))
    (tmp_path / "file").write_bytes(DATA)
    with Source(tmp_path / "file") as source:
        if cold:
            os.fsync(source.fd)
            source.drop_cache()
        found = read_parts(source, parts, threads=threads)
    assert [None if part is None else bytes(part) for part in found] == [
        DATA[offset : offset + size] for offset, size in parts
    ]


def test_what_is_not_in_the_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA[:100_000])
    beyond = [Extent(-1, 5), Extent(0, 0), Extent(99_999, 2), Extent(2**70, 4), Extent(5, 2**70)]
    with Source(tmp_path / "file") as source:
        assert read_parts(source, []) == []
        found = read_parts(source, [Extent(50_000, 3), *beyond, Extent(7, 9)])
        assert [None if part is None else bytes(part) for part in found] == [
            DATA[50_000:50_003],
            *[None] * len(beyond),
            DATA[7:16],
        ]
        os.truncate(tmp_path / "file", 60_000)
        assert read_parts(source, [Extent(59_000, 1000), Extent(59_999, 2)])[1] is None
        with pytest.raises(DamagedError):
            source.read(59_999, 2)
