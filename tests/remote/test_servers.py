"""The bucket and the proxy of these tests do what they say, asked by obstore itself."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bucket import Bucket

obstore = pytest.importorskip("obstore", reason="needs obstore, of the extra remote")

RETRIES = {
    "max_retries": 2,
    "backoff": {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=9), "base": 2},
}
DATA = bytes(range(256)) * 64


def _store(bucket: Bucket, *, retries: int = 0, **client: object) -> object:
    options = {"allow_http": True, **client}
    return obstore.store.from_url(
        bucket.url(""), client_options=options, retry_config={**RETRIES, "max_retries": retries}
    )


def test_objects_come_back(bucket: Bucket) -> None:
    """What obstore writes, the bucket has; what it reads was in the bucket."""
    store = _store(bucket)
    obstore.put(store, "a b/x", DATA)
    assert bucket.get("a b/x".replace(" ", "%20")) == DATA
    bucket.put("y", DATA[:100])
    assert bytes(obstore.get_range(store, "y", start=10, end=20)) == DATA[10:20]
    assert bucket.names() == ["a b/x", "y"]
    assert [(request.kind, request.key) for request in bucket.proxy.requests] == [("put", "a b/x"), ("get", "y")]
    assert bucket.proxy.requests[1].range == "bytes=10-19"


def test_uploads_are_listed(bucket: Bucket) -> None:
    """An upload in parts is there until it is completed or aborted, and the proxy tells its requests apart."""
    store = _store(bucket, retries=2)  # The server may trip over a part that comes while it aborts.
    obstore.put(store, "x", DATA, use_multipart=True, chunk_size=4096)
    assert bucket.get("x") == DATA
    assert bucket.proxy.counts == {"create": 1, "part": 4, "complete": 1}
    writer = obstore.open_writer(store, "y", buffer_size=4096)
    writer.write(DATA)
    assert bucket.uploads() == ["y"]
    writer.__exit__(RuntimeError, None, None)
    assert bucket.uploads() == []
    assert bucket.proxy.counts["abort"] >= 1


@pytest.mark.parametrize("fault", ["drop", "no answer", "500", "slow down", "denied", "short body"])
def test_faults_are_errors(bucket: Bucket, fault: str) -> None:
    """Each of these is an error of one request, and the next one is served."""
    bucket.put("x", DATA)
    store = _store(bucket)
    bucket.proxy.fail("get", 0, fault)
    with pytest.raises(Exception, match=r".") as caught:
        obstore.get(store, "x").bytes()
    assert isinstance(caught.value, obstore.exceptions.BaseError | OSError)
    assert bytes(obstore.get(store, "x").bytes()) == DATA


def test_bits_and_bytes(bucket: Bucket) -> None:
    """A wrong bit and fewer bytes are no errors of HTTP: only who looks at what came notices."""
    bucket.put("x", DATA)
    store = _store(bucket)
    bucket.proxy.fail("get", 0, "wrong bit")
    bucket.proxy.fail("get", 1, "fewer bytes")
    came = bytes(obstore.get(store, "x").bytes())
    assert len(came) == len(DATA)
    assert sum(a != b for a, b in zip(came, DATA, strict=True)) == 1
    assert bytes(obstore.get(store, "x").bytes()) == DATA[: len(DATA) // 2]
    bucket.proxy.fail("put", 0, "wrong bit")
    obstore.put(store, "y", DATA)
    assert bucket.get("y") not in (None, DATA)


def test_changed_between_two_requests(bucket: Bucket) -> None:
    """Something can be done just before a request: here the object is replaced, which If-Match notices."""
    bucket.put("x", DATA)
    store = _store(bucket)
    tag = obstore.head(store, "x")["e_tag"]
    bucket.proxy.fail("get", 0, lambda: bucket.put("x", DATA[::-1]))
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.get(store, "x", options={"if_match": tag})


def test_a_request_that_hangs(bucket: Bucket) -> None:
    """It ends with the client's patience."""
    bucket.put("x", DATA)
    bucket.proxy.fail("head", 0, "hang")
    with pytest.raises(obstore.exceptions.BaseError):
        obstore.head(_store(bucket, timeout=timedelta(milliseconds=100)), "x")


def test_a_client_that_dies(bucket: Bucket) -> None:
    """After so many requests nothing is served any more."""
    store = _store(bucket, retries=2)
    bucket.proxy.serve_only(1)
    obstore.put(store, "x", DATA)
    with pytest.raises(obstore.exceptions.BaseError):
        obstore.put(store, "x", DATA[:5])
    assert bucket.get("x") == DATA
    bucket.proxy.reset()
    obstore.put(store, "x", DATA[:5])
    assert bucket.get("x") == DATA[:5]
