"""What is asked of a store, of obstore's and of fsspec's: answers, and errors in our words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import fsspec
import pytest
from objects import put
from obstore.store import MemoryStore

from fastckpt.errors import CheckpointNotFoundError, DamagedError, UsageError
from fastckpt.remote.path import RemotePath, located
from fastckpt.remote.store import Version

DATA = bytes(range(256)) * 10


def in_obstore() -> RemotePath:
    path: RemotePath = located("s3://bucket/a/x.bin", MemoryStore())
    return path


def in_fsspec() -> RemotePath:
    fsspec.filesystem("memory").store.clear()
    path: RemotePath = located("memory://bucket/a/x.bin")
    return path


@pytest.fixture(params=[in_obstore, in_fsspec])
def path(request: pytest.FixtureRequest) -> RemotePath:
    make: Callable[[], RemotePath] = request.param
    made = make()
    put(made, DATA)
    return made


def test_ranges(path: RemotePath) -> None:
    store, key = path.store, path.key
    version = store.head(key)
    assert version.size == len(DATA)
    assert store.tail(key, 100) == (version, memoryview(DATA[-100:]))
    assert store.tail(key, 10**6) == (version, memoryview(DATA))
    assert b"".join(store.get(key, start, start + 50, version) for start in range(0, 500, 50)) == DATA[:500]


def test_an_object_without_bytes(path: RemotePath) -> None:
    put(path.at("empty"), b"")
    version, data = path.store.tail("empty", 100)
    assert (version.size, bytes(data)) == (0, b"")


def test_what_is_not_there(path: RemotePath) -> None:
    for ask in (
        lambda: path.store.head("nothing"),
        lambda: path.store.tail("nothing", 5),
        lambda: path.store.get("nothing", 0, 5, Version(5)),
    ):
        with pytest.raises(CheckpointNotFoundError, match="//bucket/nothing: not found"):
            ask()


def test_listing_and_deleting(path: RemotePath) -> None:
    for key in ("a/b/1", "a/b/2", "c"):
        put(path.at(key), b"1")
    folders, objects = path.store.list_here("a/")
    assert [folder.rstrip("/") for folder in folders] == ["a/b"]
    assert [(each.key, each.version.size) for each in objects] == [("a/x.bin", len(DATA))]
    path.store.delete(["a/b/1", "a/nothing", "a/b/2"])
    assert [each.key for each in path.store.list_here("")[1]] == ["c"]
    assert not path.store.list_here("a/")[0]
    assert path.store.list_here("nothing/") == ([], [])


def test_a_listing_is_that_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many file systems of fsspec keep the listings that they have seen."""
    files = fsspec.filesystem("memory")
    kept: dict[str, Any] = {}
    ask = files.ls
    monkeypatch.setattr(files, "ls", lambda name, **options: kept.setdefault(name, ask(name, **options)))
    monkeypatch.setattr(files, "invalidate_cache", lambda *_: kept.clear())
    path = in_fsspec()
    for count in range(3):
        assert len(path.store.list_here("a/")[1]) == count
        files.pipe_file(f"/bucket/a/{count}", b"1")


def test_a_range_of_another_version_is_refused() -> None:
    path = in_obstore()
    put(path, DATA)
    version = path.store.head(path.key)
    put(path, DATA)
    with pytest.raises(DamagedError, match="replaced while it was read"):
        path.store.get(path.key, 0, 5, version)
    put(path, b"")
    with pytest.raises(DamagedError, match="replaced while it was read"):
        path.store.get(path.key, 5, 10, version)


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, url in (("obstore", "s3://bucket/x"), ("fsspec", "hf://org/repo/x")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, f"fastckpt.remote.{package}_store", raising=False)
        with pytest.raises(UsageError, match=rf"needs {package}.*pip install 'fastckpt\[remote\]'"):
            located(url)


def test_a_file_system_that_fsspec_lacks_is_named() -> None:
    options: dict[str, Any] = {}
    with pytest.raises(UsageError, match="fsspec opens no nosuch://"):
        located("nosuch://a/b", options)


def test_a_package_that_a_file_system_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(scheme: str) -> None:
        raise ImportError("Install huggingface_hub to access HfFileSystem")

    monkeypatch.setattr(fsspec, "filesystem", lacks)
    with pytest.raises(UsageError, match="pip install huggingface_hub"):
        located("hf://org/repo/x")
