"""Any checkpoint to .safetensors in one step: as the safetensors library reads it, and nothing lost without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import DamagedError, MismatchError, UnsupportedStateError, UsageError
from fastckpt.text import parse_size

W = torch.arange(60_000, dtype=torch.float32).view(200, 300)
MODEL = {"w": W, "head": W, "t": torch.arange(12.0).view(3, 4).t(), "row": W[5], "h": torch.ones(3).bfloat16()}
STATE = {"state_dict": {f"model.{name}": tensor for name, tensor in MODEL.items()}, "epoch": 3, "lr": 0.5}
OPTIONS = ["--keys", "state_dict.*", "--strip-prefix", "state_dict.model."]


@pytest.fixture(params=["pt", "legacy", "fckpt"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / ("a.fckpt" if request.param == "fckpt" else "a.ckpt")
    if request.param == "fckpt":
        fastckpt.save(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=request.param == "pt")
    return path


def test_chosen_and_renamed(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b.safetensors"
    assert main(["convert", str(path), str(out), *OPTIONS, "--strict"]) == 0
    told = capsys.readouterr().out
    assert "head is w" in told
    assert "contiguous: t" in told
    found = load_file(out)
    assert set(found) == {"w", "t", "row", "h"}
    for name, tensor in found.items():
        assert torch.equal(tensor, MODEL[name])
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt", "head": "w"}
    assert main(["convert", str(path), str(tmp_path / "c.safetensors"), *OPTIONS, "--copy-shared"]) == 0
    assert torch.equal(load_file(tmp_path / "c.safetensors")["head"], W)


PLAIN = {
    "epoch": 3,
    "big": 2**100,
    "name": "a \u00e9\ud7ff",
    "optimizer": {"state": {"0": {"m": torch.ones(2), "step": 7}}, "param_groups": [{"lr": 0.5, "betas": (0.9, 0.95)}]},
    "nothing": None,
    "empty": {},
}
TEXTS = {
    "epoch": 3,
    "big": 2**100,
    "name": "a \u00e9\ud7ff",
    "optimizer.state.0.step": 7,
    "optimizer.param_groups": [{"lr": 0.5, "betas": [0.9, 0.95]}],
    "nothing": None,
    "empty": {},
}
NO_JSON = {
    "raw": b"x",
    "nan": float("nan"),
    "bits": torch.float16,
    "seen": {"a"},
    "by_number": {3: 4, 5: b""},
    "w": "the name of a tensor",
    "huge": 10**5000,
    "long": "x" * 2**20,
}


@pytest.mark.parametrize("kind", ["pt", "fckpt"])
def test_plain_values_are_json_beside_the_tensors(tmp_path: Path, kind: str) -> None:
    path, out = tmp_path / f"a.{kind}", tmp_path / "b.safetensors"
    torch.save(PLAIN, path) if kind == "pt" else fastckpt.save(PLAIN, path, metadata={"step": 1})
    assert main(["convert", str(path), str(out), "--strict"]) == 0
    assert list(load_file(out)) == ["optimizer.state.0.m"]
    with safe_open(out, "pt") as file:
        told = file.metadata()
    assert (told.pop("format"), told.pop("step", "1")) == ("pt", "1")
    assert {name: json.loads(text) for name, text in told.items()} == TEXTS


@pytest.mark.parametrize("kind", ["pt", "fckpt"])
def test_what_is_no_json_is_left_out_and_listed(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / f"a.{kind}", tmp_path / "b.safetensors"
    state = {"model": {"w": torch.ones(2)}, "x": torch.ones(1), "in": NO_JSON, "lr": 0.5, "x.y": 1} | {"w": b""}
    torch.save(state, path) if kind == "pt" else fastckpt.save(state, path)
    (done,) = fastckpt.convert(path, out, strip_prefix="model.")
    left = {
        place.partition(":")[0].split("[")[2].strip("']") for place in done.left_out if place.startswith("state['in']")
    }
    assert left == NO_JSON.keys() - {"w"}
    with safe_open(out, "pt") as file:
        told = file.metadata()
    assert told == {"format": "pt", "lr": "0.5", "x.y": "1", "in.by_number.3": "4", "in.w": '"the name of a tensor"'}
    for options, code in ((["--strict"], 1), ([], 0)):
        assert main(["convert", str(path), str(tmp_path / f"c{code}.safetensors"), *options]) == code
        assert "left out, which a .safetensors cannot hold: state['in']['raw']" in capsys.readouterr().out


def test_the_direct_way_is_the_general_one(tmp_path: Path) -> None:
    state = {name: tensor.contiguous().clone() for name, tensor in MODEL.items()}
    fastckpt.save(state, tmp_path / "a.fckpt", metadata={"note": {"a": 1}})
    fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "direct.safetensors")
    fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "general.safetensors", copy_shared=True)
    assert (tmp_path / "direct.safetensors").read_bytes() == (tmp_path / "general.safetensors").read_bytes()


def test_damage_and_wrong_options(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.safetensors"
    with pytest.raises(UsageError, match="no tensor's name begins"):
        fastckpt.convert(path, out, strip_prefix="other.")
    with pytest.raises(UsageError, match="safetensors destination"):
        fastckpt.convert(path, tmp_path / "b.pt", keys="*")
    raw = bytearray(path.read_bytes())
    raw[raw.index(W.numpy().tobytes()) + 7] ^= 1
    path.write_bytes(raw)
    if path.suffix == ".fckpt" or raw[:2] == b"PK":
        with pytest.raises(DamagedError):
            fastckpt.convert(path, out, keys="*")
        assert not out.exists()


def test_safetensors_to_pt(tmp_path: Path) -> None:
    state = {name: tensor.contiguous().clone() for name, tensor in MODEL.items()}
    save_file(state, tmp_path / "a.safetensors")
    fastckpt.convert(tmp_path / "a.safetensors", tmp_path / "b.pt")
    found = torch.load(tmp_path / "b.pt")
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.filterwarnings("ignore")
def test_a_program_is_listed_as_left_out(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    torch.export.save(torch.export.export(net, (torch.ones(1, 3),)), tmp_path / "a.pt2")
    (done,) = fastckpt.convert(tmp_path / "a.pt2", tmp_path / "a.safetensors")
    assert done.left_out == ("the program of torch.export",)
    assert torch.equal(load_file(tmp_path / "a.safetensors")["weight"], net.weight)
    with pytest.raises(UnsupportedStateError, match="would be lost"):
        fastckpt.convert(tmp_path / "a.pt2", tmp_path / "b.pt", strip_prefix="w")


# --- shards --------------------------------------------------------------------


def test_shards_of_a_size_are_what_hugging_face_loads(tmp_path: Path) -> None:
    state = {f"layers.{number}.w": torch.full((10, 10), float(number)) for number in range(7)}
    state |= {"tied": state["layers.0.w"], "big": torch.ones(900), "none": torch.ones(0)}
    fastckpt.save(state, tmp_path / "m.fckpt", durable=False)
    made = fastckpt.convert(tmp_path / "m.fckpt", tmp_path / "hf", shard_size="1kB", durable=False)
    assert all(done.source_verified for done in made)
    shards = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    # Two small ones in each; the one that is larger than a shard, and the empty one behind it, stand alone.
    assert [len(load_file(shard)) for shard in shards] == [2, 2, 2, 1, 1, 1]
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == state.keys() - {"tied"}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values()) - 400
    back = fastckpt.load(tmp_path / "hf")
    assert all(torch.equal(back[name], state[name]) for name in index["weight_map"])
    assert fastckpt.verify(shards[0]).exit_code == 0
    # Once more, in one file: without an index, and never over what is there.
    (one,) = fastckpt.convert(tmp_path / "hf", tmp_path / "one", shard_size=10**9, durable=False)
    assert not one.source_verified
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "one" / "model.safetensors").keys() == back.keys()
    with pytest.raises(MismatchError):
        fastckpt.convert(tmp_path / "hf", tmp_path / "one", shard_size=10**9)


@pytest.mark.parametrize("size", ["5XB", "", "-1", 0, -3, "0.2"])
def test_sizes_that_are_none(tmp_path: Path, size: int | str) -> None:
    fastckpt.save({"w": torch.ones(3)}, tmp_path / "m.fckpt", durable=False)
    with pytest.raises(UsageError):
        fastckpt.convert(tmp_path / "m.fckpt", tmp_path / "hf", shard_size=size)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("7", 7), ("2k", 2000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
