"""nanochat's ``meta_*.json``: read in one way, and never more of it than such a file has."""

from __future__ import annotations

import json
from typing import Any, Final

from fastckpt.errors import DamagedError
from fastckpt.io.source import read_small

MAX_META_SIZE: Final = 16 * 2**20
"""nanochat's are about 2 kB."""
MADE_ANEW: Final = "made_anew"
"""The key under which a meta file that a command of doctor made lists the entries that are not those of a save."""


def made_anew(meta: dict[str, Any]) -> list[str]:
    """Which entries of a meta file are not those of a save, if it says so."""
    names = meta.get(MADE_ANEW)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def read_meta_bytes(path: str) -> bytes:
    """The bytes as they are: what nanochat writes is not always JSON (a bare ``Infinity``).

    Raises:
        DamagedError: The file is larger than `MAX_META_SIZE`.
        CheckpointIOError: The system could not read it.
    """
    return read_small(path, limit=MAX_META_SIZE)


def parse_meta(data: bytes, path: str) -> Any:
    """What a meta file of these bytes holds, as Python reads it. Raises DamagedError if it is not whole JSON."""
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        message = f"it is not whole JSON{line}, as an interrupted save leaves it" if data else "it is empty"
        raise DamagedError(message, path=path) from None


def read_meta(path: str) -> dict[str, Any]:
    """The dict in a meta file.

    Example:
        >>> read_meta("d12/meta_000500.json")["val_bpb"]  # doctest: +SKIP
        0.8216

    Raises:
        DamagedError: It is not whole JSON, not a dict, or larger than `MAX_META_SIZE`.
        CheckpointIOError: The system could not read it, which says nothing about what it holds.
    """
    meta = parse_meta(read_meta_bytes(path), path)
    if not isinstance(meta, dict):
        raise DamagedError("it does not hold a dict", path=path)
    return meta
