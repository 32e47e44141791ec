"""`fastckpt.dcp` in a bucket: shards first, the set last, and until then what was there."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from bucket import QUICK, Bucket
from in_turn import Rank, rows_of, save_in_turn
from states import assert_same
from torch.distributed.checkpoint.api import CheckpointException

import fastckpt
from fastckpt.cli.main import main
from fastckpt.dcp.region import read_region
from fastckpt.errors import CheckpointIOError, FastckptError, UsageError
from fastckpt.remote.path import located
from fastckpt.stored.open_file import open_file

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def ranks(step: int, world: int = 3) -> list[Rank]:
    """A state of so many ranks, each with some rows of a tensor."""
    whole = torch.arange(700 * 60).reshape(700, 60) + step
    return [Rank({"step": step, "b": torch.full((5,), float(step))}, (part,)) for part in rows_of(("w",), whole, world)]


def whole(step: int) -> dict[str, Any]:
    """The same as one."""
    return {"step": step, "b": torch.full((5,), float(step)), "w": torch.arange(700 * 60).reshape(700, 60) + step}


def empty() -> dict[str, Any]:
    return {"step": 0, "b": torch.zeros(5), "w": torch.zeros(700, 60, dtype=torch.int64)}


def test_saved_by_three_ranks_loaded_by_one(bucket: Bucket, tmp_path: Path) -> None:
    """The objects are the files of a local save; what makes them a set comes last."""
    save_in_turn(tmp_path / "set", ranks(5))
    save_in_turn(bucket.url("run/step_5"), ranks(5))
    there = {key.rpartition("/")[2]: bucket.get(key) for key in bucket.names()}
    assert there == {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    sent = [request.key.rpartition("/")[2] for request in bucket.proxy.requests if request.kind == "put"]
    assert (len(sent), sent[-1]) == (4, "set.fckpt")
    state = empty()
    fastckpt.dcp.load(state, bucket.url("run/step_5"), no_dist=True)
    assert_same(state, whole(5))
    assert_same(fastckpt.load(bucket.url("run/step_5/")), whole(5))


def test_columns_of_a_tensor_take_few_requests(bucket: Bucket) -> None:
    """Tensor parallel ranks: not one request for each row, though on a disk the rows are read one by one."""
    w = torch.arange(40 * 20_000).reshape(40, 20_000)
    fastckpt.dcp.save({"w": w}, bucket.url("run"), no_dist=True)
    (shard,) = (key for key in bucket.names() if "shard-" in key)
    bucket.proxy.reset()
    target = torch.zeros(40, 5000, dtype=torch.int64)
    with open_file(located(bucket.url(shard))) as file:
        read_region(file, file.by_name["tensors.w"], (0, 5000), (40, 5000), target)
    assert torch.equal(target, w[:, 5000:10_000])
    assert bucket.proxy.counts["get"] <= 3


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.thorough)])
def test_a_client_that_dies_leaves_the_old_set_or_the_new_one(bucket: Bucket, every: int) -> None:
    """After each request of a save over another one: what is loaded is never a part of one."""
    url = bucket.url("run")
    save_in_turn(url, ranks(1))
    for served in range(0, 60, every):
        bucket.proxy.reset()
        bucket.proxy.serve_only(served)
        ended = False
        with contextlib.suppress(FastckptError):
            save_in_turn(url, ranks(2), options={"storage_options": QUICK})
            ended = True
        bucket.proxy.reset()
        found = fastckpt.load(f"{url}/")
        assert_same(found, whole(found["step"]))
        if found["step"] == 2 and ended:
            break
        save_in_turn(url, ranks(1))
    else:
        raise AssertionError("it never ends")
    assert served > 8
    save_in_turn(url, ranks(2))
    assert len(bucket.names()) == 4
    assert main(["verify", f"{url}/"]) == 0
    assert bucket.uploads() == []


def test_a_store_that_does_not_answer(bucket: Bucket) -> None:
    """A typed error in each rank, which names the URL; nothing is there."""
    bucket.proxy.serve_only(0)
    with pytest.raises((CheckpointException, CheckpointIOError), match="bucket-"):
        fastckpt.dcp.save(whole(1), bucket.url("run"), no_dist=True, storage_options=QUICK)
    bucket.proxy.reset()
    assert bucket.names() == []


def test_in_the_background(bucket: Bucket) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        fastckpt.dcp.async_save(whole(3), bucket.url("run")).result()
        state = empty()
        fastckpt.dcp.load(state, bucket.url("run"))
    finally:
        torch.distributed.destroy_process_group()
    assert_same(state, whole(3))


def test_what_a_store_does_not_take(bucket: Bucket) -> None:
    with pytest.raises((CheckpointException, UsageError), match="no parity is written into a store"):
        fastckpt.dcp.save(whole(1), bucket.url("run"), no_dist=True, parity="3%")
    assert bucket.names() == []
