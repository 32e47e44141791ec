"""The engine ``kvikio``, with a stand-in for it that reads into CPU memory; and what is said where there is none."""

from __future__ import annotations

import ctypes
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from states import assert_same, everything, pattern

import fastckpt
from fastckpt.errors import CheckpointIOError, UsageError
from fastckpt.staging import kvikio_engine

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


class Future:
    def __init__(self, work: Any) -> None:
        self._work = work

    def get(self) -> int:
        return int(self._work())


class CuFile:
    """As in kvikio: reads are asked for, and happen by the time their future gives the number of bytes."""

    opened = 0
    short = False

    def __init__(self, path: str, flags: str) -> None:
        assert flags == "r"
        self._fd = os.open(path, os.O_RDONLY)
        CuFile.opened += 1

    def __enter__(self) -> CuFile:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)
        CuFile.opened -= 1

    def pread(self, buffer: torch.Tensor, size: int, file_offset: int) -> Future:
        assert buffer.nbytes == size

        def read() -> int:
            data = os.pread(self._fd, size - (1 if self.short else 0), file_offset)
            ctypes.memmove(buffer.data_ptr(), data, len(data))
            return len(data)

        return Future(read)


@pytest.fixture
def kvikio(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[CuFile]]:
    module = types.ModuleType("kvikio")
    module.CuFile = CuFile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kvikio", module)
    monkeypatch.setattr(CuFile, "short", False)
    yield CuFile
    assert CuFile.opened == 0


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastckpt.save({"a": torch.ones(3)}, tmp_path / "s")
    monkeypatch.setitem(sys.modules, "kvikio", None)
    for use in (fastckpt.load, fastckpt.stream):
        with pytest.raises(UsageError, match="needs the kvikio package"):
            use(tmp_path / "s", engine="kvikio")


@pytest.mark.parametrize("failure", [OSError("libcufile.so.0: cannot open"), RuntimeError("no CUDA driver")])
def test_does_not_work_here(
    tmp_path: Path, kvikio: type[CuFile], monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """Whether its import fails, or what it does with the file."""

    def fail(*arguments: object) -> None:
        raise failure

    fastckpt.save({"a": torch.ones(3)}, tmp_path / "s")
    monkeypatch.setattr(sys.modules["kvikio"], "CuFile", fail)
    with pytest.raises(CheckpointIOError, match=str(failure)) as caught:
        fastckpt.load(tmp_path / "s", engine="kvikio", verify=False)
    assert caught.value.path == str(tmp_path / "s")
    monkeypatch.setattr(kvikio_engine, "importlib", types.SimpleNamespace(import_module=fail))
    with pytest.raises(UsageError, match="needs the kvikio package"):
        fastckpt.load(tmp_path / "s", engine="kvikio")


def test_same_results(tmp_path: Path, kvikio: type[CuFile]) -> None:
    state = everything()
    fastckpt.save(state, tmp_path / "s")
    assert_same(fastckpt.load(tmp_path / "s", engine="kvikio", verify=False), state)
    some = fastckpt.load(tmp_path / "s", keys="*")
    streamed = dict(fastckpt.stream(tmp_path / "s", engine="kvikio", verify=False))
    assert_same({name: streamed[name] for name in some}, some)
    next(fastckpt.stream(tmp_path / "s", engine="kvikio", verify=False))


def test_larger_than_a_window(tmp_path: Path, kvikio: type[CuFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastckpt.staging.kvikio_engine._WINDOW", 1 << 20)
    state = {f"t.{i}": pattern(1_300_000, i) for i in range(4)}
    fastckpt.save(state, tmp_path / "s")
    assert_same(fastckpt.load(tmp_path / "s", engine="kvikio", verify=False), state)


def test_what_needs_the_host_is_refused(tmp_path: Path, kvikio: type[CuFile]) -> None:
    state = {"a": torch.zeros(500_000)}
    fastckpt.save(state, tmp_path / "z", codec="zstd")
    fastckpt.save(state, tmp_path / "s")
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(UsageError, match="cannot read compressed records"):
        fastckpt.load(tmp_path / "z", engine="kvikio", verify=False)
    with pytest.raises(UsageError, match="verified on the host"):
        fastckpt.load(tmp_path / "s", engine="kvikio", verify="host")
    with pytest.raises(UsageError, match="verify=False"):
        fastckpt.load(tmp_path / "m.pt", engine="kvikio")
    assert_same(fastckpt.load(tmp_path / "m.pt", engine="kvikio", verify=False), state)


def test_short_read(tmp_path: Path, kvikio: type[CuFile], monkeypatch: pytest.MonkeyPatch) -> None:
    fastckpt.save({"a": torch.zeros(500_000)}, tmp_path / "s")
    monkeypatch.setattr(CuFile, "short", True)
    with pytest.raises(CheckpointIOError, match="kvikio read 1999999 of 2000000 bytes"):
        fastckpt.load(tmp_path / "s", engine="kvikio", verify=False)
