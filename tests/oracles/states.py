"""States for tests: one with everything in it, arbitrary ones, and the comparison that tells any two apart.

`assert_same` is bit-exact: types, order, every byte of every storage, strides,
which tensors share memory, flags, the bits of floats.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import strategies as st

from fastckpt.layout.dtypes import BY_NAME

DTYPES: list[torch.dtype] = [
    getattr(torch, name) for name in BY_NAME if isinstance(getattr(torch, name, None), torch.dtype)
]
FLOATING = [dtype for dtype in DTYPES if dtype.is_floating_point and dtype.itemsize >= 2]


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
            assert list(a) == list(b), f"{path}: other keys or order"
            assert [type(key) for key in a] == [type(key) for key in b], f"{path}: other types of keys"
            for key in b:
                self.compare(a[key], b[key], f"{path}[{key!r}]")
            if type(b) is OrderedDict:
                self.compare(dict(vars(a)), dict(vars(b)), f"{path}.__dict__")
        elif type(b) in (list, tuple):
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
        known = self.forward.setdefault(mine, theirs) == theirs and self.backward.setdefault(theirs, mine) == mine
        assert known, f"{path}: shares its storage with other tensors"


def tensors_of(state: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a state, in tree order."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors_of(value)
        if type(state) is OrderedDict:
            yield from tensors_of(dict(vars(state)))
    elif type(state) in (list, tuple):
        for value in state:
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
        if isinstance(value, dict):
            return {key: self.copy(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)([self.copy(item) for item in value])
        return value

    def tensor(self, value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        own = self.storages.setdefault(storage._cdata, storage.clone() if storage.nbytes() else storage)
        result = torch.empty(0, dtype=value.dtype).set_(own, value.storage_offset(), value.shape, value.stride())
        if value.is_conj():
            result = result.conj()
        if value.is_neg():
            result = torch._neg_view(result)
        if type(value) is torch.nn.Parameter:
            return torch.nn.Parameter(result, requires_grad=value.requires_grad)
        return result.requires_grad_(value.requires_grad)


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
        return tensor.detach().requires_grad_()
    if flag == "parameter" and can_have_gradient:
        return torch.nn.Parameter(tensor)
    return torch.nn.Parameter(tensor, requires_grad=False) if flag == "frozen" else tensor


def _containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    dicts = st.dictionaries(_NAMES, children, max_size=5)

    def ordered(pairs: tuple[dict[Any, Any], dict[str, Any]]) -> OrderedDict[Any, Any]:
        result = OrderedDict(pairs[0])
        vars(result).update(pairs[1])
        return result

    return st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        dicts,
        st.tuples(dicts, st.dictionaries(st.sampled_from(["_metadata", "note"]), children, min_size=0, max_size=2)).map(
            ordered
        ),
    )


@st.composite
def states(draw: st.DrawFn) -> Any:
    """Any nesting of anything that a checkpoint can store, with tensors that share storages."""
    pool: list[torch.Tensor] = []
    return draw(st.recursive(st.one_of(_LEAVES, tensors(pool)), _containers, max_leaves=14))
