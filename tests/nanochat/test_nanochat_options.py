"""The defaults of base_train's options, by date; and a warm-up where its options can give one."""

from __future__ import annotations

from typing import Any

import pytest

from fastckpt.nanochat.options import DEFAULTS, is_default, warm_up


def test_a_default_of_every_revision_in_question() -> None:
    assert is_default("warmdown_ratio", 0.65, "2026-03-14")
    assert not is_default("warmdown_ratio", 0.5, "2026-03-14")
    assert is_default("warmdown_ratio", 0.5, "2026-02-16", "2026-03-08")
    assert not is_default("warmdown_ratio", 0.5, "2026-02-16", "2026-03-09"), "on that day it may be either"
    assert not is_default("target_param_data_ratio", 12, "2026-03-14"), "10.5 at first"
    assert is_default("target_param_data_ratio", 12, "2026-03-25")
    assert not is_default("fp8", False, "2026-03-14")
    assert not is_default("of_a_fork", 3, "2026-03-14")


def test_dates_ascend() -> None:
    assert all(list(dates) == sorted(dates) for dates in DEFAULTS.values())


def multiplier(options: dict[str, Any], step: int) -> float:
    """What nanochat multiplies the learning rate with: linear up, constant, linear down."""
    total = options["num_iterations"]
    up = options["warmup_steps"] if "warmup_steps" in options else round(options["warmup_ratio"] * total)
    down = round(options["warmdown_ratio"] * total)
    if step < up:
        return float((step + 1) / up)
    return 1.0 if step <= total - down else (total - step) / down


@pytest.mark.parametrize("warm", [{"warmup_steps": 40}, {"warmup_ratio": 0.0}])
@pytest.mark.parametrize("step", [0, 4, 49, 119])
def test_it_begins_with_a_tenth_and_ends_before_the_warm_down(warm: dict[str, Any], step: int) -> None:
    options = {"num_iterations": 3000, "warmdown_ratio": 0.6, **warm}
    changed = warm_up(options, step)
    assert changed is not None
    after = options | changed
    assert multiplier(after, step) == pytest.approx(0.1)
    assert max(multiplier(after, later) for later in range(step, 3000)) == pytest.approx(1.0)
    assert multiplier(after, 2999) == multiplier(options, 2999)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_iterations": -1, "warmdown_ratio": 0.65, "warmup_steps": 40},
        {"num_iterations": 3000, "warmdown_ratio": 0.65},
        {"num_iterations": 3000, "warmdown_ratio": "x", "warmup_steps": 40},
        {"num_iterations": 1000, "warmdown_ratio": 0.65, "warmup_steps": 40},
    ],
)
def test_it_cannot(options: dict[str, Any]) -> None:
    assert warm_up(options, 100) is None
