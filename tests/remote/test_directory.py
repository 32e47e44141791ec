"""`CheckpointDirectory` in a bucket: steps appear whole, the newest whole one is found, old ones go by the rule."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from bucket import QUICK, Bucket
from faulty_proxy import EVERY, Request
from states import pattern

import fastckpt
from fastckpt.errors import CheckpointIOError, CheckpointNotFoundError, DamagedError, UsageError
from fastckpt.io.remote_source import TAIL
from fastckpt.keeping.object_series import ObjectSeries
from fastckpt.remote.path import located


def state(number: int) -> dict[str, Any]:
    return {"w": pattern(3000, number), "step": number}


def run_of(bucket: Bucket, **options: Any) -> fastckpt.CheckpointDirectory:
    return fastckpt.CheckpointDirectory(bucket.url("run"), storage_options=QUICK, **options)


def test_save_resume_and_retention(bucket: Bucket) -> None:
    run = run_of(bucket, keep_last=2)
    assert run.latest() is None
    assert not run.resume(state(0))
    for step in (10, 20, 30):
        assert run.save(state(step), step) == bucket.url(f"run/step_{step:08d}.fckpt")
    bucket.put("run/notes.txt", b"mine")
    bucket.put("other/step_00000099.fckpt", b"of another run")
    assert bucket.names() == [
        "other/step_00000099.fckpt",
        "run/notes.txt",
        "run/step_00000020.fckpt",
        "run/step_00000030.fckpt",
    ]
    run.save_async(state(40), 40).result()
    assert run.prune() == [bucket.url("run/step_00000020.fckpt")]
    into = state(0)
    assert run.resume(into)
    assert into["step"] == 40
    assert torch.equal(into["w"], state(40)["w"])


def test_a_step_that_is_not_whole_is_passed_over(bucket: Bucket) -> None:
    """Damage in the store, or a part of an object, is no step; what cannot be read may be one."""
    run = run_of(bucket)
    for step in (10, 20, 30):
        run.save(state(step), step)
    whole = bucket.get("run/step_00000030.fckpt") or b""
    bucket.put("run/step_00000030.fckpt", whole[:5000])
    flipped = bytearray(bucket.get("run/step_00000020.fckpt") or b"")
    flipped[len(flipped) // 2] ^= 1
    bucket.put("run/step_00000020.fckpt", bytes(flipped))
    assert run.latest() == bucket.url("run/step_00000010.fckpt")
    bucket.proxy.fail("get", EVERY, "denied")
    with pytest.raises(CheckpointIOError):
        run.latest()


def test_by_a_number_in_the_metadata(bucket: Bucket) -> None:
    """Of the steps that it does not keep otherwise, the best one stays."""
    run = run_of(bucket, keep=fastckpt.Retention(keep_last=1, keep_best="loss"))
    for step, loss in ((10, 0.5), (20, 0.1), (30, 0.7), (40, 0.6)):
        run.save(state(step), step, metadata={"loss": loss})
    assert bucket.names() == ["run/step_00000020.fckpt", "run/step_00000040.fckpt"]


def test_what_needs_a_directory(bucket: Bucket) -> None:
    for options in ({"parity": "3%"}, {"keep": fastckpt.Retention(min_free="5GB")}):
        with pytest.raises(UsageError, match="a step in an object store is without parity"):
            run_of(bucket, **options)
    assert bucket.proxy.requests == []


def test_a_bucket_that_is_not_there(bucket: Bucket) -> None:
    """It has no newest step, and that is not the same as having none yet."""
    with pytest.raises(CheckpointNotFoundError, match="no such bucket"):
        fastckpt.CheckpointDirectory("s3://no-such-bucket/run").latest()


def test_resume_fetches_a_step_once(bucket: Bucket) -> None:
    """And not a second time to find out that it is whole."""
    run = run_of(bucket)
    for step in (10, 20):
        run.save({"w": pattern(2_500_000, step), "step": step}, step)
    size = len(bucket.get("run/step_00000020.fckpt") or b"")
    bucket.proxy.reset()
    into = {"w": pattern(2_500_000, 0), "step": 0}
    assert run.resume(into)
    assert into["step"] == 20
    assert sum(map(span, bucket.proxy.requests)) <= size + TAIL
    assert {request.key for request in bucket.proxy.requests if request.kind == "get"} == {"run/step_00000020.fckpt"}


def span(request: Request) -> int:
    """How many bytes a request asked for."""
    first, _, last = request.range.removeprefix("bytes=").partition("-")
    return int(last) - int(first) + 1 if first and last else int(last or 0)


def test_resume_passes_over_what_is_damaged(bucket: Bucket) -> None:
    """The state is one step, whole; without any, as it was, or an error says that it is no longer."""
    run = run_of(bucket)
    for step in (10, 20, 30):
        run.save(state(step), step)
    for step in (20, 30):
        data = bytearray(bucket.get(f"run/step_{step:08d}.fckpt") or b"")
        data[data.index(state(step)["w"].numpy().tobytes()) + 7] ^= 1
        bucket.put(f"run/step_{step:08d}.fckpt", bytes(data))
    into = state(0)
    assert run.resume(into)
    assert (into["step"], torch.equal(into["w"], state(10)["w"])) == (10, True)
    bucket.delete("run/step_00000010.fckpt")
    with pytest.raises(DamagedError, match="partly overwritten"):
        run.resume(state(0))
    bucket.put("run/step_00000020.fckpt", b"cut")
    bucket.put("run/step_00000030.fckpt", b"cut")
    into = state(0)
    assert not run.resume(into)
    assert torch.equal(into["w"], state(0)["w"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_resume_takes_what_latest_finds(bucket: Bucket) -> None:
    """A run that saved sets before, and one object for a step now."""
    run = run_of(bucket)
    run.save(state(10), 10)
    run_of(bucket, sharded=True).save(state(20), 20)
    assert run.latest() == bucket.url("run/step_00000020/")
    into = state(0)
    assert run.resume(into)
    assert into["step"] == 20
    bucket.delete("run/step_00000020/set.fckpt")
    assert run.resume(into)
    assert into["step"] == 10


@pytest.mark.parametrize("key", ["run//x", "run/%2E%2E/x"])
def test_a_name_that_cannot_be_listed_is_named(bucket: Bucket, key: str) -> None:
    bucket.put(key, b"x")
    with pytest.raises(CheckpointIOError, match=r"a name that no URL can have.*'run/.*give that object another name"):
        run_of(bucket).latest()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_sharded_steps(bucket: Bucket) -> None:
    """A step is a set; one without its manifest is none; what goes, goes with the manifest first."""
    run = run_of(bucket, sharded=True, keep_last=2)
    for step in (10, 20, 30):
        assert run.save(state(step), step) == bucket.url(f"run/step_{step:08d}")
    assert {key.split("/")[1] for key in bucket.names()} == {"step_00000020", "step_00000030"}
    place = located(bucket.url("run"))
    series = ObjectSeries(place, named=re.compile(r"step_(\d+)"), threads=1)
    assert [path.rpartition("/")[2][:5] for path in series.files(20)] == ["set.f", "shard"]
    assert run.latest() == bucket.url("run/step_00000030/")
    bucket.delete("run/step_00000030/set.fckpt")
    into = state(0)
    assert run.resume(into)
    assert (into["step"], torch.equal(into["w"], state(20)["w"])) == (20, True)
