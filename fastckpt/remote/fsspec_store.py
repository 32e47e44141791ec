"""A `Store` over fsspec: the hub (``hf://``), and what else has a file system there. Its calls block a thread."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from fastckpt.errors import CheckpointNotFoundError, FastckptError, UsageError
from fastckpt.remote import failures
from fastckpt.remote.fsspec_parts import FsspecParts, MemoryParts
from fastckpt.remote.store import Listed, Version
from fastckpt.remote.waiting import call, require_not_forked

T = TypeVar("T")

_ATTEMPTS: Final = 3
_ETAGS: Final = ("ETag", "etag", "e_tag", "blob_id", "oid", "md5Hash", "sha", "checksum")
"""What file systems call that which another content has otherwise."""
_TIMES: Final = ("LastModified", "last_modified", "mtime", "updated", "created")


def open_fsspec(scheme: str, options: Mapping[str, Any]) -> Any:
    """The file system that fsspec has for a scheme.

    Raises:
        UsageError: It knows none, lacks the package for it, or does not take the options.
    """
    try:
        return fsspec.filesystem(scheme, **options)
    except (ImportError, ValueError, TypeError) as error:
        why = str(error) if isinstance(error, ImportError) or not options else type(error).__name__
        raise UsageError(
            f"fsspec opens no {scheme}://{failures.said(why)}",
            next_step="pip install huggingface_hub" if scheme == "hf" and isinstance(error, ImportError) else None,
        ) from None


class FsspecStore:
    """See `fastckpt.remote.store.Store`.

    Args:
        files: A file system of fsspec.
        base: What stands before a key in the URL of an object, for messages.
    """

    conditional = False

    def __init__(self, files: Any, base: str) -> None:
        self._files = files
        self._base = base

    def head(self, key: str) -> Version:
        def ask() -> Version:
            self._files.invalidate_cache()  # What it was a while ago is not the question.
            return _version(self._files.info(self._name(key)))

        return self._wait(key, ask)

    def tail(self, key: str, size: int) -> tuple[Version, memoryview]:
        version = self.head(key)
        if not version.size:
            return version, memoryview(b"")
        return version, call(lambda: self.get(key, max(0, version.size - size), version.size, version)).result()

    def get(self, key: str, start: int, stop: int, version: Version) -> memoryview:
        def fetch() -> memoryview:
            for _ in range(_ATTEMPTS):
                data = memoryview(self._files.cat_file(self._name(key), start=start, end=stop)).cast("B")
                if data.nbytes == stop - start:
                    return data
            raise failures.failed(self._base + key, f"{data.nbytes} bytes came of {stop - start}", offset=start)

        return self._translated(key, fetch, offset=start)

    def begin(self, key: str, *, part_size: int, workers: int) -> FsspecParts | MemoryParts:
        def do(work: Callable[[], T]) -> T:
            return self._wait(key, work)

        name = self._name(key)
        if isinstance(self._files, MemoryFileSystem):
            return MemoryParts(self._files, name, do)
        file = do(lambda: self._files.open(name, "wb", block_size=part_size, autocommit=False))
        return FsspecParts(file, do)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            if self._wait(key, lambda key=key: self._files.exists(self._name(key))):  # type: ignore[misc]
                self._wait(key, lambda key=key: self._files.rm_file(self._name(key)))  # type: ignore[misc]

    def list_here(self, prefix: str) -> tuple[Sequence[str], Sequence[Listed]]:
        def ask() -> Any:
            self._files.invalidate_cache()  # As for `head`.
            return self._files.ls(self._name(prefix), detail=True)

        try:
            found = self._wait(prefix, ask)
        except CheckpointNotFoundError:
            return [], []  # As of any store: a directory is what the keys begin with.
        folders = [self._key(item["name"]) for item in found if item["type"] == "directory"]
        return folders, [Listed(self._key(item["name"]), _version(item)) for item in found if item["type"] == "file"]

    def _name(self, key: str) -> str:
        return str(self._files._strip_protocol(self._base + key))

    def _key(self, name: str) -> str:
        return name.removeprefix(self._name("")).lstrip("/")

    def _wait(self, key: str, work: Callable[[], T]) -> T:
        """Make a call while Ctrl-C is heard."""
        return call(lambda: self._translated(key, work)).result()

    def _translated(self, key: str, work: Callable[[], T], *, offset: int | None = None) -> T:
        """Make a call, and say in our words what becomes of it."""
        require_not_forked()
        path = self._base + key
        try:
            return work()
        except FastckptError:
            raise
        except FileNotFoundError:
            raise failures.missing(path) from None
        except PermissionError as error:
            raise failures.refused(path, str(error)) from None
        except Exception as error:
            if getattr(error, "errno", None) == errno.ENOENT:
                raise failures.missing(path) from None
            raise failures.failed(path, str(error), offset=offset) from None


def _version(info: Mapping[str, Any]) -> Version:
    etag = next((str(info[name]) for name in _ETAGS if info.get(name)), None)
    when = next((info[name] for name in _TIMES if info.get(name)), 0.0)
    modified = when.timestamp() if isinstance(when, datetime) else float(when) if isinstance(when, int | float) else 0.0
    return Version(int(info["size"] or 0), etag, modified)
