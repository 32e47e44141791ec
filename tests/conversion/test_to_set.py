"""Any checkpoint becomes a set of ``.fckpt`` shards, and the set is the same checkpoint."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from measured import measured
from set_builds import flip, write_shards, write_trainer_step
from sharded_builds import grid, write_own, write_pieces
from states import assert_same

import fastckpt
import fastckpt.dcp
from fastckpt.cli.main import main
from fastckpt.errors import DamagedError, FastckptError, MismatchError, UnsupportedStateError, UsageError
from fastckpt.sets.judge import judge
from fastckpt.sets.recognise import recognise

MIB = 2**20
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def training() -> dict[str, Any]:
    """A model and its optimizer after a step, and values of every kind beside them, all in plain dicts."""
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 5))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    return {
        "model": dict(net.state_dict()),
        "optimizer": optimizer.state_dict(),
        "step": 7,
        "names": ["a", None, (1, 2.5)],
        "counted": {0: torch.ones(3), 1: torch.zeros(2)},
        "by number": {3: torch.ones(2), 7: {"deep": torch.arange(4)}},
        "list": [torch.ones(2), {"x": torch.zeros(1)}, 5],
        "pair": (torch.ones(4), "text"),
        "empty": {},
        "nothing": [],
        "array": np.arange(6).reshape(2, 3),
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
        "number": torch.tensor(2.5),
        "none": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "dtype": torch.bfloat16,
    }


SOURCES = ["fckpt", "pt", "own", "pieces"]


def write(form: str, state: Any, directory: Path) -> Path:
    if form == "own":
        return write_own(directory / "own", state, grid(2, 2))
    if form == "pieces":
        return write_pieces(directory / "pieces", state, grid(3))
    path = directory / f"state.{form}"
    torch.save(state, path) if form == "pt" else fastckpt.save(state, path, durable=False)
    return path


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("form", ["fckpt", "pt"])
def test_a_file_becomes_a_set_and_is_the_same(tmp_path: Path, form: str, codec: str) -> None:
    source, place = write(form, training(), tmp_path), tmp_path / "set"
    *shards, manifest = fastckpt.convert(source, place, to="fckpt", shard_size="2kB", codec=codec, durable=False)
    assert sorted(os.listdir(place)) == sorted([*(Path(done.destination).name for done in shards), "set.fckpt"])
    assert len(shards) > 3
    assert manifest.destination == str(place / "set.fckpt")
    assert all(done.source_verified for done in shards if done.nbytes)
    assert not shards[0].left_out
    assert not shards[0].notes
    assert_same(fastckpt.load(place), training())
    (report,) = [judge(found, threads=1) for found in recognise(str(place))]
    assert (report.is_whole, report.is_of_one_save) == (True, True)
    assert main(["diff", str(source), str(place)]) == 0
    sizes = [sum(tensor.nbytes for tensor in fastckpt.load(done.destination, keys="*").values()) for done in shards]
    large = [size for size in sizes if size > 2000]
    assert len(large) == sum(t.nbytes > 2000 for t in fastckpt.load(source, keys="*").values())
    fastckpt.convert(place, tmp_path / "back.fckpt", durable=False)
    assert_same(fastckpt.load(tmp_path / "back.fckpt"), training())


@pytest.mark.parametrize("form", ["own", "pieces"])
def test_a_directory_becomes_another_set(tmp_path: Path, form: str) -> None:
    state = {"model": {"w": torch.randn(50, 30), "b": torch.randn(9)}, "optim": {"lr": 0.1}, "step": 3}
    source = write(form, state, tmp_path)
    fastckpt.convert(source, tmp_path / "set", to="fckpt", shard_size=1000, durable=False)
    assert_same(fastckpt.load(tmp_path / "set"), state)
    assert main(["diff", str(source), str(tmp_path / "set")]) == 0


def test_a_model_in_shards_goes_there_and_back(tmp_path: Path) -> None:
    write_shards(tmp_path / "model")
    fastckpt.convert(tmp_path / "model", tmp_path / "set", to="fckpt", shard_size=600, durable=False)
    assert main(["diff", str(tmp_path / "model"), str(tmp_path / "set")]) == 0
    fastckpt.convert(tmp_path / "set", tmp_path / "again", shard_size=600, durable=False)
    assert main(["diff", str(tmp_path / "model"), str(tmp_path / "again")]) == 0
    state = {name: torch.zeros_like(tensor) for name, tensor in fastckpt.load(tmp_path / "model").items()}
    fastckpt.dcp.load(state, tmp_path / "set", no_dist=True)
    assert_same(state, fastckpt.load(tmp_path / "model"))


def test_what_is_not_as_it_was_is_said(tmp_path: Path) -> None:
    tensor = torch.arange(60.0).view(6, 10)
    inner = OrderedDict(w=tensor, t=tensor.t(), part=tensor[2:4])
    state = {"model": inner, "c": torch.randn(4, dtype=torch.complex64).conj()}
    fastckpt.save(state, tmp_path / "x.fckpt", metadata={"run": 7}, durable=False)
    first, *_ = fastckpt.convert(tmp_path / "x.fckpt", tmp_path / "set", to="fckpt", shard_size=100, durable=False)
    text = "\n".join(first.notes)
    assert "a plain dict when it is loaded: state['model']" in text
    assert "row-major order: model.t, c" in text
    assert "each for itself: model.w, model.t, model.part" in text
    assert first.left_out == ("metadata 'run'",)
    loaded = fastckpt.load(tmp_path / "set")
    assert torch.equal(loaded["model"]["t"], tensor.t())
    assert loaded["model"]["t"].is_contiguous()
    assert torch.equal(loaded["c"], state["c"].resolve_conj())
    words = ["convert", str(tmp_path / "x.fckpt"), str(tmp_path / "other"), "--to", "fckpt", "--shard-size", "100B"]
    assert main([*words, "--strict"]) == 1


@pytest.mark.parametrize("state", [[torch.ones(2)], torch.ones(3), {0: torch.ones(1)}, {(1, 2): torch.ones(1)}])
def test_a_state_that_has_no_names(tmp_path: Path, state: Any) -> None:
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UnsupportedStateError):
        fastckpt.convert(tmp_path / "x.pt", tmp_path / "set", to="fckpt", shard_size=100, durable=False)
    assert not (tmp_path / "set").exists()


def test_views_of_one_number_do_not_fill_the_disk(tmp_path: Path) -> None:
    fastckpt.save({str(n): torch.ones(1).expand(2**20) for n in range(20)}, tmp_path / "x.fckpt", durable=False)
    with pytest.raises(UnsupportedStateError, match="in a set, which cannot share"):
        fastckpt.convert(tmp_path / "x.fckpt", tmp_path / "set", to="fckpt", shard_size="1MB", durable=False)


def test_there_is_one_whole_set_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, place = write("pt", training(), tmp_path), tmp_path / "set"
    whole = source.read_bytes()
    weights = training()["model"]["1.weight"].numpy().tobytes()
    flip(source, whole.index(weights) + 5)
    with pytest.raises(DamagedError):
        fastckpt.convert(source, place, to="fckpt", shard_size="2kB", durable=False)
    assert os.listdir(place) == []
    (place / "shard-0001-00000.fckpt").write_bytes(b"of a run that was killed")
    begun = set(os.listdir(place))
    source.write_bytes(whole)
    made = fastckpt.convert(source, place, to="fckpt", shard_size="2kB", durable=False)
    assert set(os.listdir(place)) == {Path(done.destination).name for done in made}
    assert not begun & set(os.listdir(place))
    with pytest.raises(MismatchError, match="there is a set already"):
        fastckpt.convert(source, place, to="fckpt", shard_size="2kB", durable=False)


def test_what_cannot_be_asked_for(tmp_path: Path) -> None:
    source = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"w": torch.ones(3)}, source)
    for options in ({"keys": "w"}, {"copy_shared": True}, {"strip_prefix": "w"}, {"replace": True}):
        with pytest.raises(UsageError):
            fastckpt.convert(source, tmp_path / "set", to="fckpt", shard_size=5, **options)
    with pytest.raises(UsageError), open(source, "rb") as file:
        fastckpt.convert(file, tmp_path / "set", to="fckpt", shard_size=5)
    with pytest.raises(UsageError):
        fastckpt.convert(source, to="fckpt", shard_size=5)
    write_trainer_step(tmp_path / "run", 1)
    with pytest.raises(FastckptError):
        fastckpt.convert(tmp_path / "run" / "checkpoint-1", tmp_path / "set", to="fckpt", shard_size=5)
    assert not (tmp_path / "set").exists()


@pytest.mark.thorough
def test_memory_is_bounded_and_torch_is_not_needed(tmp_path: Path) -> None:
    huge = torch.arange(52428800.0).view(5120, 10240)
    torch.save({"model": {"huge": huge}, "step": 1}, tmp_path / "m.pt")
    code = """
with Peak() as peak:
    fastckpt.convert(sys.argv[1], sys.argv[2], to="fckpt", shard_size="50MB", durable=False)
print(json.dumps({"growth": peak.growth, "torch": "torch" in sys.modules}))
"""
    result = measured(code, tmp_path / "m.pt", tmp_path / "set")
    assert not result["torch"]
    assert result["growth"] < 130 * MIB < huge.nbytes
    assert torch.equal(fastckpt.load(tmp_path / "set")["model"]["huge"], huge)
