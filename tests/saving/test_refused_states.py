"""What a file cannot hold is refused before a byte is written, all of it at once, each with a remedy."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slowness import within
from states import (
    Scale,
    assert_same,
)

import fastckpt
from fastckpt.errors import (
    DamagedError,
    UnsupportedStateError,
)
from fastckpt.layout.tree import NamedRef, encode_tree
from fastckpt.tensor.rebuild import unflatten

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


class OnlyHalf:
    """It gives its state and does not take it back."""

    def state_dict(self) -> dict[str, int]:
        return {}


def test_metadata_takes_plain_values_only(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedStateError, match=r"metadata.*\['t'\].*Tensor"):
        fastckpt.save({}, tmp_path / "s", metadata={"t": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


# What cannot be stored


class Subclass(torch.Tensor):
    pass


class Anything:
    pass


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
    "tensor subclass": (lambda: torch.ones(2).as_subclass(Subclass), r"test_refused_states\.Subclass"),
    "object": (Anything, r"test_refused_states\.Anything"),
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


@pytest.mark.parametrize("metadata", [{True: 1}, {"a": [{None: 1}]}, {"a": {(1,): 1}}, {"a": {1, 2}}])
def test_metadata_takes_no_named_values(tmp_path: Path, metadata: Any) -> None:
    with pytest.raises(UnsupportedStateError, match="metadata: state"):
        fastckpt.save({"w": torch.ones(1)}, tmp_path / "s", metadata=metadata)
    with pytest.raises(UnsupportedStateError, match="metadata: state"):
        fastckpt.save_async({"w": torch.ones(1)}, tmp_path / "s", metadata=metadata)
    assert not list(tmp_path.iterdir())


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
