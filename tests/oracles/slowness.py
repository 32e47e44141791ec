"""Bounds of time that were set on one machine, and hold on slower and busier ones."""

from __future__ import annotations

import statistics
import time

LOOP_SECONDS = 0.015
"""What the loop below takes on the machine that the bounds were set on, with nothing beside it."""


def within(seconds: float, bound: float) -> bool:
    """Whether that is less than the bound, or would be there: how slow it is here and now is measured if need be."""
    return seconds < bound or seconds < bound * slowness()


def slowness() -> float:
    """How many times as long Python takes here."""
    return statistics.median(_loop() for _ in range(9)) / LOOP_SECONDS


def _loop() -> float:
    start, total = time.perf_counter(), 0
    for number in range(200_000):
        total += number % 7
    return time.perf_counter() - start
