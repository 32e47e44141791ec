"""The smallest save: a few writes through the commit protocol."""

from __future__ import annotations

from fastckpt.io.commit import Commit

CHUNK = 5000
CHUNKS = 4


def save(path: str, version: int, *, durable: bool = True) -> None:
    size = CHUNK * CHUNKS + version
    with Commit(path, durable=durable, reserve=size) as sink:
        sink.preallocate(size + 4096)
        for number in range(CHUNKS):
            sink.write(number * CHUNK, bytes([16 * version + number]) * CHUNK)
        sink.write(CHUNK * CHUNKS, b"!" * version)
        sink.finish(size)
