"""Where a remote object is: what stands for a path wherever fastckpt takes one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from fastckpt.errors import UsageError
from fastckpt.needs import needs_remote
from fastckpt.remote.url import BUCKETS, WEB, Url, is_url, local_path, parse_url, refuse_url

if TYPE_CHECKING:
    from fastckpt.remote.store import Store, Version

Options: TypeAlias = "Mapping[str, Any] | Any"
"""``storage_options``: what obstore or fsspec takes, by name; or a store of obstore that is open already."""


class RemotePath(os.PathLike[str]):
    """A key in a store. As text, and in messages, it is its URL without secrets.

    Attributes:
        store: Where it lies.
        key: What it is called there; a directory has a slash at its end, or is empty.
        seen: The version that a listing has shown: what is opened must be that one. None if nobody has looked.
    """

    def __init__(self, store: Store, base: str, key: str, seen: Version | None = None) -> None:
        self.store = store
        self._base = base
        self.key = key
        self.seen = seen

    def __fspath__(self) -> str:
        return self._base + self.key

    def __str__(self) -> str:
        return self._base + self.key

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    @property
    def is_directory(self) -> bool:
        """Whether it is named as one."""
        return not self.key or self.key.endswith("/")

    @property
    def parent(self) -> RemotePath:
        """The directory that it is in."""
        return self.at(self.key.removesuffix("/").rpartition("/")[0]).joined("")

    def joined(self, name: str) -> RemotePath:
        """What has this name in the directory that this is."""
        return self.at(f"{self.key}{'/' if self.key and not self.key.endswith('/') else ''}{name}")

    def beside(self, suffix: str) -> RemotePath:
        """What is called as this is, and has more at its end."""
        return self.at(self.key + suffix)

    def at(self, key: str, seen: Version | None = None) -> RemotePath:
        """Another key in the same store."""
        return RemotePath(self.store, self._base, key, seen)


Place: TypeAlias = Union[str, RemotePath]  # noqa: UP007
"""What names a file or directory: a path here, or where it is in a store."""


def as_place(path: str | os.PathLike[str]) -> Place:
    """A path of any kind as a `Place`."""
    return path if isinstance(path, RemotePath) else os.fspath(path)


def located(path: Any, storage_options: Options | None = None) -> Any:
    """What a user named: a URL as a `RemotePath`, a ``file://`` URL as the path in it, all else as it is.

    Args:
        path: A path, URL or file object.
        storage_options: See `Options`.

    Raises:
        UsageError: Options for what is not remote, unknown ones, or a package is missing; a URL that is no text.
    """
    if isinstance(path, RemotePath) and storage_options is None:
        return path
    if isinstance(path, str):
        if is_url(path):
            return _remote(parse_url(path), storage_options)
        path = local_path(path)
    if isinstance(path, str | bytes | os.PathLike) and not isinstance(path, RemotePath):
        refuse_url(os.fsdecode(path))
    if storage_options:
        raise UsageError("storage_options are for a URL, as s3://BUCKET/KEY is", path=str(path))
    return path


def _remote(url: Url, options: Options | None) -> RemotePath:
    base = f"{url.scheme}://{url.bucket}/"
    what = f"a file at {url.scheme}://"
    if isinstance(options, str | bytes):  # It may be a secret.
        raise UsageError("storage_options are a mapping of names, or a store of obstore", path=url.shown)
    ready = None if options is None or isinstance(options, Mapping) else options
    given = options if isinstance(options, Mapping) else {}
    store: Store
    if ready is not None or url.scheme in (*WEB, *BUCKETS):
        with needs_remote("obstore", what):
            from fastckpt.remote.obstore_store import ObstoreStore, open_obstore
        _require_key(url)
        store = ObstoreStore(ready or open_obstore(url, given), base)
    else:
        with needs_remote("fsspec", what):
            from fastckpt.remote.fsspec_store import FsspecStore, open_fsspec
        store = FsspecStore(open_fsspec(url.scheme, given), base)
    return RemotePath(store, base, url.key)


def _require_key(url: Url) -> None:
    """Raise UsageError for a key that obstore refuses, or takes for another one."""
    parts = url.key.removesuffix("/").split("/") if url.key else []
    if not {"", ".", ".."}.isdisjoint(parts) or any(
        ord(character) < 32 or character == "\x7f" for character in url.key
    ):
        raise UsageError(
            "no part of a key can be empty, . or .., or have a control character in it",
            path=url.shown,
            next_step="check the URL",
        )
