"""Saves to a bucket: the bytes of a local save, in place in one step, and nothing left of one that ends in an error."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bucket import KEY_ID, QUICK, SECRET, Bucket
from fake_device import nbytes_of, pretend
from faulty_proxy import EVERY
from slowness import within
from states import everything, pattern

import fastckpt
from fastckpt.errors import CheckpointIOError, UsageError
from fastckpt.io import upload
from fastckpt.remote.path import RemotePath
from fastckpt.staging.ring import Ring

KIB = 1024
NOT_ANSWERED = ["drop", "no answer", "500", "slow down"]
"""What is tried again."""


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PART", 256 * KIB)


def small() -> dict[str, Any]:
    """A state whose file has three parts."""
    return {"w": pattern(700 * KIB, 1), "v": [pattern(5, 2), 7], "none": torch.empty(0)}


def local(state: object, directory: Path, **options: Any) -> bytes:
    """The file that a local save of a state makes."""
    path = directory / "local.fckpt"
    fastckpt.save(state, path, durable=False, **options)
    return path.read_bytes()


@pytest.fixture(params=["none", "zstd", "planes"])
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_bytes_of_a_local_save(bucket: Bucket, tmp_path: Path, codec: str) -> None:
    """For every codec, sent in the order of the file; requests are counted."""
    state = {"all": everything(), "large": pattern(3 * 2**20 + 12345, 1), "more": pattern(300 * KIB, 2)}
    done: list[int] = []
    fastckpt.save(state, bucket.url("run/x.fckpt"), codec=codec, metadata={"step": 5}, progress=done.append)
    want = local(state, tmp_path, codec=codec, metadata={"step": 5})
    assert bucket.get("run/x.fckpt") == want
    assert done == sorted(done)
    parts = -(-len(want) // upload.PART)
    assert bucket.proxy.counts == {"create": 1, "part": parts, "complete": 1, "get": 1}
    assert bucket.uploads() == []


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_from_a_device(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    """What a supply brings in turns is the same file, too."""
    state = {"large": pattern(3 * 2**20 + 12345, 1), "few": pattern(9, 2), "more": pattern(300 * KIB, 3)}
    want = local(state, tmp_path, codec=codec)
    pretend(monkeypatch, lambda memory: nbytes_of(memory) != 300 * KIB, ring=Ring(slots=2, slot_size=2**20))
    fastckpt.save(state, bucket.url("x.fckpt"), codec=codec)
    assert bucket.get("x.fckpt") == want


def test_a_small_one_is_one_request(bucket: Bucket) -> None:
    """And one more that looks at it."""
    fastckpt.save({"step": 5}, bucket.url("x.fckpt"))
    assert bucket.proxy.counts == {"put": 1, "get": 1}


def test_memory_is_used_again(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many parts there are, those under way and the one that is filled have memory."""
    made: list[int] = []
    allocate = upload.allocate
    monkeypatch.setattr(upload, "allocate", lambda size: made.append(size) or allocate(size))
    fastckpt.save({"w": pattern(10 * 2**20, 1)}, bucket.url("x.fckpt"))
    assert bucket.proxy.counts["part"] == 41
    assert len(made) <= upload.UNDER_WAY + 3


def test_leaves_that_two_parts_share(bucket: Bucket, tmp_path: Path) -> None:
    """Payloads of every length around a part and a leaf: the bytes of a local save."""
    for size in range(250 * KIB, 275 * KIB, 4 * KIB - 1):
        state = {
            "a": pattern(size, 1),
            "b": pattern(3 * 256 * KIB - 5, 2),
            "c": torch.empty(0),
            "d": pattern(size + 5000, 3),
        }
        fastckpt.save(state, bucket.url("x.fckpt"))
        assert bucket.get("x.fckpt") == local(state, tmp_path)


def test_in_the_background(bucket: Bucket, tmp_path: Path) -> None:
    """`save_async` writes the same file; what changes after it returned is not in it."""
    state = small()
    want = local(state, tmp_path)
    pending = fastckpt.save_async(state, bucket.url("x.fckpt"))
    state["w"].zero_()
    pending.result()
    assert bucket.get("x.fckpt") == want


def test_the_client_dies_at_any_request(bucket: Bucket, tmp_path: Path) -> None:
    """The object is the old one or the new one, and nothing else is seen; before the commit it is the old one."""
    old, new = b"an old object", local(small(), tmp_path)
    seen = []
    for served in range(7):
        bucket.put("x.fckpt", old)
        bucket.proxy.reset()
        bucket.proxy.serve_only(served)
        if served == 6:  # All that there are.
            fastckpt.save(small(), bucket.url("x.fckpt"), storage_options=QUICK)
        else:
            with pytest.raises(CheckpointIOError):
                fastckpt.save(small(), bucket.url("x.fckpt"), storage_options=QUICK)
        assert bucket.names() == ["x.fckpt"]
        found = bucket.get("x.fckpt")
        assert found in (old, new)
        seen.append(found == new)
    assert seen == [False] * 5 + [True] * 2  # Create, three parts, complete, and the look at it.


@pytest.mark.parametrize("fault", NOT_ANSWERED)
@pytest.mark.parametrize("kind", ["create", "part", "complete", "get"])
def test_what_happens_once_is_tried_again(bucket: Bucket, tmp_path: Path, kind: str, fault: str) -> None:
    """The file is right all the same."""
    bucket.proxy.fail(kind, 0, fault)  # type: ignore[arg-type]
    fastckpt.save(small(), bucket.url("x.fckpt"), storage_options=QUICK)
    assert bucket.get("x.fckpt") == local(small(), tmp_path)
    assert bucket.proxy.counts[kind] > (3 if kind == "part" else 1)


@pytest.mark.parametrize(
    ("kind", "fault"),
    sorted(
        {*itertools.product(["create", "part", "complete"], [*NOT_ANSWERED, "denied"])} - {("complete", "no answer")}
    ),
)
def test_what_goes_on_is_an_error(bucket: Bucket, kind: str, fault: str) -> None:
    """The old object stays, and no parts of the new one; the error says which object, and no secret."""
    bucket.put("x.fckpt", b"old")
    bucket.proxy.fail(kind, EVERY, fault)  # type: ignore[arg-type]
    with pytest.raises(CheckpointIOError, match=f"s3://{bucket.name}/x.fckpt") as caught:
        fastckpt.save(small(), bucket.url("x.fckpt"), storage_options=QUICK)
    assert bucket.get("x.fckpt") == b"old"
    if (kind, fault) != ("create", "no answer"):  # Its name is known to the server alone, and it has no parts.
        assert bucket.uploads() == []
    require_no_secret(caught.value)


def require_no_secret(error: BaseException) -> None:
    """Neither the error nor what Python prints of it has a credential in it."""
    told = "".join(traceback.format_exception(error)) + repr(error) + str(error)
    assert KEY_ID not in told
    assert SECRET not in told


def test_a_commit_without_an_answer(bucket: Bucket, tmp_path: Path) -> None:
    """It is asked whether it was done: it was."""
    bucket.proxy.fail("complete", EVERY, "no answer")
    fastckpt.save(small(), bucket.url("x.fckpt"), storage_options=QUICK)
    assert bucket.get("x.fckpt") == local(small(), tmp_path)


def test_something_else_has_the_name_now(bucket: Bucket) -> None:
    """What is in place is looked at."""
    bucket.proxy.fail("get", 0, lambda: bucket.put("x.fckpt", b"of another program"))
    with pytest.raises(CheckpointIOError, match="something else was written under this name"):
        fastckpt.save(small(), bucket.url("x.fckpt"))


def test_what_changes_meanwhile_is_no_file(bucket: Bucket) -> None:
    """The header of a large tensor is sent before the bytes it proves: what they are by then is looked at."""
    bucket.put("x.fckpt", b"old")
    state = {"w": pattern(5 * 2**20, 1)}
    bucket.proxy.fail("create", 0, lambda: state["w"].zero_())
    with pytest.raises(CheckpointIOError, match="was changed meanwhile"):
        fastckpt.save(state, bucket.url("x.fckpt"))
    assert bucket.get("x.fckpt") == b"old"
    assert bucket.uploads() == []


@pytest.mark.parametrize("kind", ["create", "part", "complete"])
def test_ctrl_c(bucket: Bucket, kind: str) -> None:
    """While a store does not answer; what was sent is taken back."""
    bucket.put("x.fckpt", b"old")
    bucket.proxy.fail(kind, EVERY, "hang")
    sent: list[float] = []

    def interrupt() -> None:
        while not bucket.proxy.counts[kind]:
            time.sleep(0.01)
        time.sleep(0.05)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        fastckpt.save(small(), bucket.url("x.fckpt"))
    assert within(time.perf_counter() - sent[0], 0.2)
    assert bucket.get("x.fckpt") == b"old"
    if kind == "part":  # When it is already to be completed, nobody knows whether it still will be.
        assert bucket.uploads() == []


def test_ctrl_c_while_an_upload_begins(bucket: Bucket) -> None:
    """The store has begun it, and its answer is on its way: only that says how it is ended."""
    bucket.proxy.fail("create", 0, lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.03)))
    with pytest.raises(KeyboardInterrupt):
        fastckpt.save(small(), bucket.url("x.fckpt"))
    assert bucket.uploads_left() == bucket.names() == []
    assert bucket.proxy.counts["create"] == 1


@pytest.mark.parametrize("key", ["", "run/"])
def test_a_directory_is_no_object(bucket: Bucket, key: str) -> None:
    with pytest.raises(UsageError, match="names a directory"):
        fastckpt.save(small(), bucket.url(key))
    assert not bucket.proxy.requests


def test_parts_are_as_many_as_stores_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large object has large parts, and fewer of them on their way."""
    monkeypatch.setattr(upload, "PART", 16 * 2**20)
    begun: list[tuple[int, int]] = []
    store = SimpleNamespace(begin=lambda key, part_size, workers: begun.append((part_size, workers)))
    for most in (5 * KIB, 9000 * 16 * 2**20, 9000 * 16 * 2**20 + 1, 9000 * 100 * 2**20):
        monkeypatch.setattr(upload, "_Memory", lambda size: SimpleNamespace(take=bytearray))
        upload.Upload(RemotePath(store, "s3://bucket/", "x"), most=most)  # type: ignore[arg-type]
    assert begun == [(16 * 2**20, 8), (16 * 2**20, 8), (16 * 2**20 + 4096, 8), (100 * 2**20, 2)]


def test_what_is_not_for_objects(bucket: Bucket) -> None:
    """Parity, another format, and options where there is no store."""
    with pytest.raises(UsageError, match="no parity is written into a store"):
        fastckpt.save({"a": 1}, bucket.url("x.fckpt"), parity="3%")
    with pytest.raises(UsageError, match=r"call it x\.fckpt"):
        fastckpt.save({"a": 1}, bucket.url("x.pt"))
    with pytest.raises(UsageError, match="are for a URL"):
        fastckpt.save({"a": 1}, "x.fckpt", storage_options={"region": "here"})
    assert bucket.proxy.requests == []


def test_a_store_that_hangs(bucket: Bucket) -> None:
    """It is waited for as long as was said, then nothing of the save is there."""
    bucket.put("x.fckpt", b"old")
    bucket.proxy.fail("part", EVERY, "hang")
    options = {**QUICK, "client_options": {"timeout": "100ms"}}
    with pytest.raises(CheckpointIOError, match="does not answer"):
        fastckpt.save(small(), bucket.url("x.fckpt"), storage_options=options)
    assert bucket.get("x.fckpt") == b"old"
    assert bucket.uploads() == []


def test_a_wrong_bit_on_the_way_is_found(bucket: Bucket) -> None:
    """Of a server that does not look at the signed digest of a request, as this one: what arrived is not whole."""
    bucket.proxy.fail("part", 1, "wrong bit")
    fastckpt.save(small(), bucket.url("x.fckpt"))
    report = fastckpt.verify(bucket.url("x.fckpt"))
    assert not report.ok
