"""Saves through fsspec: the bytes of a local save, and of one that ends in an error nothing but the old object."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from states import pattern

import fastckpt
from fastckpt.errors import CheckpointIOError, FastckptError
from fastckpt.io import upload

fsspec = pytest.importorskip("fsspec")
LocalFileOpener = pytest.importorskip("fsspec.implementations.local").LocalFileOpener
STATE = {"w": pattern(700_000, 1), "v": [pattern(5, 2), 7]}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PART", 256 * 1024)


@pytest.fixture(params=["memory", "local"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A file system in memory, and one that writes to a disk as fsspec does it."""
    fsspec.filesystem("memory").store.clear()
    (tmp_path / "files").mkdir()
    return "memory://bucket/" if request.param == "memory" else f"local://{tmp_path}/files/"


def held(url: str) -> dict[str, bytes]:
    """All that is there, by name."""
    files, place = fsspec.core.url_to_fs(url)
    return {name.rpartition("/")[2]: files.cat_file(name) for name in files.find(place)}


def local(state: object, directory: Path, **options: Any) -> bytes:
    fastckpt.save(state, directory / "local.fckpt", durable=False, **options)
    return (directory / "local.fckpt").read_bytes()


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_the_bytes_of_a_local_save(url: str, tmp_path: Path, codec: str) -> None:
    for step in (1, 2):  # The second replaces the first.
        fastckpt.save(STATE | {"step": step}, f"{url}x.fckpt", codec=codec)
        assert held(url) == {"x.fckpt": local(STATE | {"step": step}, tmp_path, codec=codec)}
    assert fastckpt.verify(f"{url}x.fckpt").ok


def failing(call: Callable[..., Any], at: int) -> Callable[..., Any]:
    """The same call, which fails the ``at``-th time."""
    calls = iter(range(at + 1))

    def failing(*rest: Any, **options: Any) -> Any:
        if next(calls, at) == at:
            raise ConnectionResetError("the line broke")
        return call(*rest, **options)

    return failing


@pytest.mark.parametrize(("call", "at"), [("write", 0), ("write", 2), ("commit", 0)])
def test_one_that_breaks_leaves_what_was_there(url: str, monkeypatch: pytest.MonkeyPatch, call: str, at: int) -> None:
    """At the first part, in the middle, or when all was sent: the old object stays, and nothing beside it."""
    files = fsspec.filesystem(url.partition(":")[0])
    kind, name = (type(files), "pipe_file") if url.startswith("memory") else (LocalFileOpener, call)
    for old in (False, True):
        if old:
            fastckpt.save({"old": 1}, f"{url}x.fckpt")
        before = held(url)
        with monkeypatch.context() as patch:
            if name == "write":  # The opened file is given out by what it has, for which there is no attribute.
                patch.setattr(kind, name, failing(lambda self, data: self.f.write(data), at), raising=False)
            else:
                patch.setattr(kind, name, failing(getattr(kind, name), 0))
            with pytest.raises(CheckpointIOError, match="the line broke"):
                fastckpt.save(STATE, f"{url}x.fckpt")
        gc.collect()
        assert held(url) == before


def test_a_state_that_cannot_be_saved_leaves_nothing(url: str) -> None:
    with pytest.raises(FastckptError):
        fastckpt.save({"f": object()}, f"{url}x.fckpt")
    assert held(url) == {}
