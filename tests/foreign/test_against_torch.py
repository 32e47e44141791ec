"""open_foreign sees in a torch file exactly what torch.load makes of it."""

from __future__ import annotations

import io
import math
import mmap
import subprocess
import sys
import zlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from at_path import open_foreign

from fastckpt.foreign.model import ForeignFile
from fastckpt.layout.dtypes import BY_NAME
from fastckpt.layout.tree import AttributedDict, DeviceRef, DTypeRef, NamedRef, SizeRef, TensorRef

CHECKPOINTS = Path(__file__).resolve().parents[3] / "shared" / "checkpoints"
REAL_FILES = sorted(CHECKPOINTS.rglob("*.pt"))

REQUIRES_GRAD, PARAMETER, CONJ, NEG = 1, 2, 4, 8


def assert_same(file: ForeignFile, expected: object) -> None:
    """Compare tree, entries and every byte of every storage with what torch made of the file."""
    with open(file.path, "rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        seen = [0]
        storages: dict[int, int] = {}
        _compare(file, file.tree, expected, data, seen, storages)
        assert seen[0] == len(file.entries)
        assert sorted(storages) == list(range(len(file.storages)))
        assert len({entry.name for entry in file.entries}) == len(file.entries)


def _compare(file: ForeignFile, node: object, value: object, data: mmap.mmap, seen: list[int], storages) -> None:
    if isinstance(value, torch.Tensor):
        assert node == TensorRef(seen[0]), "entries are numbered in tree order"
        seen[0] += 1
        _compare_tensor(file, file.entries[node.entry], value, data, storages)
    elif isinstance(value, torch.Size):
        assert node == SizeRef(tuple(value))
    elif isinstance(value, torch.dtype):
        assert node == DTypeRef(str(value).removeprefix("torch."))
    elif isinstance(value, torch.device):
        assert node == DeviceRef(str(value))
    elif isinstance(value, dict):
        assert list(node) == list(value)
        assert isinstance(node, OrderedDict) == isinstance(value, OrderedDict)
        for key in value:
            assert type(key) in (str, int)
            _compare(file, node[key], value[key], data, seen, storages)
        attributes = vars(value) if isinstance(value, OrderedDict) else {}
        assert isinstance(node, AttributedDict) == bool(attributes)
        if attributes:
            _compare(file, node.attributes, attributes, data, seen, storages)
    elif isinstance(value, list | tuple):
        assert type(node) is type(value)
        assert len(node) == len(value)
        for item, expected in zip(node, value, strict=True):
            _compare(file, item, expected, data, seen, storages)
    elif isinstance(value, float):
        assert type(node) is float
        assert node.hex() == value.hex()
    else:
        assert type(node) is type(value)
        assert node == value


def _compare_tensor(file: ForeignFile, entry, tensor: torch.Tensor, data: mmap.mmap, storages: dict[int, int]) -> None:
    assert entry.dtype == str(tensor.dtype).removeprefix("torch.")
    assert entry.shape == tuple(tensor.shape)
    assert entry.stride == tensor.stride()
    assert entry.storage_offset == tensor.storage_offset()
    assert bool(entry.flags & REQUIRES_GRAD) == tensor.requires_grad
    assert bool(entry.flags & PARAMETER) == isinstance(tensor, torch.nn.Parameter)
    assert bool(entry.flags & CONJ) == tensor.is_conj()
    assert bool(entry.flags & NEG) == tensor.is_neg()
    storage = file.storages[entry.storage]
    untyped = tensor.untyped_storage()
    assert storages.setdefault(entry.storage, untyped._cdata) == untyped._cdata, "sharing is kept"
    expected = bytes(torch.empty(0, dtype=torch.uint8).set_(untyped).numpy())
    found = data[storage.offset : storage.offset + storage.nbytes]
    assert found == expected
    if file.kind == "torch-zip":
        assert storage.crc in (None, zlib.crc32(expected))


def save(state: object, path: Path, **options: object) -> ForeignFile:
    """Save with torch, open with fastckpt, and compare with what torch loads."""
    torch.save(state, path, **options)
    file = open_foreign(path)
    assert_same(file, torch.load(path, weights_only=False))
    return file


@pytest.mark.skipif(not REAL_FILES, reason="the folder with real checkpoints is not there")
@pytest.mark.parametrize("path", REAL_FILES, ids=[f"{p.parent.name}/{p.name}" for p in REAL_FILES])
def test_real_checkpoint(path: Path) -> None:
    file = open_foreign(path)
    assert_same(file, torch.load(path))
    assert file.kind == "torch-zip"
    assert file.prefix == path.stem
    assert file.opaque == []
    assert all(storage.crc is not None for storage in file.storages)
    assert file.locations == {"cpu": len(file.storages)}


@pytest.mark.skipif(not REAL_FILES, reason="the folder with real checkpoints is not there")
def test_real_model_keeps_module_versions() -> None:
    tree = open_foreign(CHECKPOINTS / "base_checkpoints" / "d4" / "model_000004.pt").tree
    assert isinstance(tree, AttributedDict)
    assert list(tree.attributes) == ["_metadata"]
    assert all(value == {"version": 1} for value in tree.attributes["_metadata"].values())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", sorted(BY_NAME))
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_dtype(tmp_path: Path, name: str, legacy: bool) -> None:
    dtype = getattr(torch, name, None)
    if dtype is None:
        pytest.skip(f"this torch has no {name}")
    tensor = torch.arange(48, dtype=torch.uint8).view(dtype) if name != "bool" else torch.tensor([True, False, True])
    path = tmp_path / "t.pt"
    torch.save({"t": tensor, "empty": tensor[:0].clone()}, path, _use_new_zipfile_serialization=not legacy)
    file = open_foreign(path)
    try:
        expected = torch.load(path)
    except AttributeError:
        # torch cannot load what it writes for its newer dtypes in the legacy format.
        assert legacy
        expected = {"t": tensor, "empty": tensor[:0].clone()}
    assert_same(file, expected)
    assert file.kind == ("torch-legacy" if legacy else "torch-zip")
    assert [entry.dtype for entry in file.entries] == [name, name]


def everything() -> dict[object, object]:
    """A state with one of each thing a checkpoint can store."""
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    ordered = OrderedDict(b=torch.ones(2), a=1)
    ordered._metadata = OrderedDict([("", {"version": 2}), ("layer", {"version": 1, "t": torch.zeros(1)})])
    return {
        "views": [base, base[1], base.transpose(0, 2), base[:, ::2, 1:4], base[0, 0, 0]],
        "expanded": torch.ones(1, 3).expand(5, 3),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "empty view": torch.zeros(3, 4)[3:, 2:],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "frozen": torch.nn.Parameter(torch.randn(3), requires_grad=False),
        "grad": torch.randn(2, requires_grad=True),
        "conj": torch.randn(3, dtype=torch.complex64).conj(),
        "neg": torch.randn(3, dtype=torch.complex64).conj().imag,
        "ordered": ordered,
        0: {1: "one", -7: "minus seven", 2**40: None},
        "nested": ((), (1, (2, (3, [4, {}]))), []),
        "size": torch.Size([2, 0, 3]),
        "no size": torch.Size([]),
        "dtype": torch.bfloat16,
        "devices": [torch.device("cpu"), torch.device("cuda:3"), torch.device("meta")],
        "ints": [0, 1, 255, 256, 65536, -1, 2**31, -(2**63), 10**400, -(10**400)],
        "floats": [0.0, -0.0, 1e-310, math.inf, -math.inf, math.nan],
        "truth": [True, False, None],
        "bytes": [b"", b"abc\xff\x00", bytes(range(256)) * 4],
        "complex": [1j, complex(-0.0, math.inf)],
        "text": ["", "naïve ☃ 𝄞", "x" * 300, "line\nfeed"],
        "ключ": torch.ones(1, dtype=torch.int64),
        "again": [base, base],
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_everything_in_every_protocol(tmp_path: Path, protocol: int, legacy: bool) -> None:
    state = everything()
    path = tmp_path / "state.pt"
    file = save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    assert file.opaque == []
    assert file.prefix == ("" if legacy else "state")
    names = [entry.name for entry in file.entries]
    assert names[:2] == ["views.0", "views.1"]
    assert "ordered.__dict__._metadata.layer.t" in names
    assert names[-3:] == ["ключ", "again.0", "again.1"]


def test_bare_tensor(tmp_path: Path) -> None:
    file = save(torch.arange(5), tmp_path / "token_bytes.pt")
    assert file.tree == TensorRef(0)
    assert file.entries[0].name == "tensor"


def test_saved_through_a_file_object(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    path = tmp_path / "renamed.bin"
    path.write_bytes(buffer.getvalue())
    file = open_foreign(path)
    assert file.prefix == "archive"
    assert_same(file, torch.load(path))


def test_crc_not_computed(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        file = save({"a": torch.ones(3), "none": torch.empty(0)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert [storage.crc for storage in file.storages] == [None, 0]


def test_storage_of_odd_size(tmp_path: Path) -> None:
    odd = torch.frombuffer(bytearray(range(10)), dtype=torch.uint8).untyped_storage()
    tensor = torch.empty(0, dtype=torch.float32).set_(odd, 0, (2,), (1,))
    torch.save({"t": tensor}, tmp_path / "odd.pt")
    assert open_foreign(tmp_path / "odd.pt").storages[0].nbytes == 10


def test_locations_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "gpu.pt"
    torch.save({"a": torch.ones(3), "b": torch.ones(2)}, path)
    raw = path.read_bytes()
    # As a GPU rank would write it; same length, so that only the pickle's CRC has to follow.
    old = b"X\x03\x00\x00\x00cpu"
    at = raw.index(old)
    pickle_start = raw.index(b"\x80\x02")
    pickle_end = raw.index(b"PK\x07\x08")
    before = raw[pickle_start:pickle_end]
    after = before[: at - pickle_start] + b"X\x03\x00\x00\x00xpu" + before[at - pickle_start + len(old) :]
    crcs = [zlib.crc32(part).to_bytes(4, "little") for part in (before, after)]
    path.write_bytes(raw.replace(before, after).replace(crcs[0], crcs[1]))
    assert open_foreign(path).locations == {"xpu": 2}


def test_names_that_collide(tmp_path: Path) -> None:
    one = torch.ones(1)
    file = save({"a.b": one, "a": {"b": one}, 1: one, "1": one}, tmp_path / "names.pt")
    assert [entry.name for entry in file.entries] == ["a.b", "a.b#2", "1", "1#2"]


def test_what_is_not_understood_is_opaque(tmp_path: Path) -> None:
    import argparse
    import collections
    import decimal

    with_attribute = torch.nn.Parameter(torch.ones(2))
    with_attribute.scale = 3
    state = {
        "args": argparse.Namespace(lr=1e-3, inner=decimal.Decimal("1.5")),
        "set": {1, 2},
        "frozen": frozenset([3]),
        "array": bytearray(b"xyz"),
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, a=[1]),
        "class": collections.OrderedDict,
        "storage": torch.ones(2).untyped_storage(),
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.empty(2, device="meta"),
        "p": with_attribute,
        "good": torch.ones(3),
        (1, 2): torch.ones(4),
        None: 5,
    }
    for protocol in (2, 5):
        torch.save(state, tmp_path / "o.pt", pickle_protocol=protocol)
        file = open_foreign(tmp_path / "o.pt")
        assert file.opaque == [
            ("state['class']", "collections.OrderedDict"),
            ("state['storage']", "torch.UntypedStorage"),
        ]
        names = ["storage", "sparse.indices", "sparse.values", "p", "good", "<tuple>"]
        assert [entry.name for entry in file.entries] == [*names[:-1], "12"]
        assert file.entries[3].flags == PARAMETER | REQUIRES_GRAD


def test_tensor_with_attributes_is_still_a_tensor(tmp_path: Path) -> None:
    tensor = torch.ones(2)
    tensor.tag = "x"
    torch.save([tensor], tmp_path / "t.pt")
    file = open_foreign(tmp_path / "t.pt")
    assert file.tree == [NamedRef("tensor", (TensorRef(0), {"tag": "x"}))]
    assert file.opaque == []


def test_whole_module_is_opaque(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2), "x": torch.ones(1)}, tmp_path / "m.pt")
    file = open_foreign(tmp_path / "m.pt")
    assert file.opaque == [("state['model']", "torch.nn.modules.linear.Linear")]
    assert [entry.name for entry in file.entries] == ["model.weight", "model.bias", "x"]
    assert len(file.storages) == 3


def test_does_not_import_torch(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    code = (
        "import sys\nfrom fastckpt.foreign.open_foreign import open_foreign\nfrom fastckpt.io.source import Source\n"
        "open_foreign(Source(sys.argv[1]))\nassert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.pt")], check=True, cwd=root)
