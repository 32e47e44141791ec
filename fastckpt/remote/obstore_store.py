"""A `Store` over obstore: S3, Google, Azure and what speaks their language, and web servers."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import obstore
from obstore import exceptions
from obstore.store import AzureStore, from_url

from fastckpt.errors import CheckpointNotFoundError, FastckptError, UsageError
from fastckpt.remote import failures
from fastckpt.remote.obstore_parts import ObstoreParts
from fastckpt.remote.store import Listed, Version
from fastckpt.remote.url import Url
from fastckpt.remote.waiting import call, require_not_forked

if TYPE_CHECKING:
    from obstore import GetOptions

T = TypeVar("T")

_CLIENT: Final = {"connect_timeout": "5s", "read_timeout": "20s", "timeout": "10min"}
"""How long to wait for a connection, for the next bytes, and for a whole request."""
_RETRIES: Final = {
    "max_retries": 4,
    "retry_timeout": timedelta(minutes=1),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}
"""What obstore tries again by itself: requests that were not answered, or with a server's error."""
_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_ATTEMPTS: Final = 3
"""How often an answer that breaks off is asked for, in all."""
_PAUSE: Final = 0.1
_OTHER_RANGE: Final = re.compile(r"Requested (\d+\.\.\d+), got (\d+\.\.\d+)")
_DISTINCT: Final = 1.5
"""Seconds after which the time in whole seconds is another one, with half of one for clocks that do not agree."""


def open_obstore(url: Url, options: Mapping[str, Any]) -> Any:
    """obstore's own object for the bucket or server of a URL.

    Args:
        url: The key of it does not count.
        options: ``client_options`` and ``retry_config`` add to what is set here; the rest is for obstore.

    Raises:
        UsageError: obstore does not know an option, or cannot use it.
    """
    if not options:
        return _kept_open(url.scheme, url.bucket, url.user, url.query, frozenset(os.environ.items()))
    return _opened(url, options)


@lru_cache(maxsize=8)
def _kept_open(scheme: str, bucket: str, user: str, query: str, environment: frozenset[tuple[str, str]]) -> Any:
    """A store with its connections, which take longer to begin than a small request does.

    Args:
        environment: All that it is made of besides; another one may have other credentials.
    """
    return _opened(Url(scheme, bucket, "", query, user), {})


def _opened(url: Url, options: Mapping[str, Any]) -> Any:
    rest: dict[str, Any] = dict(options)
    for name in ("client_options", "retry_config"):
        if not isinstance(rest.get(name) or {}, Mapping):
            raise UsageError(f"the option {name} is a mapping of names")
    client: Any = {**_CLIENT, "allow_http": _is_plain(url, rest), **(rest.pop("client_options", None) or {})}
    retries: Any = {**_RETRIES, **(rest.pop("retry_config", None) or {})}
    user = f"{url.user}@" if url.user else ""
    query = f"?{url.query}" if url.query else ""
    try:
        return from_url(
            f"{url.scheme}://{user}{url.bucket}/{query}", client_options=client, retry_config=retries, **rest
        )
    except (exceptions.BaseError, TypeError, ValueError) as error:
        # Its text may hold a value: only what the options are called is said.
        names = ", ".join(sorted(map(str, options)))
        raise UsageError(
            f"obstore cannot open the store ({type(error).__name__})",
            path=f"{url.scheme}://{url.bucket}/",
            actual=f"the options {names}" if names else None,
            next_step="see the documentation of obstore for the options of each store",
        ) from None


def _is_plain(url: Url, options: Mapping[str, Any]) -> bool:
    """Whether the server was named with ``http://``: whoever does that wants no TLS."""
    named = [str(value) for name, value in options.items() if "endpoint" in str(name).lower()]
    named += [os.environ.get(name, "") for name in _ENDPOINTS]
    return url.scheme == "http" or any(address.lower().startswith("http://") for address in named)


class ObstoreStore:
    """See `fastckpt.remote.store.Store`.

    Args:
        store: obstore's own object.
        base: What stands before a key in the URL of an object, for messages.
    """

    conditional = True

    def __init__(self, store: Any, base: str) -> None:
        self._store = store
        self._base = base

    def head(self, key: str) -> Version:
        return self._wait(key, lambda: _version(obstore.head(self._store, key)))

    def tail(self, key: str, size: int) -> tuple[Version, memoryview]:
        def ask() -> tuple[Version, memoryview] | None:
            try:
                answer = obstore.get(self._store, key, options={"range": {"suffix": size}})
            except exceptions.BaseError as error:
                if _is_no_range(error):  # An object without bytes has no last ones.
                    return None
                _refuse_other_range(error)
                raise
            version = _version(answer.meta)
            if (left := _until_distinct(version)) > 0:
                time.sleep(left)
                return ask()
            return version, _body(answer, min(size, version.size))

        # Azure has no ranges that count from the end.
        if not isinstance(self._store, AzureStore) and (found := self._wait(key, ask)) is not None:
            return found
        version = self.head(key)
        if not version.size:
            return version, memoryview(b"")
        return version, call(lambda: self.get(key, max(0, version.size - size), version.size, version)).result()

    def get(self, key: str, start: int, stop: int, version: Version) -> memoryview:
        options: GetOptions = {"range": (start, stop)}
        if version.etag is not None and not version.etag.startswith("W/"):  # A weak one matches nothing.
            options["if_match"] = version.etag

        def ask() -> memoryview:
            try:
                answer = obstore.get(self._store, key, options=options)
            except exceptions.BaseError as error:
                if _is_no_range(error):  # It has become shorter.
                    raise failures.changed(self._base + key, offset=start) from None
                _refuse_other_range(error)
                raise
            if _version(answer.meta) != version:  # Not every server looks at the condition.
                raise failures.changed(self._base + key, offset=start)
            return _body(answer, stop - start)

        return self._tried(key, ask, offset=start)

    def begin(self, key: str, *, part_size: int, workers: int) -> ObstoreParts:
        writer = obstore.open_writer(self._store, key, buffer_size=part_size, max_concurrency=workers)
        return ObstoreParts(
            writer, part_size=part_size, workers=workers, begin=lambda work: call(partial(self._tried, key, work))
        )

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                self._wait(key, partial(obstore.delete, self._store, key))
            except CheckpointNotFoundError:
                continue

    def list_here(self, prefix: str) -> tuple[Sequence[str], Sequence[Listed]]:
        found = self._wait(prefix, lambda: obstore.list_with_delimiter(self._store, prefix or None))
        return found["common_prefixes"], [Listed(item["path"], _version(item)) for item in found["objects"]]

    def _wait(self, key: str, ask: Callable[[], T]) -> T:
        """Make a request while Ctrl-C is heard."""
        return call(lambda: self._tried(key, ask)).result()

    def _tried(self, key: str, ask: Callable[[], T], *, offset: int | None = None) -> T:
        """Make a request, again if its answer breaks off, and say in our words what became of it."""
        require_not_forked()
        path = self._base + key
        pause = _PAUSE
        for _ in range(_ATTEMPTS):
            try:
                return ask()
            except BrokenAnswerError as error:
                last: Exception = error
            except FastckptError:
                raise
            except Exception as error:
                raise _translated(error, path, offset) from None
            time.sleep(pause)
            pause *= 2
        raise failures.failed(path, f"{_ATTEMPTS} times {last}", offset=offset)


class BrokenAnswerError(Exception):
    """An answer that began, and did not come to its end."""


def _body(answer: Any, size: int) -> memoryview:
    try:
        data = memoryview(answer.bytes()).cast("B")
    except exceptions.BaseError:
        raise BrokenAnswerError("the answer broke off") from None
    if data.nbytes != size:
        raise BrokenAnswerError(f"the answer had {data.nbytes} bytes, where {size} were asked for")
    return data


def _is_no_range(error: Exception) -> bool:
    """Whether the object does not have the bytes that were asked for."""
    return "status code: 416" in str(error)


def _refuse_other_range(error: Exception) -> None:
    """Raise BrokenAnswerError if an error of obstore says that other bytes came than were asked for."""
    if (found := _OTHER_RANGE.search(str(error))) is not None:
        raise BrokenAnswerError(f"the answer had the bytes {found[2]}, where {found[1]} were asked for") from None


def _version(meta: Any) -> Version:
    return Version(meta["size"], meta["e_tag"], meta["last_modified"].timestamp())


def _until_distinct(version: Version) -> float:
    """Seconds until whatever replaces an object must have another version.

    Without an ETag that is the time it was written at, which web servers give in whole seconds: what replaces it within
    the same one looks the same. Of one that was written just now it is better to wait: then all later ones differ.
    """
    if version.etag is not None or version.modified % 1:
        return 0.0
    age = time.time() - version.modified
    return _DISTINCT - age if 0 <= age < _DISTINCT else 0.0


def _translated(error: Exception, path: str, offset: int | None) -> Exception:
    """The typed error for one of obstore's. The text of that can hold secrets: only `failures` uses it."""
    why = str(error)
    if isinstance(error, FileNotFoundError) or "status code: 404" in why:  # The second is said of a listing.
        return failures.missing(path, why)
    if isinstance(error, exceptions.PreconditionError):
        return failures.changed(path, offset=offset)
    # Of a listing obstore says it only in its text.
    denied = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
    if denied or "status code: 401" in why or "status code: 403" in why:
        return failures.refused(path, why)
    if "object with invalid path" in why:
        return failures.unusable_name(path, why)
    if isinstance(error, exceptions.NotSupportedError):
        return failures.without_ranges(path)
    return failures.failed(path, why, offset=offset)
