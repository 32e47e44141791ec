"""What the user asks of a conversion, of a file or of a directory."""

from __future__ import annotations

from dataclasses import dataclass

from fastckpt.io.transfer import Progress


@dataclass(frozen=True, slots=True)
class Request:
    """How to convert; see `fastckpt.convert`."""

    codec: str
    exact: bool
    durable: bool
    replace: bool
    strip_prefix: str | None
    threads: int | None
    progress: Progress | None
    keys: str | None = None
    copy_shared: bool = False
    shard_size: int | None = None
