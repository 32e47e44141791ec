"""Which texts are URLs, and what of them may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from fastckpt.errors import UsageError

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
"""A scheme has two letters or more: with one it would be a drive."""
WEB: Final = ("http", "https")
BUCKETS: Final = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss")
"""Schemes of buckets that obstore knows."""


@dataclass(frozen=True, slots=True)
class Url:
    """A URL, in its parts.

    Attributes:
        scheme: In small letters.
        bucket: What stands before the first slash: a bucket or container; of a web server host and port.
        key: What follows that slash, as stores have it: without percent signs, where the scheme has some.
        query: What follows a question mark in a web address; a secret, as of one that is signed.
        user: What stands before an ``@`` in front of the bucket; a secret of a web server, of Azure the container.
    """

    scheme: str
    bucket: str
    key: str
    query: str = ""
    user: str = ""

    @property
    def shown(self) -> str:
        """The URL for people: without a password, a signature or whatever else may be one."""
        return f"{self.scheme}://{self.bucket}/{self.key}"


def is_url(path: object) -> bool:
    """Whether something names a remote object: a text with a scheme, and not that of a local file."""
    return isinstance(path, str) and (found := _URL.match(path)) is not None and found[1].lower() != "file"


def local_path(path: str) -> str:
    """The path that a ``file://`` URL names; any other text as it is.

    Raises:
        UsageError: It names a file of another computer.
    """
    found = _URL.match(path)
    if found is None or found[1].lower() != "file":
        return path
    parts = urlsplit(path)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(
            "a file:// URL names a file of this computer", path=path, next_step="file:///PATH, or the path"
        )
    return unquote(parts.path)


def parse_url(text: str) -> Url:
    """A URL in its parts.

    Raises:
        UsageError: It is none, or names no bucket.
    """
    found = _URL.match(text)
    if found is None:
        raise UsageError("this is no URL", path=text)
    scheme, rest = found[1].lower(), text[found.end() :]
    bucket, _, key = rest.partition("/")
    query = ""
    if scheme in WEB:
        bucket = rest.partition("/")[0].partition("?")[0]
        key, _, query = rest[len(bucket) :].removeprefix("/").partition("#")[0].partition("?")
        key = unquote(key)
    user, _, bucket = bucket.rpartition("@")
    url = Url(scheme, bucket, key, query, user)
    if not bucket and scheme in (*WEB, *BUCKETS):
        raise UsageError("the URL names no bucket or server", path=url.shown)
    if "\0" in text:
        raise UsageError("a URL cannot have a NUL character in it", path=url.shown)
    return url
