"""What sums files are called, and the files in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final

from fastckpt.constants import SUMS_SUFFIX
from fastckpt.io.os_errors import exists, path_text

DAMAGED_SUFFIX: Final = ".damaged"
"""What follows the name of a damaged file that made room for the healed one; then a number, where there are several."""
_KEPT: Final = re.compile(re.escape(DAMAGED_SUFFIX) + "([.][1-9][0-9]*)?$")


def stands_beside(path: str | os.PathLike[str]) -> bool:
    """Whether a file belongs to another one, by its name: its sums, or what it was before it was healed."""
    return is_sums_path(path) or _KEPT.search(path_text(path)) is not None


def sums_path(path: str | os.PathLike[str]) -> str:
    """Where the sums file of a file is."""
    return path_text(path) + SUMS_SUFFIX


def with_sums(paths: Iterable[str]) -> list[str]:
    """Files, each behind its sums file, if there is one."""
    return [each for path in paths for each in (sums_path(path), path) if each == path or exists(each)]


def is_sums_path(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a sums file, by its name."""
    return path_text(path).endswith(SUMS_SUFFIX)


def sealed_name(path: str | os.PathLike[str]) -> str:
    """The name of a file as a sums file has it: bytes of it that are no text are written in hexadecimal."""
    return os.fsencode(os.path.basename(path_text(path))).decode("utf-8", "backslashreplace")
