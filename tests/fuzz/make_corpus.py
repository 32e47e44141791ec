"""Makes the seed corpus. Run by hand when a format or a target changes: ``python tests/fuzz/make_corpus.py``."""

from __future__ import annotations

import collections
import dataclasses
import enum
import io
import json
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from big_endian import write_big
from fuzz import CORPUS
from targets import SEALED, packed
from torch_tar import save_tar

import fastckpt
from fastckpt import _core
from fastckpt.layout.tree import NamedRef, SizeRef, TensorRef, encode_tree


def state() -> Any:
    """One of each thing."""
    model = OrderedDict(w=torch.nn.Parameter(torch.ones(4, 3)), b=torch.zeros(3, dtype=torch.bfloat16))
    model._metadata = OrderedDict({"": {"version": 1}})
    shared = torch.arange(20)
    return {
        "model": model,
        "views": [shared[:5], shared[5:].view(3, 5).t(), torch.empty(0)],
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0, 1], "big": 10**30, "none": None, "on": True}],
        "bytes": b"\x00\xff",
        "size": torch.Size([1, 2]),
        "device": torch.device("cuda:1"),
        "dtype": torch.uint16,
        "complex": 1 + 2j,
        7: torch.ones(2, dtype=torch.float8_e4m3fn),
    }


def named_values() -> Any:
    """One of each named value, over three tensors."""
    one, clock = TensorRef(0), ("2026-11-29T01:02:03", 1, 3_600_000_000, "x")
    return {
        "tensor": NamedRef("tensor", (one, {"tag": 1})),
        "arrays": [NamedRef("array", (TensorRef(1), "<f4", SizeRef((2, 3)), True)), NamedRef("scalar", (">i2", b"ab"))],
        "sets": [NamedRef("set", [1, "a", (None, 2.5)]), NamedRef("frozenset", [NamedRef("frozenset", [True])])],
        "dicts": [
            NamedRef("dict", [(None, 1), (True, one), ((1, b"k"), 2)]),
            NamedRef("ordered_dict", ([(0.5, 1)], {"note": 1})),
            NamedRef("counter", [("a", 2)]),
            NamedRef("defaultdict", ([("a", [1])], "list")),
        ],
        "sequences": [NamedRef("deque", ([1, one], 5)), NamedRef("bytearray", b"ab")],
        "objects": [
            NamedRef("namespace", ("argparse.Namespace", {"lr": 0.1})),
            NamedRef("enum", ("my.Colour", "RED", 1)),
            NamedRef("namedtuple", ("my.Point", {"x": 1})),
            NamedRef("dataclass", ("my.Config", {"x": one})),
            NamedRef("my.Own", [1, one]),
        ],
        "times": [
            NamedRef("datetime", clock),
            NamedRef("time", ("01:02:03", 0, None, None)),
            NamedRef("date", "2026-11-29"),
            NamedRef("timedelta", (-1, 2, 3)),
            NamedRef("timezone", (-60_000_000, None)),
        ],
        "numbers": [
            NamedRef("range", (0, 10, 3)),
            NamedRef("slice", (None, 5, "a")),
            NamedRef("fraction", (1, 3)),
            NamedRef("decimal", "1.20E+5"),
        ],
        "names": [NamedRef("path", ("PosixPath", "/a"))],
        "torch": [NamedRef("layout", "sparse_csr"), NamedRef("memory_format", "channels_last")],
        "kinds": [
            NamedRef("sparse", ("sparse_coo", {"indices": one, "values": one}, SizeRef((2, 2)), False, 0)),
            NamedRef("quantized", ("per_tensor_affine", {"values": TensorRef(2), "scale": 0.5, "zero_point": 1}, 0)),
            NamedRef(
                "quantized",
                (
                    "per_channel_affine",
                    {"values": one, "scales": TensorRef(1), "zero_points": TensorRef(2), "axis": 0},
                    0,
                ),
            ),
            NamedRef("nested", ("strided", [one, one], 0)),
            NamedRef("nested", ("jagged", [one, TensorRef(1)], 0)),
            NamedRef(
                "sparse",
                (
                    "sparse_csr",
                    {"crow_indices": one, "col_indices": one, "values": TensorRef(2)},
                    SizeRef((2, 2)),
                    False,
                    0,
                ),
            ),
            NamedRef("meta", ("float32", SizeRef((2, 3)), SizeRef((3, 1)), 2)),
            NamedRef("subclass", ("my.Tensor", {"inner": one}, None, SizeRef((4,)), SizeRef((1,)), 0)),
            NamedRef("generator", ("cpu", TensorRef(2))),
        ],
    }


def objects() -> Any:
    """Objects that are not understood, with all that can be in one, and an array with its bytes in place."""

    def thing(name: str, **content: Any) -> NamedRef:
        return NamedRef("object", (name, content))

    inner = thing("my.Linear", state={"_parameters": {"weight": TensorRef(0)}, "training": True})
    return {
        "module": thing("my.Net", state={"_modules": {"inner": inner}}),
        "made": [thing("my.make", args=(TensorRef(1),)), thing("my.make", args=(1, TensorRef(2)))],
        "slots": thing("my.Slots", state=(None, {"a": 1})),
        "rest": thing("my.Rest", items=[1], pairs=[("a", 1), ((1, 2), None)], state=[1]),
        "ends": [thing("my.Kind", **{"class": True}), thing("my.Net", same="x"), thing("my.Deep", not_shown=True)],
        "storage": thing("my.Storage", bytes="5"),
        "array": NamedRef("array", (b"\0\0\0\1", ">i2", SizeRef((2,)), False)),
    }


class Colour(enum.Enum):
    """A class of a program, of which a .pt has the name alone."""

    RED = 1


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Config:
    """Another one."""

    rate: float
    weight: Any = None


def of_a_program() -> Any:
    """One of each form that only a new .pt, one that was no .pt before, has."""
    return {
        "enum": Colour.RED,
        "namedtuple": Point(1, torch.ones(2)),
        "dataclass": Config(0.5, torch.zeros(1)),
        "quantized": [
            torch.quantize_per_tensor(torch.ones(2), 0.5, 1, torch.qint8),
            torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8),
        ],
        "nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
        "jagged": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
        "sparse": [torch.eye(2).to_sparse(), torch.eye(2).to_sparse_csr()],
        "meta": torch.empty(2, 3, device="meta"),
        "generator": torch.Generator().manual_seed(1),
        "formats": [torch.channels_last, torch.sparse_csr],
    }


def put(target: str, name: str, data: bytes) -> None:
    """Write one input."""
    directory = CORPUS / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(data)


def saved(value: Any, **options: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def torch_inputs() -> None:
    """Pickles, zip archives, legacy files."""
    for protocol in (2, 4, 5):
        raw = saved(state(), pickle_protocol=protocol)
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            put("pickle", f"state protocol {protocol}", archive.read("archive/data.pkl"))
    for protocol in range(6):
        put(
            "pickle",
            f"plain protocol {protocol}",
            pickle.dumps({"a": [1, -5, 2.5, None, True, "x", b"y", (1, 2)]}, protocol),
        )
    put("pickle", "itself", b"\x80\x02]q\x00h\x00a.")
    put("pickle", "deep", b"\x80\x02" + b"]" * 200 + b"a" * 199 + b".")
    put("pickle", "repeated", b"\x80\x02]q\x00" + b"(h\x00h\x00e" * 40 + b".")
    put("pickle", "other global", b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00echoq\x01\x85q\x02Rq\x03.")
    put("pickle", "empty", b"")

    small = {"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.int64), "c": torch.empty(0)}
    whole = saved(small)
    put("zip", "whole", whole)
    put("zip", "protocol 5", saved(small, pickle_protocol=5))
    torch.serialization.set_crc32_options(False)
    put("zip", "without crc", saved(small))
    torch.serialization.set_crc32_options(True)
    put("zip", "cut", whole[: whole.index(b"archive/data/1") + 40])
    put("zip", "no directory", whole[: whole.index(b"PK\x01\x02")])
    put("zip", "garbage behind", whole + b"garbage" * 30)
    put("zip", "no beginning", bytes(512) + whole[512:])
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}, 2))
        archive.writestr("archive/data/0", b"12345678")
        archive.writestr("archive/version", b"3\n")
    put("zip", "by zipfile", stored.getvalue())
    deflated = io.BytesIO()
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000))
        archive.writestr("archive/data/0", bytes(100_000))
    put("zip", "deflate bomb", deflated.getvalue())
    put("zip", "only an end", b"PK\x05\x06" + bytes(18))

    for protocol in (2, 4):
        raw = saved(small, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
        put("legacy", f"protocol {protocol}", raw)
    put("legacy", "views", saved(state()["views"], _use_new_zipfile_serialization=False))
    put("legacy", "cut", raw[:-7])
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.pth"
        save_tar({**small, "v": torch.arange(6)[2:], "n": torch.nn.Linear(2, 1), "k": {3: (1, None)}}, path)
        whole = path.read_bytes()
        put("tar", "whole", whole)
        put("tar", "cut", whole[: whole.rindex(b"FloatStorage") + 30])
        save_tar({"a": torch.ones(3)}, path, views=[(7, 10**9 + 1, 1, 2)], pax=False)
        put("tar", "view", path.read_bytes())


def safetensors_inputs() -> None:
    """Whole files, and headers by themselves."""
    tensors = {"a": torch.ones(3), "b.c": torch.zeros(2, 2, dtype=torch.bfloat16), "e": torch.empty(0)}
    raw = safetensors.torch.save(tensors, metadata={"format": "pt"})
    put("safetensors", "whole", raw)
    put("safetensors", "cut", raw[:-5])
    put("safetensors", "length bomb", struct.pack("<Q", 2**63) + raw[8:])

    def header(value: Any, data: bytes = b"12345678") -> bytes:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        return struct.pack("<Q", len(text)) + text + data

    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    put("safetensors", "one", header({"x": tensor}))
    put("safetensors", "overlap", header({"x": tensor, "y": tensor}))
    put("safetensors", "twice", header(b'{"x":1,"x":2}'))
    put("safetensors", "no dict", header(b" 17     "))
    put("safetensors", "deep", header(b'{"x":' + b"[" * 500))
    put("safetensors", "large shape", header({"x": {**tensor, "shape": [2**40, 2**40]}}))
    put("safetensors", "half a header", header({"x": tensor, "y": {**tensor, "shape": [1, 1]}})[:50])


def new_torch_inputs() -> None:
    """A .pt that was made of a state which never was in one."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "new.pt"
        fastckpt.save(of_a_program(), path.with_suffix(".fckpt"), durable=False)
        fastckpt.convert(path.with_suffix(".fckpt"), path, durable=False)
        with zipfile.ZipFile(path) as archive:
            put("pickle", "of a program", archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl"))))


def own_inputs() -> None:
    """Whole files, the blocks in them, and trees."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file.fckpt"
        states: dict[str, Any] = {
            "tiny": {"w": torch.arange(4.0)},
            "state": state(),
            "zstd": {"soft": torch.zeros(60_000, dtype=torch.uint8), "b": torch.ones(3)},
        }
        for key, value in states.items():
            fastckpt.save(value, path, codec="zstd" if key == "zstd" else "none", metadata={"k": 1}, durable=False)
            raw = path.read_bytes()
            for flags in (0, 1):
                put("fckpt", f"{key} {flags}", bytes((flags,)) + packed(raw))
            if key != "state":
                put("fckpt", f"{key} cut", b"\0" + packed(raw[: len(raw) // 2]))
                put("fckpt", f"{key} without footer", b"\0" + packed(raw[:-4096] + bytes(4096)))
            with fastckpt.open(path) as ck:
                file = ck._file
                put("tree", key, bytes(file.manifest.tree))
                places = {"superblock": (0, 4096), "footer": (len(raw) - 4096, len(raw))}
                places |= {f"section {s.kind}": (s.extent.offset, s.extent.end) for s in file.footer.sections}
                places |= {f"header {r.number}": (r.header.offset, r.header.end) for r in file.records}
            for part, (start, end) in places.items():
                if part != "section 3":
                    put("blocks", f"{key} {part}", raw[start : end - 16].rstrip(b"\0").ljust(16, b"\0"))
        fastckpt.save(states["tiny"], path, parity="3%", parity_at="inside", durable=False)
        raw = path.read_bytes()
        for flags in (0, 1):
            put("fckpt", f"parity {flags}", bytes((flags,)) + packed(raw))
        put("fckpt", "parity damaged", b"\0" + packed(bytes(4096) + raw[4096:]))
        put("fckpt", "parity without footer", b"\0" + packed(raw[:-4096] + bytes(4096)))
        torch.save({"w": torch.arange(4.0)}, path.with_suffix(".pt"))
        fastckpt.convert(path.with_suffix(".pt"), path, durable=False)
        put("fckpt", "source 1", b"\1" + packed(path.read_bytes()))
        write_big({"w": torch.arange(4.0), "n": torch.arange(3)}, path.with_suffix(".pt"))
        put("zip", "big-endian", path.with_suffix(".pt").read_bytes())
        fastckpt.convert(path.with_suffix(".pt"), path, durable=False)
        put("fckpt", "source big-endian", b"\1" + packed(path.read_bytes()))
    put("tree", "named values", encode_tree(named_values(), lambda value, path: value))
    put("tree", "objects", encode_tree(objects(), lambda value, path: value))
    put("tree", "deep", b"\x08\x01" * 127 + b"\x00")
    put("tree", "many", b"\x08\x90\x01" + b"\x00" * 144)
    put("tree", "long int", b"\x03\xff\x01" + b"\x55" * 255)


def sums_inputs() -> None:
    """Sums files of the file that the target has, and of others."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "sealed.safetensors"
        others = {"good": SEALED, "changed": SEALED[:20_000] + b"x" + SEALED[20_001:], "longer": SEALED + bytes(9)}
        for what, raw in others.items():
            path.write_bytes(SEALED)
            sums = Path(fastckpt.seal(path, sha256=what == "good", update=True, durable=False).sums)
            if what != "good":
                text = fastckpt.open(sums).metadata
                leaves = _core.leaf_digests(raw)
                state = {"digests": torch.frombuffer(bytearray(leaves), dtype=torch.uint8)}
                text["seal"]["size"] = len(raw)
                fastckpt.save(state, sums, metadata=text, durable=False)
            for flags in (0, 1):
                put("sums", f"{what} {flags}", bytes((flags,)) + packed(sums.read_bytes()))


if __name__ == "__main__":
    shutil.rmtree(CORPUS, ignore_errors=True)
    torch_inputs()
    new_torch_inputs()
    safetensors_inputs()
    own_inputs()
    sums_inputs()
    total = sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file())
    print(f"{total} bytes")
