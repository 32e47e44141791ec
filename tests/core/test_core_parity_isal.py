"""Parity equals that of ISA-L, a library of others, at every instruction set."""

from __future__ import annotations

import random

import numpy as np
import pytest
import reference_isal
from reference_parity import leaves_of

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE, SEAL_MAX_DEPTH

pytestmark = pytest.mark.skipif(bool(reference_isal.WHY_NOT), reason=reference_isal.WHY_NOT)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize(
    ("count", "groups"), [(1, 1), (2, 1), (20, 1), (63, 1), (64, 1), (65, 2), (130, 3), (SEAL_MAX_DEPTH, 1)]
)
def test_equals_isal(simd_level: str, rows: int, count: int, groups: int) -> None:
    data = random.Random(count).randbytes((count - 1) * LEAF_SIZE + 4711)
    parity = np.zeros((rows, groups, LEAF_SIZE), np.uint8)
    assert _core.encode_parity(data, len(data), groups, rows, 0, parity, None, threads=2) == []
    for group in range(groups):
        expected = reference_isal.encode(leaves_of(data)[group::groups], rows)
        np.testing.assert_array_equal(parity[:, group], expected)
