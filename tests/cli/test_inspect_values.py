"""``fastckpt inspect --values``, ``--sort`` and ``--top``, and of an index."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

import fastckpt

STATE = {
    "grid": torch.arange(12.0).reshape(3, 4),
    "turned": torch.arange(12, dtype=torch.int64).reshape(3, 4).T,
    "count": torch.tensor(7),
    "half": torch.tensor([0.0, float("nan"), float("inf"), -2.5], dtype=torch.bfloat16),
    "eighth": torch.tensor([0.5, -448.0]).to(torch.float8_e4m3fn),
    "wave": torch.tensor([1 + 2j, -3j]),
    "none": torch.empty(0, 3),
    "flags": torch.tensor([True, False]),
}


@pytest.fixture
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / f"m.{request.param}"
    torch.save(STATE, path) if request.param == "pt" else fastckpt.save(STATE, path)
    return path


def fails(ended, code: int) -> str:
    assert ended.code == code, ended.err
    return ended.err


FORMATS = pytest.mark.parametrize("path", ["fckpt", "pt"], indirect=True)


@FORMATS
def test_the_numbers_are_those_of_torch(here, path: Path) -> None:
    for name, tensor in STATE.items():
        document = here("inspect", path, "--values", name, "--json").json
        assert document["shape"] == list(tensor.shape)
        if name == "half":
            assert document["values"] == [0.0, "NaN", "Infinity", -2.5]
            assert (document["nan"], document["inf"], document["zeros"], document["max_abs"]) == (1, 1, 1, 2.5)
        elif name == "wave":
            assert (document["numbers"], document["max_abs"], document["values"]) == (4, 3.0, ["(1+2j)", "(-0-3j)"])
        else:
            assert document["values"] == tensor.to(torch.float64).tolist()


@FORMATS
@pytest.mark.parametrize(
    ("rows", "expected"), [("[1]", (1, 2)), ("[-1]", (2, 3)), ("[1:]", (1, 3)), ("[:2]", (0, 2)), ("[-2:3]", (1, 3))]
)
def test_rows(here, path: Path, rows: str, expected: tuple[int, int]) -> None:
    document = here("inspect", path, "--values", f"grid{rows}", "--json").json
    assert document["rows"] == list(expected)
    assert document["values"] == STATE["grid"][slice(*expected)].tolist()
    turned = here("inspect", path, "--values", f"turned{rows}", "--json").json
    assert turned["values"] == STATE["turned"][slice(*(turned["rows"]))].tolist()


@pytest.mark.parametrize("path", ["fckpt"], indirect=True)
def test_what_is_not_there(here, path: Path) -> None:
    for wanted in ("grid[3]", "grid[2:1]", "grid[-4]", "count[0]", "none[0]", "*"):
        assert "fastckpt inspect" in fails(here("inspect", path, "--values", wanted), 64), wanted
    assert "fastckpt inspect" in fails(here("inspect", path, "--values", "no"), 2)


@pytest.mark.parametrize("path", ["fckpt"], indirect=True)
def test_what_is_shown_is_proven(here, path: Path) -> None:
    """Damage in the rows that are shown is an error; elsewhere it is not looked at."""
    large = {"large": torch.arange(40_000.0).reshape(400, 100)}
    fastckpt.save(large, path)
    with fastckpt.open(path) as ck:
        at = ck._file.records[0].payload.offset + 100 * 4 * 300
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    assert here("inspect", path, "--values", "large[0:2]", "--json").json["values"] == large["large"][:2].tolist()
    assert "large" in fails(here("inspect", path, "--values", "large[300]"), 2)


@pytest.mark.parametrize("path", ["fckpt"], indirect=True)
def test_a_large_tensor_is_summarised(here, path: Path) -> None:
    fastckpt.save({"w": torch.ones(101, 100)}, path)
    assert here("inspect", path, "--values", "w", "--json").json["values"] is None
    told = here("inspect", path, "--values", "w").out
    assert "..." in told
    assert "float64" not in told


@FORMATS
def test_the_largest_first(here, path: Path) -> None:
    sizes = sorted((-tensor.nbytes, name) for name, tensor in STATE.items())
    document = here("inspect", path, "--sort", "size", "--json").json
    assert list(document["tensors"]) == [name for _, name in sizes]
    assert list(here("inspect", path, "--top", "2", "--json").json["tensors"]) == [name for _, name in sizes[:2]]
    names = sorted(STATE)
    assert list(here("inspect", path, "--sort", "name", "--top", "3", "--json").json["tensors"]) == names[:3]
    assert [line.split()[0] for line in here("inspect", path, "--top", "2").out.splitlines()] == [
        name for _, name in sizes[:2]
    ]
    fails(here("inspect", path, "--top", "0"), 64)


def test_counters_stand_behind_what_has_a_shape(here, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    fastckpt.save({"optimizer": optimizer, "model": model}, tmp_path / "s.fckpt")
    told = here("inspect", tmp_path / "s.fckpt").out.splitlines()
    assert "state.{0..3}.step" in told[-1]
    assert sum(".step " in line for line in told) == 1


def test_an_index_shows_the_set_that_it_names(here, tmp_path: Path) -> None:
    shards = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for name, shard in zip("ab", shards, strict=True):
        safetensors.torch.save_file({name: torch.ones(3)}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict(zip("ab", shards, strict=True))}))
    (tmp_path / "other.index.json").write_text(json.dumps({"weight_map": {"a": shards[0]}}))
    (found,) = here("inspect", index, "--json").json["sets"]
    assert [file["name"] for file in found["files"]] == shards
    (tmp_path / shards[1]).unlink()
    assert f"missing: {shards[1]}" in here("inspect", index).out
    assert "name the directory" in fails(here("verify", index), 4)
