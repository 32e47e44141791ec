"""The same save without fsync: what the power-cut simulation must find fault with."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path

_save = run_path(str(Path(__file__).with_name("save_with_commit.py")))["save"]


def save(path: str, version: int) -> None:
    _save(path, version, durable=False)
