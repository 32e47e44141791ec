"""What sums files are called, and the files in them."""

from __future__ import annotations

import os

from fastckpt.constants import SUMS_SUFFIX
from fastckpt.io.os_errors import file_path


def sums_path(path: str | os.PathLike[str]) -> str:
    """Where the sums file of a file is."""
    return file_path(path) + SUMS_SUFFIX


def is_sums_path(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a sums file, by its name."""
    return file_path(path).endswith(SUMS_SUFFIX)


def sealed_name(path: str | os.PathLike[str]) -> str:
    """The name of a file as a sums file has it: bytes of it that are no text are written in hexadecimal."""
    return os.fsencode(os.path.basename(file_path(path))).decode("utf-8", "backslashreplace")
