"""Checkpoints of several files are loaded and converted as what they are, and never with a part of them missing."""

from __future__ import annotations

import filecmp
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import safetensors.torch
import torch
from set_builds import flip, halve, write_shards, write_trainer_step

import fastckpt
from fastckpt.errors import DamagedError, FastckptError, NotACheckpointError, TensorNotFoundError, UsageError
from fastckpt.sets.dcp_metadata import GlobalTensor, uncovered
from fastckpt.sets.judge import judge
from fastckpt.sets.recognise import recognise

SHARD = "model-00002-of-00003.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


# --- models in shards ---------------------------------------------------------


def test_a_model_in_shards_is_one_flat_dict(tmp_path: Path) -> None:
    write_shards(tmp_path)
    state = fastckpt.load(tmp_path)
    assert list(state) == [f"layers.{shard}.{part}" for shard in (1, 2, 3) for part in ("q", "k")]
    assert all(torch.equal(tensor, torch.full((16, 4), float(name.split(".")[1]))) for name, tensor in state.items())
    assert fastckpt.load(tmp_path, mmap=True).keys() == state.keys()


def test_some_tensors_need_their_shards_only(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / SHARD).unlink()
    assert list(fastckpt.load(tmp_path, keys="layers.3.*")) == ["layers.3.q", "layers.3.k"]
    with pytest.raises(DamagedError, match=r"layers\.2\.q"):
        fastckpt.load(tmp_path, keys=["layers.3.q", "layers.2.q"])
    with pytest.raises(TensorNotFoundError):
        fastckpt.load(tmp_path, keys="nothing")


@pytest.mark.parametrize("damage", ["missing", "cut", "renamed", "more"])
def test_nothing_is_loaded_or_converted_with_a_part_missing(tmp_path: Path, damage: str) -> None:
    write_shards(tmp_path / "model")
    shard = tmp_path / "model" / SHARD
    tensors = safetensors.torch.load_file(shard)
    if damage == "missing":
        shard.unlink()
    elif damage == "cut":
        halve(shard)
    elif damage == "renamed":
        safetensors.torch.save_file({f"x.{name}": tensor for name, tensor in tensors.items()}, shard)
    else:
        safetensors.torch.save_file(tensors | {"more": torch.ones(1)}, shard)
    with pytest.raises(DamagedError):
        fastckpt.load(tmp_path / "model")
    with pytest.raises(DamagedError):
        fastckpt.convert(tmp_path / "model", tmp_path / "all.fckpt")
    assert not (tmp_path / "all.fckpt").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_and_index_come_back_byte_for_byte(tmp_path: Path, suffix: str) -> None:
    here = write_shards(tmp_path / "here", stem="model" if suffix == "safetensors" else "pytorch_model", suffix=suffix)
    original = sorted(path.name for path in here.iterdir())
    fastckpt.convert(here, tmp_path / "own")
    state = fastckpt.load(tmp_path / "own")
    assert all(torch.equal(tensor, fastckpt.load(here)[name]) for name, tensor in state.items())
    (report,) = [judge(found, threads=1) for found in recognise(str(tmp_path / "own"))]
    assert report.is_whole
    assert not report.unproven
    back = {"bin": "pt"}.get(suffix, suffix)
    fastckpt.convert(tmp_path / "own", tmp_path / "back", to=back)
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == original
    assert all(filecmp.cmp(here / name, tmp_path / "back" / name, shallow=False) for name in original)


def test_beside_each_other_and_once_more(tmp_path: Path) -> None:
    """Both forms lie in one directory; a second run finds the first one's files."""
    write_shards(tmp_path)
    first = fastckpt.convert(tmp_path)
    (tmp_path / "model-00001-of-00003.fckpt").unlink()
    again = fastckpt.convert(tmp_path)
    assert [done.destination for done in first] == [done.destination for done in again]
    assert sum("was there already" in note for done in again for note in done.notes) == 2
    shard = tmp_path / "model-00001-of-00003.fckpt"
    flip(shard, shard.read_bytes().index(torch.ones(16).numpy().tobytes()))
    with pytest.raises(DamagedError):  # Of the two forms the one is read that notices.
        fastckpt.load(tmp_path)


@pytest.mark.parametrize("suffix", [".fckpt", ".safetensors", ".pt"])
def test_put_together(tmp_path: Path, suffix: str) -> None:
    write_shards(tmp_path / "model")
    (done,) = fastckpt.convert(tmp_path / "model", tmp_path / f"all{suffix}")
    assert (done.tensors, done.source_verified, done.exact) == (6, False, False)
    state = fastckpt.load(tmp_path / f"all{suffix}")
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        name: tensor.tolist() for name, tensor in fastckpt.load(tmp_path / "model").items()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"all{suffix}", "model"]


@pytest.mark.parametrize("shard_size", [None, "1kB"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_source_is_verified_only_by_checksums(tmp_path: Path, legacy: bool, shard_size: str | None) -> None:
    """The old form of a .pt has none, and no suffix tells it."""
    write_shards(tmp_path / "model", stem="pytorch_model", suffix="bin")
    for shard in (tmp_path / "model").glob("*.bin"):
        torch.save(torch.load(shard), shard, _use_new_zipfile_serialization=not legacy)
    destination = tmp_path / ("shards" if shard_size else "one.fckpt")
    done = fastckpt.convert(tmp_path / "model", destination, shard_size=shard_size, durable=False)
    assert all(each.source_verified is not legacy for each in done if each.tensors)


@pytest.mark.parametrize(
    "kept",
    [
        7,
        {},
        {"name": "x", "text": "{"},
        {"name": "../x", "text": "{}"},
        {"name": "x", "text": '{"weight_map": {"a": "../b"}}'},
    ],
)
def test_a_kept_index_that_makes_no_sense(tmp_path: Path, kept: object) -> None:
    write_shards(tmp_path / "here")
    fastckpt.convert(tmp_path / "here", tmp_path / "own")
    index = tmp_path / "own" / "model.fckpt.index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "made_from": kept}))
    with pytest.raises(FastckptError):
        fastckpt.convert(tmp_path / "own", tmp_path / "back", to="safetensors")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "b").exists()


def test_directories_that_are_no_single_checkpoint(tmp_path: Path) -> None:
    write_trainer_step(tmp_path / "run", 1)
    newest = write_trainer_step(tmp_path / "run", 2)
    for place, named in ((tmp_path / "run", "checkpoint-2"), (newest, "model.safetensors"), (tmp_path, "inspect")):
        with pytest.raises(UsageError if place != tmp_path else NotACheckpointError) as caught:
            fastckpt.load(place)
        assert named in str(caught.value)


# --- torch.distributed.checkpoint ---------------------------------------------

STATE = {
    "model": {"w": torch.arange(24.0).reshape(6, 4), "b": torch.ones(3, dtype=torch.bfloat16)},
    "optimizer": {
        "state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.zeros(6, 4)}},
        "param_groups": [{"lr": 0.1}],
    },
    "step": 7,
    "names": ["a", "b"],
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """What torch.distributed.checkpoint itself writes, in one process."""
    import torch.distributed.checkpoint as dcp

    dcp.save(STATE, checkpoint_id=str(tmp_path / "step-7"), no_dist=True)
    return tmp_path / "step-7"


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{path}.{key}")
    else:
        yield path, value.tolist() if isinstance(value, torch.Tensor) else value


def test_a_distributed_checkpoint_is_put_together(saved: Path, tmp_path: Path) -> None:
    assert dict(leaves(fastckpt.load(saved))) == dict(leaves(STATE))
    assert torch.equal(fastckpt.load(saved, keys="model.w")["model.w"], STATE["model"]["w"])
    (done,) = fastckpt.convert(saved, tmp_path / "all.fckpt")
    assert done.source_verified
    assert dict(leaves(fastckpt.load(tmp_path / "all.fckpt"))) == dict(leaves(STATE))
    fastckpt.convert(saved, tmp_path / "all.pt")
    assert dict(leaves(torch.load(tmp_path / "all.pt"))) == dict(leaves(STATE))


def test_damage_of_a_distributed_checkpoint_is_seen(saved: Path) -> None:
    (shard,) = saved.glob("*.distcp")
    content = shard.read_bytes()
    at = content.index(STATE["model"]["w"].numpy().tobytes()) + 9
    flip(shard, at)
    (report,) = [judge(found, threads=1) for found in recognise(str(saved))]
    assert report.exit_code == 2
    with pytest.raises(DamagedError):
        fastckpt.load(saved)
    assert fastckpt.load(saved, keys="model.b")["model.b"].tolist() == [1, 1, 1]
    shard.write_bytes(content[:-700])
    assert not judge(recognise(str(saved))[0], threads=1).is_whole
    shard.write_bytes(content[1:])
    assert not judge(recognise(str(saved))[0], threads=1).is_whole
    shard.write_bytes(content)
    assert judge(recognise(str(saved))[0], threads=1).is_whole


def test_every_byte_of_the_metadata_may_be_wrong(saved: Path) -> None:
    """Damage never ends in anything but a typed error, or in the very values."""
    path = saved / ".metadata"
    content = path.read_bytes()
    for at in range(0, len(content), max(len(content) // 150, 1)):
        damaged = bytearray(content)
        damaged[at] ^= 0x11
        path.write_bytes(damaged)
        try:
            judge(recognise(str(saved))[0], threads=1)
            state = fastckpt.load(saved, opaque="keep")
        except FastckptError:
            continue
        # Names are not proven by anything: their bytes may differ, the values never.
        known = {json.dumps(value) for _, value in leaves(STATE)}
        assert {json.dumps(value) for _, value in leaves(state)} <= known, at


@pytest.mark.parametrize("step", [1, 7, 50])
def test_a_cut_metadata_is_damage(saved: Path, step: int) -> None:
    path = saved / ".metadata"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * step // 51])
    report = judge(recognise(str(saved))[0], threads=1)
    assert report.exit_code == 2
    with pytest.raises(FastckptError):
        fastckpt.load(saved)


def test_pieces_must_cover_a_tensor_once() -> None:
    def wrong(shape: tuple[int, ...], *chunks: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
        return uncovered(GlobalTensor("float32", shape, list(chunks))) is not None

    assert not wrong((4, 4), ((0, 0), (2, 4)), ((2, 0), (2, 4)))
    assert not wrong((4, 4), ((0, 0), (2, 3)), ((2, 0), (2, 3)), ((0, 3), (4, 1)))
    assert not wrong((5,), ((0,), (3,)), ((3,), (2,)), ((5,), (0,)))
    assert not wrong((), ((), ()))
    assert wrong((4, 4), ((0, 0), (2, 4)))
    assert wrong((4, 4), ((0, 0), (2, 4)), ((1, 0), (2, 4)))
    assert wrong((4, 4), ((0, 0), (2, 4)), ((3, 0), (2, 4)))
    assert wrong((4, 4), ((0, 0), (2, 4)), ((0, 0), (2, 4)))
    assert wrong((4,), ((0, 0), (4, 1)))


_RANKS = """
import os, sys, warnings
import torch, torch.distributed as dist
warnings.simplefilter("ignore")
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
import torch.distributed.checkpoint as dcp
rank, place, port = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2")
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
full = {"rows": torch.arange(35.0).reshape(7, 5), "columns": torch.arange(12.0).reshape(3, 4).to(torch.bfloat16)}
state = {"model": {"rows": distribute_tensor(full["rows"], mesh, [Shard(0)]),
                   "columns": distribute_tensor(full["columns"], mesh, [Shard(1)])}, "step": 3}
dcp.save(state, checkpoint_id=place)
dist.destroy_process_group()
"""


def test_uneven_shards_of_two_ranks(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(_RANKS)
    import socket
    import threading

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ended: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda rank=rank: ended.append(forked.run(str(script), str(rank), str(tmp_path / "step-3"), port))
        )
        for rank in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.returncode for each in ended] == [0, 0], [each.stderr[-500:] for each in ended]
    state = fastckpt.load(tmp_path / "step-3")
    assert torch.equal(state["model"]["rows"], torch.arange(35.0).reshape(7, 5))
    assert torch.equal(state["model"]["columns"], torch.arange(12.0).reshape(3, 4).to(torch.bfloat16))
    assert state["step"] == 3
    given = {"model": {name: torch.zeros_like(tensor) for name, tensor in state["model"].items()}, "step": 0}
    fastckpt.load_into(given, tmp_path / "step-3")
    assert dict(leaves(given)) == dict(leaves(state))
    os.unlink(tmp_path / "step-3" / "__1_0.distcp")
    (problem,) = judge(recognise(str(tmp_path / "step-3"))[0], threads=1).problems
    assert set(problem.tensors) == {"model.rows", "model.columns"}
