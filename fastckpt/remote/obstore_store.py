"""A `Store` over obstore: S3, Google, Azure and what speaks their language, and web servers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import obstore
from obstore import exceptions
from obstore.store import AzureStore, from_url

from fastckpt.errors import CheckpointNotFoundError, FastckptError, UsageError
from fastckpt.remote import failures
from fastckpt.remote.obstore_parts import ObstoreParts
from fastckpt.remote.store import Listed, Version
from fastckpt.remote.url import Url
from fastckpt.remote.waiting import Request

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


def open_obstore(url: Url, options: Mapping[str, Any]) -> Any:
    """obstore's own object for the bucket or server of a URL.

    Args:
        url: The key of it does not count.
        options: ``client_options`` and ``retry_config`` add to what is set here; the rest is for obstore.

    Raises:
        UsageError: obstore does not know an option, or cannot use it.
    """
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
        async def ask() -> Version:
            return _version(await obstore.head_async(self._store, key))

        return self._request(key, ask).result()

    def tail(self, key: str, size: int) -> tuple[Version, memoryview]:
        async def ask() -> tuple[Version, memoryview]:
            answer = await obstore.get_async(self._store, key, options={"range": {"suffix": size}})
            version = _version(answer.meta)
            return version, await _body(answer, min(size, version.size))

        if not isinstance(self._store, AzureStore):  # That has no ranges that count from the end.
            try:
                return self._request(key, ask).result()
            except RangeRefusedError:  # An object without bytes has no last ones.
                pass
        version = self.head(key)
        if not version.size:
            return version, memoryview(b"")
        return version, self.get(key, max(0, version.size - size), version.size, version).result()

    def get(self, key: str, start: int, stop: int, version: Version) -> Request[memoryview]:
        options: GetOptions = {"range": (start, stop)}
        if version.etag is not None and not version.etag.startswith("W/"):  # A weak one matches nothing.
            options["if_match"] = version.etag

        async def ask() -> memoryview:
            answer = await obstore.get_async(self._store, key, options=options)
            if _version(answer.meta) != version:  # Not every server looks at the condition.
                raise failures.changed(self._base + key, offset=start)
            return await _body(answer, stop - start)

        return self._request(key, ask, offset=start)

    def put(self, key: str, data: bytes, *, new: bool = False) -> None:
        async def ask() -> None:
            mode: Literal["create", "overwrite"] = "create" if new else "overwrite"
            await obstore.put_async(self._store, key, data, mode=mode, use_multipart=False)

        self._request(key, ask).result()

    def begin(self, key: str, *, part_size: int, workers: int) -> ObstoreParts:
        writer = obstore.open_writer_async(self._store, key, buffer_size=part_size, max_concurrency=workers)
        return ObstoreParts(writer, part_size, partial(self._request, key))

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                self._request(key, partial(obstore.delete_async, self._store, key)).result()
            except CheckpointNotFoundError:
                continue

    def list(self, prefix: str) -> Iterator[Listed]:
        batches = aiter(obstore.list(self._store, prefix or None))

        async def ask() -> Sequence[Any]:
            try:
                return await anext(batches)
            except StopAsyncIteration:
                return ()

        while batch := self._request(prefix, ask).result():
            yield from (Listed(item["path"], _version(item)) for item in batch)

    def list_here(self, prefix: str) -> tuple[Sequence[str], Sequence[Listed]]:
        async def ask() -> tuple[Sequence[str], Sequence[Listed]]:
            found = await obstore.list_with_delimiter_async(self._store, prefix or None)
            return found["common_prefixes"], [Listed(item["path"], _version(item)) for item in found["objects"]]

        return self._request(prefix, ask).result()

    def _request(self, key: str, ask: Callable[[], Coroutine[Any, Any, T]], *, offset: int | None = None) -> Request[T]:
        """Begin a request, and say in our words what becomes of it."""
        path = self._base + key

        async def attempts() -> T:
            pause = _PAUSE
            for _ in range(_ATTEMPTS):
                try:
                    return await ask()
                except BrokenAnswerError as error:
                    last: Exception = error
                except FastckptError:
                    raise
                except Exception as error:
                    raise _translated(error, path, offset) from None
                await asyncio.sleep(pause)
                pause *= 2
            raise failures.failed(path, f"{_ATTEMPTS} times {last}", offset=offset)

        return Request(attempts)


class BrokenAnswerError(Exception):
    """An answer that began, and did not come to its end."""


class RangeRefusedError(Exception):
    """An object does not have the bytes that were asked for."""


async def _body(answer: Any, size: int) -> memoryview:
    try:
        data = memoryview(await answer.bytes_async()).cast("B")
    except exceptions.BaseError:
        raise BrokenAnswerError("the answer broke off") from None
    if data.nbytes != size:
        raise BrokenAnswerError(f"the answer had {data.nbytes} bytes, where {size} were asked for")
    return data


def _version(meta: Any) -> Version:
    return Version(meta["size"], meta["e_tag"], meta["last_modified"].timestamp())


def _translated(error: Exception, path: str, offset: int | None) -> Exception:
    """The typed error for one of obstore's. The text of that can hold secrets: only `failures` uses it."""
    why = str(error)
    if isinstance(error, FileNotFoundError) or "status code: 404" in why:  # The second is said of a listing.
        return failures.missing(path)
    if isinstance(error, exceptions.PreconditionError):
        return failures.changed(path, offset=offset)
    if isinstance(error, exceptions.AlreadyExistsError):
        return failures.there_already(path)
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return failures.refused(path, why)
    if isinstance(error, exceptions.NotSupportedError):
        return failures.without_ranges(path)
    if "status code: 416" in why:
        return RangeRefusedError()
    return failures.failed(path, why, offset=offset)
