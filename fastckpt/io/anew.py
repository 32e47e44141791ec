"""Bytes that are not as a digest says, asked for again: of a remote file they may have changed on their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from fastckpt.io.source import Source

T = TypeVar("T")


def until_right(source: Source, bad: Sequence[T], again: Callable[[Sequence[T]], Sequence[T]]) -> Sequence[T]:
    """Ask for what is bad again, as often as `Source.attempts` says.

    Args:
        source: The file.
        bad: What is not as its digest says.
        again: Reads these once more; returns which of them are still bad.

    Returns:
        What is bad however often it is read.
    """
    for _ in range(source.attempts - 1):
        if not bad:
            break
        source.drop_cache()  # The wrong ones may be kept: the last bytes of an object come with its first request.
        bad = again(bad)
    return bad


def read_until(source: Source, read: Callable[[], bytes], is_right: Callable[[bytes], bool]) -> bytes:
    """What ``read`` gives; while it is not right it is asked for again, as often as `Source.attempts` says.

    Whoever gets it looks at it, too: of a file here, which has one attempt, nothing is looked at twice.
    """
    found = read()
    for _ in range(source.attempts - 1):
        if is_right(found):
            break
        source.drop_cache()
        found = read()
    return found
