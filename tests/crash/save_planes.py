"""The same state with planes: the native core encodes and writes, past the page cache where it can."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

from fastckpt import save as save_state

_STATES = run_path(str(Path(__file__).with_name("save_state.py")))["_STATES"]


def save(path: str, version: int) -> None:
    save_state(_STATES[version], path, codec="planes", durable=True, threads=2)
