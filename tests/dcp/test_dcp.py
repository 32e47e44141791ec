"""torch.distributed.checkpoint through .fckpt shards: any ranks to any ranks bit for bit, and never half a save."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import torch.distributed.checkpoint
from torch.distributed.checkpoint.api import CheckpointException

import fastckpt
import fastckpt.dcp
from fastckpt.dcp.compact import compact
from fastckpt.dcp.region import read_region
from fastckpt.errors import DamagedError, FastckptError, UnsupportedStateError, UsageError
from fastckpt.sets.judge import judge
from fastckpt.sets.recognise import recognise
from fastckpt.sets.set_manifest import read_set_manifest
from fastckpt.stored.open_file import open_file

SCRIPT = Path(__file__).with_name("ranks.py")
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def run_ranks(job: str, kind: str, world: int, place: Path) -> None:
    """Run a job on so many ranks; all must end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ended: list[Any] = []

    def one(rank: int) -> None:
        ended.append(forked.run(str(SCRIPT), job, kind, str(rank), str(world), port, str(place)))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.returncode for each in ended] == [0] * world, [each.stderr[-1500:] for each in ended]


QUICK = [("fsdp", "save", 2, (1, 2))]
FULL = [
    *((kind, "save", saved, (1, 2, 4)) for kind in ("plain", "fsdp") for saved in (1, 2, 4)),
    *((kind, "save", saved, (1, 2, 4)) for kind in ("tp", "hsdp") for saved in (2, 4)),
    *((kind, job, 2, (1, 4)) for kind in ("fsdp", "tp") for job in ("async", "process")),
]


def _saved_and_loaded(kind: str, job: str, saved: int, loaded: tuple[int, ...], place: Path) -> None:
    run_ranks(job, kind, saved, place)
    (report,) = [judge(found, threads=1) for found in recognise(str(place))]
    assert report.is_whole, report.problems
    assert not report.unproven
    for world in loaded:
        run_ranks("load", kind if world > 1 else "plain", world, place)
    # Without torch.distributed, put together: the same again.
    state = fastckpt.load(place)
    truth = torch.load(f"{place}.truth", weights_only=False)
    assert state["step"] == 7
    for name, tensor in truth["model"].items():
        assert torch.equal(state["model"][name], tensor), name
    model = {name: torch.zeros_like(tensor) for name, tensor in truth["model"].items()}
    fastckpt.load_into(model, place, prefix="model")
    assert all(torch.equal(model[name], tensor) for name, tensor in truth["model"].items())


@pytest.mark.parametrize(("kind", "job", "saved", "loaded"), QUICK)
def test_ranks_to_ranks(kind: str, job: str, saved: int, loaded: tuple[int, ...], tmp_path: Path) -> None:
    place = tmp_path / "step-7"
    _saved_and_loaded(kind, job, saved, loaded, place)
    # Without the last shard the parts of all others come back.
    whole = fastckpt.load(place)["model"]
    lost = max(place.glob("shard-*.fckpt"))
    lost.unlink()
    report = fastckpt.salvage(place, tmp_path / "left.fckpt", include=["partial"], durable=False)
    assert (report.exit_code, report.complete) == (3, False)
    partial = {name: fate for name, fate in report.tensors.items() if fate.status.value == "partial"}
    assert partial
    assert all(lost.name in fate.reason for fate in partial.values())
    left = fastckpt.load(tmp_path / "left.fckpt")["model"]
    for name in left:
        for first, end in report.tensors[f"model.{name}"].rows_intact or [(0, len(whole[name]))]:
            assert torch.equal(left[name][first:end], whole[name][first:end])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "job", "saved", "loaded"), FULL)
def test_any_ranks_to_any_ranks(kind: str, job: str, saved: int, loaded: tuple[int, ...], tmp_path: Path) -> None:
    _saved_and_loaded(kind, job, saved, loaded, tmp_path / "step-7")


# --- one process --------------------------------------------------------------


def make(step: int) -> dict[str, Any]:
    return {
        "model": {"w": torch.full((300, 200), float(step)), "part": torch.arange(100.0)[20:30] + step},
        "optimizer": {"param_groups": [{"lr": 0.5, "betas": (0.9, 0.99)}]},
        "step": step,
        "seen": {1, 2},
        "bytes": b"\x00\x01",
    }


def empty() -> dict[str, Any]:
    return {
        "model": {"w": torch.empty(300, 200), "part": torch.empty(10)},
        "optimizer": {"param_groups": [{"lr": 0.0, "betas": (0.0, 0.0)}]},
        "step": 0,
        "seen": set(),
        "bytes": b"",
    }


def load(place: Path) -> dict[str, Any]:
    state = empty()
    fastckpt.dcp.load(state, place, no_dist=True)
    return state


def cause(error: BaseException) -> BaseException:
    """What went wrong in the one rank."""
    assert isinstance(error, CheckpointException)
    (failure,) = error.failures.values()
    return failure[0]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    fastckpt.dcp.save(make(7), tmp_path / "step-7", no_dist=True)
    return tmp_path / "step-7"


def test_values_come_back_as_they_are(saved: Path) -> None:
    state = load(saved)
    assert torch.equal(state["model"]["w"], make(7)["model"]["w"])
    assert state["model"]["part"].tolist() == make(7)["model"]["part"].tolist()
    assert {name: state[name] for name in ("optimizer", "step", "seen", "bytes")} == {
        name: make(7)[name] for name in ("optimizer", "step", "seen", "bytes")
    }


def test_a_part_of_a_buffer_costs_its_own_bytes(saved: Path) -> None:
    big = torch.zeros(10_000_000)
    fastckpt.dcp.save({"part": big[:1000]}, saved, no_dist=True)
    assert sum(path.stat().st_size for path in saved.iterdir()) < 200_000


def test_a_new_save_touches_nothing_of_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that fails at any commit leaves the old state whole; one that ends leaves no old file."""
    from fastckpt.io import commit

    real = commit.Commit.finish
    for failing in range(2):  # The shard, then the set.
        count = 0

        def finish(self: Any, *arguments: Any, failing: int = failing, **named: Any) -> None:
            nonlocal count
            count += 1
            if count - 1 == failing:
                raise OSError(5, "no more")
            real(self, *arguments, **named)

        with monkeypatch.context() as patched:
            patched.setattr(commit.Commit, "finish", finish)
            with pytest.raises(CheckpointException):
                fastckpt.dcp.save(make(8), saved, no_dist=True)
        assert load(saved)["step"] == 7
    fastckpt.dcp.save(make(8), saved, no_dist=True)
    assert load(saved)["step"] == 8
    assert sorted(path.name for path in saved.iterdir()) == ["set.fckpt", "shard-0003-00000.fckpt"]


def test_the_same_state_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    fastckpt.dcp.save(make(7), tmp_path / "again", no_dist=True)
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "stale", "no set", "torn set"])
def test_a_shard_that_is_not_as_it_was_is_named(saved: Path, damage: str) -> None:
    shard = saved / "shard-0001-00000.fckpt"
    if damage == "missing":
        shard.unlink()
    elif damage == "cut":
        os.truncate(shard, shard.stat().st_size // 2)
    elif damage == "flipped":
        content = bytearray(shard.read_bytes())
        content[content.index(make(7)["model"]["w"].numpy().tobytes()) + 70_000] ^= 1
        shard.write_bytes(content)
    elif damage == "stale":
        fastckpt.dcp.save(make(8), saved.parent / "other", no_dist=True)
        shutil.copyfile(saved.parent / "other" / shard.name, shard)
    elif damage == "no set":
        (saved / "set.fckpt").unlink()
    else:
        os.truncate(saved / "set.fckpt", 4096)
    with pytest.raises((CheckpointException, FastckptError)) as caught:
        load(saved)
    error = cause(caught.value) if isinstance(caught.value, CheckpointException) else caught.value
    # torch puts what went wrong with the metadata into an error of its own.
    assert isinstance(error, FastckptError) or "set.fckpt" in str(error)
    if damage in ("cut", "flipped", "stale"):
        assert "shard-0001" in str(error)
        assert "model.w" in str(error) or "model.part" in str(error)
    (report,) = [judge(found, threads=1) for found in recognise(str(saved))]
    assert report.exit_code == 2
    with pytest.raises(FastckptError):
        fastckpt.load(saved)


def test_damage_elsewhere_does_not_matter(saved: Path) -> None:
    shard = saved / "shard-0001-00000.fckpt"
    content = bytearray(shard.read_bytes())
    content[content.index(make(7)["model"]["w"].numpy().tobytes()) + 70_000] ^= 1
    shard.write_bytes(content)
    state = {"model": {"part": torch.empty(10)}}
    fastckpt.dcp.load(state, saved, no_dist=True)
    assert state["model"]["part"].tolist() == make(7)["model"]["part"].tolist()


def test_what_cannot_be_stored_is_refused_by_its_name(saved: Path) -> None:
    with pytest.raises(CheckpointException) as caught:
        fastckpt.dcp.save({"step": 8, "strange": lambda: None}, saved, no_dist=True)
    assert isinstance(cause(caught.value), UnsupportedStateError)
    assert "strange" in str(cause(caught.value))
    assert load(saved)["step"] == 7


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        fastckpt.dcp.FastckptWriter(tmp_path, codec="rar")
    with pytest.raises(UsageError):
        fastckpt.dcp.FastckptReader(tmp_path, threads=0)
    assert not fastckpt.dcp.FastckptWriter.validate_checkpoint_id("s3://bucket/x")
    assert not fastckpt.dcp.FastckptReader.validate_checkpoint_id(str(tmp_path))
    with pytest.raises(UnsupportedStateError):
        fastckpt.dcp.FastckptWriter(tmp_path).set_up_storage_writer(True, use_collectives=False)


def test_the_readers_of_torch_take_it_by_its_id(tmp_path: Path) -> None:
    """As torchtitan and others call it: a storage without a path, and the directory as checkpoint_id."""
    torch.distributed.checkpoint.save(
        make(1), checkpoint_id=str(tmp_path / "a"), storage_writer=fastckpt.dcp.FastckptWriter(), no_dist=True
    )
    state = empty()
    torch.distributed.checkpoint.load(
        state, checkpoint_id=str(tmp_path / "a"), storage_reader=fastckpt.dcp.FastckptReader(), no_dist=True
    )
    assert state["step"] == 1


def test_a_manifest_that_makes_no_sense(saved: Path) -> None:
    manifest = fastckpt.load(saved / "set.fckpt")
    for change in (
        {"fastckpt_set": 2},
        {"shards": {"../x": {"root": "", "size": 1}}},
        {"shards": {}},
        {"entries": {"w": {"dtype": "float32"}}},
        {"entries": {"w": 7}},
        {"planner": 7},
    ):
        fastckpt.save({**manifest, **change}, saved / "set.fckpt")
        with pytest.raises(DamagedError):
            read_set_manifest(str(saved / "set.fckpt"))
        assert judge(recognise(str(saved))[0], threads=1).exit_code == 2


def test_compact_keeps_the_elements_and_nothing_else() -> None:
    base = torch.arange(60.0)
    for view in (base, base[10:20], base.view(6, 10)[:, 3:5], base[:0], base.view(6, 10).t(), base[5]):
        small = compact(view)
        assert torch.equal(small, view)
        assert small.untyped_storage().nbytes() == view.nbytes
    part = compact(base[10:20])
    base[10] = -1
    assert part[0] == -1  # Not a copy.
    del base
    assert part.tolist()[1:] == [float(number) for number in range(11, 20)]


@pytest.mark.parametrize("shape", [(), (7,), (50, 3), (9, 20000), (4, 5, 9000), (3, 1, 2, 5)])
def test_regions(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Every region is what slicing gives; what is read is what is needed and two leaves a run at most."""
    generator = torch.Generator().manual_seed(len(shape))
    w = torch.randn(shape, generator=generator)
    fastckpt.save({"w": w}, tmp_path / "w.fckpt")
    for seed in range(30):
        torch.manual_seed(seed)
        begins = [int(torch.randint(0, extent, ())) for extent in shape]
        sizes = [int(torch.randint(0, extent - at + 1, ())) for extent, at in zip(shape, begins, strict=True)]
        wanted = w[tuple(slice(at, at + size) for at, size in zip(begins, sizes, strict=True))]
        target = torch.full(tuple(sizes), float("nan"))
        with open_file(tmp_path / "w.fckpt") as file:
            read_region(file, file.by_name["w"], tuple(begins), tuple(sizes), target)
            assert torch.equal(target, wanted)
            runs = max(wanted.numel() // max(sizes[-1], 1), 1) if sizes else 1
            assert file.bytes_read <= wanted.nbytes + runs * 2 * 16384
