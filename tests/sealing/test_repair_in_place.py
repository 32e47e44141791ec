"""`repair --in-place`: only leaves that differ are written, and it goes on where it was ended."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from changes import LEAF, SIZE, Change, change, flip, zero

import fastckpt
from fastckpt.errors import DamagedError
from fastckpt.seals import healing_in_place
from fastckpt.seals.healing import Healed, heal_leaves


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize(
    "how",
    [
        flip(5, 7 * LEAF, SIZE - 1),
        zero(100 * LEAF, 8 * LEAF),
        lambda raw: raw[: SIZE - 5 * LEAF],
        lambda raw: raw + b"behind",
        lambda raw: raw[: SIZE - LEAF - 9] + b"x",
    ],
    ids=["flips", "hole", "cut", "longer", "cut and longer"],
)
def test_healed_where_it_is(path: Path, good: bytes, how: Change, durable: bool) -> None:
    """It stays the same file, under all its names; and only what differed is written."""
    change(path, how)
    os.link(path, path.with_name("other name"))
    before = path.stat().st_ino
    told: list[int] = []
    report = fastckpt.repair(path, keep=False, durable=durable, progress=told.append)
    assert (report.state, report.output, report.kept, report.left) == ("healed", str(path), None, [])
    assert path.read_bytes() == good
    assert path.with_name("other name").read_bytes() == good
    assert path.stat().st_ino == before
    assert told == sorted(told)
    assert fastckpt.verify(path).ok


@pytest.mark.parametrize("size", [SIZE, 3 * LEAF + 7, 2 * LEAF])
@pytest.mark.parametrize("cut", [False, True])
def test_healing_where_it_is_goes_on_after_it_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, cut: bool
) -> None:
    good = random.Random(size).randbytes(size)
    path = tmp_path / "f"
    path.write_bytes(good)
    fastckpt.seal(path, parity="3%", durable=False)
    right = (-(-size // LEAF) - (2 if size > 2 * LEAF else 1)) * LEAF
    damaged = good[:right] if cut else good[:-9] + bytes(9)
    path.write_bytes(damaged)
    write = healing_in_place.write_all
    for full in (0, 1):
        left = [full]

        def torn(fd: int, offset: int, data: memoryview, left: list[int] = left, **options: Any) -> int:
            if not left.pop():
                write(fd, offset, data[: len(data) // 2], **options)
                raise KeyboardInterrupt
            left.append(0)
            return write(fd, offset, data, **options)

        monkeypatch.setattr(healing_in_place, "write_all", torn)
        with suppress(KeyboardInterrupt):
            fastckpt.repair(path, keep=False, durable=False)
        assert path.read_bytes().startswith(good[:right])
    monkeypatch.setattr(healing_in_place, "write_all", write)
    assert fastckpt.repair(path, keep=False).state in ("healed", "as sealed")
    assert path.read_bytes() == good


def test_what_a_disk_makes_of_what_is_healed_where_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(path, flip(5))
    monkeypatch.setattr(healing_in_place, "write_all", lambda fd, offset, data, **_: os.pwrite(fd, b"rot", offset))
    with pytest.raises(DamagedError, match="not what is there now"):
        fastckpt.repair(path, keep=False)


@pytest.mark.parametrize("healed", [0, 1])
def test_a_file_that_is_written_anew_while_it_is_healed_where_it_is(
    path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch, healed: int
) -> None:
    change(path, flip(5, 5 * LEAF, 9 * LEAF))
    new = random.Random(3).randbytes(len(good))

    def heal_late(*arguments: Any, **options: Any) -> Iterator[Healed]:
        for number, leaf in enumerate(heal_leaves(*arguments, **options)):
            if number == healed:
                time.sleep(0.02)  # A file system may count time in steps of 10 ms.
                with path.open("r+b") as file:
                    file.write(new)
            yield leaf

    monkeypatch.setattr(healing_in_place, "heal_leaves", heal_late)
    with pytest.raises(DamagedError, match="something else writes to the file"):
        fastckpt.repair(path, keep=False)
    assert path.read_bytes() == new
