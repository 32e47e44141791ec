"""Good files of every format and layout, and a map of each: what every byte of it is for.

The map is made without the code under test where the format is not fastckpt's own: from `zipfile`, the pickle
module and the JSON header.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import fastckpt
from fastckpt.layout.records import Record

Range = tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """What a tensor is, and where its bytes stand.

    Attributes:
        dtype: torch's name of its element type.
        shape: Extents.
        values: Its elements in row-major order.
        storage: Key of its storage.
        span: First and last byte (exclusive) that it reaches in its storage.
        plain: Whether it is contiguous, so that its bytes stand in the file as in ``values``.
    """

    dtype: str
    shape: tuple[int, ...]
    values: bytes
    storage: str
    span: Range
    plain: bool


@dataclass
class Good:
    """An intact file and the map of it.

    Attributes:
        name: ``format/layout``.
        format: pt, legacy, safetensors or fckpt.
        raw: Its bytes.
        tensors: By flat name.
        storages: Where the bytes of each storage stand; for fckpt in raw bytes of a record.
        regions: Everything else, by what it is: ranges of the file.
        records: Of a fckpt file.
        home: For fckpt: the record that each storage is in.
        mirrors: For fckpt: where the index repeats the header of each record.
        crcs: Whether a pt file has them.
        interrupted: What Ctrl-C leaves: valid zip archives that end early.
        sibling: A file of the same structure with other values.
        sibling_values: Those values, by flat name.
    """

    name: str
    format: str
    raw: bytes
    tensors: dict[str, Facts] = field(default_factory=dict)
    storages: dict[str, Range] = field(default_factory=dict)
    regions: dict[str, Range] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    home: dict[str, int] = field(default_factory=dict)
    mirrors: dict[int, Range] = field(default_factory=dict)
    crcs: bool = True
    interrupted: list[bytes] = field(default_factory=list)
    sibling: bytes = b""
    sibling_values: dict[str, bytes] = field(default_factory=dict)

    @property
    def sibling_path(self) -> Path:
        """A file with the sibling's bytes."""
        path = _path(f"sibling of {self.name.replace('/', ' ')}{self.suffix}")
        if not path.exists():
            unfinished = path.with_suffix(f".{os.getpid()}")
            unfinished.write_bytes(self.sibling)
            unfinished.rename(path)
        return path

    @property
    def suffix(self) -> str:
        """Of the file's name."""
        return {"legacy": ".pt"}.get(self.format, f".{self.format}")


# Layouts: states, small and quick to make

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.uint8,
    torch.float64,
    torch.int32,
    torch.bool,
    torch.complex64,
    torch.int8,
]


def _noise(dtype: torch.dtype, shape: tuple[int, ...], random_: random.Random) -> torch.Tensor:
    numel = 1
    for extent in shape:
        numel *= extent
    raw = torch.frombuffer(bytearray(random_.randbytes(numel * dtype.itemsize) or b"\0"), dtype=torch.uint8)
    if dtype is torch.bool:
        raw = raw.bitwise_and_(1)
    return raw[: numel * dtype.itemsize].clone().view(dtype).reshape(shape)


def many(seed: int) -> Any:
    """Many small tensors of all dtypes, nested."""
    r = random.Random(seed)
    layers = {}
    for index in range(12):
        layers[f"h.{index}"] = OrderedDict(
            (name, _noise(DTYPES[(index + k) % len(DTYPES)], ((index * 37 + k * 11) % 90 + 1, k * 3 + 1), r))
            for k, name in enumerate(("weight", "bias", "scale", "zero_point"))
        )
    return {"step": 7, "model": layers, "name": "many", "betas": (0.9, 0.95)}


def large(seed: int) -> Any:
    """A few large tensors, one of an odd size, and small ones around them."""
    r = random.Random(seed)
    return {
        "first": _noise(torch.float32, (3,), r),
        "wte.weight": _noise(torch.bfloat16, (301, 257), r),
        "lm_head.weight": _noise(torch.float32, (130, 513), r),
        "middle": _noise(torch.int64, (17,), r),
        "odd": _noise(torch.uint8, (70_001,), r),
        "last": _noise(torch.float16, (5, 5), r),
    }


def shared(seed: int) -> Any:
    """Views, strides and broadcasts on storages that several tensors share."""
    r = random.Random(seed)
    base = _noise(torch.float32, (40, 30), r)
    other = _noise(torch.bfloat16, (3000,), r)
    lone = _noise(torch.float32, (2500,), r)
    return {
        "base": base,
        "row": base[7],
        "transposed": base.t(),
        "strided": base[::3, 2:9],
        "halves": [other[:1500], other[1500:]],
        "expanded": lone[:50].expand(4, 50),
        "tail": lone[2400:],
        "again": base,
        "own": _noise(torch.int32, (999,), r),
    }


def odd(seed: int) -> Any:
    """Tensors without elements or dimensions, of one byte, of rare dtypes, with unusual names."""
    r = random.Random(seed)
    return {
        "empty": torch.empty(0),
        "empty 2d": torch.empty(3, 0, dtype=torch.int64),
        "scalar": _noise(torch.float64, (), r),
        "one": _noise(torch.uint8, (1,), r),
        "three": _noise(torch.int8, (3,), r),
        "fp8": _noise(torch.float8_e4m3fn, (77,), r),
        "complex": _noise(torch.complex128, (5, 3), r),
        "\u00fc\u4e16\u754c": _noise(torch.float16, (31,), r),
        "with space/and slash": _noise(torch.bfloat16, (63, 2), r),
        "last empty": torch.empty(0, dtype=torch.bfloat16),
        "page": _noise(torch.uint8, (4096,), r),
        "under a page": _noise(torch.uint8, (4095,), r),
        "over a page": _noise(torch.uint8, (4097,), r),
    }


def optimizer(seed: int) -> Any:
    """What AdamW and Muon keep: int keys, steps, param_groups, buffers of zeros."""
    r = random.Random(seed)
    state: dict[int, Any] = {}
    for index in range(6):
        shape = (64, 8 * (index + 1))
        state[index] = {
            "step": 5,
            "exp_avg": _noise(torch.float32, shape, r),
            "exp_avg_sq": _noise(torch.bfloat16, shape, r),
        }
    state[9] = {
        "momentum_buffer": _noise(torch.float32, (4, 32, 40), r),
        "second_momentum_buffer": torch.zeros(4, 32, 1),
    }
    groups = [
        {"kind": "adamw", "lr": 0.1, "betas": (0.8, 0.95), "params": list(range(6))},
        {"kind": "muon", "lr": 0.02, "momentum": 0.95, "params": [9, 10, 11, 12]},
    ]
    return {"state": state, "param_groups": groups}


def inner(seed: int) -> Any:
    """Tensors that look like parts of a checkpoint file: whole files inside, magics at aligned places, zeros."""
    r = random.Random(seed)
    buffer = io.BytesIO()
    torch.save({"w": _noise(torch.float32, (200,), r), "v": _noise(torch.float32, (50,), r)}, buffer)
    zip_file = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    fckpt = torch.frombuffer(bytearray(_own_file({"w": _noise(torch.float32, (900,), r)}, "none")), dtype=torch.uint8)
    magics = bytearray(12288)
    for at, magic in ((0, b"FCKPTREC"), (4096, b"FCKPTMAN"), (8192, b"PK\x03\x04\0\0\x08\x08"), (8256, b"PK\x07\x08")):
        magics[at : at + len(magic)] = magic
    return {
        "fckpt": fckpt,
        "zip": zip_file,
        "zeros": torch.zeros(9000),
        "half zeros": torch.cat([_noise(torch.uint8, (5000,), r), torch.zeros(9000, dtype=torch.uint8)]),
        "magics": torch.frombuffer(magics, dtype=torch.uint8),
        "end": _noise(torch.float32, (321,), r),
    }


def records(seed: int) -> Any:
    """Several records of a fckpt file: two large storages, and a pack before and after."""
    r = random.Random(seed)
    return {
        "a": [_noise(torch.float32, (50 * (k + 1),), r) for k in range(5)],
        "big": _noise(torch.float32, (300, 260), r),
        "b": {f"t{k}": _noise(torch.bfloat16, (4000 + k, 3), r) for k in range(4)},
        "big odd": _noise(torch.uint8, (262_145,), r),
        "nothing": torch.empty(0),
    }


def chunks(seed: int) -> Any:
    """Records of several chunks: one that zstd makes smaller, one that it cannot, and a pack."""
    r = random.Random(seed)
    soft = torch.zeros(1_300_000, dtype=torch.uint8)
    for at in range(0, soft.numel(), 16384):
        size = min(300, soft.numel() - at)
        soft[at : at + size] = _noise(torch.uint8, (size,), r)
    hard = torch.cat([torch.zeros(1 << 20, dtype=torch.uint8), _noise(torch.uint8, (50_000,), r)])
    return {"soft": soft.view(1300, 1000), "hard": hard, "pack": [soft[:30_000].clone(), torch.arange(7) + seed]}


def floats(seed: int) -> Any:
    """What planes makes smaller: weights, second moments with rows of zeros, a chunk of noise, and a pack."""
    generator = torch.Generator().manual_seed(seed)

    def weights(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.02

    moments = weights(1024, 300).square() * torch.exp(5 * weights(1024, 1))
    moments[torch.rand(1024, generator=generator) < 0.8] = 0
    noise = _noise(torch.uint8, (50_000,), random.Random(seed))
    return {
        "weights": weights(500, 300).bfloat16(),
        "moments": moments,
        "noise": torch.cat([torch.zeros(1 << 20, dtype=torch.uint8), noise]),
        "few": [weights(70, 50).half(), weights(64, 64), torch.arange(700) + seed],
    }


LAYOUTS: dict[str, Callable[[int], Any]] = {
    layout.__name__: layout for layout in (many, large, shared, odd, optimizer, inner, records, chunks, floats)
}


def flat(state: Any, path: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """The tensors of a state by flat name; the layouts have no names that collide."""
    if isinstance(state, torch.Tensor):
        return {".".join(path): state}
    items: Any = ()
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    found: dict[str, torch.Tensor] = {}
    for key, value in items:
        found.update(flat(value, (*path, str(key))))
    return found


def values_of(tensor: torch.Tensor) -> bytes:
    """The elements in row-major order."""
    if not tensor.numel():
        return b""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _facts(tensor: torch.Tensor, storage: str) -> Facts:
    itemsize = tensor.dtype.itemsize
    first = tensor.storage_offset() * itemsize
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    span = (first, first + reach * itemsize) if tensor.numel() else (first, first)
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Facts(dtype, tuple(tensor.shape), values_of(tensor), storage, span, tensor.is_contiguous())


# Files

_scratch: Path | None = None


def use_directory(directory: Path) -> None:
    """Where files are made while they are built."""
    global _scratch
    _scratch = directory


def _path(name: str) -> Path:
    assert _scratch is not None, "call use_directory first"
    return _scratch / name


def _own_file(state: Any, codec: str) -> bytes:
    path = _path("own.fckpt")
    fastckpt.save(state, path, codec=codec, metadata={"run": "lab", "step": 7}, durable=False, threads=1)
    return path.read_bytes()


_ITEMSIZES = {
    **dict.fromkeys(("Untyped", "Byte", "Char", "Bool"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}


class _Storages(pickle.Unpickler):
    """Reads only which storage each tensor is in: the tensors become numbers of a list."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.sizes: dict[str, int] = {}

    def persistent_load(self, pid: Any) -> Any:
        kind, key, numel = pid[1], pid[2], pid[4]
        self.sizes[key] = numel * kind.itemsize
        return key

    def find_class(self, module: str, name: str) -> Any:
        if name.endswith("Storage"):
            return type(name, (), {"itemsize": _ITEMSIZES[name.removesuffix("Storage")]})
        if name.startswith("_rebuild_tensor_v2"):
            return lambda storage, *_: _Placed(storage)
        if name.startswith("_rebuild_tensor_v3"):
            return lambda storage, *_: _Placed(storage)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch":
            return getattr(torch, name)
        raise AssertionError(f"{module}.{name}")


class _Placed(str):
    """The key of the storage that a tensor is in."""


def _keys(tree: Any, path: tuple[str, ...] = ()) -> dict[str, str]:
    if isinstance(tree, _Placed):
        return {".".join(path): str(tree)}
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    found: dict[str, str] = {}
    for key, value in items:
        found.update(_keys(value, (*path, str(key))))
    return found


def _torch_zip(name: str, state: Any, seed_state: Any, *, crcs: bool = True, prefix: str | None = None) -> Good:
    torch.serialization.set_crc32_options(crcs)
    try:
        raw, sibling = _saved(state, prefix), _saved(seed_state, prefix)
    finally:
        torch.serialization.set_crc32_options(True)
    good = Good(name, "pt", raw, crcs=crcs, sibling=sibling)
    map_torch_zip(good, state)
    records = {n[5:]: raw[slice(*place)] for n, place in good.regions.items() if n.startswith("data ")}
    records.update((key, raw[slice(*place)]) for key, place in good.storages.items())
    top = zipfile.ZipFile(io.BytesIO(raw)).namelist()[0].partition("/")[0]
    torch.serialization.set_crc32_options(crcs)
    good.interrupted = _interrupted(records, top)
    torch.serialization.set_crc32_options(True)
    return good


def map_torch_zip(good: Good, state: Any) -> None:
    """Fill in where everything stands in a file that `torch.save` made of ``state``."""
    raw = good.raw
    archive = zipfile.ZipFile(io.BytesIO(raw))
    for info in archive.infolist():
        short = info.filename.partition("/")[2]
        name_size, extra_size = struct.unpack_from("<HH", raw, info.header_offset + 26)
        data = info.header_offset + 30 + name_size + extra_size
        end = data + info.file_size
        good.regions[f"header {short}"] = (info.header_offset, data)
        if info.flag_bits & 8:
            good.regions[f"descriptor {short}"] = (end, end + 16)
        if short.startswith("data/"):
            good.storages[short] = (data, end)
        else:
            good.regions[f"data {short}"] = (data, end)
    good.regions["directory"] = (archive.start_dir, len(raw))
    start, end = good.regions["data data.pkl"]
    reader = _Storages(io.BytesIO(raw[start:end]))
    keys = _keys(reader.load())
    tensors = flat(state)
    assert list(keys) == list(tensors)
    good.tensors = {name: _facts(tensor, f"data/{keys[name]}") for name, tensor in tensors.items()}


def _saved(state: Any, prefix: str | None, **options: Any) -> bytes:
    if prefix is None:
        buffer = io.BytesIO()
        torch.save(state, buffer, **options)
        return buffer.getvalue()
    path = _path(f"{prefix}.pt")
    torch.save(state, path, **options)
    raw = path.read_bytes()
    path.unlink()
    return raw


def _interrupted(records: dict[str, bytes], prefix: str) -> list[bytes]:
    """What torch leaves when a save is interrupted between two storages: its writer closes the archive."""
    storages = [short for short in records if short.startswith("data/")]
    path = _path(f"{prefix}.pt")
    results = []
    counts = sorted({0, 1, len(storages) // 3, len(storages) // 2, len(storages) - 1})
    for count in counts:
        writer = torch._C.PyTorchFileWriter(str(path), torch.serialization.get_crc32_options(), 64)
        for short in ("data.pkl", ".format_version", ".storage_alignment", "byteorder", *storages[:count]):
            writer.write_record(short, records[short], len(records[short]))
        writer.write_end_of_file()
        results.append(path.read_bytes())
        path.unlink()
    return results


def _torch_legacy(name: str, state: Any, sibling: Any) -> Good:
    raw = _saved(state, None, _use_new_zipfile_serialization=False)
    good = Good(name, "legacy", raw, crcs=False)
    good.sibling = _saved(sibling, None, _use_new_zipfile_serialization=False)
    file = io.BytesIO(raw)
    for _ in range(3):
        pickle.load(file)
    reader = _Storages(file)
    tree = reader.load()
    keys = pickle.load(file)
    at = file.tell()
    good.regions["pickles"] = (0, at)
    for key in keys:
        (_,) = struct.unpack_from("<q", raw, at)
        good.regions[f"header {key}"] = (at, at + 8)
        good.storages[key] = (at + 8, at + 8 + reader.sizes[key])
        at += 8 + reader.sizes[key]
    assert at == len(raw)
    placed, tensors = _keys(tree), flat(state)
    assert list(placed) == list(tensors)
    good.tensors = {name: _facts(tensor, placed[name]) for name, tensor in tensors.items()}
    return good


def _own_tensors(state: Any) -> dict[str, torch.Tensor]:
    """What safetensors can hold of a state: tensors on storages of their own."""
    tensors = flat(state).items()
    contiguous = torch.contiguous_format
    return {key: t.clone(memory_format=contiguous) for key, t in tensors if t.dtype is not torch.complex128}


def _safetensors(name: str, state: Any, sibling: Any) -> Good:
    tensors = _own_tensors(state)
    raw = safetensors.torch.save(tensors, metadata={"format": "pt", "step": "7"})
    good = Good(name, "safetensors", raw, crcs=False)
    good.sibling = safetensors.torch.save(_own_tensors(sibling))
    map_safetensors(good, tensors)
    return good


def map_safetensors(good: Good, tensors: dict[str, torch.Tensor]) -> None:
    """Fill in where everything stands in a file that safetensors made of ``tensors``."""
    raw = good.raw
    (size,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + size])
    good.regions["length"] = (0, 8)
    good.regions["header"] = (8, 8 + size)
    for key, facts in header.items():
        if key != "__metadata__":
            start, end = facts["data_offsets"]
            good.storages[key] = (8 + size + start, 8 + size + end)
            good.tensors[key] = _facts(tensors[key], key)


def _fckpt(name: str, raw: bytes, state: Any, sibling: bytes) -> Good:
    good = Good(name, "fckpt", raw, sibling=sibling)
    path = _path("mapped.fckpt")
    path.write_bytes(raw)
    map_fckpt(good, state, path)
    return good


def map_fckpt(good: Good, state: Any, path: Path) -> None:
    """Fill in where everything stands in a file that `fastckpt.save` made of ``state``."""
    raw, tensors = good.raw, flat(state)
    sections = {1: "manifest", 2: "index", 3: "manifest copy", 4: "source", 7: "directory"}
    with fastckpt.open(path) as ck:
        file = ck._file
        good.records = file.records
        good.regions["superblock"] = (0, 4096)
        for section in file.footer.sections:
            good.regions[sections[section.kind]] = (section.extent.offset, section.extent.end)
        good.regions["footer"] = (len(raw) - 4096, len(raw))
        mirror = good.regions["index"][0] + 32 + 16 * len(file.records)
        for record in file.records:
            good.regions[f"header {record.number}"] = (record.header.offset, record.header.end)
            good.mirrors[record.number] = (mirror, mirror + record.header.size)
            mirror += record.header.size
        for entry in file.manifest.entries:
            place = file.manifest.storages[entry.storage]
            key = str(entry.storage)
            good.home[key] = place.record
            good.storages[key] = (place.offset, place.offset + place.nbytes)
            good.tensors[entry.name] = _facts(tensors[entry.name], key)
        assert set(good.tensors) == set(tensors)


_TORCH_LAYOUTS = ("many", "large", "shared", "odd", "optimizer", "inner")


@cache
def good_files() -> dict[str, Good]:
    """All good files by name; made once."""
    goods: list[Good] = []
    states = {name: (layout(1), layout(2)) for name, layout in LAYOUTS.items()}
    for name in _TORCH_LAYOUTS:
        state, other = states[name]
        prefix = {"many": "model_000004", "optimizer": "optim_000004_rank0", "odd": "x" * 50}.get(name)
        goods.append(_torch_zip(f"pt/{name}", state, other, prefix=prefix))
        goods.append(_torch_legacy(f"legacy/{name}", state, other))
        if name != "shared":
            goods.append(_safetensors(f"safetensors/{name}", state, other))
    for name in ("many", "large"):
        goods.append(_torch_zip(f"pt/{name} without crc", *states[name], crcs=False))
    for name in (*_TORCH_LAYOUTS, "records"):
        state, other = states[name]
        goods.append(_fckpt(f"fckpt/{name}", _own_file(state, "none"), state, _own_file(other, "none")))
    for name in ("many", "chunks"):
        state, other = states[name]
        goods.append(_fckpt(f"fckpt/{name} zstd", _own_file(state, "zstd"), state, _own_file(other, "zstd")))
    state, other = states["floats"]
    goods.append(_fckpt("fckpt/floats planes", _own_file(state, "planes"), state, _own_file(other, "planes")))
    for name in ("many", "large"):
        state, other = states[name]
        goods.append(_fckpt(f"fckpt/{name} source", _converted(state), state, _converted(other)))
    for good in goods:
        layout = good.name.partition("/")[2].split(" ")[0]
        good.sibling_values = {name: values_of(tensor) for name, tensor in flat(states[layout][1]).items()}
    return {good.name: good for good in goods}


def _converted(state: Any) -> bytes:
    torch.save(state, _path("source.pt"))
    fastckpt.convert(_path("source.pt"), _path("source.fckpt"), durable=False)
    return _path("source.fckpt").read_bytes()
