"""`open_foreign` for tests that have a path and want the structure alone."""

from __future__ import annotations

import os

from fastckpt.foreign.model import ForeignFile
from fastckpt.foreign.open_foreign import open_foreign as open_source
from fastckpt.io.source import Source


def open_foreign(path: str | os.PathLike[str]) -> ForeignFile:
    """The structure of the file at ``path``."""
    with Source(path) as source:
        return open_source(source)
