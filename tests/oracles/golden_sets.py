"""The states behind the golden sets. Like those of `golden_states`, one never changes once it is committed."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from golden_states import noise, of_bytes
from in_turn import Part, Rank, rows_of


class GoldenSet(NamedTuple):
    """What each rank saves, and the state that it is as a whole."""

    ranks: Callable[[], list[Rank]]
    whole: Callable[[], Any]


def _sharded() -> dict[str, torch.Tensor]:
    """Tensors whose rows are spread over two ranks: uneven, fewer than ranks, of one and of no row."""
    return {
        "weight": of_bytes(noise(5 * 12 * 4, 1), torch.float32, (5, 12)),
        "bias": of_bytes(noise(5 * 2, 2), torch.bfloat16),
        "one_row": of_bytes(noise(1 * 3 * 2, 3), torch.uint16, (1, 3)),
        "bytes": of_bytes(noise(7 * 5, 4), torch.float8_e4m3fn, (7, 5)),
        "no_row": torch.empty(0, 3, dtype=torch.complex64),
    }


def _columns() -> torch.Tensor:
    return of_bytes(noise(4 * 6 * 8, 5), torch.int64, (4, 6))


def _replicated() -> dict[str, Any]:
    return {
        "step": torch.tensor(7, dtype=torch.int32),
        "empty": torch.empty(0),
        "optimizer": {"param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1]}], "name": "Grüße"},
        "seen": {3, 1, 2},
        "recent": collections.deque([torch.tensor([1, 2], dtype=torch.uint8), None], 3),
        "raw": b"\x80\x04c\x00\xff",
    }


def _two_ranks() -> list[Rank]:
    columns = _columns()
    parts = [rows_of(("model", name), tensor, 2) for name, tensor in _sharded().items()]
    halves = [Part(("model", "columns"), (4, 6), (0, at), columns[:, at : at + 3]) for at in (0, 3)]
    return [Rank(_replicated(), (*(part[rank] for part in parts), halves[rank])) for rank in range(2)]


def _plain() -> dict[str, Any]:
    shared = torch.tensor([1.0, -0.0, float("inf")])
    return {
        "model": {"weight": of_bytes(noise(24, 6), torch.float32, (2, 3)), "scalar": torch.tensor(2.5)},
        "tied": {"one": shared, "other": shared},
        "layers": [{"w": torch.tensor([True, False])}, {"w": torch.tensor([1 + 2j])}],
        "step": 12,
    }


SETS = {
    "fsdp2": GoldenSet(_two_ranks, lambda: {**_replicated(), "model": {**_sharded(), "columns": _columns()}}),
    "plain": GoldenSet(lambda: [Rank(_plain())], _plain),
}
