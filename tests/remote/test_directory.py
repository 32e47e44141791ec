"""`CheckpointDirectory` in a bucket: steps appear whole, the newest whole one is found, old ones go by the rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bucket import QUICK, Bucket
from faulty_proxy import EVERY
from states import pattern

import fastckpt
from fastckpt.errors import CheckpointIOError, CheckpointNotFoundError, UsageError


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
    for options in ({"sharded": True}, {"parity": "3%"}, {"keep": fastckpt.Retention(min_free="5GB")}):
        with pytest.raises(UsageError, match="a step in an object store is one object"):
            run_of(bucket, **options)
    assert bucket.proxy.requests == []


def test_a_bucket_that_is_not_there(bucket: Bucket) -> None:
    """It has no newest step, and that is not the same as having none yet."""
    with pytest.raises(CheckpointNotFoundError, match="no such bucket"):
        fastckpt.CheckpointDirectory("s3://no-such-bucket/run").latest()
