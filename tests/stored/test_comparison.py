"""Comparing two files: every kind of difference, found to the bit, whatever the formats and wherever the bytes lie."""

from __future__ import annotations

import itertools
import math
import shutil
import struct
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import measured
from states import DTYPES, copied, everything, of_dtype, states, tensors_of

import fastckpt
from fastckpt.cli.demo import flip_bit
from fastckpt.errors import DamagedError, NotACheckpointError
from fastckpt.fckpt import storages as fckpt_storages
from fastckpt.layout.entries import Entry
from fastckpt.stored import element_pairs
from fastckpt.stored.comparison import Comparison, TensorDifference, compare
from fastckpt.stored.element_pairs import ElementPairs
from fastckpt.stored.inspection import inspect_file
from fastckpt.stored.structure_difference import same_value

LEAF = 16384
CODECS = {".zstd": "zstd", ".planes": "planes"}
FORMATS = ["pt", "legacy.pt", "fckpt", "zstd.fckpt", "safetensors"]


def write(state: Any, path: Path) -> Path:
    """A state in the format that the name of the file says."""
    if path.name.endswith("legacy.pt"):
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif path.suffix == ".pt":
        torch.save(state, path)
    elif path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        fastckpt.save(state, path, codec=CODECS.get(path.suffixes[0], "none"), durable=False)
    return path


@pytest.fixture
def compared(tmp_path):
    """Writes two states and compares them; names of the files choose the formats."""

    def run(a: Any, b: Any, *, formats: tuple[str, str] = ("fckpt", "pt"), **options: Any) -> Comparison:
        paths = [
            write(state, tmp_path / f"{side}.{suffix}")
            for side, state, suffix in zip("ab", (a, b), formats, strict=True)
        ]
        return compare(*paths, **options)

    return run


@pytest.fixture
def tensors(compared):
    """The comparison of two tensors that stand alone."""

    def run(a: torch.Tensor, b: torch.Tensor, **options: Any) -> TensorDifference:
        (found,) = compared({"t": a}, {"t": b}, **options).tensors.values()
        return found

    return run


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


# Numbers


def parts_of(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor as float64, two columns if each element has two."""
    if tensor.dtype is getattr(torch, "float4_e2m1fn_x2", None):
        table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
        table = torch.cat((table, -table))
        raw = tensor.view(torch.uint8).long()
        return torch.stack((table[raw % 16], table[raw // 16]), dim=1)
    if tensor.dtype.is_complex:
        return torch.view_as_real(tensor.to(torch.complex128))
    return tensor.double()[:, None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_of_every_dtype(dtype, tensors):
    a = of_dtype(dtype, 5000, 1)
    assert tensors(a, a.clone()).status == "identical"
    b = of_dtype(dtype, 5000, 1)
    b.view(torch.uint8)[2000 * dtype.itemsize : 2040 * dtype.itemsize] = of_dtype(torch.bool, 40 * dtype.itemsize).view(
        torch.uint8
    )
    found = tensors(a, b)
    assert (found.status, found.compared) == ("differs", "data")
    numbers = found.numbers
    bits_a, bits_b = (t.view(torch.uint8).view(5000, -1) for t in (a, b))
    assert numbers.differing_bits == int((bits_a != bits_b).any(1).sum()) > 0
    x, y = parts_of(a), parts_of(b)
    equal = (x == y) | (x.isnan() & y.isnan())
    if dtype not in (torch.int64, torch.uint64):  # float64 cannot tell these apart.
        assert numbers.differing == int((~equal).any(1).sum())
        difference = torch.where(equal, 0.0, x - y)
        largest = torch.hypot(*difference.T) if dtype.is_complex else difference.abs().amax(1)
        assert numbers.max_abs == pytest.approx(float(largest.max()), nan_ok=True)
        finite = (x.isfinite() & y.isfinite()).all(1)
        expected = difference.norm() / x[finite].norm()
        if expected.isfinite() and expected > 0:
            assert numbers.relative == pytest.approx(float(expected))
            cosine = torch.nn.functional.cosine_similarity(x[finite].view(-1), y[finite].view(-1), dim=0)
            if cosine.isfinite() and dtype not in (torch.float64, torch.complex128):
                assert numbers.cosine == pytest.approx(float(cosine))
    assert (numbers.nan_a, numbers.nan_b) == (int(x.isnan().any(1).sum()), int(y.isnan().any(1).sum()))
    assert (numbers.inf_a, numbers.inf_b) == (int(x.isinf().any(1).sum()), int(y.isinf().any(1).sum()))


def test_random_weights_match_torch(tensors):
    torch.manual_seed(1)
    a = torch.randn(1100, 1000)
    b = a + 0.01 * torch.randn(1100, 1000)
    numbers = tensors(a, b, threads=3).numbers
    x, y = a.double(), b.double()
    assert numbers.elements == 1_100_000
    assert numbers.relative == pytest.approx(float((x - y).norm() / x.norm()))
    assert numbers.max_abs == float((x - y).abs().max())
    assert numbers.cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()))
    assert numbers.differing == int((a != b).sum())


def test_threads_do_not_change_the_numbers(tensors):
    a, b = (of_dtype(torch.int32, 2_000_000, seed) for seed in (1, 2))
    assert tensors(a, b, threads=1).numbers == tensors(a, b, threads=4).numbers


def test_neighbours_among_64_bit_integers(tensors):
    a = torch.tensor([2**62, -(2**63), 5])
    numbers = tensors(a, a + torch.tensor([1, 3, 0])).numbers
    assert (numbers.differing, numbers.max_abs) == (2, 3)
    numbers = tensors(torch.tensor([-(2**63)]), torch.tensor([2**63 - 1])).numbers
    assert numbers.max_abs == 2.0**64
    a = torch.tensor([2**64 - 1, 1], dtype=torch.uint64)
    numbers = tensors(a, torch.tensor([2**64 - 3, 1], dtype=torch.uint64)).numbers
    assert (numbers.differing, numbers.max_abs) == (1, 2)


def test_zeros(tensors):
    zeros, ones = torch.zeros(4), torch.ones(4)
    from_zero = tensors(zeros, ones).numbers
    assert (from_zero.relative, from_zero.cosine) == (math.inf, None)
    to_zero = tensors(ones, zeros).numbers
    assert (to_zero.relative, to_zero.cosine) == (1.0, None)


# Bits


def test_zeros_of_other_sign_are_equal_values_in_other_bits(tensors):
    found = tensors(torch.tensor([0.0, 1.0, -0.0]), torch.tensor([-0.0, 1.0, -0.0]))
    assert found.status == "differs"
    numbers = found.numbers
    assert (numbers.differing, numbers.differing_bits, numbers.max_abs, numbers.relative) == (0, 1, 0, 0)


def test_nan_of_another_payload_is_not_identical(tensors):
    a, b = (torch.tensor([payload, 1], dtype=torch.int32).view(torch.float32) for payload in (0x7FC00000, 0x7FC00001))
    assert tensors(a, a.clone()).status == "identical"
    found = tensors(a, b)
    assert found.status == "differs"
    numbers = found.numbers
    assert (numbers.differing, numbers.differing_bits, numbers.nan_a, numbers.nan_b) == (0, 1, 1, 1)
    assert numbers.relative == 0


def test_nan_and_infinity_against_numbers(tensors):
    a = torch.tensor([1.0, 2.0, math.inf, -math.inf, 3.0])
    new_nan = tensors(a, torch.tensor([math.nan, 2.0, math.inf, -math.inf, 4.0])).numbers
    assert math.isnan(new_nan.max_abs)
    assert math.isnan(new_nan.relative)
    assert (new_nan.differing, new_nan.nan_a, new_nan.nan_b, new_nan.inf_a, new_nan.inf_b) == (2, 0, 1, 2, 2)
    assert new_nan.cosine == pytest.approx((4 + 12) / math.sqrt(13 * 20))
    new_inf = tensors(a, torch.tensor([1.0, -math.inf, math.inf, -math.inf, 3.0])).numbers
    assert (new_inf.max_abs, new_inf.relative, new_inf.differing) == (math.inf, math.inf, 1)
    both = tensors(a, torch.tensor([1.0, 2.0, math.inf, -math.inf, 5.0])).numbers
    assert (both.max_abs, both.relative) == (2, pytest.approx(2 / math.sqrt(14)))


def test_a_nan_in_any_piece_is_kept(tensors):
    a = torch.ones(1_000_000)
    for place in (0, 500_000, 999_999):
        b = a + 1
        b[place] = math.nan
        assert math.isnan(tensors(a, b).numbers.max_abs)


def test_other_dtypes_are_compared_by_value(tensors):
    values = torch.arange(1000) / 8
    found = tensors(values, values.double())
    assert (found.status, found.numbers.differing, found.numbers.differing_bits) == ("differs", 0, None)
    assert tensors(values, values.bfloat16()).numbers.relative == pytest.approx(
        float((values - values.bfloat16().float()).norm() / values.norm())
    )
    assert tensors(torch.ones(3), torch.ones(3, dtype=torch.complex64)).numbers.differing == 0
    assert tensors(torch.ones(3), torch.tensor([1 + 1j, 1, 1])).numbers.max_abs == 1


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no 4-bit floats")
def test_elements_of_two_numbers_are_not_compared_with_numbers(tensors):
    assert tensors(of_dtype(torch.float4_e2m1fn_x2, 3), torch.ones(3)).numbers is None


# Where the elements lie


LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.permute(2, 1, 0).contiguous().permute(2, 1, 0),
    "with gaps": lambda t: torch.zeros(2 * t.shape[0], t.shape[1], t.shape[2] + 5)[::2, :, 3:-2].copy_(t),
    "column": lambda t: torch.zeros(*t.shape, 7)[..., 2].copy_(t),
    "negated": lambda t: torch._neg_view(-t),
}


@pytest.mark.parametrize(("a", "b"), list(itertools.product(LAYOUTS, LAYOUTS)))
def test_layouts_do_not_matter_to_elements(a, b, tensors, monkeypatch):
    monkeypatch.setattr(element_pairs, "PIECE_SIZE", 20_000)
    monkeypatch.setattr(element_pairs, "_MAX_ELEMENTS", 3000)
    torch.manual_seed(2)
    values = torch.randn(30, 40, 50)
    other = values.clone()
    other[7, 8, 9] += 4
    assert tensors(LAYOUTS[a](values), LAYOUTS[b](values)).status == "identical"
    numbers = tensors(LAYOUTS[a](values), LAYOUTS[b](other)).numbers
    assert (numbers.elements, numbers.differing, numbers.differing_bits) == (60_000, 1, 1)
    assert numbers.relative == pytest.approx(float(4 / values.norm()), rel=1e-5)


def test_a_change_of_layout_is_a_difference_of_the_structure(compared):
    a = torch.randn(20, 30)
    found = compared({"t": a}, {"t": LAYOUTS["transposed"](a[None])[0]})
    assert found.tensors["t"].status == "identical"
    assert found.structure.tensors == {"t": {"layout": ("contiguous", "stride (1, 20)")}}
    assert not found.same


def test_strides_that_mean_nothing_are_no_difference(compared):
    a = {"t": torch.ones(1, 5), "e": torch.empty(0, 3)}
    b = {"t": torch.ones(9).as_strided((1, 5), (7, 1)), "e": torch.empty(3, 0).T}
    assert compared(a, b).same


def test_bytes_between_the_elements_do_not_count(tensors):
    a, b = torch.zeros(1000, 4), torch.zeros(1000, 4)
    b[:, 1] = 7
    assert tensors(a[:, 0], b[:, 0]).status == "identical"
    assert tensors(a[:, :2], b[:, :2]).numbers.differing == 1000


def test_repeated_elements_count_as_often_as_they_stand(tensors):
    a, b = (torch.tensor([1.0, value]).expand(3, 2).unsqueeze(1).expand(3, 1000, 2) for value in (2.0, 4.0))
    numbers = tensors(a, b).numbers
    assert (numbers.elements, numbers.differing) == (6000, 3000)
    assert numbers.relative == pytest.approx(float((a - b).norm() / a.norm()))
    overlapping = tensors(
        torch.arange(12.0).as_strided((10, 3), (1, 1)),
        torch.arange(12.0).square()[:30:1].clone()[:12].as_strided((10, 3), (1, 1)),
    )
    assert overlapping.numbers.elements == 30
    # Far more elements than bytes: what is compared does not grow with them.
    huge = tensors(torch.tensor(1.0).expand(10**6, 10**6), torch.tensor(2.0).expand(10**6, 10**6))
    assert (huge.numbers.elements, huge.numbers.max_abs) == (10**12, 1)


def test_complex_numbers_conjugated_and_not(tensors):
    values = torch.tensor([1 + 2j, 3 - 4j, 0j])
    assert tensors(values.conj(), values.conj().resolve_conj()).status == "identical"
    assert tensors(values.conj(), values.clone().conj()).status == "identical"
    numbers = tensors(values, values.conj()).numbers
    assert (numbers.differing, numbers.differing_bits, numbers.max_abs) == (2, 3, 8)
    assert tensors(values.imag, values.conj().imag).numbers.differing == 2


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6), st.integers(0, 6)), max_size=4),
    alike=st.booleans(),
    max_reach=st.integers(1, 12),
    max_elements=st.integers(1, 9),
)
def test_pieces_cover_every_pair_once(rows, alike, max_reach, max_elements):
    shape, stride_a, stride_b = (tuple(row[i] for row in rows) for i in range(3))
    stride_b = stride_a if alike else stride_b
    entries = [Entry("t", "uint8", shape, stride, 0, 0) for stride in (stride_a, stride_b)]
    pairs = ElementPairs.of(*entries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(element_pairs, "PIECE_SIZE", max_reach)
        patch.setattr(element_pairs, "_MAX_ELEMENTS", max_elements)
        pieces = list(pairs.pieces(1))
    found: Counter[tuple[int, int]] = Counter()
    for piece in pieces:
        assert math.prod(dim.extent for dim in piece.dims) <= max_elements
        assert element_pairs.reach_a(piece.dims) <= max_reach
        for index in itertools.product(*(range(dim.extent) for dim in piece.dims)):
            steps = list(zip(index, piece.dims, strict=True))
            at_a = piece.start_a + sum(i * dim.step_a for i, dim in steps)
            at_b = piece.start_b + sum(i * dim.step_b for i, dim in steps)
            found[at_a, at_b] += pairs.repeats
    expected: Counter[tuple[int, int]] = Counter()
    for index in itertools.product(*map(range, shape)):
        expected[tuple(sum(i * s for i, s in zip(index, stride, strict=True)) for stride in (stride_a, stride_b))] += 1
    assert found == expected


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


# Structure


def test_names_types_and_flags(compared):
    a = {
        "t": torch.ones(3),
        "d": torch.ones(2),
        "s": torch.ones(2, 3),
        "p": torch.nn.Parameter(torch.ones(2)),
        "a": torch.ones(1),
    }
    b = {"t": torch.ones(3), "d": torch.ones(2).half(), "s": torch.ones(3, 2), "p": torch.ones(2), "b": torch.ones(1)}
    found = compared(a, b).structure
    assert list(found.pairs) == ["t", "d", "s", "p"]
    assert [entry.name for entry in found.only_a] == ["a"]
    assert [entry.name for entry in found.only_b] == ["b"]
    assert found.tensors == {
        "d": {"dtype": ("float32", "float16")},
        "s": {"shape": ([2, 3], [3, 2])},
        "p": {"requires_grad": (True, False), "parameter": (True, False)},
    }


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


def prefixed(state, prefix):
    return type(state)((f"{prefix}{name}", value) for name, value in state.items())


PREFIXES = ["_orig_mod.", "module.", "model.", "_orig_mod.module.", "module._orig_mod."]


@pytest.mark.parametrize(
    ("prefix", "format_a", "format_b"),
    [
        *((prefix, "pt", "fckpt") for prefix in PREFIXES),
        *(("_orig_mod.", a, b) for a in FORMATS for b in FORMATS if "safetensors" in (a, b) or a == b),
    ],
)
def test_a_renamed_set_is_paired(tmp_path, prefix, format_a, format_b):
    state = {"h.0.w": torch.arange(6.0), "h.1.w": torch.ones(2), "head": torch.zeros(3)}
    a = write(prefixed(state, prefix), tmp_path / f"a.{format_a}")
    b = write({**state, "head": torch.ones(3)}, tmp_path / f"b.{format_b}")
    for one, other, sides, start in ((a, b, (prefix, ""), prefix), (b, a, ("", prefix), "")):
        found = compare(one, other)
        assert found.structure.renamed == sides
        assert not found.structure.only_a
        assert not found.structure.only_b
        assert {name: tensor.status for name, tensor in found.tensors.items()} == {
            f"{start}h.0.w": "identical",
            f"{start}h.1.w": "identical",
            f"{start}head": "differs",
        }
        assert found.same is False


@pytest.mark.parametrize("format_", ["fckpt", "pt"])
def test_a_renamed_model_inside_a_state_is_paired(tmp_path, format_):
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
    compiled = torch.nn.Module()  # As torch.compile wraps it.
    compiled._orig_mod = net
    a = {"model": compiled.state_dict(), "ema": compiled.state_dict(), "step": 3}
    b = {"model": net.state_dict(), "ema": net.state_dict(), "step": 3}
    found = compare(write(a, tmp_path / f"a.{format_}"), write(b, tmp_path / f"b.{format_}"))
    assert found.structure.renamed == ("_orig_mod.", "")
    assert {tensor.status for tensor in found.tensors.values()} == {"identical"}
    assert not found.structure.values  # The versions of modules have the prefix, too.
    assert not found.structure.containers
    assert found.same is False


def test_two_different_prefixes_are_paired(compared):
    state = {"w": torch.ones(2), "b": torch.ones(1)}
    found = compared(prefixed(state, "_orig_mod."), prefixed(state, "module."))
    assert found.structure.renamed == ("_orig_mod.", "module.")
    found = compared(prefixed(state, "model.model."), prefixed(state, "model."))
    assert found.structure.renamed == ("model.", "")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (["module.w"], ["v"]),
        (["module.w", "x"], ["w", "y"]),
        (["module.w", "w"], ["w", "v"]),
        (["encoder.w"], ["w"]),
        (["module.w", "module.v"], ["w"]),
        (["module."], [""]),
    ],
)
def test_other_names_are_not_paired(compared, a, b):
    found = compared(*({name: torch.ones(1) for name in names} for names in (a, b)))
    assert found.structure.renamed is None
    assert found.same is False


def test_keys_find_renamed_tensors_by_either_name(compared):
    state = {"h.w": torch.ones(2), "h.b": torch.ones(1), "o": torch.ones(1)}
    for keys in ("h.*", "module.h.*"):
        found = compared(prefixed(state, "module."), state, keys=keys)
        assert list(found.tensors) == ["module.h.w", "module.h.b"]
        assert found.same is False


def test_another_order_is_only_noted(compared):
    found = compared({"a": torch.ones(1), "b": torch.zeros(1)}, {"b": torch.zeros(1), "a": torch.ones(1)})
    assert found.same
    assert "another order" in found.structure.notes[0]


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


def test_tensors_that_overlap_without_end_differ_without_numbers(tmp_path: Path) -> None:
    for name, base in (("a", torch.zeros(200_000)), ("b", torch.ones(200_000))):
        torch.save({"x": base.as_strided((100_000, 100_000), (1, 1))}, tmp_path / f"{name}.pt")
    found = compare(tmp_path / "a.pt", tmp_path / "b.pt").tensors["x"]
    assert (found.status, found.numbers) == ("differs", None)
    assert compare(tmp_path / "a.pt", tmp_path / "a.pt").tensors["x"].status == "identical"
