"""Which texts are URLs, and what of them may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from fastckpt.errors import UsageError

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
"""A scheme has two letters or more: with one it would be a drive."""
WEB: Final = ("http", "https")
BUCKETS: Final = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss")
"""Schemes of buckets that obstore knows."""
_SCHEMES: Final = (*WEB, *BUCKETS, "hf", "file")
"""Schemes that are taken for one also where a slash is lost."""
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(:[0-9]*)?")
_USER: Final = r"(?:[^/\s@]*@|[^/\s:@]+:(?!\d+/)[^\s@]*@)?"
"""What stands in front of a server. A password may have a slash in it, though it should not."""
_IN_TEXT: Final = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]+://){_USER}([^\s?\"')]*)(?:\?[^\s\"')]*)?")
_ONE_SLASH: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


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
        UsageError: It names none, or a file of another computer.
    """
    found = _URL.match(path)
    if found is None or found[1].lower() != "file":
        return path
    host, slash, name = path[found.end() :].partition("/")
    if host not in ("", "localhost") or not name:
        raise UsageError(
            "a file:// URL names a file of this computer", path=path, next_step="file:///PATH, or the path"
        )
    if "?" in name or "#" in name:  # What follows is no part of the path, and another file would be meant.
        raise UsageError("a file:// URL has %3F for ? and %23 for #", path=path, next_step="name the path in it")
    return unquote(slash + name)


def hide_secrets(text: str) -> str:
    """A text for people: of each URL in it without a password in front of a server's name, and without its query."""
    return _IN_TEXT.sub(r"\1\2", text)


def refuse_url(path: str) -> None:
    """Raise UsageError for a URL where only a path can stand: taken for one, it would name a directory ``s3:`` here."""
    if (found := _URL.match(path)) is not None:
        is_file = found[1].lower() == "file"
        raise UsageError(
            "this takes no URL, only a path",
            path=path if is_file else parse_url(path).shown,
            next_step="name the path in it" if is_file else "work on a local copy: fastckpt convert URL FILE",
        )
    if (found := _ONE_SLASH.match(path)) is not None and found[1].lower() in _SCHEMES:
        raise UsageError(
            "this was a URL: a pathlib.Path of it has lost a slash",
            path=path,
            next_step="give the URL as text; of a directory that is called so, ./ in front of the path",
        )


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
    if not bucket and scheme in (*WEB, *BUCKETS):
        raise UsageError("the URL names no bucket or server", path=f"{scheme}://")
    if (scheme in WEB and _HOST.fullmatch(bucket) is None) or (
        scheme in ("s3", "s3a", "gs") and (user or ":" in bucket)
    ):
        # What stands there may be a part of a secret, which can have a slash in it: nothing is shown.
        raise UsageError(
            "there is no name of a bucket or server behind the ://",
            path=f"{scheme}://",
            next_step="give credentials in the environment or as storage_options, not in the URL",
        )
    url = Url(scheme, bucket, key, query, user)
    if "\0" in text:
        raise UsageError("a URL cannot have a NUL character in it", path=url.shown)
    return url
