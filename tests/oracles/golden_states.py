"""The states behind the golden files. A state must never change once its file is committed: add a new one instead."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import xxhash

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
    """

    make: Callable[[], Any]
    codec: str = "none"
    metadata: dict[str, Any] | None = None
    needs: tuple[str, ...] = ()


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
    "module": Golden(module),
    "optimizer": Golden(optimizer),
}
"""The golden files that ``save`` makes, by name."""

CONVERTED = {
    "from_torch_zip": ("foreign_zip.pt", "none"),
    "from_torch_zip_zstd": ("foreign_zip.pt", "zstd"),
    "from_torch_legacy": ("foreign_legacy.pt", "none"),
    "from_safetensors": ("foreign.safetensors", "none"),
}
"""The golden files that ``convert`` makes: foreign file beside them, and codec."""


def foreign_state() -> Any:
    """What the foreign files hold."""
    return OrderedDict(
        [
            ("weight", torch.arange(6, dtype=torch.float32).view(2, 3)),
            ("bias", torch.tensor([1.0, -1.0], dtype=torch.bfloat16)),
            ("count", torch.tensor(12, dtype=torch.int64)),
        ]
    )
