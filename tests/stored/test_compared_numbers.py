"""diff of elements: the numbers are those of torch, whatever the layout and the dtype."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from states import DTYPES, of_dtype

from fastckpt.layout.entries import Entry
from fastckpt.stored import element_pairs
from fastckpt.stored.comparison import compare
from fastckpt.stored.element_pairs import ElementPairs

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


def test_tensors_that_overlap_without_end_differ_without_numbers(tmp_path: Path) -> None:
    for name, base in (("a", torch.zeros(200_000)), ("b", torch.ones(200_000))):
        torch.save({"x": base.as_strided((100_000, 100_000), (1, 1))}, tmp_path / f"{name}.pt")
    found = compare(tmp_path / "a.pt", tmp_path / "b.pt").tensors["x"]
    assert (found.status, found.numbers) == ("differs", None)
    assert compare(tmp_path / "a.pt", tmp_path / "a.pt").tensors["x"].status == "identical"
