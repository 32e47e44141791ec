"""A directory fills tensors that exist as a file does: all is compared first, and every part lands in its place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from set_builds import flip, write_shards, write_trainer_step

import fastckpt
import fastckpt.dcp
from fastckpt.errors import DamagedError, FastckptError, MismatchError, TensorNotFoundError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
KINDS = ["shards", "bin", "fckpt", "numbers", "pieces", "own"]
MODEL = {f"layers.{shard}.{part}": torch.full((16, 4), float(shard)) for shard in (1, 2, 3) for part in ("q", "k")}


def write(kind: str, place: Path) -> Path:
    """The model as a directory of a kind."""
    if kind == "pieces":
        import torch.distributed.checkpoint as dcp

        dcp.save(MODEL, checkpoint_id=str(place), no_dist=True)
    elif kind == "own":
        fastckpt.dcp.save(MODEL, place, no_dist=True)
    elif kind == "bin":
        write_shards(place, stem="pytorch_model", suffix="bin")
    else:
        write_shards(place)
        if kind == "fckpt":
            fastckpt.convert(place, place.with_name("own"), durable=False)
            place = place.with_name("own")
        elif kind == "numbers":
            (place / "model.safetensors.index.json").unlink()
    return place


def empty() -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, -1) for name, tensor in MODEL.items()}


def untouched(state: dict[str, torch.Tensor]) -> bool:
    return all(bool((tensor == -1).all()) for tensor in state.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_directory(tmp_path: Path, kind: str) -> None:
    place = write(kind, tmp_path / "it")
    state = empty()
    places = {name: tensor.data_ptr() for name, tensor in state.items()}
    seen: list[int] = []
    assert fastckpt.load_into(state, place, progress=seen.append) == ([], [])
    assert all(torch.equal(state[name], tensor) for name, tensor in MODEL.items())
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == places
    assert seen == sorted(seen)
    assert seen[-1] == sum(tensor.nbytes for tensor in MODEL.values())


@pytest.mark.parametrize("kind", KINDS)
def test_all_is_compared_before_a_byte_is_written(tmp_path: Path, kind: str) -> None:
    place = write(kind, tmp_path / "it")
    state = empty() | {"layers.3.k": torch.full((16, 5), -1.0)}
    with pytest.raises(MismatchError, match=r"layers\.3\.k: float32\[16, 4\]"):
        fastckpt.load_into(state, place)
    with pytest.raises(MismatchError):
        fastckpt.load_into(state, place, strict=False)
    assert untouched(state)
    state = empty() | {"more": torch.full((2,), -1.0)}
    del state["layers.1.q"]
    with pytest.raises(MismatchError):
        fastckpt.load_into(state, place)
    assert untouched(state)
    assert fastckpt.load_into(state, place, strict=False) == (["more"], ["layers.1.q"])
    assert torch.equal(state["layers.2.q"], MODEL["layers.2.q"])


@pytest.mark.parametrize("kind", KINDS)
def test_other_names(tmp_path: Path, kind: str) -> None:
    place = write(kind, tmp_path / "it")
    state = empty()
    fastckpt.load_into(state, place, keys="layers.2.*")
    assert [name for name, tensor in state.items() if not untouched({"": tensor})] == ["layers.2.q", "layers.2.k"]
    with pytest.raises(TensorNotFoundError):
        fastckpt.load_into(state, place, keys="nothing")
    part = {"q": torch.zeros(16, 4), "k": torch.zeros(16, 4)}
    fastckpt.load_into(part, place, prefix="layers.3", keys="q")
    assert (part["q"].unique().tolist(), part["k"].unique().tolist()) == ([3], [0])
    wrapped = {f"module.{name}": tensor for name, tensor in empty().items()}
    fastckpt.load_into(wrapped, place, strip_prefix="module.")
    assert torch.equal(wrapped["module.layers.3.k"], MODEL["layers.3.k"])
    bare = {name.removeprefix("layers."): tensor for name, tensor in empty().items()}
    fastckpt.load_into(bare, place, strip_prefix="layers.", keys="2.q")
    assert bare["2.q"].unique().tolist() == [2]


@pytest.mark.parametrize("kind", ["shards", "fckpt", "own"])
def test_some_tensors_need_their_files_only(tmp_path: Path, kind: str) -> None:
    place = write(kind, tmp_path / "it")
    held = sorted(path for path in place.iterdir() if "-0000" in path.name)
    held[-1 if kind == "own" else 1].unlink()
    state = empty()
    with pytest.raises(DamagedError, match=r"layers\.2\.q"):
        fastckpt.load_into(state, place)
    with pytest.raises(DamagedError):
        fastckpt.load_into(state, place, keys=["layers.2.q"])
    assert untouched(state)
    if kind != "own":
        fastckpt.load_into(state, place, keys="layers.3.*")
        assert state["layers.3.q"].unique().tolist() == [3]


@pytest.mark.parametrize("kind", ["bin", "fckpt", "pieces", "own"])
def test_every_byte_is_verified(tmp_path: Path, kind: str) -> None:
    place = write(kind, tmp_path / "it")
    tensor = MODEL["layers.3.k"].numpy().tobytes()
    (file,) = (path for path in place.iterdir() if tensor in path.read_bytes())
    flip(file, file.read_bytes().index(tensor) + 7)
    with pytest.raises(DamagedError, match=r"partly overwritten") as caught:
        fastckpt.load_into(empty(), place)
    assert caught.value.path == str(file)


def test_a_file_of_another_save_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    place = write("own", tmp_path / "it")
    fastckpt.dcp.save({name: tensor + 1 for name, tensor in MODEL.items()}, tmp_path / "other", no_dist=True)
    (shard,) = place.glob("shard-*")
    (other,) = (tmp_path / "other").glob("shard-*")
    shutil.copy(other, shard)
    state = empty()
    with pytest.raises(DamagedError, match="not the one that the set names"):
        fastckpt.load_into(state, place)
    assert untouched(state)


def test_a_shard_that_is_not_what_the_index_says(tmp_path: Path) -> None:
    place = write("shards", tmp_path / "it")
    shard = place / "model-00002-of-00003.safetensors"
    tensors = safetensors.torch.load_file(shard)
    for wrong in (tensors | {"more": torch.ones(1)}, {"layers.2.q": tensors["layers.2.q"]}):
        safetensors.torch.save_file(wrong, shard)
        state = empty()
        with pytest.raises(DamagedError):
            fastckpt.load_into(state, place)
        assert untouched(state)


def training(step: int, *, fill: float) -> dict[str, Any]:
    """A model and its optimizer after a step, and values beside them."""
    torch.manual_seed(step)
    net = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=fill)
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return {"model": net, "optimizer": optimizer, "step": step, "seen": np.full(3, fill), "names": ["a", fill]}


@pytest.mark.parametrize("own", [False, True])
def test_a_whole_training_state(tmp_path: Path, own: bool) -> None:
    """As people give it to torch.distributed.checkpoint: state dicts, and values; arrays where they are filled."""
    saved = training(7, fill=0.5)
    plain = {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in saved.items()}
    if own:
        fastckpt.dcp.save(plain, tmp_path / "step-7", no_dist=True)
    else:
        import torch.distributed.checkpoint as dcp

        dcp.save(plain, checkpoint_id=str(tmp_path / "step-7"), no_dist=True)
    state = training(1, fill=0.1)
    if not own:  # torch pickles an array: it is no tensor there, in a file of it neither.
        del state["seen"]
    fastckpt.load_into(state, tmp_path / "step-7")
    assert torch.equal(state["model"].weight, saved["model"].weight)
    assert (state["step"], state["names"]) == (7, ["a", 0.5])
    assert "seen" not in state or state["seen"].tolist() == [0.5] * 3
    mine, theirs = state["optimizer"].state_dict(), saved["optimizer"].state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    assert torch.equal(mine["state"][0]["exp_avg"], theirs["state"][0]["exp_avg"])
    loaded = fastckpt.load(tmp_path / "step-7", opaque="keep")["optimizer"]
    assert list(loaded["state"]) == list(theirs["state"])
    net = torch.nn.Linear(4, 3)
    fastckpt.load_into(net, tmp_path / "step-7", prefix="model")
    assert torch.equal(net.weight, saved["model"].weight)


def test_no_second_copy_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that has a record of its own is read to its place: nothing is brought to memory beside it."""
    from fastckpt.stored.fckpt import OpenedFckpt

    brought: list[int] = []
    original = OpenedFckpt.bring

    def counted(self: OpenedFckpt, storages: Any, **options: Any) -> Any:
        numbers = list(storages)
        brought.append(sum(self.storage_sizes[number] for number in numbers))
        return original(self, numbers, **options)

    big = {"a": torch.arange(2_000_000.0), "b": torch.arange(2_000_000.0) + 1}
    fastckpt.dcp.save(big, tmp_path / "it", no_dist=True)
    state = {name: torch.zeros_like(tensor) for name, tensor in big.items()}
    monkeypatch.setattr(OpenedFckpt, "bring", counted)
    fastckpt.load_into(state, tmp_path / "it")
    assert all(torch.equal(state[name], tensor) for name, tensor in big.items())
    assert sum(brought) == 0


def test_directories_that_are_no_single_checkpoint(tmp_path: Path) -> None:
    write_trainer_step(tmp_path / "run", 1)
    write_trainer_step(tmp_path / "run", 2)
    os.mkdir(tmp_path / "nothing")
    for place, kind in ((tmp_path / "run", UsageError), (tmp_path / "nothing", FastckptError)):
        with pytest.raises(kind):
            fastckpt.load_into(empty(), place)


@pytest.mark.parametrize("more", ["global", 7, "7"])
def test_an_optimizer_with_more_in_its_state_than_its_parameters(tmp_path: Path, more: str | int) -> None:
    """Numbers of parameters are numbers again, whatever stands beside them: else its state would be left out unsaid."""
    import torch.distributed.checkpoint as dcp

    net = torch.nn.Linear(3, 2)
    saved = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    saved.step()
    state = saved.state_dict()
    state["state"][more] = {"seen": torch.tensor(3)}
    dcp.save({"optimizer": state}, checkpoint_id=tmp_path / "step", no_dist=True)
    found = fastckpt.load(tmp_path / "step")["optimizer"]
    assert list(found["state"]) == [0, 1, str(more)]
    other = torch.optim.AdamW(net.parameters())
    other.load_state_dict(found)
    assert all(torch.equal(other.state[one]["exp_avg"], saved.state[one]["exp_avg"]) for one in net.parameters())
