"""Objects for tests, made as an upload makes them."""

from __future__ import annotations

from pathlib import Path

from fastckpt.io.upload import PART
from fastckpt.remote.path import RemotePath, located


def put(place: RemotePath, data: bytes) -> None:
    """Make or replace an object."""
    parts = place.store.begin(place.key, part_size=PART, workers=2)
    for at in range(0, len(data), PART):
        parts.send(memoryview(data)[at : at + PART])
    parts.complete()


def put_all(directory: Path, url: str) -> None:
    """Make objects of the files in a directory, below a URL that ends with a slash."""
    for path in directory.iterdir():
        put(located(url).joined(path.name), path.read_bytes())
