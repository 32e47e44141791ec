"""Magic numbers are found at multiples of 4096, and nowhere else."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from fastckpt import _core
from fastckpt.constants import ALIGNMENT, MAGIC_RECORD

SIZE = 9 * 1024 * 1024 + 4096 * 3 + 100


@pytest.fixture
def planted(tmp_path: Path) -> tuple[int, list[int]]:
    rng = random.Random(5)
    data = bytearray(SIZE)
    where = sorted({0, *(rng.randrange(SIZE // ALIGNMENT) * ALIGNMENT for _ in range(60)), SIZE - 100 - ALIGNMENT})
    for at in where:
        data[at : at + 8] = MAGIC_RECORD
    for _ in range(60):  # decoys: not at a multiple of 4096
        at = rng.randrange(SIZE - 100)
        if at % ALIGNMENT > 8 and at % ALIGNMENT < ALIGNMENT - 8:
            data[at : at + 8] = MAGIC_RECORD
    (tmp_path / "file").write_bytes(data)
    return os.open(tmp_path / "file", os.O_RDONLY), where


@pytest.mark.parametrize("threads", [1, 3])
def test_finds_all(planted: tuple[int, list[int]], threads: int) -> None:
    fd, where = planted
    assert _core.find_blocks(fd, MAGIC_RECORD, 0, SIZE, threads=threads) == where
    assert _core.find_blocks(fd, MAGIC_RECORD, 0, 2**64 - 1, threads=threads) == where
    os.close(fd)


def test_range_is_half_open(planted: tuple[int, list[int]]) -> None:
    fd, where = planted
    rng = random.Random(1)
    for _ in range(50):
        start, stop = sorted(rng.choice([rng.randrange(SIZE), rng.choice(where)]) for _ in range(2))
        expected = [at for at in where if start <= at < stop]
        assert _core.find_blocks(fd, MAGIC_RECORD, start, stop) == expected
    assert _core.find_blocks(fd, MAGIC_RECORD, where[3], where[3] + 1) == [where[3]]
    assert _core.find_blocks(fd, MAGIC_RECORD, 100, 50) == []
    assert _core.find_blocks(fd, MAGIC_RECORD, 2**64 - 1, 2**64 - 1) == []
    os.close(fd)


def test_magic_cut_by_the_end_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(8192) + MAGIC_RECORD[:7])
    with (tmp_path / "file").open("rb") as file:
        assert _core.find_blocks(file.fileno(), MAGIC_RECORD, 0, 1 << 40) == []
    (tmp_path / "file").write_bytes(bytes(8192) + MAGIC_RECORD)
    with (tmp_path / "file").open("rb") as file:
        assert _core.find_blocks(file.fileno(), MAGIC_RECORD, 0, 1 << 40) == [8192]


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (tmp_path / "file").open("rb") as file:
        assert _core.find_blocks(file.fileno(), MAGIC_RECORD, 0, 1 << 62, threads=8) == []


def test_descriptor_that_cannot_be_read(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    for fd in (directory, -1):
        with pytest.raises(OSError, match="reading"):
            _core.find_blocks(fd, MAGIC_RECORD, 0, 1 << 62, threads=2)
    os.close(directory)


@pytest.mark.parametrize("magic", [b"", b"1234567", b"123456789"])
def test_bad_magic(magic: bytes) -> None:
    with pytest.raises(ValueError, match="magic"):
        _core.find_blocks(0, magic, 0, 1)


def test_bad_numbers() -> None:
    with pytest.raises(OverflowError):
        _core.find_blocks(0, MAGIC_RECORD, -1, 1)
    with pytest.raises(OverflowError):
        _core.find_blocks(0, MAGIC_RECORD, 0, 2**64)
    with pytest.raises(ValueError, match="threads"):
        _core.find_blocks(0, MAGIC_RECORD, 0, 1, threads=0)
