"""The names in a directory, read once and asked by every kind."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

from fastckpt.errors import DamagedError
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.source import read_small

MAX_JSON: Final = 256 * 2**20
"""Bytes of a JSON file that are read. The index of a model with a million tensors has some 150 MB."""

MAX_NAME: Final = 255
"""Bytes of a file name."""


class Listing:
    """A directory. Hidden names are saves in progress, and not looked at, but for ``.metadata``.

    Args:
        directory: The directory.
        named: Which of the names in it count; None are all of them.

    Raises:
        CheckpointIOError: It cannot be read.
    """

    def __init__(self, directory: str, named: Callable[[str], bool] | None = None) -> None:
        self.directory = directory
        with typed_os_errors(directory):
            self.names = sorted(name for name in os.listdir(directory) if named is None or named(name))

    def path(self, name: str) -> str:
        """The path of a name."""
        return os.path.join(self.directory, name)

    def matching(self, pattern: str) -> list[re.Match[str]]:
        """The names that a pattern describes from end to end."""
        compiled = re.compile(pattern)
        return [match for name in self.names if (match := compiled.fullmatch(name)) is not None]

    @cached_property
    def directories(self) -> list[str]:
        """The names of the directories in it."""
        return [name for name in self.names if not name.startswith(".") and os.path.isdir(self.path(name))]


def is_file_name(name: object) -> bool:
    """Whether a manifest names a file beside it by this: a name that a file can have, and no path."""
    if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name:
        return False
    try:
        return len(os.fsencode(name)) <= MAX_NAME
    except UnicodeEncodeError:
        return False


def read_json(path: str) -> Any:
    """What a JSON file says.

    Raises:
        CheckpointIOError: It cannot be read.
        DamagedError: It is no JSON, or larger than such files are.
    """
    content = read_small(path, limit=MAX_JSON)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        what = "is empty" if not content else f"is no valid JSON: {str(error)[:80]}"
        raise DamagedError(f"this file {what}", path=path, offset=getattr(error, "pos", 0)) from None
