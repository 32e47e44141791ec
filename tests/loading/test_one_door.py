"""Every operation opens its file once: a file replaced meanwhile gives the state it had. What is dropped is closed."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from describe import describe
from safetensors.torch import save_file

import fastckpt
from fastckpt.errors import DamagedError, FastckptError
from fastckpt.io.source import Source
from fastckpt.loading.stream import load_through, stream_through
from fastckpt.salvaging.salvage import salvage
from fastckpt.staging.device import HostDevice
from fastckpt.staging.stage import staging_for
from fastckpt.stored.comparison import compare
from fastckpt.stored.inspection import inspect_file, storage_bytes

State = dict[str, torch.Tensor]
FORMATS = ["raw.fckpt", "zstd.fckpt", "zip.pt", "legacy.pt", "m.safetensors"]
OLD: State = {"a": torch.full((30_000,), 1.0), "b": torch.full((30_000,), 2.0, dtype=torch.float16)}
NEW: State = {"a": torch.full((30_000,), 3.0, dtype=torch.float16), "b": torch.full((30_000,), 4.0)}
"""The same names in other places: bytes of one read by the structure of the other would be neither."""

_opened: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | os.PathLike):
        _opened.append(os.fspath(arguments[0]))


sys.addaudithook(_note)


def opens(path: Path, work: Callable[[], object]) -> int:
    """How often ``work`` opens the file of that name."""
    global _opened
    _opened = []
    try:
        work()
        return _opened.count(str(path))
    finally:
        _opened = None


def write(path: Path, state: State) -> Path:
    """The state in the format that a name stands for."""
    if path.name == "zip.pt":
        torch.save(state, path)
    elif path.name == "legacy.pt":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif path.suffix == ".safetensors":
        save_file(state, path)
    else:
        fastckpt.save(state, path, codec="zstd:1" if path.name == "zstd.fckpt" else "none", durable=False)
    return path


def destination() -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in OLD.items()}


def into(path: Path) -> State:
    target = destination()
    fastckpt.load_into(target, path)
    return target


def converted(path: Path) -> State:
    result = path.with_name("converted" + (".pt" if path.suffix == ".fckpt" else ".fckpt"))
    fastckpt.convert(path, result, durable=False)
    state = fastckpt.load(result)
    assert isinstance(state, dict)
    return state


def loads() -> dict[str, Callable[[Path], State]]:
    return {
        "load": fastckpt.load,
        "load, mapped": lambda path: fastckpt.load(path, mmap=True),
        "load, some": lambda path: fastckpt.load(path, keys="*"),
        "load, through slots": lambda path: load_through(path, staging_for(HostDevice()), None),
        "load_into": into,
        "stream": lambda path: dict(fastckpt.stream(path)),
        "stream, some": lambda path: dict(stream_through(path, staging_for(HostDevice()), ["a", "b"])),
        "convert": converted,
    }


LOADS = loads()
OTHERS: dict[str, Callable[[Path], object]] = {
    "verify": fastckpt.verify,
    "inspect": inspect_file,
    "storage_bytes": storage_bytes,
    "salvage": salvage,
}


def same(found: State, expected: State) -> bool:
    return describe(dict(sorted(found.items()))) == describe(dict(sorted(expected.items())))


def write_set(directory: Path, kind: str) -> Path:
    """A checkpoint of several files; one of them."""
    if kind == "a set of our own":
        fastckpt.dcp.save(OLD, checkpoint_id=directory, no_dist=True)
        return next(directory.glob("*.fckpt"))
    directory.mkdir()
    names = {name: f"model-0000{number}-of-00002.safetensors" for number, name in enumerate(OLD, 1)}
    for name, shard in names.items():
        save_file({name: OLD[name]}, directory / shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return directory / names["b"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("keys", [None, "*"])
@pytest.mark.parametrize("kind", ["a set of our own", "a model in shards"])
def test_a_file_of_a_set_is_opened_once(tmp_path: Path, kind: str, keys: str | None) -> None:
    member = write_set(tmp_path / "set", kind)
    assert opens(member, lambda: fastckpt.load(member.parent, keys=keys)) == 1


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("operation", [*LOADS, *OTHERS])
def test_a_file_is_opened_once(tmp_path: Path, name: str, operation: str) -> None:
    path = write(tmp_path / name, OLD)
    work = {**LOADS, **OTHERS}[operation]
    assert opens(path, lambda: work(path)) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_diff_opens_each_file_once(tmp_path: Path, name: str) -> None:
    path, other = (
        write(tmp_path / name, OLD),
        write(tmp_path / "zip.pt" if name != "zip.pt" else tmp_path / "m.fckpt", NEW),
    )
    assert opens(path, lambda: compare(path, other)) == 1
    assert opens(other, lambda: compare(path, other)) == 1


def test_open_opens_once(tmp_path: Path) -> None:
    path = write(tmp_path / "raw.fckpt", OLD)

    def use() -> None:
        with fastckpt.open(path) as checkpoint:
            assert [checkpoint[key].shape for key in checkpoint] == [(30_000,), (30_000,)]
            checkpoint.rows("a", 0, 2)

    assert opens(path, use) == 1


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path, Path], None]]:
    """Puts another file in the place of one as soon as that was opened."""
    init = Source.__init__
    waiting: dict[str, Path] = {}

    def opening(self: Source, path: Any, **options: Any) -> None:
        init(self, path, **options)
        other = waiting.pop(self.path, None)
        if other is not None:
            os.replace(other, self.path)

    monkeypatch.setattr(Source, "__init__", opening)
    yield lambda path, other: waiting.__setitem__(str(path), other)
    assert not waiting


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("operation", LOADS)
def test_a_file_replaced_meanwhile_gives_the_state_it_had(
    tmp_path: Path, name: str, operation: str, replaced: Callable[[Path, Path], None]
) -> None:
    path = write(tmp_path / name, OLD)
    (tmp_path / "next").mkdir()
    other = write(tmp_path / "next" / name, NEW)
    replaced(path, other)
    assert same(LOADS[operation](path), OLD)
    assert same(fastckpt.load(path), NEW)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_replaced_meanwhile_is_compared_as_it_was(
    tmp_path: Path, name: str, replaced: Callable[[Path, Path], None]
) -> None:
    path, like = write(tmp_path / name, OLD), write(tmp_path / "like.fckpt", OLD)
    (tmp_path / "next").mkdir()
    replaced(path, write(tmp_path / "next" / name, NEW))
    found = compare(path, like)
    assert [tensor.status for tensor in found.tensors.values()] == ["identical", "identical"]


@pytest.mark.parametrize("name", FORMATS)
def test_salvage_takes_no_bytes_of_another_file(
    tmp_path: Path, name: str, replaced: Callable[[Path, Path], None]
) -> None:
    path = write(tmp_path / name, OLD)
    (tmp_path / "next").mkdir()
    replaced(path, write(tmp_path / "next" / name, NEW))
    with pytest.raises(DamagedError, match="another file has taken its place"):
        salvage(path, tmp_path / "rescued.fckpt", include=["unverified"])
    assert not (tmp_path / "rescued.fckpt").exists()


@pytest.mark.parametrize("name", ["zip.pt", "m.safetensors", "raw.fckpt"])
def test_convert_deletes_no_file_that_it_has_not_converted(
    tmp_path: Path, name: str, replaced: Callable[[Path, Path], None]
) -> None:
    path = write(tmp_path / name, OLD)
    (tmp_path / "next").mkdir()
    replaced(path, write(tmp_path / "next" / name, NEW))
    result = tmp_path / ("out.pt" if name.endswith(".fckpt") else "out.fckpt")
    with pytest.raises(DamagedError, match="another file has taken its place"):
        fastckpt.convert(path, result, replace=True, durable=False)
    assert same(fastckpt.load(path), NEW)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["m.safetensors", "zip.pt"])
def test_a_file_replaced_again_and_again(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, OLD)
    states = [OLD, NEW]
    files = []
    for number, state in enumerate(states):
        (tmp_path / str(number)).mkdir()
        files.append(str(write(tmp_path / str(number) / name, state)))
    program = (
        "import os, shutil, sys\n"
        "while True:\n"
        "    for file in sys.argv[2:]:\n"
        "        shutil.copyfile(file, sys.argv[1] + '~')\n"
        "        os.replace(sys.argv[1] + '~', sys.argv[1])\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(path), *files])
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            for work in (
                fastckpt.load,
                lambda path: fastckpt.load(path, mmap=True),
                lambda path: dict(fastckpt.stream(path)),
            ):
                try:
                    found = work(path)
                except FastckptError:
                    continue
                assert any(same(found, state) for state in states)
    finally:
        writer.kill()
        writer.wait()


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


DROPPED: dict[str, Callable[[Path], object]] = {
    "a checkpoint": fastckpt.open,
    "rows": lambda path: fastckpt.open(path).rows("a", 0, 2),
    "mapped tensors": lambda path: fastckpt.load(path, mmap=True),
    "a stream": lambda path: next(fastckpt.stream(path)),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("what", DROPPED)
def test_what_is_dropped_gives_its_descriptors_back(tmp_path: Path, what: str) -> None:
    path = write(tmp_path / "raw.fckpt", OLD)
    DROPPED[what](path)
    before = descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(50):
            DROPPED[what](path)
        assert descriptors() <= before


def test_a_checkpoint_that_is_dropped_open_is_warned_of(tmp_path: Path) -> None:
    path = write(tmp_path / "raw.fckpt", OLD)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        fastckpt.open(path)["a"]
        gc.collect()
        with fastckpt.open(path) as checkpoint:
            checkpoint["a"]
        del checkpoint
        gc.collect()
    said = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    assert len(said) == 1
    assert str(path) in said[0]
