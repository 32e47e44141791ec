"""How a file is written: what travels from a call of the user down to what moves its bytes."""

from __future__ import annotations

from dataclasses import dataclass

from fastckpt.io.transfer import Progress


@dataclass(frozen=True, slots=True)
class How:
    """How a file is written.

    Attributes:
        threads: Worker threads.
        durable: Return only when the file survives a power cut.
        progress: Called with the bytes written so far.
    """

    threads: int
    durable: bool = True
    progress: Progress | None = None
