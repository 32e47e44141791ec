"""A file takes as many requests as it has multiples of 8 MiB, and four, wherever what is wanted lies in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from objects import put
from safetensors.torch import save_file
from states import assert_same

import fastckpt
from fastckpt.remote.path import located
from fastckpt.remote.store import RANGE

# Large ones that are further from each other than any gap that is read over, and many small ones between and behind.
STATE = {f"{n:04d}.{i}": torch.randn(size) for n in range(14) for i, size in enumerate([200_000, *[10] * 20])}
STATE |= {f"small.{n:04d}": torch.randn(10) for n in range(300)}
FORMATS: dict[str, Callable[[Path], object]] = {
    "fckpt": lambda path: fastckpt.save(STATE, path, durable=False),
    "planes": lambda path: fastckpt.save(STATE, path, codec="planes", durable=False),
    "pt": lambda path: torch.save(STATE, path),
    "legacy": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda path: save_file(STATE, path),
}
WAYS: dict[str, Callable[..., Any]] = {
    "load": fastckpt.load,
    "keys": lambda path, **options: fastckpt.load(path, keys="*.0", **options),
    "few keys": lambda path, **options: fastckpt.load(path, keys="*1.7", **options),
    "stream": lambda path, **options: dict(fastckpt.stream(path, **options)),
    "verify": lambda path, **options: fastckpt.verify(path, **options).findings,
}


class Bucket:
    """Objects in memory, and the ranges that were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("obstore", reason="needs obstore, of the extra remote")
        from obstore.store import MemoryStore

        from fastckpt.remote.obstore_store import ObstoreStore

        self.store = MemoryStore()
        self.requests: list[tuple[Any, ...]] = []
        for name in ("get", "tail", "head"):
            monkeypatch.setattr(ObstoreStore, name, self._counted(name, getattr(ObstoreStore, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(store: object, key: str, *rest: Any) -> Any:
            self.requests.append((name, key, *rest[:2]))
            return call(store, key, *rest)

        return counted

    def put(self, path: Path) -> str:
        url = f"s3://bucket/{path.name}"
        place = located(url, self.store)
        put(place, path.read_bytes())
        self.requests.clear()
        return url


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    return Bucket(monkeypatch)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_takes_few_requests(bucket: Bucket, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a.{'fckpt' if name == 'planes' else 'pt' if name == 'legacy' else name}"
    FORMATS[name](path)
    url = bucket.put(path)
    for way, read in WAYS.items():
        bucket.requests.clear()
        there, here = read(url, storage_options=bucket.store), read(path)
        assert there == here if way == "verify" else assert_same(there, here) is None
        assert len(bucket.requests) <= 4 + -(-path.stat().st_size // RANGE), way


def test_a_tensor_of_a_pt_takes_its_bytes_and_the_pickle(bucket: Bucket, tmp_path: Path) -> None:
    """And not the header of every other tensor."""
    FORMATS["pt"](tmp_path / "a.pt")
    url = bucket.put(tmp_path / "a.pt")
    loaded = fastckpt.load(url, keys="0007.0", storage_options=bucket.store)
    assert_same(loaded, {"0007.0": STATE["0007.0"]})
    assert sum(stop - start for call, _, start, *rest in bucket.requests if call == "get" for stop in rest) < 1_200_000


@pytest.mark.parametrize("at", [0, 8, 26, 31, -20])
def test_a_header_that_no_load_looks_at_is_looked_at_by_verify(bucket: Bucket, tmp_path: Path, at: int) -> None:
    """Signature, method, length of the name, the name, and the padding of one of its records."""
    path = tmp_path / "a.pt"
    FORMATS["pt"](path)
    data = bytearray(path.read_bytes())
    header = data.index(b"PK\x03\x04", 3_000_000) if at >= 0 else data.index(b"ZZZZZZZZZZZZ", 3_000_000) + 20
    data[header + at] ^= 1
    path.write_bytes(data)
    here = fastckpt.verify(path)
    there = fastckpt.verify(bucket.put(path), storage_options=bucket.store)
    assert not here.ok
    assert (there.verdict, there.findings) == (here.verdict, here.findings)
