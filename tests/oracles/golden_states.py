"""The states behind the golden files. A state must never change once its file is committed: add a new one instead."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import math
import pathlib
import struct
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import reference_tree
import torch
import xxhash
from big_endian import write_big

import fastckpt

OLD_DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
)
NEW_DTYPES = ("float8_e8m0fnu", "float4_e2m1fn_x2")


class Golden(NamedTuple):
    """How a golden file is made.

    Attributes:
        make: Builds the state.
        codec: As for ``save``.
        metadata: As for ``save``.
        needs: torch dtypes that a torch must have to read the file.
        since: The first version of the format that can hold it.
        parity: As for ``save``; it is inside.
    """

    make: Callable[[], Any]
    codec: str = "none"
    metadata: dict[str, Any] | None = None
    needs: tuple[str, ...] = ()
    since: int = 1
    parity: str | None = None


def noise(size: int, seed: int = 0) -> bytearray:
    """Bytes that look random, the same everywhere."""
    hashed = (xxhash.xxh3_128_digest(struct.pack("<Q", n), seed) for n in range(-(-size // 16)))
    return bytearray(b"".join(hashed)[:size])


def of_bytes(raw: bytes | bytearray, dtype: torch.dtype, shape: tuple[int, ...] = (-1,)) -> torch.Tensor:
    """A tensor that consists of these bytes."""
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).view(shape)


def _all_bits(name: str) -> torch.Tensor:
    """All values of a narrow type; of a wider one some, with NaNs, infinities and zeros of both signs among them."""
    if name == "bool":
        return torch.tensor([True, False, True])
    dtype = getattr(torch, name)
    if dtype.itemsize == 1:
        return of_bytes(bytes(range(256)), dtype)
    special = {
        "float16": "<4H",
        "bfloat16": "<4H",
        "float32": "<4I",
        "float64": "<4Q",
        "complex32": "<4H",
        "complex64": "<4I",
        "complex128": "<4Q",
    }
    raw = bytes(noise(48, seed=dtype.itemsize))
    if name in special:
        bits = struct.calcsize(special[name]) * 2
        fraction = {"bfloat16": 7}.get(name, {16: 10, 32: 23, 64: 52}[bits])
        infinity = ((1 << (bits - 1 - fraction)) - 1) << fraction
        sign = 1 << (bits - 1)
        raw += struct.pack(special[name], infinity, infinity | sign, infinity | 1, sign)
    return of_bytes(raw, dtype)


def dtypes() -> Any:
    return {name: _all_bits(name) for name in OLD_DTYPES}


def dtypes_recent() -> Any:
    return {name: _all_bits(name) for name in NEW_DTYPES}


def nesting() -> Any:
    attributed = OrderedDict([("z", 1), ("a", None)])
    attributed._metadata = OrderedDict([("", {"version": 1})])
    attributed.number = 7
    return {
        "none": None,
        "bools": [True, False],
        "ints": [0, 1, -1, 127, 128, -128, -129, 255, 256, 1 << 63, -(1 << 63), 1 << 64, 3**500, -(5**300)],
        "floats": [0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308],
        "nan with a payload": struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_0000_1234))[0],
        "complex": [1 + 2j, complex(-0.0, math.nan), complex(math.inf, -math.inf)],
        "texts": ["", "plain", "Grüße", "漢字", "🜚", "a\nb\0c\x7f", "\u2028"],
        "bytes": [b"", b"\x00\xff", bytes(range(256))],
        "tuple": (1, (2, (3, ())), [4]),
        "empty": [{}, [], (), OrderedDict()],
        1: "an int key",
        -7: "a negative one",
        1 << 100: "a large one",
        "": "an empty key",
        "ordered": OrderedDict([("second", 2), ("first", torch.tensor([1.0, 2.0])), (3, 3)]),
        "attributed": attributed,
        "torch": [torch.float32, torch.bfloat16, torch.bool, torch.Size([]), torch.Size([2, 0, 1 << 40])],
        "devices": [torch.device("cpu"), torch.device("cuda:1"), torch.device("cuda"), torch.device("meta")],
        "list": [torch.tensor(1), [torch.tensor(2)], (torch.tensor(3), {"x": torch.tensor(4)})],
    }


def deep() -> Any:
    state: Any = torch.tensor([1, 2, 3], dtype=torch.int16)
    for level in range(127):
        state = ({"k": state}, [state], (state,), {level: state})[level % 4]
    return state


def aliases() -> Any:
    base = torch.arange(120, dtype=torch.float32)
    tied = torch.nn.Parameter(torch.arange(12, dtype=torch.float32).view(3, 4))
    window = torch.arange(10, dtype=torch.int64)
    same = torch.tensor([9, 8, 7], dtype=torch.uint8)
    return {
        "base": base,
        "matrix": base.view(10, 12),
        "transposed": base.view(10, 12).t(),
        "rows": base.view(10, 12)[2:5],
        "block": base.view(10, 12)[1:9:3, 2:11:4],
        "permuted": base.view(4, 5, 6).permute(2, 0, 1),
        "other type": base.view(torch.int32)[5:9],
        "bytes of it": base.view(torch.uint8)[3:14],
        "scalar of it": base[77],
        "nothing of it": base[5:5],
        "tied": {"embedding": tied, "head": tied, "transposed": tied.detach().t()},
        "windows": window.as_strided((6, 5), (1, 1)),
        "overlap": [window[:7], window[3:]],
        "expanded": torch.tensor([[1.5], [2.5]]).expand(2, 9),
        "broadcast": torch.tensor(3.5).expand(4, 5),
        "same object": [same, same, (same,)],
        "own": torch.arange(120, dtype=torch.float32),
        "view alone": torch.arange(100, dtype=torch.int16)[50:60],
    }


def tied_apart() -> Any:
    """Entries whose storages do not ascend, in two records."""
    first, second, third = torch.arange(3), torch.zeros(262144, dtype=torch.uint8), torch.arange(4.0)
    return {
        "embedding": first,
        "large": second,
        "middle": third,
        "head": first,
        "more": [third[1:], second[:5], first.view(3, 1)],
    }


def shapes() -> Any:
    return {
        "0-d": torch.tensor(2.5),
        "0-d bool": torch.tensor(True),
        "empty": torch.empty(0),
        "empty 3-d": torch.empty(3, 0, 5, dtype=torch.int8),
        "empty view": torch.arange(12).view(3, 4)[3:, 2:],
        "one": torch.ones(1, 1, 1, 1),
        "odd": torch.arange(7, dtype=torch.uint8),
        "5-d": torch.arange(48, dtype=torch.int32).view(2, 2, 3, 2, 2),
        "channels last": torch.arange(24, dtype=torch.float64).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "many dims": torch.arange(2).view((1,) * 30 + (2,) + (1,) * 30),
        "strange strides": torch.arange(6).as_strided((1, 3, 1), (77, 2, 0)),
    }


def flags() -> Any:
    numbers = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    return {
        "parameter": torch.nn.Parameter(torch.tensor([1.0, 2.0])),
        "frozen parameter": torch.nn.Parameter(torch.tensor([3.0]), requires_grad=False),
        "integer parameter": torch.nn.Parameter(torch.tensor([3]), requires_grad=False),
        "requires grad": torch.tensor([4.0], requires_grad=True),
        "plain": numbers,
        "conj": numbers.conj(),
        "imag of conj": numbers.conj().imag,
        "neg": torch._neg_view(torch.tensor([1.0, -2.0])),
        "conj and neg": torch._neg_view(torch.tensor([1j, 2j], dtype=torch.complex128).conj()),
    }


def names() -> Any:
    def mark(number: int) -> torch.Tensor:
        return torch.tensor([number], dtype=torch.int32)

    return {
        "a.b": mark(0),
        "a": {"b": mark(1), "b#2": mark(2)},
        "a.b#2": mark(3),
        1: mark(4),
        "1": mark(5),
        "01": mark(6),
        "": {"": mark(7), "x": mark(8)},
        "list": [mark(9), {0: mark(10)}],
        "list.0": mark(11),
        "Grüße/漢字 🜚": mark(12),
        "line\nbreak\x1b[31m\0": mark(13),
        "#2": mark(14),
        "*?[": mark(15),
        "n" * 3000: mark(16),
    }


def pack() -> Any:
    sizes = (1, 63, 64, 65, 0, 0, 127, 128, 1000, 0, 16384, 5)
    return {f"t{n}": of_bytes(noise(size, n), torch.uint8) if size else torch.empty(0) for n, size in enumerate(sizes)}


def many() -> Any:
    return [torch.tensor(n, dtype=torch.uint8) for n in range(150)]


def threshold() -> Any:
    return {
        "below": torch.zeros(262143, dtype=torch.uint8),
        "at": torch.zeros(262144, dtype=torch.uint8),
        "small": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "above": torch.zeros(262145, dtype=torch.uint8),
    }


def chunks() -> Any:
    large = torch.zeros(2 * 1048576 + 70000, dtype=torch.uint8)
    large[::4096] = torch.arange(len(large[::4096])) % 251
    return {"large": large, "whole chunks": torch.full((262144,), 1.5), "row": large[5000:5010]}


def stubborn() -> Any:
    """Chunks that zstd does not shrink, beside one that it does."""
    return {
        "mixed": of_bytes(bytes(1048576) + bytes(noise(30001)), torch.uint8),
        "noise": of_bytes(noise(20000, 1), torch.uint8),
    }


def numbers_of(seed: int, *shape: int) -> torch.Tensor:
    """Float32 numbers around 0 with magnitudes as weights have: exact, so the same on every machine."""
    count = math.prod(shape)
    raw = numpy.frombuffer(noise(4 * count, seed), numpy.uint8).reshape(4, count).astype(numpy.float32)
    return torch.from_numpy((raw.sum(0) - 510) / 4096).view(shape)


def planes() -> Any:
    """What the codec planes is made for: a block of each kind in one chunk, an odd end, moments, rows of zeros."""

    def block(numbers: torch.Tensor) -> torch.Tensor:
        """128 KiB, the last of them zeros: a block of the codec by itself."""
        filled = torch.zeros(131072 // numbers.itemsize, dtype=numbers.dtype)
        filled[: len(numbers)] = numbers
        return filled

    rows = torch.ldexp(torch.ones(1024, 1), torch.arange(1024).view(-1, 1) * 37 % 19 - 40)
    columns = torch.ldexp(torch.ones(1, 64), torch.arange(64).view(1, -1) * 29 % 13)
    moments = (numbers_of(3, 1024, 64).abs() + 0.001) * rows * columns
    moments[80:] = 0
    moments[::7] = 0
    spread = torch.zeros(3000, 100)
    spread[::250] = numbers_of(4, 12, 100)
    return {
        "bfloat16": block(numbers_of(0, 6000).bfloat16()),
        "float16": block(numbers_of(1, 3000).half()),
        "float64": block(numbers_of(2, 1000).double()),
        "integers": block(torch.arange(2000, dtype=torch.int64) * 7),
        "float8": [block(numbers_of(n, 4000).to(t)) for n, t in ((7, torch.float8_e4m3fn), (8, torch.float8_e5m2))],
        "complex": block(torch.complex(numbers_of(9, 500), numbers_of(10, 500))),
        "bool": block(numbers_of(6, 9000) > 0.03),
        "small": numbers_of(11, 640),
        "odd end": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "second moments": moments,
        "rows of zeros, far from each other": spread,
    }


def module() -> Any:
    made = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    for number, tensor in enumerate(made.state_dict().values()):
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) + number)
    return {"model": made.state_dict(), "step": 500}


def optimizer() -> Any:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    state = {"step": torch.tensor(4.0), "exp_avg": torch.tensor([0.5, 0.25, 0.125]), "exp_avg_sq": torch.ones(3)}
    groups = [{"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "fused": None, "params": [0]}]
    return {"weight": weight, "optimizer": {"state": {0: state}, "param_groups": groups}}


def python_values() -> Any:
    """Each named value that stands for a value of Python."""
    zone = datetime.timezone(datetime.timedelta(hours=2), "CEST")
    ordered = OrderedDict([((1, None), torch.ones(2)), (True, 1)])
    vars(ordered)["note"] = "x"
    return {
        "sets": [set(), {1, 300, -1, "a", None, (2.5, b"x"), 1j}, frozenset({frozenset({True}), 2.0})],
        "keys": {None: 1, False: torch.zeros(1), 2: 3, 0.5: torch.ones(1), b"k": 4, ("a", (1,)): torch.ones(1)},
        "ordered": ordered,
        "counter": collections.Counter("abracadabra"),
        "defaultdict": [collections.defaultdict(None, {"a": 1}), collections.defaultdict(list, {1: [torch.ones(1)]})],
        "deque": [collections.deque([torch.ones(2), 1], 5), collections.deque()],
        "bytearray": bytearray(b"abc"),
        "namespaces": [argparse.Namespace(lr=0.1, w=torch.ones(1)), types.SimpleNamespace(a={1})],
        "paths": [pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("c:\\x")],
        "times": [
            datetime.datetime(2026, 10, 25, 2, 30, 1, 7, tzinfo=zone, fold=1),
            datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
            datetime.datetime.min,
            datetime.date.max,
            datetime.time(23, 59, 59, 1, tzinfo=zone),
            datetime.timedelta(-5, 3, 1),
        ],
        "ranges": [range(10, -(2**80), -3), slice(None), slice(1, [2], "x")],
        "numbers": [fractions.Fraction(-1, 3), decimal.Decimal("0.10"), decimal.Decimal("-0"), decimal.Decimal("NaN7")],
        "classes": [
            fastckpt.Placeholder("enum", "my.Colour", {"name": "RED", "value": [1]}),
            fastckpt.Placeholder("namedtuple", "my.Point", {"x": 1, "y": torch.ones(1)}),
            fastckpt.Placeholder("dataclass", "my.Config", {"rate": 0.5}),
            fastckpt.Placeholder("registered", "my.Own", {"w": torch.ones(3)}),
        ],
    }


def arrays() -> Any:
    """NumPy's arrays and scalars; same memory, native and other types, both orders."""
    same = numpy.arange(6, dtype="<f4").reshape(2, 3)
    return {
        "same": [same, same],
        "columns": numpy.asfortranarray(same),
        "big-endian": numpy.arange(6, dtype=">i2").reshape(3, 2),
        "big-endian columns": numpy.asfortranarray(numpy.arange(6, dtype=">i2").reshape(2, 3)),
        "dates": numpy.array(["2026-11-29", "NaT"], "<M8[D]"),
        "text": numpy.array(["", "ab"], "<U2"),
        "empty": numpy.empty((0, 3), "<f4"),
        "one": numpy.array(7, "<i8"),
        "bool": numpy.array([True, False]),
        "scalars": [numpy.float32(1.5), numpy.int64(-1), numpy.datetime64("2026-11-29", "s"), numpy.bool_(True)],
    }


def tensor_kinds() -> Any:
    """Tensors with attributes, and some that are not plain."""
    tagged = torch.nn.Parameter(torch.ones(2))
    vars(tagged).update(tag="x", scale=torch.zeros(1))
    return {
        "attributes": tagged,
        "buffer": torch.nn.Buffer(torch.ones(2), persistent=False),
        "sparse": torch.tensor([[0, 1.0], [2, 0]]).to_sparse(),
        "meta": torch.empty(2, 3, dtype=torch.bfloat16, device="meta").t(),
        "formats": [torch.channels_last, torch.strided, torch.sparse_csr],
    }


def made_tensors() -> Any:
    """Tensors that are made of several plain ones."""
    eye = torch.eye(4)
    parts = [torch.ones(2), torch.arange(3.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls most of these new, or old.
        return {
            "rows": eye.to_sparse_csr(),
            "columns": eye.to_sparse_csc(),
            "blocks": [eye.to_sparse_bsr((2, 2)), eye.to_sparse_bsc((2, 2))],
            "per tensor": torch.quantize_per_tensor(torch.arange(4.0), 0.5, 1, torch.quint8),
            "per channel": torch.quantize_per_channel(
                eye[:2], torch.tensor([0.5, 0.25]), torch.tensor([0, 1]), 0, torch.qint8
            ),
            "nested": torch.nested.nested_tensor(parts),
            "jagged": torch.nested.nested_tensor(parts, layout=torch.jagged),
            "generator": torch.Generator().manual_seed(1),
        }


def objects() -> Any:
    """Objects that are not understood, with all that can be in one."""

    def thing(name: str, **content: Any) -> fastckpt.Placeholder:
        return fastckpt.Placeholder("object", name, content)

    weight = torch.arange(6, dtype=torch.float32).view(2, 3)
    linear = {"_parameters": {"weight": weight, "bias": None}, "_buffers": {}, "training": True}
    return {
        "module": thing("my.Net", state={"_modules": OrderedDict(inner=thing("my.Linear", state=linear)), "config": 1}),
        "made": [thing("my.make", args=(weight[1],)), thing("my.make", args=(1, torch.ones(2)))],
        "slots": thing("my.Slots", state=(None, {"a": torch.zeros(1)})),
        "other state": thing("my.Odd", args=(), state=[torch.ones(1)]),
        "list": thing("my.List", items=[1, torch.ones(3)]),
        "dict": thing("my.Dict", pairs=[("a", torch.ones(1)), ((1, 2), torch.zeros(1)), (7, None)]),
        "distributed": thing("my.DTensor", state={"_local_tensor": torch.ones(2), "_spec": thing("my.Spec")}),
        "class": {"class": thing("my.Kind", **{"class": True})},
        "same": thing("my.Net", same="state['module']"),
        "storage": thing("my.Storage", bytes="5"),
        "deep": thing("my.Deep", not_shown=True),
        "in a set": {thing("my.Key", args=(1,))},
    }


GOLDEN = {
    "dtypes": Golden(dtypes),
    "dtypes_recent": Golden(dtypes_recent, needs=NEW_DTYPES),
    "nesting": Golden(nesting),
    "deep": Golden(deep),
    "aliases": Golden(aliases),
    "aliases_zstd": Golden(aliases, "zstd"),
    "tied_apart_zstd": Golden(tied_apart, "zstd"),
    "shapes": Golden(shapes),
    "flags": Golden(flags),
    "names": Golden(names),
    "root_tensor": Golden(lambda: torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
    "root_int": Golden(lambda: -(1 << 70)),
    "root_none": Golden(lambda: None),
    "root_tuple": Golden(lambda: (torch.tensor(1), "x")),
    "root_ordered": Golden(lambda: OrderedDict(w=torch.tensor([1]))),
    "empty": Golden(dict),
    "only_empty_tensors": Golden(lambda: {"a": torch.empty(0), "b": torch.empty(0, 3)}),
    "metadata": Golden(
        lambda: {"w": torch.tensor([1.0])},
        metadata={"step": 7, "note": "Grüße", "nested": {"list": [1, 2.5, None, (True, b"\0")]}, 3: math.nan},
    ),
    "pack": Golden(pack),
    "pack_zstd": Golden(pack, "zstd"),
    "many": Golden(many),
    "threshold_zstd": Golden(threshold, "zstd"),
    "chunks_zstd": Golden(chunks, "zstd"),
    "chunks_zstd19": Golden(chunks, "zstd:19"),
    "stubborn_zstd": Golden(stubborn, "zstd"),
    "planes": Golden(planes, "planes", since=2),
    "module": Golden(module),
    "optimizer": Golden(optimizer),
    "python_values": Golden(python_values, since=2),
    "arrays": Golden(arrays, since=2),
    "arrays_zstd": Golden(arrays, "zstd", since=2),
    "tensor_kinds": Golden(tensor_kinds, since=2),
    "made_tensors": Golden(made_tensors, needs=("qint8", "quint8"), since=2),
    "objects": Golden(objects, since=2),
    "parity_inside": Golden(optimizer, since=2, parity="10%"),
}
"""The golden files that ``save`` makes, by name."""


def foreign_state() -> Any:
    """What the foreign files hold."""
    return OrderedDict(
        [
            ("weight", torch.arange(6, dtype=torch.float32).view(2, 3)),
            ("bias", torch.tensor([1.0, -1.0], dtype=torch.bfloat16)),
            ("count", torch.tensor(12, dtype=torch.int64)),
        ]
    )


class Thing:
    """An object in a pickle. Its class is only a name to whoever reads it."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def big_endian_state() -> Any:
    """Numbers of all sizes, and a storage that ends inside of one."""
    return {
        "wide": torch.arange(5, dtype=torch.float64),
        "matrix": torch.arange(12, dtype=torch.float32).view(3, 4).t(),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "complex": torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "step": 3,
    }


def objects_to_save() -> Any:
    """What ``foreign_objects.pt`` was saved from."""
    shared = Thing(weight=torch.arange(3, dtype=torch.float32), note="x")
    return {
        "thing": shared,
        "again": [shared],
        "small": numpy.arange(3, dtype=">i2"),
        "columns": numpy.asfortranarray(numpy.arange(6, dtype="<f4").reshape(2, 3)),
        "kind": Thing,
        "plain": torch.ones(2, dtype=torch.int64),
    }


def objects_saved() -> Any:
    """The same as whoever does not know the class reads it."""
    name = f"{Thing.__module__}.{Thing.__qualname__}"
    shared = {"state": {"weight": torch.arange(3, dtype=torch.float32), "note": "x"}}
    saved = objects_to_save()
    # Small arrays have their bytes in place.
    small = reference_tree.Named("array", (b"\0\0\0\1\0\2", ">i2", reference_tree.Plain("size", (3,)), False))
    raw = saved["columns"].tobytes("A")
    columns = reference_tree.Named("array", (raw, "<f4", reference_tree.Plain("size", (2, 3)), True))
    return {
        **saved,
        "small": small,
        "columns": columns,
        "thing": fastckpt.Placeholder("object", name, shared),
        "again": [fastckpt.Placeholder("object", name, {"same": "state['thing']"})],
        "kind": fastckpt.Placeholder("object", name, {"class": True}),
    }


class Converted(NamedTuple):
    """How a golden file is made from a foreign one.

    Attributes:
        source: The foreign file, in ``golden/``.
        state: What it holds.
        codec: As for ``convert``.
        since: The first version of the format that can hold it.
        parity: As for ``save``; it is inside.
    """

    source: str
    state: Callable[[], Any] = foreign_state
    codec: str = "none"
    since: int = 1


CONVERTED = {
    "from_torch_zip": Converted("v1/foreign_zip.pt"),
    "from_torch_zip_zstd": Converted("v1/foreign_zip.pt", codec="zstd"),
    "from_torch_legacy": Converted("v1/foreign_legacy.pt"),
    "from_safetensors": Converted("v1/foreign.safetensors"),
    "from_big_endian": Converted("v2/foreign_big_endian.pt", big_endian_state, since=2),
    "from_big_endian_zstd": Converted("v2/foreign_big_endian.pt", big_endian_state, "zstd", since=2),
    "from_objects": Converted("v2/foreign_objects.pt", objects_saved, since=2),
}
"""The golden files that ``convert`` makes, by name."""

FOREIGN: dict[str, Callable[[Path], object]] = {
    "v2/foreign_big_endian.pt": lambda path: write_big(big_endian_state(), path),
    "v2/foreign_objects.pt": lambda path: torch.save(objects_to_save(), path),
}
"""How the foreign files of version 2 were written."""
