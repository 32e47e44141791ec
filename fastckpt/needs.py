"""What fastckpt needs only for some of what it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastckpt.errors import MissingPackageError


@contextmanager
def needs_torch(what: str) -> Iterator[None]:
    """A block that imports torch; where it is not installed, the error says how to get it.

    Args:
        what: What needs it, as the beginning of a sentence.

    Raises:
        MissingPackageError: torch is not installed. One that is, and that cannot be imported, says so itself.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingPackageError(
            f"{what} needs torch, which is not installed", next_step="pip install 'fastckpt[torch]'"
        ) from None


@contextmanager
def needs_remote(package: str, what: str) -> Iterator[None]:
    """A block that imports one of the packages of the extra ``remote``, as `needs_torch` does.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingPackageError(
            f"{what} needs {package}, which is not installed", next_step="pip install 'fastckpt[remote]'"
        ) from None
