"""Two states written and compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from in_format import write

from fastckpt.stored.comparison import Comparison, TensorDifference, compare


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
