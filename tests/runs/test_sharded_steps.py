"""A run in which each rank holds a part of the state: its steps are directories, for any number of ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from libraries import begun

import fastckpt
from fastckpt.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def state_of(*, seed: int, sharded: bool = True) -> dict[str, Any]:
    """A model and its optimizer after a step of training, and a number."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(10, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    if sharded:
        from torch.distributed.fsdp import fully_shard

        fully_shard(model, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(4, 10)).square().sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "step": seed}


def values(state: dict[str, Any]) -> dict[str, Any]:
    """What a state is, whatever the ranks: every number of it."""

    def whole(tensor: Any) -> Any:
        return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).tolist()

    moments = [whole(row[key]) for row in state["optimizer"].state.values() for key in sorted(row)]
    return {"step": state["step"], "weights": [whole(each) for each in state["model"].parameters()], "moments": moments}


def on_ranks(world: int, work: Callable[[int], None]) -> list[int]:
    """Processes, each with a rank; ``work`` gets it."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]

    def join(rank: int) -> None:
        dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=world)
        work(rank)
        dist.destroy_process_group()

    return [begun(lambda rank=rank: join(rank)) for rank in range(world)]  # type: ignore[misc]


def wait(children: list[int]) -> None:
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)


def told(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.thorough
@pytest.mark.parametrize("background", [False, True])
def test_saved_on_two_ranks_and_resumed_on_one_and_two(tmp_path: Path, background: bool) -> None:
    def save(rank: int) -> None:
        run = fastckpt.CheckpointDirectory(tmp_path / "run", keep=fastckpt.Retention(keep_last=2), sharded=True)
        assert not run.resume(state_of(seed=9))
        for step in (1, 2, 3, 4):
            state = state_of(seed=step)
            if background:
                run.save_async(state, step).result()
            else:
                run.save(state, step)
            dist.barrier()
        now = values(state)
        if rank == 0:
            (tmp_path / "saved").write_text(json.dumps(now))

    def resume(rank: int) -> None:
        state = state_of(seed=9)
        run = fastckpt.CheckpointDirectory(tmp_path / "run", sharded=True)
        assert run.resume(state)
        assert run.latest() == str(tmp_path / "run" / "step_00000004")
        now = values(state)
        if rank == 0:
            (tmp_path / f"resumed{dist.get_world_size()}").write_text(json.dumps(now))

    wait(on_ranks(2, save))
    steps = ["step_00000003", "step_00000004"]
    # In the background, older steps go with the next save.
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step_00000002"] * background + steps
    for world in (1, 2):
        wait(on_ranks(world, resume))
        assert told(tmp_path / f"resumed{world}") == told(tmp_path / "saved")


@pytest.mark.thorough
def test_a_kill_leaves_a_whole_step(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def train(rank: int) -> None:
        checkpoints = fastckpt.CheckpointDirectory(run, keep_last=1, sharded=True)
        state = state_of(seed=0)
        checkpoints.resume(state)
        for step in range(state["step"] + 1, 10_000):
            checkpoints.save(state | {"step": step}, step)

    for number in range(3):
        children = on_ranks(2, train)
        first = sorted(run.glob("step_*"))[-1:]
        while not run.is_dir() or sorted(run.glob("step_*"))[-1:] == first or len(sorted(run.iterdir())) < 2:
            time.sleep(0.002)
        time.sleep(number * 0.011)
        for child in children[:: -1 if number % 2 else 1]:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
        newest = fastckpt.find_last_whole(run)
        assert newest is not None
        assert fastckpt.load(newest)["step"] == int(newest[-8:])


def test_without_a_process_group(tmp_path: Path) -> None:
    run = fastckpt.CheckpointDirectory(tmp_path, sharded=True, keep_last=1)
    state, other = state_of(seed=1, sharded=False), state_of(seed=2, sharded=False)
    for step in (1, 2):
        run.save(state, step)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]
    assert run.resume(other)
    assert values(other) == values(state)


def test_what_it_does_not_take(tmp_path: Path) -> None:
    run = fastckpt.CheckpointDirectory(tmp_path, sharded=True)
    with pytest.raises(UsageError, match="no metadata"):
        run.save({}, 1, metadata={"a": 1})
    with pytest.raises(UsageError, match="a dict with texts"):
        run.save([torch.ones(3)], 1)
    with pytest.raises(fastckpt.errors.UnsupportedStateError, match="optimizer: its parameters"):
        run.save({"optimizer": state_of(seed=1, sharded=False)["optimizer"]}, 1)
    with pytest.raises(UsageError, match="keep_last and keep_every are in keep"):
        fastckpt.CheckpointDirectory(tmp_path, keep=fastckpt.Retention(), keep_last=2)
    assert list(tmp_path.iterdir()) == []


def test_all_ranks_go_on_from_the_same_step_of_a_state_that_all_hold(tmp_path: Path) -> None:
    """Also where they cannot: each of them says why."""
    fastckpt.CheckpointDirectory(tmp_path / "run").save({"w": torch.ones(3)}, 7)

    def look(rank: int) -> None:
        if rank:  # Only the first one reads it.
            os.open = None  # type: ignore[assignment]
        found = fastckpt.CheckpointDirectory(tmp_path / "run").latest()
        (tmp_path / f"found{rank}").write_text(json.dumps(found))

    wait(on_ranks(2, look))
    assert told(tmp_path / "found0") == told(tmp_path / "found1") == str(tmp_path / "run" / "step_00000007.fckpt")

    def fail(rank: int) -> None:
        if rank == 0:
            os.listdir = lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied", path))  # type: ignore[assignment]
        with pytest.raises(fastckpt.errors.CheckpointIOError, match="Permission denied"):
            fastckpt.CheckpointDirectory(tmp_path / "run").latest()

    wait(on_ranks(2, fail))
