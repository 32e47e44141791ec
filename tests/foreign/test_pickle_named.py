"""Values of Python and NumPy in a .pt that fastckpt writes: torch.load and fastckpt.load give them back."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import pickletools
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from states import Colour, Config, Point, Scale, arrays, assert_same, python_values, states

import fastckpt
from fastckpt.conversion import arrays as conversion_arrays
from fastckpt.errors import DamagedError, UnsupportedStateError

ZONE = datetime.timezone(datetime.timedelta(hours=2), "X")
OF_ITS_OWN = (Colour, Point, Config, Scale)


def converted(state: Any, room: Path) -> Path:
    """The state as a .pt that was made of a .fckpt."""
    fastckpt.save(state, room / "a.fckpt", durable=False)
    fastckpt.convert(room / "a.fckpt", room / "b.pt", durable=False)
    return room / "b.pt"


def pickle_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return next(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))


# Python writes these the same way in every version, and in no order that differs from process to process.
STABLE: dict[str, Any] = {
    "sets": [{1}, set(), frozenset([2]), frozenset()],
    "counter": collections.Counter("abracadabra"),
    "defaultdict": [collections.defaultdict(kind, {1: 2, "a": 3}) for kind in (None, list, int, str, OrderedDict)],
    "deque": [collections.deque([1, 2], 5), collections.deque(), collections.deque(range(1001))],
    "bytearray": [bytearray(b"x\xff"), bytearray(b"abc"), bytearray()],
    "namespaces": [argparse.Namespace(lr=0.1), argparse.Namespace(), types.SimpleNamespace(a=1)],
    "dates": [datetime.date(2026, 2, 3), datetime.datetime(2026, 2, 3, 4, 5, 6, 7, ZONE), datetime.time(1, 2)],
    "times": [datetime.timedelta(-1, 2, 3), datetime.timezone(datetime.timedelta(hours=1))],
    "ranges": [range(1, 9, 2), range(-(2**80), 0), slice(1, None)],
    "decimal": decimal.Decimal("1.50"),
    "keys": {True: 1, (1, None): 2, 2.5: 3, b"k": 4},
    "ordered": OrderedDict({(1, "a"): 1, None: 2}),
    "sparse": [torch.eye(3).to_sparse(), torch.eye(4).to_sparse_csr()],
    "meta": torch.empty(2, 3, device="meta", dtype=torch.bfloat16),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", STABLE)
def test_the_pickle_is_that_of_torch(tmp_path: Path, name: str) -> None:
    torch.save([STABLE[name]], tmp_path / "theirs.pt")
    ours, theirs = pickle_of(converted([STABLE[name]], tmp_path)), pickle_of(tmp_path / "theirs.pt")
    assert ours == theirs, "\n".join(pickletools.dis(raw) or "" for raw in (ours, theirs))


def without_own(value: Any) -> Any:
    """The values but those of classes of a program."""
    return {key: item for key, item in value.items() if key != "own"}


def in_native_order(value: Any) -> Any:
    """Arrays as NumPy takes them out of its own pickles: in the byte order of the machine."""
    if isinstance(value, list):
        return [in_native_order(item) for item in value]
    return value.astype(value.dtype.newbyteorder("="), order="K") if isinstance(value, numpy.ndarray) else value


@pytest.mark.parametrize("make", [arrays, python_values])
def test_everything_comes_back(tmp_path: Path, make: Any) -> None:
    state = without_own(make())
    path = converted(state, tmp_path)
    ours, theirs = fastckpt.load(path), torch.load(path, weights_only=False)
    for name, value in state.items():
        if name != "same twice":  # Arrays on the same memory are two.
            assert_same(ours[name], value)
            assert_same(theirs[name], in_native_order(value))
    assert fastckpt.verify(path).ok
    fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "c.pt")
    assert pickle_of(tmp_path / "c.pt") == pickle_of(path)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("named")


@given(state=states())
def test_any_state(room: Path, state: Any) -> None:
    has_objects = True
    try:
        path = converted(state, room)
    except UnsupportedStateError as error:
        refused = {line.rpartition("in it: ")[2] for line in error.message.splitlines() if "in it: " in line}
        if all(why.startswith("test.Scale") or "save x." in why for why in refused):
            return
        raise
    theirs = torch.load(path, weights_only=False)
    with contextlib.suppress(UnsupportedStateError):  # Objects of classes, which only torch.load makes again.
        assert_same(fastckpt.load(path), fastckpt.load(room / "a.fckpt"))
        has_objects = False
    if b"X\x01\x00\x00\x00>" not in pickle_of(path):  # Arrays in the other byte order; see `in_native_order`.
        assert_same(fastckpt.load(room / "a.fckpt" if has_objects else path), theirs, by_torch=True)


def test_arrays_large_and_small_are_in_the_pickle_alone(tmp_path: Path) -> None:
    shared = numpy.arange(5000.0)
    state = {"big": shared, "w": torch.ones(3), "view": shared[10:20], "columns": numpy.ones((30, 40), order="F")}
    path = converted(state, tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert sum(name.partition("/")[2].startswith("data/") for name in archive.namelist()) == 1
    for loaded in (torch.load(path, weights_only=False), fastckpt.load(path)):
        assert (loaded["big"] == shared).all()
        assert (loaded["view"] == shared[10:20]).all()
        assert loaded["columns"].flags.f_contiguous
        assert loaded["w"].equal(torch.ones(3))


def test_arrays_in_a_file_without_a_prefix(tmp_path: Path) -> None:
    state = {"_orig_mod.w": torch.ones(4), "rng": numpy.random.RandomState(3).get_state(), "tags": {"a"}}
    fastckpt.save(state, tmp_path / "a.fckpt")
    fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "b.pt", strip_prefix="_orig_mod.")
    loaded = torch.load(tmp_path / "b.pt", weights_only=False)
    assert list(loaded) == ["w", "rng", "tags"]
    numpy.testing.assert_equal(loaded["rng"], state["rng"])


def test_a_damaged_array_is_named(tmp_path: Path) -> None:
    fastckpt.save({"a": numpy.arange(5000.0)}, tmp_path / "a.fckpt")
    raw = bytearray((tmp_path / "a.fckpt").read_bytes())
    raw[raw.index(numpy.arange(5000.0).tobytes()) + 7] ^= 1
    (tmp_path / "a.fckpt").write_bytes(raw)
    with pytest.raises(DamagedError):
        fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()


def test_arrays_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion_arrays, "MAX_ARRAYS", 1000)
    with pytest.raises(UnsupportedStateError, match=r"too large for the pickle.*torch\.from_numpy"):
        converted({"a": numpy.arange(100.0), "b": numpy.arange(100.0)}, tmp_path)


class Kind(enum.Enum):
    """An enum that nobody registered."""

    A = 1


class Outer:
    """A class with others in it."""

    class Kind(enum.Enum):
        """An enum inside of a class."""

        A = 1
        B = (1, "x")

    @dataclasses.dataclass(frozen=True)
    class Frozen:
        """A dataclass inside of a class."""

        a: Any


@dataclasses.dataclass(slots=True)
class Slots:
    """A dataclass whose objects have no dict."""

    a: int


class Flags(enum.IntFlag):
    """Flags."""

    A = 1
    B = 2


OF_CLASSES: dict[str, Any] = {
    "enum": [Colour.RED, Colour.PAIR, Colour.RED, Kind.A, {Kind.A: Colour.RED}],
    "flags": [Flags.A | Flags.B, Flags(0)],
    "namedtuple": [Point(1, torch.ones(2)), Point((1, 2), {"a": [Point(1, 2)]})],
    "dataclass": [Config(0.5), Config({1}, [torch.ones(3)])],
}


@pytest.mark.parametrize("name", OF_CLASSES)
def test_the_pickle_of_classes_is_that_of_torch(tmp_path: Path, name: str) -> None:
    torch.save(OF_CLASSES[name], tmp_path / "theirs.pt")
    path = converted(OF_CLASSES[name], tmp_path)
    theirs = torch.load(tmp_path / "theirs.pt", weights_only=False)
    assert_same(torch.load(path, weights_only=False), theirs)
    if name in ("flags", "dataclass"):  # In the others Python knows which values of the program are one object.
        assert pickle_of(path) == pickle_of(tmp_path / "theirs.pt")


def test_classes_inside_of_classes(tmp_path: Path) -> None:
    state = [Outer.Kind.B, Outer.Frozen(torch.ones(2)), {Outer.Kind.A: 1}]
    loaded = torch.load(converted(state, tmp_path), weights_only=False)
    assert loaded[0] is Outer.Kind.B
    assert type(loaded[1]) is Outer.Frozen
    assert loaded[1].a.equal(torch.ones(2))
    assert loaded[2] == {Outer.Kind.A: 1}


def kinds_of_tensors() -> dict[str, torch.Tensor]:
    plain = torch.randn(4, 6)
    scales, zeros = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0, 1, 2, 3])
    quantized = torch.quantize_per_tensor(plain, 0.1, 3, torch.qint8)
    parts = [torch.ones(2, 3), torch.ones(5, 3)]
    return {
        "qint8": quantized,
        "strided": torch.quantize_per_tensor(plain, 0.1, 3, torch.quint8).t(),
        "qint32": torch.quantize_per_tensor(plain, 0.1, 3, torch.qint32),
        "channels": torch.quantize_per_channel(plain, scales, zeros, 0, torch.qint8),
        "float channels": torch.quantize_per_channel(plain, scales, zeros.float(), 0, torch.quint8),
        "quantized parameter": torch.nn.Parameter(quantized, requires_grad=False),
        "nested": torch.nested.nested_tensor(parts),
        "jagged": torch.nested.nested_tensor(parts, layout=torch.jagged),
        "nested parameter": torch.nn.Parameter(torch.nested.nested_tensor(parts)),
        "sparse parameter": torch.nn.Parameter(torch.eye(3).to_sparse()),
        "frozen parameter": torch.nn.Parameter(torch.eye(3).to_sparse_csr(), requires_grad=False),
        "meta parameter": torch.nn.Parameter(torch.empty(2, 3, device="meta")),
        "meta": torch.empty(2, device="meta", requires_grad=True),
    }


@pytest.mark.filterwarnings("ignore")
def test_tensors_of_every_kind(tmp_path: Path) -> None:
    state = kinds_of_tensors()
    path = converted(state, tmp_path)
    for loaded in (torch.load(path, weights_only=False), fastckpt.load(path)):
        for name, expected in state.items():
            tensor = loaded[name]
            assert type(tensor) is type(expected), name
            assert (tensor.dtype, tensor.layout, tensor.device) == (expected.dtype, expected.layout, expected.device)
            assert tensor.requires_grad == expected.requires_grad, name
            if expected.is_nested:
                assert all(a.equal(b) for a, b in zip(tensor.unbind(), expected.unbind(), strict=True))
            elif expected.is_quantized:
                assert tensor.qscheme() == expected.qscheme()
                assert tensor.equal(expected)
                assert tensor.stride() == expected.stride() or loaded is not state
            elif not expected.is_meta:
                assert tensor.to_dense().equal(expected.to_dense())
    own = dict(fastckpt.stream(tmp_path / "a.fckpt"))
    assert all(tensor.equal(own[name]) for name, tensor in fastckpt.stream(path) if name in own)
    assert fastckpt.verify(path).ok


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    torch.rand(700, generator=generator)
    path = converted({"g": generator}, tmp_path)
    torch.save({"g": generator}, tmp_path / "theirs.pt")
    expected = torch.rand(50, generator=generator)
    for file in (path, tmp_path / "theirs.pt"):
        for loaded in (torch.load(file, weights_only=False), fastckpt.load(file)):
            assert loaded["g"].initial_seed() == 5
            assert torch.rand(50, generator=loaded["g"]).equal(expected)


def test_what_is_imported_is_said(tmp_path: Path) -> None:
    fastckpt.save({"a": [Kind.A, {"b": Point(1, 2)}], "w": torch.ones(2)}, tmp_path / "a.fckpt")
    (done,) = fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "b.pt")
    names = f"{Kind.__module__}.Kind, {Point.__module__}.Point"
    (note,) = done.notes
    assert note.endswith(f"only with weights_only=False, and then imports {names}")
    assert note in fastckpt.salvage(tmp_path / "a.fckpt", tmp_path / "c.pt").notes


@pytest.mark.filterwarnings("ignore")
def test_all_that_cannot_be_written_is_listed(tmp_path: Path) -> None:
    class Local(enum.Enum):
        A = 1

    state = {
        "slots": Slots(1),
        "fine": [{1, 2}, Kind.A],
        "local": Local.A,
        "inside": [{"own": Scale(2)}, {Local.A: 3}],
        "sparse": torch.eye(2).to_sparse().requires_grad_(),
    }
    with pytest.raises(UnsupportedStateError, match=r"a\.fckpt: 5 things cannot be stored") as caught:
        converted(state, tmp_path)
    for place, remedy in {
        "state['local']": "a class of a module",
        "state['inside'][0]['own']": "save what its to_plain gives",
        "state['inside'][1][0]": "a class of a module",
        "state['sparse']": "x.detach()",
        "state['slots']": "dataclasses.asdict(x)",
    }.items():
        (line,) = [line for line in str(caught.value).splitlines() if line.startswith(f"  {place}: ")]
        assert "a .pt file cannot be written with this in it: " in line
        assert remedy in line
    assert caught.value.next_step == "write a .fckpt file instead"
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("name", ["a\nb.C", "C", "m:", ":C", "m.\u00e9", "m:A B", "m.f.<locals>.C"])
def test_names_that_no_pickle_can_have(tmp_path: Path, name: str) -> None:
    """They would end a line of the pickle, or name something else."""
    fastckpt.save({"x": fastckpt.Placeholder("enum", name, {"name": "A", "value": 1})}, tmp_path / "a.fckpt")
    with pytest.raises(UnsupportedStateError, match="no pickle can name"):
        fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "b.pt")


def test_salvage_writes_them_too(tmp_path: Path) -> None:
    state = {
        "w": torch.arange(300_000.0),
        "tags": {"a", "b"},
        "path": pathlib.PurePosixPath("/a"),
        "f": fractions.Fraction(1, 3),
    }
    fastckpt.save(state, tmp_path / "a.fckpt")
    report = fastckpt.salvage(tmp_path / "a.fckpt", tmp_path / "b.pt")
    assert (report.exit_code, report.complete, report.notes) == (0, True, [])
    assert_same(torch.load(tmp_path / "b.pt", weights_only=False), state)
