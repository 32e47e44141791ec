"""What was saved comes back the same, by every way to read it; what cannot be saved is refused beforehand."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import threading
import time
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slowness import within
from states import (
    DTYPES,
    Scale,
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
    CheckpointIOError,
    CheckpointNotFoundError,
    DamagedError,
    NotACheckpointError,
    OutOfSpaceError,
    TensorNotFoundError,
    UnsupportedStateError,
    UsageError,
)
from fastckpt.layout.tree import NamedRef, encode_tree
from fastckpt.tensor import dtypes
from fastckpt.tensor.rebuild import unflatten

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


class OnlyHalf:
    """It gives its state and does not take it back."""

    def state_dict(self) -> dict[str, int]:
        return {}


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


def test_metadata_takes_plain_values_only(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedStateError, match=r"metadata.*\['t'\].*Tensor"):
        fastckpt.save({}, tmp_path / "s", metadata={"t": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


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


# What cannot be stored


class Subclass(torch.Tensor):
    pass


class Anything:
    pass


Pair = namedtuple("Pair", "a b")


def containing_itself() -> list[Any]:
    state: list[Any] = []
    state.append(state)
    return state


def deep(levels: int) -> Any:
    state: Any = torch.ones(1)
    for _ in range(levels):
        state = [state]
    return state


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


REFUSED: dict[str, tuple[Any, str]] = {
    "tensor subclass": (lambda: torch.ones(2).as_subclass(Subclass), r"test_save_load\.Subclass"),
    "object": (Anything, r"test_save_load\.Anything"),
    "class": (lambda: Anything, "type"),
    "function": (lambda: deep, "function"),
    "huge int key": (lambda: {2**5000: 0}, "int key of more than 256 bytes"),
    "str subclass": (lambda: type("Name", (str,), {})("a"), r"\.Name"),
    "contains itself": (containing_itself, "contains itself"),
    "deep": (lambda: deep(200), "deeper than 128 levels"),
    "lone surrogate": (lambda: "a\ud800", "surrogate"),
    "lone surrogate key": (lambda: {"\udfff": 1}, "surrogate"),
    "qint dtype": (lambda: torch.qint8, r"torch\.dtype"),
    "storage": (lambda: torch.ones(2).untyped_storage(), r"UntypedStorage"),
}


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_refused_before_a_byte_is_written(tmp_path: Path, name: str, codec: str) -> None:
    build, words = REFUSED[name]
    state = {"fine": torch.ones(2), "outer": [{"inner": build()}]}
    path = tmp_path / "s.fckpt"
    with pytest.raises(UnsupportedStateError, match=words) as caught:
        fastckpt.save(state, path, codec=codec)
    assert "state['outer'][0]['inner']" in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    with pytest.raises(UnsupportedStateError):
        fastckpt.save(state, path, codec=codec)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


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


@pytest.mark.parametrize("metadata", [{True: 1}, {"a": [{None: 1}]}, {"a": {(1,): 1}}, {"a": {1, 2}}])
def test_metadata_takes_no_named_values(tmp_path: Path, metadata: Any) -> None:
    with pytest.raises(UnsupportedStateError, match="metadata: state"):
        fastckpt.save({"w": torch.ones(1)}, tmp_path / "s", metadata=metadata)
    with pytest.raises(UnsupportedStateError, match="metadata: state"):
        fastckpt.save_async({"w": torch.ones(1)}, tmp_path / "s", metadata=metadata)
    assert not list(tmp_path.iterdir())


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


def test_a_class_that_nobody_registered_is_never_imported(tmp_path: Path) -> None:
    (tmp_path / "gone.py").write_text(
        "import dataclasses, enum, typing, fastckpt\n"
        "class Colour(enum.Enum):\n    RED = [1]\n"
        "class Pair(typing.NamedTuple):\n    x: int\n"
        "@dataclasses.dataclass(frozen=True)\nclass Config:\n    rate: float\n"
        "class Own: pass\n"
        "fastckpt.register(Own, lambda own: [1], lambda plain: Own())\n"
        "fastckpt.save([Colour.RED, Pair(1), Config(0.5), Own(), {Colour.RED: 1}], 's')\n"
    )
    assert forked.run("-c", "import gone", cwd=tmp_path).returncode == 0
    loaded = fastckpt.load(tmp_path / "s")
    red = fastckpt.Placeholder("enum", "gone.Colour", {"name": "RED", "value": [1]})
    assert loaded == [
        red,
        fastckpt.Placeholder("namedtuple", "gone.Pair", {"x": 1}),
        fastckpt.Placeholder("dataclass", "gone.Config", {"rate": 0.5}),
        fastckpt.Placeholder("registered", "gone.Own", [1]),
        {red: 1},
    ]
    assert "gone" not in sys.modules
    fastckpt.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "s").read_bytes()


def test_a_registered_class_that_changed_is_named(tmp_path: Path) -> None:
    fastckpt.save(fastckpt.Placeholder("dataclass", "states.Config", {"other": 1}), tmp_path / "s")
    with pytest.raises(UnsupportedStateError, match=r"states\.Config.*no field other"):
        fastckpt.load(tmp_path / "s")
    fastckpt.save(fastckpt.Placeholder("enum", "states.Colour", {"name": "BLUE", "value": 9}), tmp_path / "s")
    with pytest.raises(UnsupportedStateError, match=r"states\.Colour.*9"):
        fastckpt.load(tmp_path / "s")


@pytest.mark.parametrize(
    ("functions", "name", "words"),
    [
        ((), None, "no enum"),
        ((str,), None, "both"),
        ((str, str), "nodot", "dot"),
        ((str, str), "test.Scale", "registered for"),
    ],
)
def test_register_refuses_what_cannot_be_meant(functions: tuple[Any, ...], name: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fastckpt.register(Anything, *functions, name=name)


@pytest.mark.parametrize("cls", [dict, int, type(None), torch.Tensor, torch.nn.Parameter, Anything()])
def test_register_refuses_what_save_would_never_ask_for(cls: Any) -> None:
    with pytest.raises(UsageError, match=r"as it is, and cannot be registered|takes a class"):
        fastckpt.register(cls, str, str)


class Made:
    """Makes the array that is saved anew each time: nothing else holds it."""

    def __init__(self, number: int) -> None:
        self.number = number


def test_arrays_that_a_registered_class_makes_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastckpt.layout.register._by_name", {})
    monkeypatch.setattr("fastckpt.layout.register._by_class", {})
    # With gaps, so that a copy is saved; the array itself is gone, and the next one gets its place in memory.
    fastckpt.register(Made, lambda made: np.full(64, made.number)[::2], lambda plain: Made(int(plain[0])))
    fastckpt.save([Made(number) for number in range(20)], tmp_path / "s")
    assert [made.number for made in fastckpt.load(tmp_path / "s")] == list(range(20))


class _Slotted:
    __slots__ = ("__own", "beside")

    def __init__(self) -> None:
        self.__own = 1


@dataclasses.dataclass
class _WithSlots(_Slotted):
    __slots__ = ("x",)
    x: int


@dataclasses.dataclass
class _OfBytes(bytearray):
    x: int = 0


@dataclasses.dataclass(eq=False)
class _OfDeque(deque[int]):
    x: int = 0


def test_a_dataclass_that_holds_more_than_its_fields_is_refused(tmp_path: Path) -> None:
    slotted = _WithSlots(1)
    fastckpt.save(slotted, tmp_path / "s")
    slotted.beside = 2
    with pytest.raises(UnsupportedStateError, match=r"attributes beside of a .*_WithSlots"):
        fastckpt.save(slotted, tmp_path / "s")
    del slotted.beside
    _Slotted.__init__(slotted)
    with pytest.raises(UnsupportedStateError, match=r"attributes _Slotted__own of a .*_WithSlots"):
        fastckpt.save(slotted, tmp_path / "s")
    for value in (_OfBytes(), _OfDeque(), _WithSlots):
        with pytest.raises(UnsupportedStateError, match="cannot store an object of type"):
            fastckpt.save(value, tmp_path / "s")


def test_all_refusals_come_at_once_with_their_remedies(tmp_path: Path) -> None:
    state = {
        "object": Anything(),
        "objects": np.array([object()]),
        "fields": np.zeros(2, "i4,f4"),
        "function": deep,
        "class": Anything,
        "module": OnlyHalf(),
        "masked": np.ma.masked_array([1]),
        "mapped": np.memmap(__file__, "u1", "r", shape=(1,)),
        "kind": np.dtype("<f4"),
        "factory": defaultdict(lambda: 1),
        "several": torch.max(torch.ones(2, 2), 0),
        "dtype": torch.qint8,
        "text": type("Name", (str,), {})("a"),
        "float": type("Rate", (float,), {})(1.5),
        "iterator": (n for n in range(3)),
        "key": {Scale(torch.ones(1)): 1},
    }
    with pytest.raises(UnsupportedStateError) as caught:
        fastckpt.save(state, tmp_path / "s", metadata={"note": Anything()})
    lines = str(caught.value).splitlines()
    assert lines[0] == "17 things cannot be stored:"
    remedies = {line.split(": ")[0].strip(): line.partition(". Next: ")[2] for line in lines[1:]}
    assert [name for name in remedies if name != "metadata"][:-1] == [f"state[{name!r}]" for name in state][:-1]
    assert remedies["state['object']"] == "vars(x), or fastckpt.register(Anything, to_plain, from_plain)"
    assert remedies["state['objects']"] == remedies["state['masked']"] == "x.tolist()"
    assert remedies["state['mapped']"] == "numpy.asarray(x)"
    assert remedies["state['kind']"] == "x.str"
    assert "x.dtype.names" in remedies["state['fields']"]
    assert remedies["state['class']"] == "save its name, x.__name__"
    assert remedies["state['module']"] == "x.state_dict()"
    assert remedies["state['factory']"] == "dict(x)"
    names = ("several", "dtype", "text", "float", "iterator")
    assert [remedies[f"state[{name!r}]"] for name in names] == ["tuple(x)", "str(x)", "str(x)", "float(x)", "list(x)"]
    assert not list(tmp_path.iterdir())


def test_attributes_of_tensors_are_kept_or_refused(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.foo = 3
    parameter.scale = torch.full((2,), 0.5)
    state = {"p": parameter, "b": torch.nn.Buffer(torch.ones(2), persistent=False)}
    fastckpt.save(state, tmp_path / "s")
    loaded = fastckpt.load(tmp_path / "s")
    assert loaded["p"].foo == 3
    assert torch.equal(loaded["p"].scale, parameter.scale)
    assert isinstance(loaded["b"], torch.nn.Buffer)
    assert not loaded["b"].persistent
    assert list(fastckpt.load(tmp_path / "s", keys="p*")) == ["p", "p.scale"]
    parameter.hook = parameter.other = object()
    with pytest.raises(UnsupportedStateError) as caught:
        fastckpt.save(state, tmp_path / "t")
    assert "2 things cannot be stored" in str(caught.value)
    assert "state['p']['hook']: cannot store an object of type builtins.object" in str(caught.value)
    assert not (tmp_path / "t").exists()
    parameter.hook, parameter.other = 1, parameter
    with pytest.raises(UnsupportedStateError, match=r"state\['p'\]\['other'\]: the state contains itself"):
        fastckpt.save(state, tmp_path / "t")


@pytest.mark.parametrize("kind", ["dict", "set"])
def test_keys_with_one_hash_are_refused_in_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A hash table of these takes time in proportion to the square of their number.
    many = [n * (2**61 - 1) for n in range(1, 50_001)]
    node = NamedRef(kind, [(key, None) for key in many] if kind == "dict" else many)
    with pytest.raises(UnsupportedStateError, match="make a dict or set slow"):
        encode_tree(node, lambda value, path: value)
    monkeypatch.setattr("fastckpt.layout.encode_tree.makes_slow", lambda keys: False)
    raw = encode_tree(node, lambda value, path: value)
    before = time.process_time()
    with pytest.raises(DamagedError, match="chosen to make it slow"):
        unflatten(raw, [])
    assert within(time.process_time() - before, 5)


def test_depth_limit_is_exact(tmp_path: Path) -> None:
    fastckpt.save(deep(128), tmp_path / "s")
    assert_same(fastckpt.load(tmp_path / "s"), deep(128))
    with pytest.raises(UnsupportedStateError):
        fastckpt.save(deep(129), tmp_path / "s")


def test_the_same_container_twice_is_no_circle(tmp_path: Path) -> None:
    shared = [torch.ones(2), 1]
    fastckpt.save([shared, shared], tmp_path / "s")
    assert_same(fastckpt.load(tmp_path / "s"), [shared, shared])


# mmap


def mmap_state() -> dict[str, Any]:
    return {
        "pack": [torch.arange(10.0), torch.ones(3, dtype=torch.int64)],
        "large": of_dtype(torch.int32, 100_000),
        "weight": torch.nn.Parameter(torch.linspace(0, 1, 70_000)),
        "rows": of_dtype(torch.int16, 800_000)[::2],
    }


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_mapped_tensors_are_private(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "s"
    state = mmap_state()
    fastckpt.save(state, path, codec=codec)
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    first, second = fastckpt.load(path, mmap=True), fastckpt.load(path, mmap=True)
    optimizer = torch.optim.AdamW([first["weight"]], lr=0.1)
    first["weight"].sum().backward()
    optimizer.step()
    for tensor in (first["pack"][0], first["pack"][1], first["large"], first["rows"]):
        tensor.add_(1)
    assert not torch.equal(first["weight"], state["weight"])
    assert torch.equal(first["large"], state["large"] + 1)
    assert_same(second, state)
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == stamp
    assert_same(fastckpt.load(path), state)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_forked_process_has_its_own_tensors(tmp_path: Path, mapped: bool) -> None:
    fastckpt.save({"large": torch.zeros(3_000_000), "small": torch.zeros(3)}, tmp_path / "s")
    code = (
        "import os, sys, fastckpt\n"
        "state = fastckpt.load(sys.argv[1], mmap=sys.argv[2] == 'True')\n"
        "if (child := os.fork()) == 0:\n"
        "    state['large'][0] = state['small'][0] = 1\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print(state['large'][0].item(), state['small'][0].item())\n"
    )
    assert forked.run("-c", code, str(tmp_path / "s"), str(mapped)).stdout == "0.0 0.0\n"


def test_mapped_file_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    state = mmap_state()
    fastckpt.save(state, path)
    loaded = fastckpt.load(path, mmap=True)
    fastckpt.save(loaded, path)
    loaded["large"].zero_()
    fastckpt.save({"large": torch.zeros(500_000)}, path)
    loaded["large"].copy_(state["large"])
    assert_same(loaded, state)
    path.unlink()
    assert_same(loaded, state)


def test_mapping_copies_nothing(tmp_path: Path) -> None:
    fastckpt.save({"a": torch.zeros(4 * 2**20)}, tmp_path / "s")
    address = fastckpt.load(tmp_path / "s", mmap=True)["a"].data_ptr()
    maps = Path("/proc/self/maps").read_text().splitlines()
    inside = [line for line in maps if int(line.split("-")[0], 16) <= address < int(line.split()[0].split("-")[1], 16)]
    if len(inside) == 1 and "/" in inside[0]:
        assert inside[0].endswith(str(tmp_path / "s"))


# Keys


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "s"
    shared = torch.arange(10.0)
    state = {
        "model": {"w": shared, "tied": shared, "b": torch.ones(2)},
        "optim": [{"m": torch.zeros(2)}, 5],
        "a[1]": torch.ones(1),
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
    }
    fastckpt.save(state, path)
    assert list(fastckpt.load(path, keys="*")) == [
        *("model.w", "model.tied", "model.b", "optim.0.m", "a[1]", "a.b", "a.b#2"),
    ]
    loaded = fastckpt.load(path, keys=["optim.*", "model.[wt]*"])
    assert_same(loaded, {"model.w": shared, "model.tied": shared, "optim.0.m": torch.zeros(2)})
    assert list(fastckpt.load(path, keys="a[1]")) == ["a[1]"], "a name is a name first, then a glob"
    assert_same(fastckpt.load(path, keys=iter(["a.b#2"])), {"a.b#2": torch.zeros(1)})
    assert fastckpt.load(path, keys=[]) == {}
    for mapped in (False, True):
        with pytest.raises(TensorNotFoundError, match=r"model\.ww") as caught:
            fastckpt.load(path, keys=["model.w", "model.ww"], mmap=mapped)
    assert isinstance(caught.value, KeyError)
    assert "model.w" in str(caught.value), "the closest names are shown"
    with pytest.raises(TensorNotFoundError):
        fastckpt.load(path, keys="none.*")


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
@pytest.mark.parametrize("mapped", [False, True])
def test_keys_read_only_what_they_touch(tmp_path: Path, codec: str, mapped: bool) -> None:
    path = tmp_path / "s"
    state = {
        "a": compressible(3_000_000, 1),
        "b": compressible(3_000_000, 2),
        "small": [of_dtype(torch.uint8, 40_000, i) for i in range(6)],
    }
    fastckpt.save(state, path, codec=codec)
    wanted = {"a": state["a"], "small.0": state["small"][0], "small.5": state["small"][5]}
    with fastckpt.open(path) as ck:
        records = ck._file.records
    raw = bytearray(path.read_bytes())
    payload = records[1].payload
    raw[payload.offset : payload.end] = bytes(payload.size)
    if codec == "none":
        raw[records[2].payload.offset + 100_000] ^= 1  # in small.2
    path.write_bytes(raw)
    assert_same(fastckpt.load(path, keys=list(wanted), mmap=mapped), wanted)
    with pytest.raises(DamagedError, match="b") as caught:
        fastckpt.load(path, keys="b", mmap=mapped)
    assert caught.value.tensor == "b"
    with pytest.raises(DamagedError):
        fastckpt.load(path, mmap=mapped)


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="/proc/self/io is not there")
def test_keys_read_few_bytes(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fastckpt.save({"a": pattern(20_000_000), "b": pattern(300_000), "c": pattern(20_000_000)}, path)

    def rchar() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])

    before = rchar()
    fastckpt.load(path, keys="b")
    assert rchar() - before < 600_000


# Files that are no checkpoints, and what the system refuses


def old_file(path: Path) -> bytes:
    fastckpt.save({"old": torch.arange(1000)}, path)
    return path.read_bytes()


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n", "git-lfs"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "HTML"),
    "text": (b"hello world", r"this is a text file \(found hello world\)"),
    "short": (b"\x89", "too few"),
    "zeros": (bytes(100_000), "zero"),
    "noise": (bytes(pattern(50_000).numpy()), "neither"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(20_000), "gzip"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_no_checkpoint(tmp_path: Path, name: str) -> None:
    raw, words = BAD_FILES[name]
    path = tmp_path / "s.fckpt"
    path.write_bytes(raw)
    destination = {"old": torch.zeros(1000)}
    for action in (
        lambda: fastckpt.load(path),
        lambda: fastckpt.load(path, mmap=True, keys="x"),
        lambda: fastckpt.open(path),
        lambda: fastckpt.verify(path),
        lambda: fastckpt.load_into(destination, path),
        lambda: fastckpt.convert(path, tmp_path / "t.pt"),
        lambda: fastckpt.convert(path),
    ):
        with pytest.raises(NotACheckpointError, match=words) as caught:
            action()
        assert caught.value.path == str(path)
    assert not destination["old"].any()
    assert [p.name for p in tmp_path.iterdir()] == ["s.fckpt"]


def test_directory_and_missing(tmp_path: Path) -> None:
    for action in (fastckpt.load, fastckpt.open, fastckpt.verify):
        with pytest.raises(NotACheckpointError, match="directory"):
            action(tmp_path)
        with pytest.raises(CheckpointNotFoundError, match="not found") as caught:
            action(tmp_path / "missing")
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.errno == 2
    with pytest.raises(CheckpointIOError):
        fastckpt.save({}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give up its rights")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "dir" / "s"
    path.parent.mkdir()
    before = old_file(path)
    path.chmod(0o600)
    for parent in [tmp_path, *tmp_path.parents][:4]:
        if parent.stat().st_uid == os.getuid() and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    path.parent.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(CheckpointIOError, match=r"[Pp]ermission"):
            fastckpt.load(path)
        with pytest.raises(CheckpointIOError, match=r"[Pp]ermission"):
            fastckpt.save({}, path)
    finally:
        os.seteuid(0)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


@pytest.fixture
def small_fs(tmp_path: Path) -> Any:
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("codec", ["none", "zstd", "planes"])
def test_disk_full(small_fs: Path, tmp_path: Path, codec: str) -> None:
    path = small_fs / "s"
    before = old_file(path)
    with pytest.raises(OutOfSpaceError):
        fastckpt.save({"big": pattern(5_000_000)}, path, codec=codec)
    torch.save({"big": pattern(5_000_000)}, tmp_path / "big.pt")
    with pytest.raises(OutOfSpaceError):
        fastckpt.convert(tmp_path / "big.pt", path, to="fckpt", codec=codec)
    assert path.read_bytes() == before
    assert [p.name for p in small_fs.iterdir()] == ["s"]


def test_disk_full_on_the_way_out(small_fs: Path, tmp_path: Path) -> None:
    fastckpt.save({"big": pattern(5_000_000)}, tmp_path / "s.fckpt")
    torch.save({"big": pattern(5_000_000)}, tmp_path / "big.pt")
    fastckpt.convert(tmp_path / "big.pt", tmp_path / "exact.fckpt")
    for source in ("s.fckpt", "exact.fckpt"):
        for suffix in ("pt", "safetensors"):
            with pytest.raises(OutOfSpaceError):
                fastckpt.convert(tmp_path / source, small_fs / f"x.{suffix}")
    assert list(small_fs.iterdir()) == []


def test_damage_in_a_sector_the_disk_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector gives an error, not wrong bytes: the other copy must stand in all the same."""
    path = tmp_path / "s"
    state = {"a": pattern(300_000), "b": [pattern(100)]}
    fastckpt.save(state, path)
    with fastckpt.open(path) as ck:
        sections = [section.extent for section in ck._file.footer.sections]
        headers = [record.header for record in ck._file.records]
    pread = os.pread
    # What could not be read together with others is read alone, which is what fails here.
    monkeypatch.setattr(
        "fastckpt.stored.verify_fckpt.read_parts", lambda source, parts, threads=None: [None] * len(parts)
    )
    for bad in [*sections, *headers, (0, 4096)]:

        def failing(fd: int, size: int, offset: int, bad: tuple[int, int] = bad) -> bytes:
            if offset < bad[0] + bad[1] and bad[0] < offset + size:
                raise OSError(5, "Input/output error")
            return pread(fd, size, offset)

        monkeypatch.setattr(os, "pread", failing)
        assert_same(fastckpt.load(path), state)
        assert_same(fastckpt.load(path, mmap=True), state)
        report = fastckpt.verify(path)
        monkeypatch.setattr(os, "pread", pread)
        assert not report.ok
        assert [(f.offset, f.size) for f in report.findings] == [tuple(bad)]
        assert [f.kind.value for f in report.findings] == ["unreadable"]
        assert report.damaged_tensors == []


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"verify": False}])
def test_dtype_that_this_torch_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """Refused before a byte is read: the damage at the end of the file is not what is told."""
    path = tmp_path / "s.fckpt"
    fastckpt.save({"a": torch.ones(3), "half": torch.ones(3).half(), "more": torch.ones(200_000).half()}, path)
    with fastckpt.open(path) as ck:
        place = ck._file.records[-1].payload.offset
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    monkeypatch.setattr(dtypes, "_BY_NAME", {k: v for k, v in dtypes._BY_NAME.items() if k != "float16"})
    for load in (functools.partial(fastckpt.load, **options), lambda path: next(iter(fastckpt.stream(path)))):
        with pytest.raises(UnsupportedStateError, match="has no dtype float16") as caught:
            load(path)
        assert (caught.value.path, caught.value.tensor) == (str(path), "half")
    assert list(fastckpt.load(path, keys="a", **options)) == ["a"]


@pytest.mark.parametrize("device", ["bogus", "cuda:x", None])
def test_no_device_of_this_name(tmp_path: Path, device: Any) -> None:
    fastckpt.save({"x": torch.ones(3)}, tmp_path / "s")
    for action in (fastckpt.load, fastckpt.stream):
        with pytest.raises(UsageError, match="no device is called so") as caught:
            action(tmp_path / "s", device=device)
        assert repr(device) in str(caught.value)


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


class Raising:
    """A class whose functions raise."""


def _raise(value: Any) -> Any:
    raise ZeroDivisionError(f"of {type(value).__name__}")


def test_a_registered_function_that_raises_is_named_with_its_place(tmp_path: Path) -> None:
    fastckpt.register(Raising, _raise, _raise)
    with pytest.raises(UnsupportedStateError, match="2 things cannot be stored") as caught:
        fastckpt.save({"a": [Raising()], "b": print}, tmp_path / "a.fckpt")
    assert "state['a'][0]: the to_plain registered for " in str(caught.value)
    assert "raises ZeroDivisionError: of Raising" in str(caught.value)
    fastckpt.register(Raising, lambda _: {"w": torch.ones(2)}, _raise)
    fastckpt.save({"a": [Raising()]}, tmp_path / "a.fckpt")
    with pytest.raises(
        UnsupportedStateError, match=r"the from_plain registered for .* raises ZeroDivisionError: of dict"
    ):
        fastckpt.load(tmp_path / "a.fckpt")
    assert fastckpt.load(tmp_path / "a.fckpt", keys="*")["a.0.w"].equal(torch.ones(2))


@pytest.mark.parametrize("what", [5, "a.b", Raising()])
def test_register_takes_classes(what: Any) -> None:
    with pytest.raises(UsageError, match="register takes a class"):
        fastckpt.register(what, str, str)
