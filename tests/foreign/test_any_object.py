"""Any pickle of objects that are not understood: two readers see the same in it, and it comes back byte for byte.

Whatever a .pt holds: what ``load`` keeps of it, what ``convert`` carries, and what the reference reader, which knows
SPEC.md alone, finds in the result is the same; so are the names of the tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from big_endian import write_big
from describe import describe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_names import flat_names
from reference_reader import File, read
from reference_source import restored
from reference_tree import Named, Ordered

import fastckpt
from fastckpt.cli.main import main


class Thing:
    """An object with attributes."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes)


class Slotted:
    """An object without a dict."""

    __slots__ = ("a", "b")

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


class Listed(list[Any]):
    """A list of a class of its own."""


class Keyed(dict[Any, Any]):
    """A dict of a class of its own."""


class Made:
    """What is made by a call, and has a state that is no dict."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> Any:
        return Made, self.args

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("nothing in a file is called")


class Stateful(Made):
    """The same, with a state that is no dict."""

    def __reduce__(self) -> Any:
        return Stateful, self.args[:1], self.args


TENSORS = st.builds(
    lambda count, dtype, start: torch.arange(start, start + count).to(dtype),
    st.integers(0, 5),
    st.sampled_from([torch.float32, torch.float64, torch.int16, torch.uint8, torch.bfloat16, torch.complex64]),
    st.integers(0, 200),
)
LEAVES = st.one_of(
    TENSORS,
    TENSORS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=4),
    st.floats(allow_nan=False),
    st.sampled_from([Thing, len, torch.float16]),
    st.builds(numpy.arange, st.integers(0, 4), dtype=st.sampled_from(["<f4", ">i2", "|u1"])),
)
NAMES = st.sampled_from(
    ["a", "b", "0", "weight", "_modules", "_parameters", "_buffers", "_local_tensor", "a.b", "state"]
)


def _with_attributes(items: dict[Any, Any], attributes: dict[str, Any]) -> OrderedDict[Any, Any]:
    """What ``Module.state_dict()`` gives: an OrderedDict that has attributes."""
    made = OrderedDict(items)
    vars(made).update(attributes)
    return made


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    attributes = st.dictionaries(NAMES, inner, max_size=3)
    return st.one_of(
        attributes.map(Thing),
        attributes.map(OrderedDict),
        st.builds(_with_attributes, st.dictionaries(st.one_of(NAMES, st.booleans()), inner, max_size=2), attributes),
        st.builds(Slotted, inner, inner),
        st.lists(inner, max_size=3).map(Listed),
        st.dictionaries(st.one_of(NAMES, st.integers(), st.none()), inner, max_size=3).map(Keyed),
        st.lists(inner, max_size=3).map(lambda args: Made(*args)),
        st.lists(inner, min_size=1, max_size=2).map(lambda args: Stateful(*args)),
        st.lists(inner, max_size=3),
        # The same object twice.
        inner.map(lambda item: [item, {"again": item}]),
    )


STATES = st.dictionaries(NAMES, st.recursive(LEAVES, _objects, max_leaves=10), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")


def kept(path: Path) -> Any:
    """What ``load`` gives, with placeholders."""
    return describe(fastckpt.load(path, opaque="keep"))


def has_array(value: Any) -> bool:
    """Whether there is an array in what the reference reader found: a small one has its bytes in place there."""
    if isinstance(value, Named):
        return value.name == "array" or has_array(value.payload)
    if isinstance(value, Ordered):
        return has_array(value.pairs) or has_array(value.attributes)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(map(has_array, items))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(state=STATES, protocol=st.integers(2, 5), codec=st.sampled_from(["none", "zstd"]))
def test_two_readers_see_the_same(scratch: Path, state: Any, protocol: int, codec: str) -> None:
    source, own, back, again = (scratch / name for name in ("a.pt", "a.fckpt", "b.pt", "b.fckpt"))
    torch.save(state, source, pickle_protocol=protocol)
    fastckpt.convert(source, own, codec=codec, durable=False)
    file: File = read(own)
    assert kept(source) == kept(own)
    if not has_array(file.state):
        assert describe(file.state) == kept(own)
    with fastckpt.open(own) as opened:
        assert list(opened) == list(file.tensors) == flat_names(file.state)
    fastckpt.convert(own, back, durable=False)
    assert back.read_bytes() == restored(own) == source.read_bytes()
    # Saved anew, it is the same again, under the same names.
    fastckpt.save(fastckpt.load(own, opaque="keep"), again, durable=False)
    assert kept(again) == kept(own)
    if not has_array(file.state):
        with fastckpt.open(again) as opened:
            assert list(opened) == list(file.tensors)
    assert main(["diff", str(source), str(own)]) == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tensors=st.lists(TENSORS, min_size=1, max_size=5), codec=st.sampled_from(["none", "zstd"]))
def test_big_endian_files_come_back(scratch: Path, tensors: list[torch.Tensor], codec: str) -> None:
    # Storages of equal bytes and other types cannot be told apart by who writes the file.
    state = {str(n): tensor + n * 7 for n, tensor in enumerate(tensors) if tensor.numel()}
    source, own = scratch / "big.pt", scratch / "big.fckpt"
    write_big(state, source)
    fastckpt.convert(source, own, codec=codec, durable=False)
    assert describe(read(own).state) == describe(state)
    assert restored(own) == source.read_bytes()


def _tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(1) for name in names}


SAME_STEPS: dict[str, tuple[Any, list[str]]] = {
    "attributes of _buffers": (
        Thing({"_buffers": _with_attributes(_tensors("w"), _tensors("q"))}),
        ["x.w", "x.__dict__.q"],
    ),
    "attributes of an empty half of a state": (
        Stateful(OrderedDict(), _with_attributes({}, _tensors("q"))),
        ["x.__dict__.q"],
    ),
    "an attribute called state": (
        Thing({"state": _tensors("w"), "w": Slotted(*_tensors("a", "b").values())}),
        ["x.state.w", "x.w.a", "x.w.b"],
    ),
    "an object made of one other": (
        Stateful(Slotted(*_tensors("a", "b").values()), _tensors("c")),
        ["x.a", "x.b", "x.state.1.c"],
    ),
}


@pytest.mark.parametrize("case", SAME_STEPS)
def test_every_tensor_of_an_object_is_named_by_its_way(tmp_path: Path, case: str) -> None:
    thing, names = SAME_STEPS[case]
    torch.save({"x": thing}, tmp_path / "a.pt")
    fastckpt.convert(tmp_path / "a.pt", tmp_path / "a.fckpt", durable=False)
    fastckpt.save(fastckpt.load(tmp_path / "a.fckpt", opaque="keep"), tmp_path / "again.fckpt", durable=False)
    for path in (tmp_path / "a.fckpt", tmp_path / "again.fckpt"):
        assert list(read(path).tensors) == names
        assert flat_names(read(path).state) == names
        with fastckpt.open(path) as opened:
            assert list(opened) == names
