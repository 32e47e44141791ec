"""Which files of a directory are sealed, each by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator

from fastckpt.constants import MODEL_SIGNATURE, SUMS_SUFFIX
from fastckpt.io.os_errors import exists, typed_os_errors
from fastckpt.seals.names import is_sums_path, stands_beside, sums_path


def files_to_seal(directory: str) -> Iterator[str]:
    """Yield every file in a directory and those inside it, in order of names.

    Left out are sums files, damaged ones that made room for healed ones and a ``model.sig`` (which signs what is
    sealed), unless they have a seal themselves; hidden files, which are those of version control and of saves in
    progress, and directories that a symbolic link leads to.

    Raises:
        CheckpointIOError: A directory cannot be listed.
    """
    for path in _every_file(directory):
        is_left_out = stands_beside(path) or os.path.basename(path) == MODEL_SIGNATURE
        if not is_left_out or (not is_sums_path(path) and exists(sums_path(path))):
            yield path


def sealed_files_gone(directory: str) -> Iterator[str]:
    """Yield the path of every file that has a seal in a directory, or inside it, and is not there itself.

    Raises:
        CheckpointIOError: A directory cannot be listed.
    """
    for path in _every_file(directory):
        if is_sums_path(path) and not os.path.exists(path.removesuffix(SUMS_SUFFIX)):
            yield path.removesuffix(SUMS_SUFFIX)


def _every_file(directory: str) -> Iterator[str]:
    with typed_os_errors(directory, doing="list the directory"):
        names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    for name in names:
        path = os.path.join(directory, name)
        if not os.path.isdir(path):
            yield path
        elif not os.path.islink(path):
            yield from _every_file(path)
