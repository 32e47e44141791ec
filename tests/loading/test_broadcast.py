"""`load(share="broadcast")`: what one process reads, all have; what goes wrong on one, all see; nobody hangs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import torch.distributed as dist
from states import everything, pattern

import fastckpt
from fastckpt.errors import UsageError
from fastckpt.loading.broadcast import _buckets

WORLD = 3
SECONDS = 150
pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every process reported of every scenario."""
    directory = tmp_path_factory.mktemp("broadcast")
    tied = pattern(600_001)
    state: dict[str, Any] = {"layer": [pattern(300_000 + i, i).view(-1) for i in range(WORLD)]}
    state |= {"small": [torch.full((i,), i) for i in range(30)], "tied": tied, "view": tied[5:500], "step": 7}
    torch.save(state, directory / "state.pt")
    torch.save({"a": pattern(700_000), "b": torch.ones(3)}, directory / "large.pt")
    fastckpt.save(state, directory / "s.fckpt", durable=False)
    fastckpt.save(state, directory / "z.fckpt", codec="zstd", durable=False)
    fastckpt.save(everything(), directory / "everything.fckpt", durable=False)
    fastckpt.save({"n": 1}, directory / "empty.fckpt", durable=False)
    damaged = bytearray((directory / "s.fckpt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (directory / "damaged.fckpt").write_bytes(damaged)
    worker = Path(__file__).parent / "broadcast_worker.py"
    processes = [forked.Forked(str(worker), str(directory), str(rank), str(WORLD)) for rank in range(WORLD)]
    try:
        output = ["".join(process.communicate(SECONDS)) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * WORLD, "\n".join(output)
    return [json.loads((directory / f"result.{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("scenario", ["whole", "encoded", "foreign", "everything", "one wants all", "not here"])
def test_all_have_what_one_read(results: list[dict[str, Any]], scenario: str) -> None:
    expected = [True] * WORLD
    if scenario == "one wants all":
        expected = [False, True, False]  # The others have their small tensors, not the whole state.
    assert [result[scenario] for result in results] == expected


def test_a_state_without_tensors(results: list[dict[str, Any]]) -> None:
    assert [result["empty"] for result in results] == [{"n": 1}] * WORLD


def test_each_has_its_own_keys(results: list[dict[str, Any]]) -> None:
    assert [result["own keys"] for result in results] == [[[f"layer.{rank}"], True] for rank in range(WORLD)]


@pytest.mark.parametrize(
    ("scenario", "error"),
    [
        ("damaged", "DamagedError"),
        ("missing file", "CheckpointNotFoundError"),
        ("missing key", "TensorNotFoundError"),
        ("missing key elsewhere", "TensorNotFoundError"),
    ],
)
def test_an_error_where_it_is_read_is_raised_everywhere(
    results: list[dict[str, Any]], scenario: str, error: str
) -> None:
    assert results[0][scenario][0] == error
    assert len(results[0][scenario][1]) >= len("not found")
    assert all(result[scenario] == results[0][scenario] for result in results)


def test_an_error_where_it_is_received_is_raised_everywhere(results: list[dict[str, Any]]) -> None:
    assert results[-1]["no room"][:2] == ["MemoryError", "no room here"]
    for result in results[:-1]:
        assert result["no room"][0] == "FastckptError"
        assert "no room here" in result["no room"][1]


def test_a_group_that_does_not_serve_the_device(results: list[dict[str, Any]]) -> None:
    """NCCL moves nothing on the CPU: an error on all, if it is so for one of them."""
    kind, message, path = results[-1]["no link"]
    assert (kind, message) == ("UsageError", "the process group moves no tensors on cpu")
    assert path.endswith("s.fckpt")
    assert all(result["no link"] == results[-1]["no link"] for result in results)


def test_a_group_of_some(results: list[dict[str, Any]]) -> None:
    assert results[0]["group"][0] == "UsageError"
    assert [result["group"] for result in results[1:]] == [True] * (WORLD - 1)


def test_errors_leave_the_group_usable(results: list[dict[str, Any]]) -> None:
    assert [result["still together"] for result in results] == [True] * WORLD


def test_without_a_group(tmp_path: Path) -> None:
    fastckpt.save({"a": torch.ones(1)}, tmp_path / "s")
    with pytest.raises(UsageError, match="process group"):
        fastckpt.load(tmp_path / "s", share="broadcast")
    with pytest.raises(UsageError, match="broadcast"):
        fastckpt.load(tmp_path / "s", share="scatter")  # type: ignore[arg-type]


def test_buckets_hold_every_byte_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastckpt.loading.broadcast.BUCKET", 1000)
    sizes = [0, 10, 999, 1000, 2500, 1, 1, 0, 300, 699]
    done = [0] * len(sizes)
    for bucket in _buckets(sizes):
        end = 0
        for part in bucket:
            assert (part.start, part.offset) == (done[part.storage], end)
            done[part.storage] += part.size
            end += part.size
        assert 0 < end <= 1000
    assert done == sizes
