"""What docs/state.md says of every kind of value is what happens to it: the first word of each cell is tried."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import json
import pathlib
import re
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors import safe_open
from states import Colour, Config, Point, Scale, assert_same

import fastckpt
from fastckpt.errors import UnsupportedStateError

PAGE = Path(__file__).parents[1] / "docs" / "state.md"


class Kind(enum.Enum):
    """An enum that is registered nowhere."""

    A = 1


class Pair(torch.Tensor):
    """A subclass as torchao has them."""

    a: torch.Tensor

    @staticmethod
    def __new__(cls, a: torch.Tensor) -> Pair:
        return torch.Tensor._make_wrapper_subclass(cls, a.shape, dtype=a.dtype)  # type: ignore[no-any-return]

    def __init__(self, a: torch.Tensor) -> None:
        self.a = a

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["a"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: Any, context: Any, size: Any, stride: Any) -> Pair:
        return cls(inner["a"])

    @classmethod
    def __torch_dispatch__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls(args[0].a) if "detach" in str(function) else NotImplemented


class Own:
    """A class of a program."""

    def __init__(self) -> None:
        self.rate = 0.5


def _with_attributes(value: Any, **attributes: Any) -> Any:
    vars(value).update(attributes)
    return value


def _tensors() -> list[Any]:
    whole = torch.arange(24.0)
    return [
        whole[2:8],
        whole.view(4, 6).t(),
        torch.nn.Parameter(torch.ones(2)),
        torch.nn.Buffer(torch.ones(3)),
        _with_attributes(torch.ones(1), tag="x"),
        torch.ones(2, requires_grad=True),
    ]


SAMPLES: dict[str, Any] = {
    "None, bool": [None, True, 2**70, "a", [1, ["b"]], {"a": {"b": 1}}],
    "float, tuple": [0.5, (1, ("a",))],
    "bytes, complex": [
        b"x",
        1j,
        _with_attributes(OrderedDict(a=b""), note=1),
        {None: b"", True: b"", (1, "a"): b"", 2: b""},
    ],
    "tensors": _tensors,
    "sparse and": lambda: [torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr(), torch.empty(2, 3, device="meta")],
    "quantized": lambda: [torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8)],
    "nested": lambda: [torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])],
    "tensor subclasses": lambda: [Pair(torch.ones(3))],
    "NumPy arrays": [
        numpy.arange(600.0).reshape(20, 30),
        numpy.array(["a", "bc"]),
        numpy.asfortranarray(numpy.ones((20, 30))),
    ],
    "NumPy scalars": [numpy.float32(1.5), numpy.int64(3)],
    "set, frozenset": [
        {1, "a"},
        frozenset({2}),
        collections.Counter("aab"),
        collections.defaultdict(list, a=[1]),
        collections.deque([1], 3),
        bytearray(b"x"),
    ],
    "SimpleNamespace": [
        types.SimpleNamespace(a=1),
        argparse.Namespace(lr=0.5),
        pathlib.PurePosixPath("/a"),
        datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
        datetime.date(2026, 1, 2),
        datetime.time(1),
        datetime.timedelta(1),
        range(3),
        slice(1, None),
        fractions.Fraction(1, 3),
        decimal.Decimal("1.50"),
    ],
    "torch's dtype": [torch.float16, torch.Size([1, 2]), torch.device("cuda:1")],
    "torch's layout": [torch.sparse_csr],
    "torch's memory_format": [torch.channels_last],
    "`torch.Generator`": lambda: [torch.Generator().manual_seed(3)],
    "enum, namedtuple": [Colour.RED, Point(1, 2), Config(0.5)],
    "classes given": [Scale(2)],
    "modules": lambda: [torch.nn.Linear(2, 3)],
    "DTensor": lambda: [_dtensor()],
    "any other": [print, Own()],
}
UNREGISTERED = {"enum, namedtuple": Kind.A}


def _dtensor() -> Any:
    from torch.distributed.tensor import DeviceMesh, Replicate, distribute_tensor

    return distribute_tensor(torch.ones(4), DeviceMesh("cpu", [0]), [Replicate()])


def rows() -> list[list[str]]:
    """The cells of the table."""
    table = re.findall(r"^\|(.*)\|$", PAGE.read_text(), re.M)
    return [[cell.strip() for cell in row.split(" | ")] for row in table[2:]]


def row_of(sample: str) -> list[str]:
    (found,) = [row for row in rows() if row[0].startswith(sample)]
    return found


def test_each_row_has_a_sample() -> None:
    assert len(rows()) == len(SAMPLES)
    assert all(len(row) == 5 for row in rows())
    assert {row_of(sample)[0] for sample in SAMPLES} == {row[0] for row in rows()}


@pytest.fixture
def values(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    sample: str = request.param
    if sample == "DTensor":
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    made = SAMPLES[sample]
    yield made() if callable(made) else made
    if sample == "DTensor":
        torch.distributed.destroy_process_group()


every_sample = pytest.mark.parametrize(("sample", "values"), [(name, name) for name in SAMPLES], indirect=["values"])
pytestmark = pytest.mark.filterwarnings("ignore")


def require_same(ours: Any, theirs: Any) -> None:
    """Fail unless both are the same; of tensors that are not plain, in what they show of themselves."""
    if isinstance(theirs, torch.Generator):
        assert ours.get_state().equal(theirs.get_state())
    elif isinstance(theirs, Pair):
        assert ours.a.equal(theirs.a)
    elif isinstance(theirs, torch.Tensor) and (
        theirs.is_nested or theirs.is_quantized or theirs.is_meta or theirs.layout is not torch.strided
    ):
        assert (ours.layout, ours.dtype, ours.device) == (theirs.layout, theirs.dtype, theirs.device)
        if theirs.is_nested:
            assert all(a.equal(b) for a, b in zip(ours.unbind(), theirs.unbind(), strict=True))
        elif theirs.is_meta:
            assert (ours.shape, ours.stride()) == (theirs.shape, theirs.stride())
        else:
            assert (ours if theirs.is_quantized else ours.to_dense()).equal(
                theirs if theirs.is_quantized else theirs.to_dense()
            )
    else:
        assert_same(ours, theirs)


@every_sample
def test_saved_and_loaded(sample: str, values: list[Any], tmp_path: Path) -> None:
    word, _, more = row_of(sample)[1].partition(":")
    for value in values:
        if word == "refused":
            with pytest.raises(UnsupportedStateError, match=r"state\['x'\]"):
                fastckpt.save({"x": value}, tmp_path / "a.fckpt")
            assert not (tmp_path / "a.fckpt").exists()
            continue
        if isinstance(value, Pair):
            fastckpt.register(Pair)
        fastckpt.save({"x": value}, tmp_path / "a.fckpt")
        loaded = fastckpt.load(tmp_path / "a.fckpt")["x"]
        if word == "state dict":
            assert_same(loaded, value.state_dict())
        else:
            assert word == "same"
            require_same(loaded, value)
    if "Placeholder" in more and sample in UNREGISTERED:
        fastckpt.save({"x": UNREGISTERED[sample]}, tmp_path / "a.fckpt")
        assert isinstance(fastckpt.load(tmp_path / "a.fckpt")["x"], fastckpt.Placeholder)


@every_sample
def test_a_pt_loaded(sample: str, values: list[Any], tmp_path: Path) -> None:
    word = row_of(sample)[2].partition(":")[0]
    path, own, back = (tmp_path / name for name in ("a.pt", "a.fckpt", "b.pt"))
    for value in values:
        if word == "none":
            with pytest.raises(TypeError):
                torch.save({"x": value}, path)
            continue
        torch.save({"x": value}, path)
        fastckpt.convert(path, own)
        fastckpt.convert(own, back)
        assert back.read_bytes() == path.read_bytes()
        for file in (path, own):
            if word == "same":
                require_same(fastckpt.load(file)["x"], value)
                continue
            assert word == "object"
            with pytest.raises(UnsupportedStateError, match=r"state\['x'\] is a "):
                fastckpt.load(file)
            assert isinstance(fastckpt.load(file, opaque="keep")["x"], fastckpt.Placeholder)


@every_sample
def test_written_as_a_pt(sample: str, values: list[Any], tmp_path: Path) -> None:
    word, _, more = row_of(sample)[3].partition(":")
    if row_of(sample)[1].startswith("refused"):
        assert word == "refused"
        return
    for value in values:
        fastckpt.save({"x": value}, tmp_path / "a.fckpt")
        if word == "refused":
            with pytest.raises(UnsupportedStateError, match=r"state\['x'\]"):
                fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "b.pt")
            continue
        assert word == "same"
        fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "b.pt")
        expected = value.state_dict() if isinstance(value, torch.nn.Module) else value
        require_same(torch.load(tmp_path / "b.pt", weights_only=False)["x"], expected)
        if "object for `load`" in more:
            assert isinstance(fastckpt.load(tmp_path / "b.pt", opaque="keep")["x"], fastckpt.Placeholder)
        else:
            require_same(fastckpt.load(tmp_path / "b.pt")["x"], expected)


@every_sample
def test_to_safetensors(sample: str, values: list[Any], tmp_path: Path) -> None:
    cell = row_of(sample)[4]
    word = cell.partition(":")[0]
    for value in values:
        if row_of(sample)[1].startswith("refused"):
            torch.save({"x": value}, tmp_path / "a.pt")
        else:
            fastckpt.save({"x": value}, tmp_path / "a.pt", format="fckpt")
        (done,) = fastckpt.convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
        with safe_open(tmp_path / "b.safetensors", "pt") as file:
            names, told = set(file.keys()), file.metadata()
        if word == "JSON":
            assert (names, done.left_out) == (set(), ())
            assert json.loads(told["x"]) == json.loads(json.dumps(value))
        elif word == "tensors":
            assert names == set(dict(fastckpt.stream(tmp_path / "a.pt")))
            assert names or value.is_meta
        else:
            assert word == "left out"
            assert not names
            assert done.left_out
