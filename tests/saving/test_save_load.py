"""What was saved comes back the same, bit for bit, by every way to read all of it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from states import (
    DTYPES,
    arrays,
    assert_same,
    assert_same_elements,
    compressible,
    copied,
    everything,
    keyed,
    module,
    of_dtype,
    pattern,
    python_values,
    same,
    states,
    tensors_of,
)

import fastckpt
from fastckpt.errors import (
    UsageError,
)

CODECS = ["none", "zstd", "zstd:9", "planes"]
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def flat_tensors(path: Path) -> dict[str, torch.Tensor]:
    with fastckpt.open(path) as ck:
        return {name: ck[name] for name in ck}


# Every way to read gives what was saved


@pytest.mark.parametrize("codec", CODECS)
def test_everything(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "s.fckpt"
    state = everything()
    fastckpt.save(state, path, codec=codec, metadata={"step": 7, "note": ["a", None]})
    assert fastckpt.verify(path).ok
    for options in ({}, {"mmap": True}, {"verify": False}, {"threads": 1}, {"threads": 3, "mmap": True}):
        assert_same(fastckpt.load(path, **options), state)
    assert [p.name for p in tmp_path.iterdir()] == ["s.fckpt"]


@given(state=states(), codec=st.sampled_from(CODECS))
def test_any_state(tmp_path: Path, state: Any, codec: str) -> None:
    path = tmp_path / "s.fckpt"
    before = copied(state)
    fastckpt.save(state, path, codec=codec, durable=False)
    assert_same(state, before)
    assert fastckpt.verify(path).ok
    for options in ({}, {"mmap": True}, {"threads": 1}):
        assert_same(fastckpt.load(path, **options), state)
    expected = list(tensors_of(state))
    by_name = fastckpt.load(path, keys="*" if expected else [])
    assert len(by_name) == len(expected)
    with fastckpt.open(path) as ck:
        assert list(ck) == list(by_name)
        for name, tensor in zip(ck, expected, strict=True):
            assert_same_elements(ck[name], tensor)
            assert_same_elements(by_name[name], tensor)
            assert ck[name].stride() == tensor.stride()
            assert type(ck[name]) is type(tensor)
            assert ck[name].requires_grad == tensor.requires_grad
            if tensor.dim():
                assert_same_elements(ck.rows(name, 1, -1), tensor.detach()[1:-1])


@given(state=states(), codec=st.sampled_from(["none", "zstd", "planes"]))
def test_deterministic(tmp_path: Path, state: Any, codec: str) -> None:
    one, two, three = (tmp_path / name for name in ("1", "2", "3"))
    fastckpt.save(state, one, codec=codec, threads=1, durable=False)
    fastckpt.save(state, two, codec=codec, threads=3, durable=True)
    fastckpt.save(copied(state), three, codec=codec, durable=False)
    assert one.read_bytes() == two.read_bytes() == three.read_bytes()


@given(first=states(), second=states())
def test_root_identifies_the_state(tmp_path: Path, first: Any, second: Any) -> None:
    path = tmp_path / "s.fckpt"
    roots = []
    for state in (first, second, fastckpt_round_trip(first, tmp_path)):
        fastckpt.save(state, path, durable=False)
        with fastckpt.open(path) as ck:
            roots.append(ck.root)
    assert roots[0] == roots[2]
    assert (roots[0] == roots[1]) == same(first, second)


def fastckpt_round_trip(state: Any, directory: Path) -> Any:
    fastckpt.save(state, directory / "r.fckpt", codec="zstd", durable=False)
    return fastckpt.load(directory / "r.fckpt", mmap=True)


def changes(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Copies of a state that each differ in one thing."""
    base, other = state["t"], state["u"]
    return [
        {**state, "t": base.clone().index_fill_(0, torch.tensor([0]), 9)},
        {**state, "t": base.view(torch.int32)},
        {**state, "t": base.view(2, -1)},
        {**state, "t": torch.nn.Parameter(base)},
        {**state, "t": base.clone().requires_grad_()},
        {**state, "t": base[:-1]},
        {**state, "u": base},
        {"u": other, "t": base, "x": state["x"]},
        {**state, "x": 1.0},
        {**state, "x": True},
        OrderedDict(state),
        {**state, "y": None},
        {("z" if key == "t" else key): value for key, value in state.items()},
    ]


def test_root_differs_with_any_change(tmp_path: Path) -> None:
    state = {"t": torch.arange(8.0), "u": torch.arange(8.0), "x": 1}
    roots = []
    for changed in [state, *changes(state)]:
        fastckpt.save(changed, tmp_path / "s", durable=False)
        with fastckpt.open(tmp_path / "s") as ck:
            roots.append(ck.root)
    assert len(set(roots)) == len(roots)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_every_dtype_small_and_large(tmp_path: Path, dtype: torch.dtype, codec: str) -> None:
    state = {"small": of_dtype(dtype, 33, 1), "large": of_dtype(dtype, 300_000, 2), "none": of_dtype(dtype, 0)}
    fastckpt.save(state, tmp_path / "s", codec=codec, durable=False)
    assert_same(fastckpt.load(tmp_path / "s"), state)
    assert_same(fastckpt.load(tmp_path / "s", mmap=True), state)
    with fastckpt.open(tmp_path / "s") as ck:
        assert_same_elements(ck["large"], state["large"])
        assert_same_elements(ck.rows("large", -5, 300_000), state["large"][-5:])


@pytest.mark.parametrize(
    "numel", [2**18 - 1, 2**18, 2**18 + 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 16385, 2**24 + 1]
)
@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_sizes_around_every_border(tmp_path: Path, numel: int, codec: str) -> None:
    for build in (pattern, compressible):
        state = {"before": pattern(1), "t": build(numel), "after": pattern(100, 5)}
        fastckpt.save(state, tmp_path / "s", codec=codec, durable=False)
        assert_same(fastckpt.load(tmp_path / "s"), state)
        assert fastckpt.verify(tmp_path / "s").ok


def test_many_small_tensors_in_several_packs(tmp_path: Path) -> None:
    state = {str(i): of_dtype(torch.float32, i % 50, i) for i in range(9000)}
    fastckpt.save(state, tmp_path / "s", durable=False)
    assert_same(fastckpt.load(tmp_path / "s"), state)
    assert_same(fastckpt.load(tmp_path / "s", keys=["8999", "3"]), {"3": state["3"], "8999": state["8999"]})


def test_plain_values_at_the_root(tmp_path: Path) -> None:
    for state in (None, 3, "x", [], {}, (), OrderedDict(), torch.float16, torch.ones(2), [torch.ones(0)]):
        fastckpt.save(state, tmp_path / "s", durable=False)
        assert_same(fastckpt.load(tmp_path / "s"), state)
        assert_same(fastckpt.load(tmp_path / "s", mmap=True), state)


def test_module_and_optimizer(tmp_path: Path) -> None:
    model = module()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    fastckpt.save(state, tmp_path / "s")
    loaded = fastckpt.load(tmp_path / "s")
    assert_same(loaded, state)
    other = module()
    other.load_state_dict(loaded["model"])
    assert_same(other.state_dict(), state["model"])


# Options


def test_unknown_options_are_refused_before_writing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for options in ({"codec": "lz4"}, {"codec": "zstd:0"}, {"codec": "zstd:23"}, {"threads": 0}, {"threads": 1.5}):
        with pytest.raises(UsageError):
            fastckpt.save({"a": torch.ones(2)}, path, **options)
    assert list(tmp_path.iterdir()) == []
    fastckpt.save({"a": torch.ones(2)}, path)
    with pytest.raises(UsageError):
        fastckpt.load(path, threads=-1)


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_progress_grows_up_to_the_size(tmp_path: Path, codec: str) -> None:
    state = {"a": compressible(5_000_000), "b": [pattern(1000, i) for i in range(4)]}
    for action in (
        lambda progress: fastckpt.save(state, tmp_path / "s", codec=codec, progress=progress),
        lambda progress: fastckpt.load(tmp_path / "s", progress=progress),
        lambda progress: fastckpt.verify(tmp_path / "s", progress=progress),
    ):
        seen: list[int] = []
        action(seen.append)
        assert seen == sorted(seen)
        assert 5_000_000 <= seen[-1] <= 5_010_000


def test_an_error_in_progress_stops_the_save(tmp_path: Path) -> None:
    def fail(count: int) -> None:
        raise RuntimeError("stop")

    path = tmp_path / "s"
    fastckpt.save({"old": torch.ones(1)}, path)
    before = path.read_bytes()
    for codec in ("none", "zstd", "planes"):
        with pytest.raises(RuntimeError, match="stop"):
            fastckpt.save({"a": compressible(5_000_000)}, path, codec=codec, progress=fail)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_loads_in_several_threads(tmp_path: Path) -> None:
    state = {"a": compressible(2_000_000), "b": torch.arange(10)}
    fastckpt.save(state, tmp_path / "s", codec="zstd")
    results: list[Any] = []
    workers = [threading.Thread(target=lambda: results.append(fastckpt.load(tmp_path / "s"))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    for result in results:
        assert_same(result, state)


Pair = namedtuple("Pair", "a b")


def test_keys_of_all_kinds_come_back(tmp_path: Path) -> None:
    fastckpt.save(keyed(), tmp_path / "s")
    assert_same(fastckpt.load(tmp_path / "s"), keyed())
    with fastckpt.open(tmp_path / "s") as checkpoint:
        assert list(checkpoint) == [f"ordered.{key}" for key in (None, True, 2, 3, 4, 5, 6, 7, 8, "s", 10)]


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
@pytest.mark.parametrize("make", [python_values, arrays])
def test_plain_values_of_python_come_back(tmp_path: Path, make: Callable[[], Any], codec: str) -> None:
    fastckpt.save(make(), tmp_path / "s", codec=codec)
    for options in ({}, {"mmap": True}):
        loaded = fastckpt.load(tmp_path / "s", **options)
        assert_same(loaded, make())
    fastckpt.save(loaded, tmp_path / "again", codec=codec)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "s").read_bytes()
    fastckpt.save_async(make(), tmp_path / "again", codec=codec).result()
    assert (tmp_path / "again").read_bytes() == (tmp_path / "s").read_bytes()


def test_a_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(7)
    torch.rand(5, generator=generator)
    fastckpt.save([generator], tmp_path / "s")
    (loaded,) = fastckpt.load(tmp_path / "s")
    assert torch.equal(torch.rand(5, generator=loaded), torch.rand(5, generator=generator))


def test_arrays_are_mapped_and_named(tmp_path: Path) -> None:
    state = {"a": np.arange(100_000, dtype=">f4").reshape(10, -1), "b": np.ones((2, 3), order="F")}
    fastckpt.save(state, tmp_path / "s")
    with fastckpt.open(tmp_path / "s") as checkpoint:
        assert list(checkpoint) == ["a", "b"]
        assert (checkpoint.info("a").dtype, checkpoint.info("a").shape) == ("uint8", (400_000,))
        assert (checkpoint.info("b").dtype, checkpoint.info("b").stride) == ("float64", (1, 2))
        assert checkpoint.tree()["a"].name == "a"
    loaded = fastckpt.load(tmp_path / "s", mmap=True)["a"]
    assert not loaded.flags.owndata
    loaded[0, 0] = 5  # It is private, and can be written.
    assert fastckpt.load(tmp_path / "s")["a"][0, 0] == 0


def test_arrays_are_filled_in_place(tmp_path: Path) -> None:
    fastckpt.save({"a": np.arange(6.0), "w": torch.ones(2)}, tmp_path / "s")
    here = {"a": np.zeros(6), "w": torch.zeros(2)}
    fastckpt.load_into(here, tmp_path / "s")
    assert here["a"].tolist() == [0, 1, 2, 3, 4, 5]
    fixed = np.zeros(6)
    fixed.flags.writeable = False
    for array in (fixed, np.zeros(12)[::2]):
        with pytest.raises(UsageError, match="in place: a"):
            fastckpt.load_into({"a": array, "w": torch.zeros(2)}, tmp_path / "s")
        assert not array.any()


def test_without_numpy_arrays_are_tensors_or_refused(tmp_path: Path) -> None:
    fastckpt.save({"a": np.arange(6.0).reshape(2, 3), "s": np.float32(1.5)}, tmp_path / "native")
    fastckpt.save([np.arange(6, dtype=">f4")], tmp_path / "other")
    script = f"""if True:
        import sys
        sys.modules["numpy"] = None
        import warnings; warnings.simplefilter("ignore")
        import torch, fastckpt
        state = fastckpt.load({str(tmp_path / "native")!r})
        assert torch.equal(state["a"], torch.arange(6, dtype=torch.float64).view(2, 3)), state
        assert state["s"] == 1.5
        try:
            fastckpt.load({str(tmp_path / "other")!r})
        except fastckpt.errors.UnsupportedStateError as error:
            assert "array of '>f4'" in str(error) and "pip install numpy" in str(error), error
        else:
            raise SystemExit("not refused")
    """
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("batch", [1, 700_000])
def test_a_file_is_the_same_in_whatever_batches_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    # Small storages are gathered in memory that a later batch uses again: the gaps between them stay zero.
    generator = torch.Generator().manual_seed(5)
    state = {
        f"{number}": torch.randint(1, 255, (size,), generator=generator, dtype=torch.uint8)
        for number, size in enumerate([0, 70, 300_000, 5_001, 3, 129] * 20)
    }
    monkeypatch.setattr("fastckpt.layout.plan.PACK_LIMIT", 20_000)
    fastckpt.save(state, tmp_path / "one.fckpt")
    monkeypatch.setattr("fastckpt.fckpt.turns.BATCH", batch)
    fastckpt.save(state, tmp_path / "many.fckpt")
    assert (tmp_path / "one.fckpt").read_bytes() == (tmp_path / "many.fckpt").read_bytes()
