"""A file is sealed anew after it was changed; the target is its sums file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fastckpt.constants import SUMS_SUFFIX
from fastckpt.sealing.seal import seal

_DIRECTORY = tempfile.TemporaryDirectory()
_FILES = {}
for _version in (1, 2):
    _FILES[_version] = Path(_DIRECTORY.name) / str(_version)
    _FILES[_version].write_bytes(bytes([_version]) * 100_000)


def save(path: str, version: int) -> None:
    file = path.removesuffix(SUMS_SUFFIX)
    if os.path.lexists(file):
        os.unlink(file)
    # The file itself is not in the directory whose calls are counted.
    os.symlink(_FILES[version], file)
    seal(file, update=True)
