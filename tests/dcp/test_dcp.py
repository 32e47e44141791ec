"""torch.distributed.checkpoint through .fckpt shards, in one process."""

from __future__ import annotations

import collections
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
from in_turn import Rank, rows_of, save_in_turn
from reference_set import read_set
from reference_tree import Refused
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlanner

import fastckpt
import fastckpt.dcp
from fastckpt.dcp.compact import compact
from fastckpt.dcp.region import read_region
from fastckpt.errors import DamagedError, FastckptError, UnsupportedStateError, UsageError
from fastckpt.sets.judge import judge
from fastckpt.sets.recognise import recognise
from fastckpt.sets.set_manifest import read_set_manifest
from fastckpt.stored.open_file import open_file

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


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
    assert not fastckpt.dcp.FastckptWriter.validate_checkpoint_id("s3://")
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


# --- what the planner may do -----------------------------------------------------------------------------------------


def test_a_planner_that_keeps_its_plan_overwrites_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan of the save before names the shards of then: they stay whole until the new set is there."""
    for name in ("save_plan", "all_plans", "global_plan", "metadata", "final_save_plan"):
        monkeypatch.setattr(SavePlanner, f"_cached_{name}", {})

    def save(step: int) -> None:
        planner = DefaultSavePlanner(enable_plan_caching=True)
        fastckpt.dcp.save(make(step), saved, no_dist=True, planner=planner)

    save(8)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(fastckpt.dcp.FastckptWriter, "finish", lambda *_: 1 / 0)
        with pytest.raises(CheckpointException):
            save(9)
    assert before == {path.name: path.read_bytes() for path in saved.iterdir() if path.name in before}
    assert load(saved)["step"] == 8
    save(10)
    assert load(saved)["step"] == 10
    assert len(list(saved.iterdir())) == 2


class Deaf(DefaultSavePlanner):
    """A planner that gives objects as pickles only."""

    @property
    def lookup_object(self) -> Any:
        raise AttributeError("lookup_object")


class Casting(DefaultSavePlanner):
    """A planner that gives other elements than it has planned."""

    def transform_object(self, write_item: Any, object: Any) -> Any:
        return object.to(torch.bfloat16) if isinstance(object, torch.Tensor) else object


@pytest.mark.parametrize(("planner", "named"), [(Deaf, "step: Deaf"), (Casting, "bfloat16")])
def test_a_planner_that_cannot_be_followed_is_refused(saved: Path, planner: Any, named: str) -> None:
    with pytest.raises(CheckpointException) as caught:
        fastckpt.dcp.save({"step": 8, "w": torch.ones(3)}, saved, no_dist=True, planner=planner())
    assert isinstance(cause(caught.value), UnsupportedStateError)
    assert named in str(cause(caught.value))
    assert load(saved)["step"] == 7


def test_names_that_look_like_parts(tmp_path: Path) -> None:
    """As a name by itself it is a name like any other; beside such a part, it is refused."""
    whole = torch.arange(4.0)
    save_in_turn(tmp_path / "a", [Rank({"w[0:2]": whole})])
    assert torch.equal(fastckpt.load(tmp_path / "a")["w[0:2]"], whole)
    ranks = [Rank({"w[0:2]": whole}, (part,)) for part in rows_of(("w",), whole, 2)]
    with pytest.raises(UnsupportedStateError, match=r"w\[0:2\]"):
        save_in_turn(tmp_path / "b", ranks)


# --- what tensors may be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float32, torch.complex64, torch.uint8])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float64, torch.int16])
def test_another_dtype_is_converted_as_torch_does_it(stored: torch.dtype, wanted: torch.dtype, tmp_path: Path) -> None:
    """Large enough that the bytes would go straight into the memory, which has room for others."""
    if stored.is_complex:
        wanted = torch.complex128
    w = torch.arange(300_000).to(stored)
    fastckpt.dcp.save({"w": w}, tmp_path, no_dist=True)
    memory = torch.zeros(len(w) + 1000, dtype=wanted)
    state = {"w": memory[:-1000]}
    fastckpt.dcp.load(state, tmp_path, no_dist=True)
    assert torch.equal(state["w"], w.to(wanted))
    assert not memory[-1000:].any()


def test_views_that_are_conjugated_or_negated(tmp_path: Path) -> None:
    z = torch.arange(4) + 1j * torch.arange(1, 5)
    state = {"conj": z.conj(), "part": z.conj()[1:3], "neg": z.conj().imag, "large": (z.repeat(90_000)).conj()}
    expected = {name: tensor.clone() for name, tensor in state.items()}
    fastckpt.dcp.save(state, tmp_path, no_dist=True)
    loaded = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    views = {name: torch.zeros_like(expected[name].resolve_conj()).conj() for name in ("conj", "large")}
    fastckpt.dcp.load(loaded, tmp_path, no_dist=True)
    fastckpt.dcp.load(views, tmp_path, no_dist=True)
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name
        assert torch.equal(fastckpt.load(tmp_path)[name], tensor), name
        assert name not in views or torch.equal(views[name], tensor)


@pytest.mark.parametrize("codec", ["zstd", "planes"])
def test_encoded_shards(codec: str, tmp_path: Path) -> None:
    """Whole tensors and parts of them, large and small, come back from them as from others."""
    torch.manual_seed(0)
    tensors = {"large": torch.randn(700, 600), "small": torch.randn(7, 3, dtype=torch.bfloat16)}
    parts = zip(*(rows_of((name,), tensor, 3) for name, tensor in tensors.items()), strict=True)
    save_in_turn(tmp_path, [Rank({"step": 1}, part) for part in parts], options={"codec": codec})
    assert judge(recognise(str(tmp_path))[0], threads=1).is_whole
    state = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    fastckpt.dcp.load(state, tmp_path, no_dist=True)
    loaded = fastckpt.load(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(state[name], tensor)
        assert torch.equal(loaded[name], tensor)


def test_an_object_may_hold_tensors(tmp_path: Path) -> None:
    recent = collections.deque([torch.arange(3.0), {"w": torch.arange(100_000)}], 2)
    fastckpt.dcp.save({"recent": recent, "other": collections.deque([torch.ones(2)])}, tmp_path, no_dist=True)
    assert judge(recognise(str(tmp_path))[0], threads=1).is_whole
    state: dict[str, Any] = {"recent": None}
    fastckpt.dcp.load(state, tmp_path, no_dist=True)
    assert torch.equal(state["recent"][1]["w"], torch.arange(100_000))
    assert fastckpt.load(tmp_path)["recent"][0].tolist() == [0, 1, 2]


def test_an_empty_state(tmp_path: Path) -> None:
    fastckpt.dcp.save({}, tmp_path / "step-1", no_dist=True)
    assert judge(recognise(str(tmp_path / "step-1"))[0], threads=1).is_whole
    assert fastckpt.load(tmp_path / "step-1") == {}
    fastckpt.dcp.load({}, tmp_path / "step-1", no_dist=True)


# --- what a set may not be -------------------------------------------------------------------------------------------


def rewrite(place: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Another shard and a manifest that names it: as a program would write them that knows no rule."""
    (shard,) = place.glob("shard-*")
    state, manifest = fastckpt.load(shard), fastckpt.load(place / "set.fckpt")
    change(state, manifest)
    with fastckpt.open(shard) as opened:
        metadata = opened.metadata
    fastckpt.save(state, shard, metadata=metadata)
    about = {"root": fastckpt.verify(shard).root, "size": shard.stat().st_size}
    fastckpt.save({**manifest, "shards": {shard.name: about}}, place / "set.fckpt")


WRONG: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "no tensors": lambda state, _: state.pop("tensors"),
    "tensors in a list": lambda state, _: state.update(tensors=[1]),
    "no tensor": lambda state, _: state["tensors"].pop("model.w"),
    "a number": lambda state, _: state["tensors"].update({"model.w": 7}),
    "another shape": lambda state, _: state["tensors"].update({"model.w": torch.ones(1, 200)}),
    "another dtype": lambda state, _: state["tensors"].update({"model.w": torch.ones(300, 200).half()}),
    "no objects": lambda state, _: state.pop("objects"),
    "no object": lambda state, _: state["objects"].pop("step"),
    "a hole": lambda _, manifest: manifest["entries"]["model.w"]["parts"].clear(),
    "twice": lambda _, manifest: manifest["entries"]["model.w"]["parts"].append(((0, 0), (300, 200), 0)),
    "outside": lambda _, manifest: manifest["entries"]["model.w"].update(parts=[((1, 0), (300, 200), 0)]),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_set_that_contradicts_itself_is_refused(saved: Path, what: str) -> None:
    rewrite(saved, WRONG[what])
    with pytest.raises(DamagedError):
        fastckpt.load(saved)
    with pytest.raises((CheckpointException, DamagedError)) as caught:
        load(saved)
    # What torch's wrapper keeps of an error in the metadata is its text.
    found = cause(caught.value) if isinstance(caught.value, CheckpointException) else caught.value
    assert isinstance(found, DamagedError) or "set.fckpt: model.w: " in str(found)
    with pytest.raises(Refused):
        read_set(saved)
    assert judge(recognise(str(saved))[0], threads=1).exit_code == 2
