"""Objects in a .pt: what Python's own types are, what is carried as it is, and how tensors inside are called."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import fractions
import pathlib
import pickle
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import fastckpt
from fastckpt.cli.main import main
from fastckpt.errors import UnsupportedStateError
from fastckpt.foreign.torch_state import read_state
from fastckpt.io.source import Source
from fastckpt.layout.named import NamedRef, SizeRef
from fastckpt.stored.open_file import open_file

Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Config:
    lr: float = 0.5
    w: Any = None


class Holder:
    """An object that knows itself."""

    def __init__(self) -> None:
        self.weight = torch.arange(3.0)
        self.me = [self]
        self.training = True


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        self.register_buffer("scale", torch.ones(1))
        self.config = Config()
        self.me = [self]


ZONE = datetime.timezone(datetime.timedelta(hours=2), "X")
PLAIN: dict[str, tuple[object, NamedRef]] = {
    "set": ({3, 1, 2}, NamedRef("set", [1, 2, 3])),
    "empty set": (set(), NamedRef("set", [])),
    "frozenset": (frozenset(("b", "a")), NamedRef("frozenset", ["a", "b"])),
    "counter": (collections.Counter("aab"), NamedRef("counter", [("a", 2), ("b", 1)])),
    "defaultdict": (collections.defaultdict(list, {1: [2]}), NamedRef("defaultdict", ([(1, [2])], "list"))),
    "no factory": (collections.defaultdict(None), NamedRef("defaultdict", ([], None))),
    "deque": (collections.deque([1, 2], 5), NamedRef("deque", ([1, 2], 5))),
    "bytearray": (bytearray(b"x\xff"), NamedRef("bytearray", b"x\xff")),
    "namespace": (argparse.Namespace(lr=0.1), NamedRef("namespace", ("argparse.Namespace", {"lr": 0.1}))),
    "simple": (types.SimpleNamespace(a=1), NamedRef("namespace", ("types.SimpleNamespace", {"a": 1}))),
    "path": (pathlib.PurePosixPath("a/b"), NamedRef("path", ("PurePosixPath", "a/b"))),
    "date": (datetime.date(2026, 2, 3), NamedRef("date", "2026-02-03")),
    "datetime": (
        datetime.datetime(2026, 2, 3, 4, 5, 6, 7, fold=1),
        NamedRef("datetime", ("2026-02-03T04:05:06.000007", 1, None, None)),
    ),
    "aware": (
        datetime.datetime(2026, 2, 3, tzinfo=ZONE),
        NamedRef("datetime", ("2026-02-03T00:00:00", 0, 7_200_000_000, "X")),
    ),
    "time": (datetime.time(1, 2), NamedRef("time", ("01:02:00", 0, None, None))),
    "timedelta": (datetime.timedelta(1, 2, 3), NamedRef("timedelta", (1, 2, 3))),
    "timezone": (ZONE, NamedRef("timezone", (7_200_000_000, "X"))),
    "range": (range(1, 9, 2), NamedRef("range", (1, 9, 2))),
    "slice": (slice(1, None), NamedRef("slice", (1, None, None))),
    "fraction": (fractions.Fraction(1, 3), NamedRef("fraction", (1, 3))),
    "decimal": (decimal.Decimal("1.50"), NamedRef("decimal", "1.50")),
    "array": (
        numpy.arange(3, dtype=">i2"),
        NamedRef("array", (b"\0\0\0\1\0\2", ">i2", SizeRef((3,)), False)),
    ),
    "scalar": (numpy.float64(0.5), NamedRef("scalar", ("<f8", b"\0\0\0\0\0\0\xe0?"))),
    "keys": ({True: 1, (1, None): 2}, NamedRef("dict", [(True, 1), ((1, None), 2)])),
    "layout": (torch.sparse_csr, NamedRef("layout", "sparse_csr")),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", sorted(PLAIN))
def test_plain_values_of_python(name: str, protocol: int) -> None:
    value, node = PLAIN[name]
    if name == "datetime" and protocol < 4:
        node = NamedRef("datetime", (*node.payload[:1], 0, *node.payload[2:]))  # Older pickles do not have the fold.
    # Twice: an object that stands in a state again is the same value again.
    state, _ = read_state(pickle.dumps([value, value], protocol=protocol))
    assert state.tree == [node, node]
    assert state.opaque == []


def objects() -> dict[str, Any]:
    torch.manual_seed(3)
    return {
        "net": Net(),
        "point": Point(torch.ones(2), 5),
        "config": Config(w=torch.zeros(3)),
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "untyped": torch.arange(3, dtype=torch.int16).untyped_storage(),
        "namespace": argparse.Namespace(w=torch.ones(1), lr=0.25),
        "default": collections.defaultdict(list, {"a": torch.ones(1)}),
        "plain": torch.arange(4),
    }


@pytest.fixture(params=["zip", "legacy"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    state = objects()
    if request.param == "legacy":
        del state["untyped"]
    torch.save(state, tmp_path / "o.pt", _use_new_zipfile_serialization=request.param == "zip")
    return tmp_path / "o.pt"


NAMES = (
    *(f"net.inner.0.{name}" for name in ("weight", "bias")),
    *(f"net.inner.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    *("csr.crow_indices", "csr.col_indices", "csr.values", "quantized.values"),
    *("net.scale", "point.0", "config.w", "sparse.indices", "sparse.values", "namespace.w", "default.a", "plain"),
)


def test_tensors_inside_are_seen(file: Path) -> None:
    with open_file(file) as opened:
        names = [entry.name for entry in opened.entries]
        assert set(NAMES) <= set(names)
        # No storage is without a name.
        assert {entry.storage for entry in opened.entries} == set(range(len(opened.storage_sizes)))
    state = objects()
    tensors = fastckpt.load(file, keys="net.*")
    assert all(torch.equal(tensors[f"net.{name}"], value) for name, value in state["net"].state_dict().items())
    assert torch.equal(fastckpt.load(file, keys="config.w")["config.w"], state["config"].w)


def test_there_and_back(file: Path, tmp_path: Path) -> None:
    own, back = tmp_path / "own.fckpt", tmp_path / "back.pt"
    result = fastckpt.convert(file, own)
    assert "Net" in result[0].notes[0]
    with Source(file) as a, Source(own) as b:
        one, other = open_file(a), open_file(b)
        assert one.opaque == other.opaque
        assert one.tree == other.tree
        assert [e.name for e in one.entries] == [e.name for e in other.entries]
    for command in (["verify", own], ["diff", file, own], ["inspect", own], ["inspect", file, "--json"]):
        assert main([*map(str, command)]) == 0
    fastckpt.convert(own, back)
    assert back.read_bytes() == file.read_bytes()


def test_load_says_all_and_keeps(file: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.fckpt"
    fastckpt.convert(file, own)
    for path in (file, own):
        with pytest.raises(UnsupportedStateError, match="opaque=") as caught:
            fastckpt.load(path)
        for key in ("net", "point", "config", "nested"):
            assert f"state['{key}'] is a " in str(caught.value)
        with pytest.raises(fastckpt.errors.UsageError, match="opaque"):
            fastckpt.load(path, opaque="skip")  # type: ignore[arg-type]


def test_placeholder(tmp_path: Path) -> None:
    state = {"net": Holder(), "point": Point(torch.ones(2), 5), "again": None, "x": torch.ones(2)}
    state["again"] = state["point"]
    torch.save(state, tmp_path / "o.pt")
    fastckpt.convert(tmp_path / "o.pt", tmp_path / "o.fckpt")
    for path in (tmp_path / "o.pt", tmp_path / "o.fckpt"):
        loaded = fastckpt.load(path, opaque="keep")
        assert torch.equal(loaded["x"], state["x"])
        net, point = loaded["net"], loaded["point"]
        assert net.name.endswith("test_objects.Holder")
        # A module that holds itself is seen once.
        assert set(net.tensors) == {"weight"}
        assert net.state["training"] is True
        assert net.state["me"][0].same_as == "state['net']"
        assert point.args[1] == 5
        assert torch.equal(point.args[0], state["point"].x)
        assert loaded["again"].same_as == "state['point']"
        with pytest.raises(dataclasses.FrozenInstanceError):
            net.name = "x"


def test_a_whole_module(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "o.pt")
    fastckpt.convert(tmp_path / "o.pt", tmp_path / "o.fckpt")
    for path in (tmp_path / "o.pt", tmp_path / "o.fckpt"):
        net = fastckpt.load(path, opaque="keep")
        expected = Net().state_dict()
        assert set(net.tensors) == set(expected)
        assert all(net.tensors[name].shape == value.shape for name, value in expected.items())


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_plain_values_load_as_what_they_are(name: str, tmp_path: Path) -> None:
    value, _ = PLAIN[name]
    if name == "layout":
        value = {"x": value}
    torch.save([value], tmp_path / "o.pt", pickle_protocol=4)
    fastckpt.convert(tmp_path / "o.pt", tmp_path / "o.fckpt")
    for path in (tmp_path / "o.pt", tmp_path / "o.fckpt"):
        (loaded,) = fastckpt.load(path)
        assert type(loaded) is type(value)
        if isinstance(value, numpy.ndarray):
            assert loaded.dtype == value.dtype
            assert loaded.tolist() == value.tolist()
        else:
            assert loaded == value
            # The order in which a set shows its texts is another one in each process.
            assert isinstance(value, set | frozenset) or repr(loaded) == repr(value)


@pytest.mark.parametrize("dtype", ["f8", "f2", "u4", "b1", "c16", "U3", "S5"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays(dtype: str, order: str, protocol: int, tmp_path: Path) -> None:
    array = numpy.asarray(numpy.arange(12).reshape(3, 4).astype(dtype), order=order)  # type: ignore[call-overload]
    torch.save(
        {"a": array, "state": numpy.random.RandomState(3).get_state()}, tmp_path / "o.pt", pickle_protocol=protocol
    )
    loaded = fastckpt.load(tmp_path / "o.pt")
    assert loaded["a"].dtype == array.dtype
    assert (loaded["a"] == array).all()
    generator = numpy.random.RandomState(5)
    generator.set_state(loaded["state"])
    assert generator.random() == numpy.random.RandomState(3).random()


def test_a_flipped_bit_inside_an_object_is_named(file: Path, tmp_path: Path, capsys: Any) -> None:
    if b"PK" not in file.read_bytes()[:2]:
        pytest.skip("a legacy file has no checksums")
    own = tmp_path / "own.fckpt"
    fastckpt.convert(file, own)
    weight = objects()["net"].inner[0].weight.detach().numpy().tobytes()
    for path in (file, own):
        raw = bytearray(path.read_bytes())
        raw[raw.index(weight)] ^= 1
        path.write_bytes(raw)
        capsys.readouterr()
        assert main(["verify", str(path)]) == 2
        assert "net.inner.0.weight" in capsys.readouterr().out
        report = fastckpt.salvage(path)
        # In a .fckpt the small tensors of a pack share a leaf.
        assert report.broken == ["net.inner.0.weight"] if path == file else "net.inner.0.weight" in report.broken


def test_values_inside_an_object_are_compared(tmp_path: Path, capsys: Any) -> None:
    for number, lr in enumerate((0.5, 0.25)):
        torch.save({"config": Config(lr), "x": torch.ones(1)}, tmp_path / f"{number}.pt")
        fastckpt.convert(tmp_path / f"{number}.pt", tmp_path / f"{number}.fckpt")
    for suffix in ("pt", "fckpt"):
        assert main(["diff", *(str(tmp_path / f"{number}.{suffix}") for number in (0, 1))]) == 1
        assert re.search(r"config\.lr +0\.5 -> 0\.25", capsys.readouterr().out)


def test_tensors_in_attributes_of_dicts_keep_their_names(tmp_path: Path) -> None:
    inner = collections.OrderedDict(a=torch.ones(2))
    inner.extra = {"t": torch.zeros(3)}  # type: ignore[attr-defined]
    by_pair = collections.OrderedDict({(1, 2): torch.ones(1)})
    by_pair.extra = torch.zeros(4)  # type: ignore[attr-defined]
    thing = Net()
    thing.found, thing.pairs = inner, by_pair
    del thing.me
    torch.save({"plain": inner, "thing": thing}, tmp_path / "a.pt")
    names = list(dict(fastckpt.stream(tmp_path / "a.pt")))
    assert {"plain.__dict__.extra.t", "thing.found.__dict__.extra.t", "thing.pairs.extra"} <= set(names)
    kept = fastckpt.load(tmp_path / "a.pt", opaque="keep")
    assert {"found.__dict__.extra.t", "pairs.extra"} <= set(kept["thing"].tensors)
    fastckpt.save(kept, tmp_path / "b.fckpt")
    fastckpt.save(fastckpt.load(tmp_path / "b.fckpt", opaque="keep"), tmp_path / "c.fckpt")
    for path in ("b.fckpt", "c.fckpt"):
        assert list(dict(fastckpt.stream(tmp_path / path))) == names


def test_salvage_keeps_tensors_in_attributes_of_dicts(tmp_path: Path) -> None:
    model = collections.OrderedDict(w=torch.arange(300_000.0))
    model.mean = torch.ones(5)  # type: ignore[attr-defined]
    state = {"model": model, "net": Net()}
    fastckpt.save({"model": model, "tags": {"a"}, "point": Point(torch.ones(2), 1)}, tmp_path / "a.fckpt")
    torch.save(state, tmp_path / "a.pt")
    for path in ("a.fckpt", "a.pt"):
        raw = bytearray((tmp_path / path).read_bytes())
        raw[raw.index(torch.arange(300_000.0).numpy().tobytes()) + 4000] ^= 1
        (tmp_path / path).write_bytes(raw)
        report = fastckpt.salvage(tmp_path / path, tmp_path / "b.pt", include=["damaged"])
        assert {"model.w", "model.__dict__.mean"} <= set(report.written)
        found = torch.load(tmp_path / "b.pt", weights_only=False)["model"]
        assert found.mean.equal(torch.ones(5))


def tensors_of_all_kinds() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    dense = torch.randn(4, 6) * (torch.rand(4, 6) > 0.5)
    whole = torch.quantize_per_tensor(torch.randn(4, 6), 0.1, 3, torch.quint8)
    scales, zeros = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 1, 2])
    return {
        "coo": dense.to_sparse(),
        "not coalesced": torch.sparse_coo_tensor(torch.tensor([[0, 0], [1, 1]]), torch.ones(2), (2, 2)),
        "hybrid": torch.randn(3, 2, 2).to_sparse(1),
        **{kind: getattr(dense, f"to_sparse_{kind}")() for kind in ("csr", "csc")},
        **{kind: getattr(dense, f"to_sparse_{kind}")((2, 3)) for kind in ("bsr", "bsc")},
        "per tensor": whole,
        "a part": whole[1:3],
        "of 32 bits": torch.quantize_per_tensor(torch.randn(3), 0.01, 0, torch.qint32),
        "per channel": torch.quantize_per_channel(torch.randn(2, 3), scales.double(), zeros, 1, torch.qint8),
        "meta": torch.empty(3, 4, device="meta", dtype=torch.bfloat16),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", tensors_of_all_kinds())
@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_that_are_not_plain_load_as_torch_loads_them(kind: str, is_zip: bool, tmp_path: Path) -> None:
    value = tensors_of_all_kinds()[kind]
    path, own, back = (tmp_path / name for name in ("a.pt", "a.fckpt", "b.pt"))
    torch.save({"x": value}, path, _use_new_zipfile_serialization=is_zip)
    fastckpt.convert(path, own)
    fastckpt.convert(own, back)
    assert back.read_bytes() == path.read_bytes()
    theirs = torch.load(path)["x"]
    for ours in (fastckpt.load(path)["x"], fastckpt.load(own)["x"]):
        assert (ours.layout, ours.dtype, ours.shape, ours.device) == (
            value.layout,
            value.dtype,
            value.shape,
            value.device,
        )
        if value.is_meta:
            assert ours.stride() == value.stride()
        elif value.is_quantized:
            assert ours.qscheme() == value.qscheme()
            assert torch.equal(ours.int_repr(), theirs.int_repr())
            assert torch.equal(ours, theirs)
        else:
            assert ours.layout is not torch.sparse_coo or ours.is_coalesced() == value.is_coalesced()
            assert torch.equal(ours.to_dense(), theirs.to_dense())
    fastckpt.save({"x": theirs}, tmp_path / "saved.fckpt")
    assert dict(fastckpt.stream(tmp_path / "saved.fckpt")).keys() == dict(fastckpt.stream(path)).keys()


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_tensor_with_strides_of_its_own_is_an_object(tmp_path: Path) -> None:
    torch.save({"x": torch.quantize_per_tensor(torch.randn(2, 3), 0.1, 0, torch.qint8).t()}, tmp_path / "a.pt")
    kept = fastckpt.load(tmp_path / "a.pt", opaque="keep")["x"]
    assert kept.name == "torch.Tensor (quantized)"
    assert len(kept.tensors) == 1


class _Thing:
    """Objects of it are equal only to themselves."""

    def __repr__(self) -> str:
        return "_Thing()"


@pytest.mark.parametrize(
    "state",
    [
        {"d": {_Thing(): 1}},
        {"d": {("a", _Thing()): 1}},
        {"d": collections.Counter([_Thing()])},
        collections.OrderedDict([(_Thing(), 1)]),
        {frozenset([_Thing()]): 1},
        {"s": {_Thing()}},
        {int: 1},
        {"half \udc80": 1},
        {"v": "half \udc80", "d": {"a": ["\ud800 half"]}},
        {"d": collections.defaultdict(object)},
        {"d": collections.defaultdict(collections.defaultdict, a=1)},
        {"f": fractions.Fraction(10**700, 7)},
        {"m": numpy.ones((2, 2)).view(numpy.matrix)},
        {"m": numpy.ma.masked_array([1, 2], [True, False])},
    ],
    ids=lambda state: repr(state)[:50].encode("ascii", "backslashreplace").decode(),
)
def test_what_is_not_understood_is_said_wherever_it_is(state: Any, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.pt", "a.fckpt", "b.pt")]
    torch.save([state, torch.ones(2)], paths[0])
    fastckpt.convert(paths[0], paths[1])
    fastckpt.convert(paths[1], paths[2])
    assert paths[2].read_bytes() == paths[0].read_bytes()
    for path in paths:
        with pytest.raises(UnsupportedStateError, match="neither tensors nor plain values"):
            fastckpt.load(path)
        fastckpt.load(path, opaque="keep")


def test_objects_that_are_told_apart_only_by_themselves(tmp_path: Path) -> None:
    torch.save([{_Thing(), _Thing()}, torch.ones(2)], tmp_path / "a.pt")
    fastckpt.convert(tmp_path / "a.pt", tmp_path / "a.fckpt")
    fastckpt.save(fastckpt.load(tmp_path / "a.pt", opaque="keep"), tmp_path / "again.fckpt")
    for path in (tmp_path / "a.pt", tmp_path / "a.fckpt", tmp_path / "again.fckpt"):
        two, _ = fastckpt.load(path, opaque="keep")
        assert type(two) is set
        assert [each.name.rpartition(".")[2] for each in two] == ["_Thing", "_Thing"]
        assert fastckpt.verify(path).ok


def test_many_objects_in_one_set_take_no_longer_each(tmp_path: Path) -> None:
    torch.save({_Thing() for _ in range(20_000)}, tmp_path / "a.pt")
    assert len(fastckpt.load(tmp_path / "a.pt", opaque="keep")) == 20_000


@pytest.mark.parametrize("dtype", ["<M8[D]", ">m8[25s]", "<m8", ">M8[ns]"])
def test_times_of_numpy(dtype: str, tmp_path: Path) -> None:
    array = numpy.array([3, -(2**63)], "i8").astype(numpy.dtype("i8").newbyteorder(dtype[0])).view(dtype)
    torch.save([array, array[0], torch.ones(1)], tmp_path / "a.pt")
    loaded, first, _ = fastckpt.load(tmp_path / "a.pt")
    assert (loaded.dtype.str, loaded.tobytes()) == (dtype, array.tobytes())
    assert (first.dtype, first.tobytes()) == (array[0].dtype, array[0].tobytes())


class Node:
    """A link of a program's own chain."""

    other: Any = None


def _around_itself() -> dict[str, Any]:
    items: list[Any] = [torch.ones(2)]
    items.append(items)
    named: dict[str, Any] = {"w": torch.zeros(3)}
    named["again"] = {"inside": named}
    node = Node()
    node.other = (node, [node])
    spaces = argparse.Namespace(w=torch.ones(1))
    spaces.me = {"me": spaces}
    return {"items": items, "named": named, "node": node, "spaces": spaces, "plain": 3}


def test_what_contains_itself_is_carried(tmp_path: Path) -> None:
    """Only the place where it stands again is an object; all else has its value, and all of it comes back."""
    torch.save(_around_itself(), tmp_path / "a.pt")
    fastckpt.convert(tmp_path / "a.pt", tmp_path / "a.fckpt")
    fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "b.pt")
    assert (tmp_path / "b.pt").read_bytes() == (tmp_path / "a.pt").read_bytes()
    assert fastckpt.verify(tmp_path / "a.fckpt").ok
    for path in (tmp_path / "a.pt", tmp_path / "a.fckpt"):
        with pytest.raises(UnsupportedStateError, match=r"state\['items'\]\[1\] is a list that contains itself"):
            fastckpt.load(path)
        state = fastckpt.load(path, opaque="keep")
        assert state["items"][1].same_as == "state['items']"
        assert state["named"]["again"]["inside"].same_as == "state['named']"
        assert state["plain"] == 3
        assert {name for name, _ in fastckpt.stream(path)} == {"items.0", "named.w", "spaces.w"}


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_distributed_tensors_are_their_local_parts(tmp_path: Path, capsys: Any) -> None:
    """As FSDP2 leaves them: mesh and placements are shown as text."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("data",))
    local = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).state_dict()
    sharded = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in local.items()}
    state = {"model": sharded, "other": distribute_tensor(torch.ones(4), mesh, [Replicate()])}
    torch.save(state, tmp_path / "a.pt")
    fastckpt.convert(tmp_path / "a.pt", tmp_path / "a.fckpt")
    fastckpt.convert(tmp_path / "a.fckpt", tmp_path / "b.pt")
    assert (tmp_path / "b.pt").read_bytes() == (tmp_path / "a.pt").read_bytes()
    for path in (tmp_path / "a.pt", tmp_path / "a.fckpt"):
        assert {name for name, _ in fastckpt.stream(path)} > {*(f"model.{name}" for name in local), "other"}
        into = {name: torch.zeros_like(tensor) for name, tensor in local.items()}
        fastckpt.load_into(into, path, prefix="model.", strict=False)
        assert all(into[name].equal(tensor) for name, tensor in local.items())
        assert fastckpt.verify(path).ok
        loaded = fastckpt.load(path, opaque="keep")
        kept = (loaded["model"]["0.weight"], loaded["model"]["1.bias"], loaded["other"])
        specs = [tensor.state[1]["_spec"].content["text"] for tensor in kept]
        text = "DeviceMesh('cpu', shape=(1,), mesh_dim_names=('data',))"
        assert [spec["mesh"] for spec in specs] == [text] * 3
        assert [spec["placements"] for spec in specs] == ["(Shard(dim=0),)", "(Shard(dim=0),)", "(Replicate(),)"]
        assert specs[0]["shape"] == (3, 4)
        assert main(["inspect", str(path), "--tree"]) == 0
        assert "(Shard(dim=0),)" in capsys.readouterr().out
