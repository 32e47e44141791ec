"""States for tests: one with everything in it, arbitrary ones, and the comparison that tells any two apart.

`assert_same` is bit-exact: types, order, every byte of every storage, strides,
which tensors share memory, flags, the bits of floats.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import struct
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy
import torch
from hypothesis import strategies as st

import fastckpt
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.named import parts
from fastckpt.layout.python_values import from_named, to_named
from fastckpt.tensor.arrays import tensor_of_array

DTYPES: list[torch.dtype] = [
    getattr(torch, name) for name in BY_NAME if isinstance(getattr(torch, name, None), torch.dtype)
]
FLOATING = [dtype for dtype in DTYPES if dtype.is_floating_point and dtype.itemsize >= 2]


class Colour(enum.Enum):
    """An enum that is registered; so are the next two."""

    RED = 1
    PAIR = ("a", 2.5)


class Point(NamedTuple):
    """A namedtuple."""

    x: Any
    y: Any


@dataclasses.dataclass
class Config:
    """A dataclass."""

    rate: Any
    layers: Any = None


class Scale:
    """A class with functions of its own."""

    def __init__(self, factor: Any) -> None:
        self.factor = factor


for _cls in (Colour, Point, Config):
    fastckpt.register(_cls)
fastckpt.register(
    Scale, lambda scale: {"factor": scale.factor}, lambda plain: Scale(plain["factor"]), name="test.Scale"
)


# Comparison


def storage_bytes(tensor: torch.Tensor) -> bytes:
    """All bytes of the storage that a tensor lies in."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return b""
    return bytes(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())


def element_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements in row-major order, NaN payloads included."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    if not plain.numel():
        return b""
    width = plain.element_size()
    raw = torch.empty(0, dtype=torch.uint8).set_(
        plain.untyped_storage(),
        plain.storage_offset() * width,
        (*plain.shape, width),
        (*(step * width for step in plain.stride()), 1),
    )
    return bytes(raw.contiguous().view(-1).numpy())


def assert_same_elements(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Same type, shape and element bits; where they lie does not matter."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert element_bytes(actual) == element_bytes(expected)


def assert_same(actual: object, expected: object, *, by_torch: bool = False) -> None:
    """Fail unless both states are the same in every respect that a checkpoint keeps.

    ``by_torch`` says that torch.load made the expected one. Without mmap it gives every tensor on a storage without
    bytes one of its own, also where they shared it when they were saved: that is not compared then.
    """
    _Comparison(by_torch=by_torch).compare(actual, expected, "state")


def same(actual: object, expected: object) -> bool:
    """Whether `assert_same` holds."""
    try:
        assert_same(actual, expected)
    except AssertionError:
        return False
    return True


def _in_order(value: Any) -> str:
    """A text that tells types apart, the same for sets that were filled in another order."""
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}{sorted(map(_in_order, value))}"
    return f"({','.join(map(_in_order, value))})" if type(value) is tuple else repr(value)


class _Comparison:
    def __init__(self, *, by_torch: bool) -> None:
        self.by_torch = by_torch
        self.forward: dict[int, int] = {}
        self.backward: dict[int, int] = {}

    def compare(self, a: Any, b: Any, path: str) -> None:
        assert type(a) is type(b), f"{path}: {type(a)} is not {type(b)}"
        if isinstance(b, torch.Tensor):
            self.tensors(a, b, path)
        elif isinstance(b, dict):
            assert len(a) == len(b), f"{path}: other keys"
            for (key, item), (other_key, other) in zip(a.items(), b.items(), strict=True):
                self.compare(key, other_key, f"{path}: key {other_key!r}")
                self.compare(item, other, f"{path}[{other_key!r}]")
            if type(b) is OrderedDict:
                self.compare(dict(vars(a)), dict(vars(b)), f"{path}.__dict__")
            if type(b) is collections.defaultdict:
                assert a.default_factory is b.default_factory, f"{path}: other factory"
        elif isinstance(b, numpy.ndarray | numpy.generic):
            assert (a.dtype.str, a.shape) == (b.dtype.str, b.shape), f"{path}: other array"
            assert a.flags.f_contiguous == b.flags.f_contiguous, f"{path}: other order"
            assert a.tobytes("A") == b.tobytes("A"), f"{path}: other bytes"
        elif isinstance(b, set | frozenset):
            assert _in_order(a) == _in_order(b), path
        elif isinstance(b, collections.deque):
            assert a.maxlen == b.maxlen, f"{path}: other greatest length"
            self.compare(list(a), list(b), path)
        elif isinstance(b, argparse.Namespace | types.SimpleNamespace | Config | Scale):
            self.compare(vars(a), vars(b), path)
        elif isinstance(b, slice):
            self.compare([a.start, a.stop, a.step], [b.start, b.stop, b.step], path)
        elif isinstance(b, torch.Generator):
            assert a.device == b.device, f"{path}: other device"
            assert torch.equal(a.get_state(), b.get_state()), f"{path}: other state"
        elif isinstance(b, datetime.date | datetime.time | decimal.Decimal):
            assert repr(a) == repr(b), path  # Equal ones can have another fold, zone or number of zeros.
        elif type(b) in (list, tuple, Point):
            assert len(a) == len(b), f"{path}: other length"
            for index, (x, y) in enumerate(zip(a, b, strict=True)):
                self.compare(x, y, f"{path}[{index}]")
        elif type(b) is float:
            assert struct.pack("<d", a) == struct.pack("<d", b), path
        elif type(b) is complex:
            assert struct.pack("<dd", a.real, a.imag) == struct.pack("<dd", b.real, b.imag), path
        else:
            assert a == b, path

    def tensors(self, a: torch.Tensor, b: torch.Tensor, path: str) -> None:
        for what in ("dtype", "shape", "requires_grad", "device"):
            assert getattr(a, what) == getattr(b, what), f"{path}: other {what}"
        for what in ("stride", "storage_offset", "is_conj", "is_neg"):
            assert getattr(a, what)() == getattr(b, what)(), f"{path}: other {what}"
        assert storage_bytes(a) == storage_bytes(b), f"{path}: other bytes"
        if self.by_torch and not b.untyped_storage().nbytes():
            return
        mine, theirs = a.untyped_storage()._cdata, b.untyped_storage()._cdata
        self.compare(dict(vars(a)), dict(vars(b)), f"{path}.__dict__")
        known = self.forward.setdefault(mine, theirs) == theirs and self.backward.setdefault(theirs, mine) == mine
        assert known, f"{path}: shares its storage with other tensors"


def tensors_of(state: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a state, in tree order."""
    if isinstance(state, torch.Tensor):
        yield state
        yield from tensors_of(dict(vars(state)))
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors_of(value)
        if type(state) is OrderedDict:
            yield from tensors_of(dict(vars(state)))
    elif type(state) in (list, tuple):
        for value in state:
            yield from tensors_of(value)
    elif isinstance(state, numpy.ndarray):
        yield tensor_of_array(state).tensor
    elif (named := to_named(state)) is not None:
        for _, value in parts(named):
            yield from tensors_of(value)


def copied(state: Any) -> Any:
    """A copy with the same aliases, strides and flags, in memory of its own."""
    return _Copy().copy(state)


class _Copy:
    def __init__(self) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}

    def copy(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.tensor(value)
        if type(value) is OrderedDict:
            result = OrderedDict((key, self.copy(item)) for key, item in value.items())
            vars(result).update({key: self.copy(item) for key, item in vars(value).items()})
            return result
        if type(value) is dict:
            return {key: self.copy(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)([self.copy(item) for item in value])
        if isinstance(value, numpy.ndarray):
            return value.copy(order="A")
        named = to_named(value)
        return value if named is None else from_named(named.name, self.copy(named.payload))

    def tensor(self, value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        own = self.storages.setdefault(storage._cdata, storage.clone() if storage.nbytes() else storage)
        result = torch.empty(0, dtype=value.dtype).set_(own, value.storage_offset(), value.shape, value.stride())
        if value.is_conj():
            result = result.conj()
        if value.is_neg():
            result = torch._neg_view(result)
        if type(value) is torch.nn.Parameter:
            result = torch.nn.Parameter(result, requires_grad=value.requires_grad)
        else:
            result.requires_grad_(value.requires_grad)
        vars(result).update({key: self.copy(item) for key, item in vars(value).items()})
        return result


# Builders


def pattern(nbytes: int, seed: int = 0) -> torch.Tensor:
    """A uint8 tensor of bytes that do not compress, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)


def compressible(nbytes: int, seed: int = 0) -> torch.Tensor:
    """A uint8 tensor that zstd makes about ten times smaller."""
    tensor = pattern(nbytes, seed)
    tensor[torch.arange(nbytes) % 16384 > 1500] = seed % 251
    return tensor


def of_dtype(dtype: torch.dtype, numel: int, seed: int = 0) -> torch.Tensor:
    """A tensor of any dtype with arbitrary bits (of bools, 0 and 1)."""
    raw = pattern(numel * dtype.itemsize, seed)
    return raw.bitwise_and_(1).view(dtype) if dtype is torch.bool else raw.view(dtype)


def module() -> torch.nn.Module:
    """A small module with tied weights and a buffer."""
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(300, 256)
            self.layers = torch.nn.ModuleList([torch.nn.Linear(32, 32) for _ in range(3)])
            self.norm = torch.nn.BatchNorm1d(32)
            self.head = torch.nn.Linear(256, 300, bias=False)
            self.head.weight = self.embed.weight

    return Model()


def everything() -> dict[Any, Any]:
    """A state with one of each thing that a checkpoint can store, over several records."""
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    ordered = OrderedDict(b=torch.ones(2), a=1)
    ordered._metadata = OrderedDict([("", {"version": 2}), ("layer", {"version": 1, "t": torch.zeros(1)})])
    large = of_dtype(torch.float32, 70_000, 1)
    tagged = torch.nn.Parameter(torch.ones(3))
    vars(tagged).update(tag="x", twin=torch.zeros(2), shape_before=(3, 1))
    nan = torch.tensor([0x7FC00001, 0x7F800001, -1, -0x80000000], dtype=torch.int64).to(torch.int32)
    return {
        "views": [base, base[1], base.transpose(0, 2), base[:, ::2, 1:4], base[0, 0, 0], base.view(torch.int32)],
        "overlapping": base.view(-1).as_strided((10, 5), (2, 1), 3),
        "expanded": torch.ones(1, 3).expand(5, 3),
        "scalar": torch.tensor(3.5),
        "nan": nan.view(torch.float32),
        "empty": [torch.empty(0, 3), torch.zeros(3, 4)[3:, 2:], torch.empty(2, 0, 5)],
        "large": large,
        "part of large": (large[:30_000], large[1:60_001:2]),
        "larger": of_dtype(torch.bfloat16, 700_000, 2),
        "dtypes": {str(dtype): of_dtype(dtype, 24, 3) for dtype in DTYPES},
        "conj": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "neg": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "frozen": torch.nn.Parameter(torch.ones(3), requires_grad=False),
        "grad": torch.ones(2, requires_grad=True),
        "attributes": tagged,
        "buffers": [torch.nn.Buffer(torch.ones(2)), torch.nn.Buffer(torch.ones(2), persistent=False)],
        "ordered": ordered,
        "empty ordered": OrderedDict(),
        "plain": [None, True, False, 0, -1, 2**200, -(2**63), 0.1, float("nan"), float("-inf"), -0.0, 1j],
        "text": ["", "ascii", "\u00e9\u4e16\U0001f600", "a\nb\0c"],
        "bytes": [b"", b"\x00\xff" * 10],
        "nested": ({"a": [(), [], {}]},),
        "torch": [torch.float16, torch.Size([2, 0, 3]), torch.device("cuda:1"), torch.device("cpu")],
        0: torch.ones(1),
        "0": torch.zeros(1),
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(1), "b#2": torch.ones(2)},
        -7: {2**100: torch.ones(1)},
        "": torch.ones(1),
    }


def keyed() -> dict[Any, Any]:
    """Dicts with all kinds of keys."""
    keys = [None, True, 2, 0.5, b"k", ("a", (1, None)), float("nan"), -0.0, 2**3000, "s", 1j]
    ordered: OrderedDict[Any, Any] = OrderedDict((key, torch.full((2,), n)) for n, key in enumerate(keys))
    vars(ordered)["note"] = {(): 1}
    return {key: n for n, key in enumerate(keys)} | {"ordered": ordered}


def arrays() -> dict[str, Any]:
    """NumPy arrays and scalars of all kinds."""
    kinds = ["u1", "i1", "<u2", "<i8", "<f2", "<f4", "<f8", "<c8", "<c16", ">i4", ">f8", "g", "<M8[ns]", "m8[D]"]
    found: dict[str, Any] = {kind: numpy.frombuffer(bytes(range(96)), kind).copy() for kind in kinds}
    found["b1"] = numpy.array([True, False])
    found["text"] = numpy.array(["", "a", "bc\u00e9"])
    found["bytes"] = numpy.array([b"", b"abc"])
    found["raw"] = numpy.zeros(3, "V5")
    found["columns"] = numpy.asfortranarray(numpy.arange(24, dtype="<f4").reshape(2, 3, 4))
    found["columns, reversed"] = numpy.asfortranarray(numpy.arange(6, dtype=">i2").reshape(2, 3))
    found["scalar array"] = numpy.array(3.5)
    found["empty"] = [numpy.empty((0, 3)), numpy.empty((2, 0), ">f4")]
    found["same twice"] = [found["<f4"], found["<f4"]]
    scalars = [found[kind][1] for kind in ("b1", "u1", "<i8", "<f2", "<f4", "<f8", "<c8", "g", "<M8[ns]", "m8[D]")]
    found["scalars"] = [*scalars, numpy.str_("abc"), numpy.str_(""), numpy.bytes_(b"xy"), numpy.float64("nan")]
    return found


def python_values() -> dict[str, Any]:
    """One of every kind of plain value that Python has, and objects of registered classes."""
    zone = datetime.timezone(datetime.timedelta(hours=-3, microseconds=5), "here")
    return {
        "sets": [
            set(),
            {1, "a", None, (2.5, b"x"), 1j, pathlib.PurePosixPath("a")},
            frozenset({frozenset({1}), 2**70}),
        ],
        "counter": collections.Counter("abracadabra"),
        "defaultdict": [collections.defaultdict(kind, {1: torch.ones(1)}) for kind in (None, list, OrderedDict)],
        "deque": [collections.deque([torch.ones(2), 1], 5), collections.deque()],
        "bytearray": bytearray(b"abc"),
        "namespaces": [argparse.Namespace(lr=0.1, w=torch.ones(1)), types.SimpleNamespace(a={1})],
        "paths": [pathlib.Path("/a/b"), pathlib.PurePosixPath("."), pathlib.PureWindowsPath("c:\\x")],
        "times": [
            datetime.datetime(2026, 10, 25, 2, 30, 1, 7, tzinfo=zone, fold=1),
            datetime.datetime(1, 1, 1, tzinfo=datetime.timezone.utc),
            datetime.datetime.max,
            datetime.date.max,
            datetime.time(23, 59, 59, 1, tzinfo=zone),
            datetime.time(),
            datetime.timedelta(-5, 3, 1),
            zone,
            datetime.timezone.utc,
        ],
        "ranges": [range(0), range(10, -(2**80), -3), slice(None), slice(1, [2], "x")],
        "numbers": [fractions.Fraction(-1, 3), *map(decimal.Decimal, ["0.10", "-0", "NaN123", "1E+999", "Infinity"])],
        "own": [Colour.RED, Colour.PAIR, Point(1, torch.ones(1)), Config({1}, [torch.ones(2)]), Scale(torch.ones(3))],
        "torch": [torch.channels_last, torch.preserve_format, torch.strided, torch.sparse_csr],
    }


# Arbitrary states

_LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**300), max_value=2**300),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(max_size=40),
    st.sampled_from(DTYPES),
    st.sampled_from([torch.device("cpu"), torch.device("cuda:3"), torch.device("meta")]),
    st.lists(st.integers(0, 2**62), max_size=4).map(torch.Size),
)
_HASHABLE: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.tuples(st.integers(), st.text(max_size=3)),
    st.frozensets(st.integers(), max_size=3),
)
_PYTHON: st.SearchStrategy[Any] = st.one_of(
    st.sets(_HASHABLE, max_size=5),
    st.frozensets(_HASHABLE, max_size=5),
    st.dictionaries(_HASHABLE, st.integers(), max_size=4).map(collections.Counter),
    st.binary(max_size=20).map(bytearray),
    st.builds(pathlib.PurePosixPath, st.text(alphabet="ab/.", max_size=8)),
    st.datetimes(timezones=st.one_of(st.none(), st.just(datetime.timezone.utc))),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.integers(-1439, 1439).map(lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes))),
    st.builds(range, st.integers(), st.integers(), st.integers(min_value=1)),
    st.builds(slice, st.none() | st.integers(), st.integers(), st.none()),
    st.fractions(),
    st.decimals(),
    st.sampled_from([Colour.RED, Colour.PAIR, torch.channels_last, torch.strided]),
    st.builds(Point, _LEAVES, _LEAVES),
    st.builds(Config, _LEAVES),
    st.builds(Scale, _LEAVES),
    st.dictionaries(st.sampled_from(["a", "b"]), _LEAVES).map(lambda a: argparse.Namespace(**a)),
    st.builds(
        lambda kind, shape, order: numpy.zeros(shape, kind, order),
        st.sampled_from(["<f4", ">f4", "|u1", "<i8", "<c8", "<M8[s]", "S3", "<U2", "V7"]),
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from("CF"),
    ),
    st.sampled_from(["<f4", ">f8", "<i2", "<M8[s]"]).map(lambda kind: numpy.zeros(1, kind)[0]),
)
_NAMES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(["a", "b", "a.b", "0", "1", "", "a#2", "tensor", "__dict__"]),
    st.sampled_from([0, 1, -1]),
    st.text(max_size=6),
    st.integers(-(2**100), 2**100),
)


@st.composite
def tensors(draw: st.DrawFn, pool: list[torch.Tensor]) -> torch.Tensor:
    """A tensor on a storage of its own or of ``pool``: contiguous, strided, overlapping, expanded, 0-d or empty."""
    if pool and draw(st.booleans()):
        home = draw(st.sampled_from(pool))
    else:
        dtype = draw(st.sampled_from(DTYPES))
        numel = draw(st.one_of(st.integers(0, 70), st.sampled_from([0, 1, 5000, 70_000])))
        home = of_dtype(dtype, numel, draw(st.integers(0, 3)))
        pool.append(home)
    numel = home.numel()
    how = draw(st.sampled_from(["whole", "whole", "strided", "bytes", "empty", "scalar"]))
    if how == "whole" or (not numel and how != "empty"):
        tensor = home
    elif how == "bytes":
        tensor = home.view(torch.uint8) if home.dtype is not torch.uint8 else home[numel // 2 :]
    elif how == "empty":
        shape = draw(st.sampled_from([(0,), (2, 0), (0, 3, 4)]))
        tensor = home.as_strided(shape, (1,) * len(shape), draw(st.integers(0, numel)))
    elif how == "scalar":
        tensor = home.as_strided((), (), draw(st.integers(0, numel - 1)))
    else:
        shape_list, strides, room = [], [], numel - 1
        for _ in range(draw(st.integers(0, 4))):
            step = draw(st.integers(0, min(room, 9)))
            extent = draw(st.integers(1, 1 + min(room // step if step else 4, 6)))
            shape_list.append(extent)
            strides.append(step)
            room -= (extent - 1) * step
        tensor = home.as_strided(shape_list, strides, draw(st.integers(0, room)))
    if tensor.dtype.is_complex and draw(st.booleans()):
        tensor = tensor.conj()
    elif tensor.dtype in FLOATING and draw(st.integers(0, 4)) == 0:
        tensor = torch._neg_view(tensor)
    can_have_gradient = tensor.dtype in FLOATING
    flag = draw(st.sampled_from(["", "", "grad", "parameter", "frozen"]))
    if flag == "grad" and can_have_gradient:
        tensor = tensor.detach().requires_grad_()
    elif flag == "frozen" or (flag == "parameter" and can_have_gradient):
        tensor = torch.nn.Parameter(tensor, requires_grad=flag == "parameter")
    attributes = draw(st.one_of(st.just({}), st.just({}), st.dictionaries(st.sampled_from(["a", "b"]), _LEAVES)))
    if attributes:
        own = tensor.detach()  # The same tensor object can stand in the pool.
        grad = tensor.requires_grad
        parameter = isinstance(tensor, torch.nn.Parameter)
        tensor = torch.nn.Parameter(own, requires_grad=grad) if parameter else own.requires_grad_(grad)
        vars(tensor).update(attributes)
    return tensor


def _containers(children: st.SearchStrategy[Any], *, python: bool) -> st.SearchStrategy[Any]:
    dicts = st.dictionaries(st.one_of(_NAMES, _HASHABLE) if python else _NAMES, children, max_size=5)

    def ordered(pairs: tuple[dict[Any, Any], dict[str, Any]]) -> OrderedDict[Any, Any]:
        result = OrderedDict(pairs[0])
        vars(result).update(pairs[1])
        return result

    more = [
        st.builds(collections.deque, st.lists(children, max_size=3), st.sampled_from([None, 3, 9])),
        st.builds(collections.defaultdict, st.sampled_from([None, list, int]), dicts),
        st.builds(Point, children, children),
        st.dictionaries(st.sampled_from(["a", "b"]), children).map(lambda a: types.SimpleNamespace(**a)),
    ]
    return st.one_of(
        *(more if python else ()),
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        dicts,
        st.tuples(dicts, st.dictionaries(st.sampled_from(["_metadata", "note"]), children, min_size=0, max_size=2)).map(
            ordered
        ),
    )


@st.composite
def states(draw: st.DrawFn, *, python: bool = True) -> Any:
    """Any nesting of anything that a checkpoint can store, with tensors that share storages.

    Without ``python``: of what a .pt file can hold, too.
    """
    pool: list[torch.Tensor] = []
    leaves = st.one_of(_LEAVES, tensors(pool), *([_PYTHON] if python else ()))
    return draw(st.recursive(leaves, lambda children: _containers(children, python=python), max_leaves=14))
