"""Several files become one, or shards of another size: the bytes of `load` and `save`, and memory for a few tensors."""

from __future__ import annotations

import filecmp
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
from measured import measured
from set_builds import flip, write_shards
from sharded_builds import grid, whole, write_own, write_pieces

import fastckpt
from fastckpt.errors import DamagedError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
MIB = 2**20


def state() -> dict[str, Any]:
    """Tensors of every width, empty ones and numbers, and values between them."""
    torch.manual_seed(0)
    return {
        "model": {
            "w": torch.randn(60, 40),
            "half": torch.randn(7).bfloat16(),
            "cube": torch.randn(5, 6, 7),
            "number": torch.tensor(3.0),
            "empty": torch.empty(0, 4),
            "large": torch.randn(300, 400),
            "complex": torch.randn(6, 4, dtype=torch.complex64),
            "wide": torch.randn(6, 4, dtype=torch.complex128),
            "bytes": torch.arange(64, dtype=torch.int8).view(8, 8),
        },
        "optim": {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 0.1, "mask": torch.ones(3)}]},
        "step": 7,
        "names": ["a", None],
    }


def tied(place: Path) -> Path:
    """Shards of a .bin with views of one storage, steps of their own, a Parameter, and a value beside them."""
    place.mkdir(parents=True)
    tensor = torch.arange(2500.0).view(50, 50)
    first = {"a": tensor, "b": tensor.t(), "c": tensor[3:5], "p": torch.nn.Parameter(torch.ones(3)), "lr": 0.1}
    torch.save(first, place / "pytorch_model-00001-of-00002.bin")
    torch.save({"d": torch.randn(1000)[5:9]}, place / "pytorch_model-00002-of-00002.bin")
    rows = {name: f"pytorch_model-0000{1 if name in first else 2}-of-00002.bin" for name in "abcpd"}
    (place / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": rows}))
    return place


def real(place: Path) -> Path:
    """As torch writes it: a transposed tensor, a lazily conjugated one."""
    import torch.distributed.checkpoint as dcp

    values = {"w": torch.randn(40, 30).t(), "c": torch.randn(9, dtype=torch.complex64).conj(), "n": [1, (2, 3)]}
    dcp.save(values, checkpoint_id=str(place), no_dist=True)
    return place


BUILDS: dict[str, Callable[[Path], Path]] = {
    "own, whole": lambda place: write_own(place, state(), whole),
    "own, rows": lambda place: write_own(place, state(), grid(3), ranks=3),
    "own, tiles": lambda place: write_own(place, state(), grid(2, 3)),
    "own, zstd": lambda place: write_own(place, state(), grid(3), codec="zstd"),
    "pieces, whole": lambda place: write_pieces(place, state(), whole),
    "pieces, rows": lambda place: write_pieces(place, state(), grid(3), ranks=3),
    "pieces, columns": lambda place: write_pieces(place, state(), grid(1, 3)),
    "pieces, deep": lambda place: write_pieces(place, state(), grid(2, 1, 2)),
    "pieces, strided": lambda place: write_pieces(place, state(), grid(2, 2), strided=True),
    "pieces of torch": real,
    "shards": write_shards,
    "shards .bin": lambda place: write_shards(place, stem="pytorch_model", suffix="bin"),
    "shards that share": tied,
}


@pytest.mark.parametrize("what", BUILDS)
def test_the_same_bytes_as_loaded_and_saved(tmp_path: Path, what: str) -> None:
    place = BUILDS[what](tmp_path / "it")
    fastckpt.save(fastckpt.load(place, opaque="keep"), tmp_path / "x.fckpt", durable=False)
    for name, codec in (("x.fckpt", "none"), ("x.pt", "none"), ("x.safetensors", "none"), ("z.fckpt", "zstd")):
        made, expected = tmp_path / "made" / name, tmp_path / name
        made.parent.mkdir(exist_ok=True)
        (done,) = fastckpt.convert(place, made, codec=codec, durable=False)
        assert done.source_verified is (what != "shards")
        if codec != "none":
            fastckpt.save(fastckpt.load(tmp_path / "x.fckpt"), expected, codec=codec, durable=False)
        elif name != "x.fckpt":
            fastckpt.convert(tmp_path / "x.fckpt", expected, durable=False)
        assert filecmp.cmp(made, expected, shallow=False), name
    fastckpt.convert(place, tmp_path / "made" / "shards", shard_size="20kB", durable=False)
    fastckpt.convert(tmp_path / "x.fckpt", tmp_path / "shards", shard_size="20kB", durable=False)
    names = sorted(path.name for path in (tmp_path / "shards").iterdir())
    found = filecmp.cmpfiles(tmp_path / "made" / "shards", tmp_path / "shards", names, shallow=False)
    assert (sorted(found[0]), found[1], found[2]) == (names, [], [])


def flat_tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return [tensor for item in items for tensor in flat_tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


@pytest.mark.parametrize("suffix", [".fckpt", ".pt", ".safetensors"])
@pytest.mark.parametrize("what", ["own, tiles", "pieces, columns", "pieces, strided", "shards .bin"])
def test_damage_is_named_and_nothing_is_written(tmp_path: Path, what: str, suffix: str) -> None:
    place = BUILDS[what](tmp_path / "it")
    (tensor, *_) = sorted(flat_tensors(fastckpt.load(place)), key=torch.Tensor.numel, reverse=True)
    some = tensor.flatten()[:2].numpy().tobytes() if what != "pieces, strided" else tensor[:2, 0].numpy().tobytes()
    file = next(path for path in sorted(place.iterdir()) if some in path.read_bytes())
    flip(file, file.read_bytes().index(some) + 3)
    with pytest.raises(DamagedError) as caught:
        fastckpt.convert(place, tmp_path / f"out{suffix}", durable=False)
    assert caught.value.path == str(file)
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_what_a_shard_has_beside_its_tensors_is_left_out_and_said(tmp_path: Path) -> None:
    (done,) = fastckpt.convert(tied(tmp_path / "it"), tmp_path / "all.fckpt", durable=False)
    assert done.left_out == ("lr",)
    assert "lr" in done.notes[-1]


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    place = write_shards(tmp_path / "it")
    with pytest.raises(UsageError, match="that is read"):
        fastckpt.convert(place, place / "model-00001-of-00003.safetensors", durable=False)
    with pytest.raises(UsageError, match="keys and copy_shared"):
        fastckpt.convert(place, tmp_path / "some.fckpt", keys="layers.1.*", durable=False)
    fastckpt.convert(place, tmp_path / "some.safetensors", keys="layers.1.*", durable=False)
    assert sorted(fastckpt.load(tmp_path / "some.safetensors")) == ["layers.1.k", "layers.1.q"]


WRITE = {"own": write_own, "pieces": write_pieces}
KINDS = [pytest.param("own", marks=pytest.mark.thorough), "pieces"]


def growth(place: Path, destination: Path, size: str | None = None) -> int:
    """Bytes that a conversion takes."""
    code = """
with Peak() as peak:
    fastckpt.convert(sys.argv[1], sys.argv[2], durable=False, shard_size=sys.argv[3] or None)
print(json.dumps({"growth": peak.growth, "torch": "torch" in sys.modules}))
"""
    found = measured(code, place, destination, size or "")
    assert not found["torch"]
    return int(found["growth"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_is_never_in_memory_as_a_whole(tmp_path: Path, kind: str) -> None:
    huge = torch.arange(52428800.0).view(5120, 10240)
    place = WRITE[kind](tmp_path / "it", {"huge": huge}, grid(1, 2))
    assert growth(place, tmp_path / "m.fckpt") < 130 * MIB < huge.nbytes
    assert torch.equal(fastckpt.load(tmp_path / "m.fckpt", mmap=True)["huge"], huge)


@pytest.mark.parametrize(
    ("kind", "name", "size"),
    [
        ("pieces", "m.pt", None),
        pytest.param("own", "m.pt", None, marks=pytest.mark.thorough),
        pytest.param("pieces", "m.safetensors", None, marks=pytest.mark.thorough),
        pytest.param("own", "shards", "100MB", marks=pytest.mark.thorough),
    ],
)
def test_few_tensors_are_in_memory_at_a_time(tmp_path: Path, kind: str, name: str, size: str | None) -> None:
    tensors = {f"w{number}": torch.full((512, 5120), float(number)) for number in range(32)}
    place = WRITE[kind](tmp_path / "it", tensors, grid(1, 2))
    assert growth(place, tmp_path / name, size) < 200 * MIB
    assert fastckpt.load(tmp_path / name, keys="w31")["w31"][-1, -1] == 31


@pytest.mark.parametrize("to", ["safetensors", "fckpt"])
def test_shards_that_cannot_all_be_made_leave_none(tmp_path: Path, to: str) -> None:
    state = {f"layers.{number}": torch.randn(9000) for number in range(4)}
    fastckpt.save(state, tmp_path / "it.fckpt")
    fastckpt.convert(tmp_path / "it.fckpt", tmp_path / "set", shard_size="40KB", to="fckpt")
    shard = sorted((tmp_path / "set").glob("shard-*"))[2]
    content = bytearray(shard.read_bytes())
    content[20_000] ^= 1
    shard.write_bytes(content)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").write_text("mine")
    with pytest.raises(DamagedError, match=r"layers\.2"):
        fastckpt.convert(tmp_path / "set", tmp_path / "new", shard_size="40KB", to=to)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine.txt"]


def test_what_a_manifest_leaves_out_is_told(tmp_path: Path) -> None:
    torch.distributed.checkpoint.save(
        {"a": torch.ones(3), "b": torch.ones(4)}, checkpoint_id=tmp_path / "step-1", no_dist=True
    )
    path = tmp_path / "step-1" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    del metadata.state_dict_metadata["a"]
    metadata.storage_data = {index: it for index, it in metadata.storage_data.items() if index.fqn != "a"}
    path.write_bytes(pickle.dumps(metadata))
    (done,) = fastckpt.convert(tmp_path / "step-1", tmp_path / "it.fckpt")
    assert list(fastckpt.load(tmp_path / "it.fckpt")) == ["b"]
    assert [left.endswith("__0_0.distcp") for left in done.left_out] == [True]
