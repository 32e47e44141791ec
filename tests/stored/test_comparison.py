"""Comparing two files: every kind of difference, found to the bit, whatever the formats and wherever the bytes lie."""

from __future__ import annotations

import itertools
import math
import shutil
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from in_format import FORMATS, write
from measured import measured
from states import copied, everything, of_dtype, states, tensors_of

import fastckpt
from fastckpt.cli.demo import flip_bit
from fastckpt.errors import DamagedError, NotACheckpointError
from fastckpt.fckpt import storages as fckpt_storages
from fastckpt.stored.comparison import compare
from fastckpt.stored.inspection import inspect_file
from fastckpt.stored.structure_difference import same_value

LEAF = 16384


def flat_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "large": torch.randn(600, 500),
        "half": torch.randn(700_000).bfloat16(),
        "small": torch.arange(10),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
    }


# Formats


@pytest.mark.parametrize("formats", list(itertools.product(FORMATS, FORMATS)), ids="-".join)
def test_every_pair_of_formats(formats, compared):
    a, b = flat_state(), flat_state()
    found = compared(a, b, formats=formats)
    assert found.same
    assert {tensor.status for tensor in found.tensors.values()} == {"identical"}
    b["large"][300, 200] += 1
    b["small"][3] = -7
    found = compared(a, b, formats=formats)
    assert not found.same
    differing = {name for name, tensor in found.tensors.items() if tensor.status == "differs"}
    assert differing == {"large", "small"}
    large, small = found.tensors["large"].numbers, found.tensors["small"].numbers
    assert (large.differing, large.differing_bits, large.elements) == (1, 1, 300_000)
    assert large.max_abs == pytest.approx(1, rel=1e-6)
    assert (small.differing, small.max_abs) == (1, 10)


def test_the_state_with_everything_in_it(compared):
    found = compared(everything(), copied(everything()), formats=("fckpt", "zstd.fckpt"))
    assert found.same
    assert not found.roots_equal
    found = compared(everything(), {"in": copied(everything())}, formats=("fckpt", "zstd.fckpt"))
    assert not found.same


@given(state=states())
def test_any_state_is_the_same_in_another_codec(state, tmp_path_factory):
    directory = tmp_path_factory.mktemp("any")
    a, b = write(state, directory / "a.fckpt"), write(copied(state), directory / "b.zstd.fckpt")
    assert compare(a, b).same
    shutil.rmtree(directory)


def test_strides_that_mean_nothing_are_no_difference(compared):
    a = {"t": torch.ones(1, 5), "e": torch.empty(0, 3)}
    b = {"t": torch.ones(9).as_strided((1, 5), (7, 1)), "e": torch.empty(3, 0).T}
    assert compared(a, b).same


# Digests


@pytest.fixture
def reads(monkeypatch):
    """The ``(start, size)`` of every read from a .fckpt payload."""
    done: list[tuple[int, int]] = []
    read_targets = fckpt_storages.read_targets

    def counted(source, targets, reading):
        done.extend((target.start, target.size) for target in targets)
        return read_targets(source, targets, reading)

    monkeypatch.setattr(fckpt_storages, "read_targets", counted)
    return done


def test_equal_roots_are_not_read_if_digests_will_do(tmp_path, reads):
    a = write(flat_state(), tmp_path / "a.fckpt")
    b = write(flat_state(), tmp_path / "b.fckpt")
    found = compare(a, b, digests_only=True)
    assert found.same
    assert found.roots_equal
    assert {tensor.compared for tensor in found.tensors.values()} == {"digests"}
    assert reads == []
    assert found.a.bytes_read == found.b.bytes_read == 0
    found = compare(a, b)
    assert found.same
    assert not found.roots_equal
    assert {tensor.compared for tensor in found.tensors.values() if tensor.a.nbytes} == {"data"}


@pytest.mark.parametrize("suffix", ["fckpt", "zstd.fckpt", "planes.fckpt"])
def test_a_copy_that_rotted_is_not_the_same(tmp_path, suffix):
    state = {"t": of_dtype(torch.int32, 60_000), "u": torch.arange(9)}
    a, b = (write(state, tmp_path / f"{side}.{suffix}") for side in "ab")
    raw = bytearray(b.read_bytes())
    raw[len(raw) // 2] ^= 1
    b.write_bytes(raw)
    assert compare(a, b, digests_only=True).same
    for one, other in ((a, b), (b, a)):
        found = compare(one, other)
        assert found.same is False
        assert found.damaged
        assert found.tensors["t"].status == "damaged"


@pytest.mark.parametrize(
    "codecs",
    [("fckpt", "fckpt"), ("fckpt", "zstd.fckpt"), ("zstd.fckpt", "zstd.fckpt"), ("zstd.fckpt", "planes.fckpt")],
)
def test_only_leaves_whose_digests_differ_are_read(codecs, compared, reads):
    a = {f"t{i}": of_dtype(torch.int32, 500_000, i) for i in range(5)} | {"s": torch.arange(5)}
    b = copied(a)
    found = compared(a, {**b, "extra": 1}, formats=codecs, digests_only=True)
    assert [tensor.compared for tensor in found.tensors.values()] == ["digests"] * 6
    assert not found.roots_equal
    assert reads == []
    b["t3"][200_000] += 1
    found = compared(a, b, formats=codecs, digests_only=True)
    statuses = {name: (tensor.status, tensor.compared) for name, tensor in found.tensors.items()}
    assert statuses.pop("t3") == ("differs", "data")
    assert set(statuses.values()) == {("identical", "digests")}
    assert found.tensors["t3"].numbers.differing == 1
    # Of B the leaf with the change, once to find it and once to measure the piece it is in. Of A all of t3: the norm.
    assert found.b.bytes_read <= LEAF + 1024 * 1024
    assert found.a.bytes_read <= LEAF + 2_000_000 + LEAF
    assert sum(size for _, size in reads) == found.a.bytes_read + found.b.bytes_read


def test_a_storage_at_another_place_is_read(compared, reads):
    a = {"t": torch.arange(1000)}
    found = compared(a, {"first": torch.ones(10), **a}, formats=("fckpt", "fckpt"))
    assert (found.tensors["t"].status, found.tensors["t"].compared) == ("identical", "data")
    assert reads


def test_neighbours_in_a_pack_do_not_count(compared):
    a = {str(i): torch.full((100,), float(i)) for i in range(50)}
    b = {**a, "7": torch.zeros(100)}
    found = compared(a, b, formats=("fckpt", "fckpt"))
    assert [name for name, tensor in found.tensors.items() if tensor.status == "differs"] == ["7"]
    assert found.tensors["6"].compared == "data"
    # All of them are in two leaves: each is read once, not once for each tensor.
    assert found.a.bytes_read <= 10 * LEAF


def test_tied_weights_are_compared_once(compared):
    tied = torch.randn(100_000)
    a, b = {"wte": tied, "head": tied}, {"wte": tied + 1, "head": 0}
    b["head"] = b["wte"]
    found = compared(a, b, formats=("pt", "pt"))
    assert found.tensors["wte"].numbers == found.tensors["head"].numbers
    assert found.b.bytes_read <= 2 * 400_000


def test_plain_values(compared):
    a = {"step": 1, "lr": 0.1, "gone": None, "nest": [{"x": 1}, {"betas": (0.9, 0.95)}], "z": -0.0, "n": math.nan}
    b = {"step": 2, "lr": 0.1, "new": "x", "nest": [{"x": 1.0}, {"betas": (0.9, 0.99)}], "z": 0.0, "n": math.nan}
    values = compared(a, b).structure.values
    assert values.only_a == {"gone": None}
    assert values.only_b == {"new": "x"}
    assert values.changed == {
        "step": (1, 2),
        "nest.0.x": (1, 1.0),
        "nest.1.betas": ((0.9, 0.95), (0.9, 0.99)),
        "z": (-0.0, 0.0),
    }


def test_same_value_is_exact():
    other_nan = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]
    assert same_value([1, (2.0, b"x")], [1, (2.0, b"x")])
    for a, b in [(1, True), (1, 1.0), (0.0, -0.0), (math.nan, other_nan), (0j, -0j), ([1], (1,)), ([1], [1, 2])]:
        assert not same_value(a, b), (a, b)


def test_containers(compared):
    a = {"o": OrderedDict(x=1), "l": [torch.ones(1)], "k": {0: torch.ones(1)}, "e": {}, "m": {"y": 1}}
    b = {"o": {"x": 1}, "l": (torch.ones(1),), "k": {"0": torch.ones(1)}, "e": [], "m": {"y": 1}}
    found = compared(a, b).structure
    assert found.containers == {
        "state['o']": ("OrderedDict", "dict"),
        "state['l']": ("list", "tuple"),
    }
    assert found.tensors == {"k.0": {"place": ("state['k'][0]", "state['k']['0']")}}
    assert found.values.changed == {"e": ({}, [])}


def with_attribute(items, value):
    made = OrderedDict(items)
    made.kept = value
    return made


ONE = torch.ones(1)
ALMOST = {
    "int and text as keys of one dict": ({0: 1, "1": 2}, {"0": 1, 1: 2}),
    "the same with tensors": ({0: ONE, "1": ONE}, {"0": ONE, 1: ONE}),
    "a dot in a key, as much nesting in both": ({"a": {"b": 1}, "a.x": 2}, {"a.b": 1, "a": {"x": 2}}),
    "the same for tensors": ({"a": {"b": ONE}, "a.x": ONE}, {"a.b": ONE, "a": {"x": ONE}}),
    "a key and an attribute": (with_attribute({"x": 1}, 2), OrderedDict(x=1, __dict__=OrderedDict(kept=2))),
    "an attribute of what is empty": ({"o": with_attribute({}, 2)}, {"o": with_attribute({}, 3)}),
    "keys that are tuples": ({"d": {(1, 2): ONE}}, {"d": {(1, 3): ONE}}),
    "None and its name as a key": ({"d": {None: ONE}}, {"d": {"None": ONE}}),
    "True and its name as a key": ({"d": {True: ONE}}, {"d": {"True": ONE}}),
    "keys that are floats": ({"d": {1.0: ONE}}, {"d": {2.0: ONE}}),
    "a set of another type": ({"s": {1}}, {"s": {True}}),
    "a set with another zero": ({"s": {0.0}}, {"s": {-0.0}}),
}


@pytest.mark.parametrize("format_", ["fckpt", "pt"])
@pytest.mark.parametrize("what", ALMOST)
def test_what_has_the_same_flat_names_is_not_the_same(compared, what, format_):
    a, b = ALMOST[what]
    assert compared(a, b, formats=(format_, format_)).same is False
    assert compared(a, a, formats=(format_, format_)).same


@pytest.mark.parametrize(
    ("a", "b"), [({"x": [{"y": 1}]}, {"x": ({"y": 1},)}), ({"a": {"b": 1}}, {"a.b": 1}), ({0: 1}, {"0": 1})]
)
def test_nesting_of_metadata(tmp_path, a, b):
    for name, metadata in (("a", a), ("b", b)):
        fastckpt.save({"t": ONE}, tmp_path / f"{name}.fckpt", metadata=metadata, durable=False)
    assert compare(tmp_path / "a.fckpt", tmp_path / "b.fckpt").same is False


@pytest.mark.parametrize("format_", ["fckpt", "pt"])
@pytest.mark.parametrize("other", [slice(4, 8), slice(2, 6)], ids=["apart", "overlapping"])
def test_tied_weights_and_neighbours_in_one_storage_are_not_the_same(compared, format_, other):
    """A step of training would change one of them, or both."""
    tied, apart = (
        {"x": whole[:4], "y": whole[part]} for whole, part in ((torch.zeros(8), slice(4)), (torch.zeros(8), other))
    )
    found = compared(tied, apart, formats=(format_, format_))
    assert found.same is False
    assert found.structure.tensors == {"y": {"offset": (0, 4 * other.start)}}


def test_attributes_of_ordered_dicts(compared):
    a, b = (OrderedDict(x=torch.ones(1)) for _ in range(2))
    a._metadata, b._metadata = OrderedDict(v=1), OrderedDict(v=2)
    assert compared(a, b).structure.values.changed == {"__dict__._metadata.v": (1, 2)}


def test_shared_storages(compared):
    tied = torch.ones(5)
    a, b = {"x": tied, "y": tied, "z": torch.ones(1)}, {"x": tied, "y": tied.clone(), "z": torch.ones(1)}
    found = compared(a, b)
    assert (found.structure.shared_a, found.structure.shared_b) == ([["x", "y"]], [])
    assert not found.same
    assert compared(b, a).structure.shared_b == [["x", "y"]]
    assert compared(a, a).same


def test_metadata(tmp_path):
    paths = [tmp_path / name for name in ("a.fckpt", "b.fckpt", "c.pt")]
    for path, value in zip(paths[:2], (1, 2), strict=True):
        fastckpt.save({"t": torch.ones(1)}, path, metadata={"run": value})
    torch.save({"t": torch.ones(1)}, paths[2])
    found = compare(*paths[:2])
    assert found.structure.metadata.changed == {"run": (1, 2)}
    assert not found.same
    found = compare(paths[0], paths[2])  # A .pt has none: what only one of them has is a difference.
    assert found.same is False
    assert found.structure.metadata.only_a == {"run": 1}


UNCOMPARED = {
    "attributes": (lambda: torch.nn.Linear(1, 1, bias=False).state_dict(), "weight", "1 attribute of containers"),
    "nesting": (lambda: {"m": {"w": torch.ones(1)}}, "m.w", "1 container"),
    "strides": (lambda: {"w": torch.ones(2, 3).T}, "w", "1 tensor with strides of its own"),
    "parameter": (lambda: {"w": torch.nn.Parameter(torch.ones(1))}, "w", "1 parameter"),
}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("format_", ["pt", "fckpt"])
@pytest.mark.parametrize("kind", UNCOMPARED)
def test_what_a_safetensors_cannot_hold_is_not_compared(tmp_path, kind, format_, swapped):
    make, name, said = UNCOMPARED[kind]
    state = make()
    (tensor,) = tensors_of(state)
    paths = [
        write(state, tmp_path / f"a.{format_}"),
        write({name: tensor.detach().clone().contiguous()}, tmp_path / "b.safetensors"),
    ]
    found = compare(*(reversed(paths) if swapped else paths))
    assert found.same is None
    assert said in found.structure.uncompared


def test_tied_weights_are_not_compared_with_copies(tmp_path):
    tied = torch.ones(3)
    a = write({"x": tied, "y": tied}, tmp_path / "a.pt")
    found = compare(a, write({"x": tied, "y": tied.clone()}, tmp_path / "b.safetensors"))
    assert (found.same, found.structure.uncompared) == (None, ["2 tensors that share a storage"])


@pytest.mark.parametrize("format_", ["pt", "fckpt"])
@pytest.mark.parametrize("value", [3, "text", [1, 2], None])
def test_a_value_on_one_side_only_is_a_difference(tmp_path, value, format_):
    a = write({"w": torch.ones(1), "step": value}, tmp_path / f"a.{format_}")
    b = write({"w": torch.ones(1)}, tmp_path / "b.safetensors")
    for one, other, side in ((a, b, "only_a"), (b, a, "only_b")):
        found = compare(one, other)
        assert found.same is False
        assert getattr(found.structure.values, side) == {"step": value}


def test_tensors_alone_are_the_same_in_a_safetensors(tmp_path):
    state = {"w": torch.ones(2, 3), "h": torch.zeros(5).half()}
    b = write(state, tmp_path / "b.safetensors")
    for suffix in ("pt", "fckpt"):
        assert compare(write(state, tmp_path / f"a.{suffix}"), b).same is True


class Unknown:
    """Something that only a pickle can hold."""


def test_objects_that_are_not_understood_are_compared(compared):
    found = compared({"x": Unknown(), "t": torch.ones(1)}, {"x": Unknown(), "t": torch.ones(1)}, formats=("pt", "pt"))
    assert found.same
    assert {place: part.status for place, part in found.objects.items()} == {"state['x']": "identical"}


def test_keys_choose_what_is_compared(compared):
    a = {"m": {"w": torch.ones(1), "b": torch.ones(1)}, "step": 1}
    b = {"m": {"w": torch.ones(1), "b": torch.zeros(1), "extra": torch.ones(1)}, "step": 2}
    found = compared(a, b, keys="m.w")
    assert found.same
    assert list(found.tensors) == ["m.w"]


def test_structure_only_reads_nothing(compared, reads):
    found = compared(flat_state(), {**flat_state(), "small": torch.zeros(10, dtype=torch.int64)}, structure_only=True)
    assert found.same
    assert {tensor.status for tensor in found.tensors.values()} == {"unread"}
    assert (reads, found.a.bytes_read, found.b.bytes_read) == ([], 0, 0)


# Damage


def damage(path: Path, name: str) -> None:
    found = inspect_file(path)
    entry = next(entry for entry in found.entries if entry.name == name)
    offset = found.storages[entry.storage].offset
    assert offset is not None
    flip_bit(path, offset + 1000)


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize("suffix", ["pt", "fckpt"])
def test_damage_is_reported_and_the_rest_compared(side, suffix, tmp_path):
    a, b = flat_state(), flat_state()
    b["half"][0] = 9
    paths = {
        "a": write(a, tmp_path / f"a.{suffix if side == 'a' else 'pt'}"),
        "b": write(b, tmp_path / f"b.{suffix if side == 'b' else 'pt'}"),
    }
    damage(paths[side], "large")
    found = compare(paths["a"], paths["b"])
    statuses = {name: tensor.status for name, tensor in found.tensors.items()}
    assert statuses == {**dict.fromkeys(a, "identical"), "half": "differs", "large": "damaged"}
    error = found.tensors["large"].error
    assert error.path == str(paths[side])
    assert error.offset is not None
    assert error.next_step == f"fastckpt salvage {paths[side]}"
    assert found.damaged
    assert not found.same


def test_a_file_that_changes_meanwhile_is_refused(tmp_path, monkeypatch):
    path = write(flat_state(), tmp_path / "a.pt")
    monkeypatch.setattr("fastckpt.io.source.Source.unchanged", lambda self: False)
    with pytest.raises(DamagedError, match="changed while it was read"):
        compare(path, path)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = write(flat_state(), tmp_path / "a.pt")
    (tmp_path / "b.pt").write_text("nothing")
    with pytest.raises(NotACheckpointError):
        compare(path, tmp_path / "b.pt")
    shutil.copyfile(write(flat_state(), tmp_path / "c.fckpt"), tmp_path / "d.fckpt")
    with open(tmp_path / "d.fckpt", "r+b") as file:
        file.truncate(9000)
    with pytest.raises(DamagedError):
        compare(tmp_path / "d.fckpt", path)


# Memory


@pytest.mark.thorough
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is not there")
def test_memory_does_not_grow_with_the_files(tmp_path):
    a = {f"layer.{i}": torch.arange(12_000_000, dtype=torch.float32) for i in range(3)}
    b = {name: tensor + 1 for name, tensor in a.items()}
    write(a, tmp_path / "a.pt")
    write(b, tmp_path / "b.fckpt")
    write({"x": torch.ones(1)}, tmp_path / "x.pt")
    write({"x": torch.zeros(1)}, tmp_path / "y.fckpt")
    code = """
from fastckpt.stored.comparison import compare
compare(sys.argv[3], sys.argv[4])
before = now("VmRSS")
with Peak() as peak:
    found = compare(sys.argv[1], sys.argv[2])
statuses = [tensor.status for tensor in found.tensors.values()]
print(json.dumps({"growth": peak.growth, "all": now("VmHWM") - before, "statuses": statuses}))
"""
    result = measured(code, *(tmp_path / name for name in ("a.pt", "b.fckpt", "x.pt", "y.fckpt")))
    assert result["statuses"] == ["differs"] * 3
    assert result["growth"] < 96 * 2**20
    assert result["all"] < 96 * 2**20
