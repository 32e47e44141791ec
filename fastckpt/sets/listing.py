"""The names in a directory, read once and asked by every kind."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from fastckpt.errors import CheckpointNotFoundError, DamagedError
from fastckpt.io.os_errors import typed_os_errors
from fastckpt.io.there import read_whole
from fastckpt.remote.path import Place, RemotePath

if TYPE_CHECKING:
    from fastckpt.remote.store import Version

MAX_JSON: Final = 256 * 2**20
"""Bytes of a JSON file that are read. The index of a model with a million tensors has some 150 MB."""

MAX_NAME: Final = 255
"""Bytes of a file name."""


class Listing:
    """A directory, here or in a store. Hidden names are saves in progress, and not looked at, but for ``.metadata``.

    In a store the listing says which version of each object is meant: another one that is opened later is an error.

    Args:
        directory: The directory.
        named: Which of the names in it count; None are all of them.

    Attributes:
        directory: Its path; in a store with a slash at its end.
        names: What is in it, in order.

    Raises:
        CheckpointNotFoundError: There is nothing below this prefix of a store.
        CheckpointIOError: It cannot be read.
    """

    def __init__(self, directory: Place, named: Callable[[str], bool] | None = None) -> None:
        self._inner: dict[str, Listing] = {}
        self._objects: dict[str, Version] = {}
        folders: list[str] = []
        if isinstance(directory, RemotePath):
            directory = directory.joined("")
            folders, self._objects = _in_store(directory)
            names = [*folders, *self._objects]
        else:
            with typed_os_errors(directory):
                names = os.listdir(directory)
        self._place = directory
        self.directory = os.fspath(directory)
        self.names = sorted(name for name in names if named is None or named(name))
        self._folders = frozenset(folders).intersection(self.names)

    @property
    def name(self) -> str:
        """What the directory is called."""
        is_here = isinstance(self._place, str)
        return os.path.basename(os.path.abspath(self.directory) if is_here else self.directory.rstrip("/"))

    def place(self, name: str) -> Place:
        """Where a name is: what opens it."""
        if isinstance(self._place, str):
            return os.path.join(self._place, name)
        return self._place.at(self._place.key + name, self._objects.get(name))

    def path(self, name: str) -> str:
        """The path of a name."""
        return os.fspath(self.place(name))

    def matching(self, pattern: str) -> list[re.Match[str]]:
        """The names that a pattern describes from end to end."""
        compiled = re.compile(pattern)
        return [match for name in self.names if (match := compiled.fullmatch(name)) is not None]

    def is_file(self, name: str) -> bool:
        """Whether a name is that of a file."""
        return os.path.isfile(self.path(name)) if isinstance(self._place, str) else name in self._objects

    def is_directory(self, name: str) -> bool:
        """Whether a name is that of a directory."""
        if isinstance(self._place, str):
            return os.path.isdir(self.path(name))
        return name in self._folders

    @cached_property
    def directories(self) -> list[str]:
        """The names of the directories in it."""
        return [name for name in self.names if not name.startswith(".") and self.is_directory(name)]

    def inner(self, name: str) -> Listing:
        """What is in a directory in it. Raises CheckpointIOError."""
        if name not in self._inner:
            self._inner[name] = Listing(self.place(name))
        return self._inner[name]


def _in_store(directory: RemotePath) -> tuple[list[str], dict[str, Version]]:
    """The names of the prefixes and of the objects directly below one."""
    start = len(directory.key)
    folders, objects = directory.store.list_here(directory.key)
    found = {each.key[start:]: each.version for each in objects}
    found.pop("", None)  # Some programs put an empty object where a directory would be.
    inner = [folder.rstrip("/")[start:] for folder in folders]
    if not inner and not found:
        raise CheckpointNotFoundError(
            "not found: nothing begins with this in the store",
            errno=errno.ENOENT,
            path=directory,
            next_step="check the URL",
        )
    return inner, found


def is_file_name(name: object) -> bool:
    """Whether a manifest names a file beside it by this: a name that a file can have, and no path."""
    if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name:
        return False
    try:
        return len(os.fsencode(name)) <= MAX_NAME
    except UnicodeEncodeError:
        return False


def read_json(place: Place) -> Any:
    """What a JSON file says.

    Raises:
        CheckpointIOError: It cannot be read.
        DamagedError: It is no JSON, or larger than such files are.
    """
    content = read_whole(place, limit=MAX_JSON)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        what = "is empty" if not content else f"is no valid JSON: {str(error)[:80]}"
        raise DamagedError(f"this file {what}", path=place, offset=getattr(error, "pos", 0)) from None
