"""A file that a commit replaces, and what is left where it does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

OLD = b"old" * 1000
NEW = b"new" * 2000


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def check_untouched(target: Path) -> None:
    """The old file is as it was, and nothing lies beside it."""
    assert target.read_bytes() == OLD
    assert files(target.parent) == [target.name]


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def fail_with(code: int) -> Callable[..., int]:
    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail
