"""An open checkpoint: a mapping that reads and proves no more than is asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from states import assert_same_elements, compressible, everything, of_dtype, pattern, tensors_of

import fastckpt
from fastckpt.constants import LEAF_SIZE
from fastckpt.errors import DamagedError, FastckptError, TensorNotFoundError, UsageError
from fastckpt.loading.open import TensorInfo

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


@pytest.fixture(params=["none", "zstd", "planes"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    fastckpt.save(everything(), tmp_path / "s.fckpt", codec=request.param, metadata={"step": 3, "tags": ["a"]})
    return tmp_path / "s.fckpt"


def test_mapping(path: Path) -> None:
    state = everything()
    expected = list(tensors_of(state))
    with fastckpt.open(path) as ck:
        assert isinstance(ck, Mapping)
        assert len(ck) == len(expected) == len(list(ck)) == len(ck.keys())
        assert list(ck)[:2] == ["views.0", "views.1"]
        assert "large" in ck
        assert "larg" not in ck
        assert 3 not in ck
        assert ck.get("nothing") is None
        for (name, tensor), original in zip(ck.items(), expected, strict=True):
            assert_same_elements(tensor, original)
            assert tensor.stride() == original.stride()
            info = ck.info(name)
            assert info.name == name
            assert (info.shape, info.stride) == (tuple(original.shape), original.stride())
            assert info.dtype == str(original.dtype).removeprefix("torch.")
            assert info.nbytes == original.numel() * original.element_size()
            assert info.requires_grad == original.requires_grad
        assert ck.metadata == {"step": 3, "tags": ["a"]}
        assert repr(ck) == f"<fastckpt.Checkpoint {str(path)!r}: {len(expected)} tensors>"
        assert bytes.fromhex(ck.root) == bytes.fromhex(fastckpt.verify(path).root or "")


def test_unknown_name(path: Path) -> None:
    with fastckpt.open(path) as ck:
        for action in (ck.__getitem__, ck.info, lambda name: ck.rows(name, 0, 1)):
            with pytest.raises(TensorNotFoundError, match="large") as caught:
                action("larg")
            assert isinstance(caught.value, KeyError)
            assert "KeyError" not in str(caught.value)


def test_tree(path: Path) -> None:
    with fastckpt.open(path) as ck:
        tree = ck.tree()
    state = everything()
    assert list(tree) == list(state)
    assert [type(value) for value in tree.values() if not isinstance(value, TensorInfo)] == [
        type(value) for value in state.values() if not isinstance(value, torch.Tensor)
    ]
    assert tree["torch"] == state["torch"]
    assert tree["views"][2] == TensorInfo("views.2", "float32", (5, 4, 3), (1, 5, 20), 240, False)
    assert vars(tree["ordered"])["_metadata"]["layer"]["t"].name == "ordered.__dict__._metadata.layer.t"
    assert tree["a"]["b"].name == "a.b#3", "a.b is a key, and a.b#2 the plain name of another tensor"


def test_reads_are_independent(path: Path) -> None:
    with fastckpt.open(path) as ck:
        first, second = ck["large"], ck["large"]
        first.zero_()
        assert_same_elements(second, everything()["large"])
    second.add_(1)  # What was read stays when the file is closed.


def test_closed(tmp_path: Path) -> None:
    fastckpt.save({"a": pattern(300_000), "b": torch.ones(2)}, tmp_path / "s")
    code = (
        "import fastckpt, sys\n"
        "from fastckpt.errors import FastckptError\n"
        "for warm in (False, True):\n"
        "    ck = fastckpt.open(sys.argv[1])\n"
        "    if warm: ck['a'], ck.metadata\n"
        "    ck.close(); ck.close()\n"
        "    for action in (lambda: ck['a'], lambda: ck['b'], lambda: ck.rows('a', 0, 5)):\n"
        "        try: action()\n"
        "        except FastckptError as error: print(type(error).__name__)\n"
    )
    run = forked.run("-c", code, str(tmp_path / "s"))
    assert run.returncode == 0, f"ended with {run.returncode}: {run.stderr}"
    assert run.stdout.split() == ["UsageError"] * 6


def test_close_releases_the_file(tmp_path: Path) -> None:
    fastckpt.save({"a": pattern(300_000)}, tmp_path / "s")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with fastckpt.open(tmp_path / "s") as ck:
            ck["a"]
    (tmp_path / "bad").write_bytes(b"x" * 10_000)
    with pytest.raises(FastckptError):
        fastckpt.open(tmp_path / "bad")
    assert len(os.listdir("/proc/self/fd")) == before


def test_several_threads(path: Path) -> None:
    expected = everything()
    problems: list[BaseException] = []

    def work(ck: fastckpt.Checkpoint) -> None:
        try:
            for _ in range(5):
                assert_same_elements(ck["large"], expected["large"])
                assert_same_elements(ck.rows("larger", 5, 500_000), expected["larger"][5:500_000])
        except BaseException as error:
            problems.append(error)

    with fastckpt.open(path) as ck:
        workers = [threading.Thread(target=work, args=(ck,)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert problems == []


# Rows

ROWS: dict[str, torch.Tensor] = {
    "plain": of_dtype(torch.float32, 300 * 400).view(300, 400),
    "strided": of_dtype(torch.int16, 300 * 500).view(300, 500)[::2, 1::3],
    "transposed": of_dtype(torch.int32, 300 * 400).view(300, 400).t(),
    "expanded": torch.arange(7).expand(50, 7),
    "overlapping": of_dtype(torch.uint8, 60_000).as_strided((50, 20_000), (700, 1), 11),
    "one dimension": pattern(2_000_000),
    "three": of_dtype(torch.bfloat16, 64 * 3 * 5).view(64, 3, 5),
    "no rows": torch.empty(0, 5),
    "empty rows": torch.empty(5, 0),
    "conj": of_dtype(torch.complex64, 90).view(9, 10).conj(),
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(ROWS)),
    start=st.one_of(st.integers(-310, 310), st.integers(-(2**70), 2**70)),
    stop=st.one_of(st.integers(-310, 310), st.integers(-(2**70), 2**70)),
)
@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_rows(tmp_path: Path, codec: str, name: str, start: int, stop: int) -> None:
    path = tmp_path / "s"
    if not path.exists():
        fastckpt.save(ROWS, path, codec=codec)
    expected = ROWS[name][max(min(start, 2**62), -(2**62)) : max(min(stop, 2**62), -(2**62))]
    with fastckpt.open(path, threads=2) as ck:
        rows = ck.rows(name, start, stop)
    assert_same_elements(rows, expected)
    assert rows.is_conj() == expected.is_conj()


def test_rows_of_a_scalar(tmp_path: Path) -> None:
    fastckpt.save({"s": torch.tensor(1.0)}, tmp_path / "s")
    with fastckpt.open(tmp_path / "s") as ck, pytest.raises(UsageError, match="no rows"):
        ck.rows("s", 0, 1)


def test_damage_elsewhere_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "s"
    state: dict[str, Any] = {
        "wide": of_dtype(torch.uint8, 200 * LEAF_SIZE).view(200, LEAF_SIZE),
        "pack": [pattern(LEAF_SIZE, 1), pattern(LEAF_SIZE, 2), pattern(LEAF_SIZE, 3)],
    }
    fastckpt.save(state, path)
    with fastckpt.open(path) as ck:
        wide, pack = (record.payload.offset for record in ck._file.records)
    raw = bytearray(path.read_bytes())
    raw[wide + 70 * LEAF_SIZE + 5] ^= 8
    raw[pack + LEAF_SIZE + 5] ^= 8
    path.write_bytes(raw)
    with fastckpt.open(path) as ck:
        assert_same_elements(ck.rows("wide", 0, 70), state["wide"][:70])
        assert_same_elements(ck.rows("wide", 71, 200), state["wide"][71:])
        assert_same_elements(ck["pack.0"], state["pack"][0])
        assert_same_elements(ck["pack.2"], state["pack"][2])
        for action, name in (
            (lambda: ck.rows("wide", 70, 71), "wide"),
            (lambda: ck["wide"], "wide"),
            (lambda: ck["pack.1"], "pack.1"),
        ):
            with pytest.raises(DamagedError) as caught:
                action()
            assert caught.value.tensor == name
            assert "fastckpt salvage" in str(caught.value)
        assert caught.value.offset == pack + LEAF_SIZE


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="/proc/self/io is not there")
def test_rows_read_only_what_they_touch(tmp_path: Path) -> None:
    fastckpt.save({"a": pattern(40_000_000).view(1000, -1), "z": compressible(100)}, tmp_path / "s")

    def rchar() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])

    before = rchar()
    with fastckpt.open(tmp_path / "s") as ck:
        ck.rows("a", 500, 501)
    assert rchar() - before < 300_000


def test_parts(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    model(torch.ones(1, 3)).backward()
    optimizer.step()
    state = {"model": model, "optimizer": optimizer, "step": 5, "none": None, "list": [torch.ones(1), "x"]}
    fastckpt.save(state, tmp_path / "s.fckpt", durable=False)
    with fastckpt.open(tmp_path / "s.fckpt") as ck:
        part = ck["model"]
        assert list(part) == list(model.state_dict())
        assert len(part) == 4
        assert repr(part).startswith("<'model' of <fastckpt.Checkpoint")
        assert torch.equal(part["1.bias"], model[1].bias)
        assert torch.equal(ck["model.1"]["bias"], part["1"]["bias"])
        assert torch.equal(part.rows("0.weight", 1, 2), model[0].weight[1:2])
        assert part.info("0.weight").name == "model.0.weight"
        assert part.tree()["1.bias"].shape == (1,)
        other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        other.load_state_dict(part)
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
        assert (ck["step"], ck["none"], ck["list"]["1"]) == (5, None, "x")
        assert ck["optimizer"]["param_groups"][0]["lr"] == 0.5
        assert ck["optimizer"]["state"]["0"]["exp_avg"].shape == (4, 3)
        for name in ("model", "step", "none", "optimizer.state.0", "model.0.weight"):
            assert name in ck
        assert "0" in part
        assert "2" not in part
        for name in ("mode", "model.2", "step.x", 3):
            assert name not in ck
        with pytest.raises(TensorNotFoundError, match=r"model\.9"):
            part["9"]
        assert part.get("9") is None


def test_a_name_with_a_dot_that_is_a_tensor_is_the_tensor(tmp_path: Path) -> None:
    fastckpt.save({"a": torch.ones(2), "a.b": torch.ones(3)}, tmp_path / "s.fckpt", durable=False)
    with fastckpt.open(tmp_path / "s.fckpt") as ck:
        assert ck["a"].shape == (2,)
