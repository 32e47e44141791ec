"""What is done to a file in a lab: to its bytes, by chance; ``unit`` is how many groups it has."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from fastckpt.constants import LEAF_SIZE as LEAF


def flips(raw: bytearray, rng: random.Random, unit: int) -> None:
    """Bits in some leaves."""
    for _ in range(rng.randrange(1, 2 + unit)):
        if raw:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def burst(raw: bytearray, rng: random.Random, unit: int) -> None:
    """Other bytes in one place, about as many as can be healed."""
    size = rng.randrange(1, 3 * unit * LEAF)
    at = rng.randrange(max(len(raw), 1))
    size = len(raw[at : at + size])
    raw[at : at + size] = rng.randbytes(size)


def hole(raw: bytearray, rng: random.Random, unit: int) -> None:
    """Zeros, often whole leaves."""
    first = rng.randrange(max(len(raw) // LEAF, 1)) * LEAF
    count = rng.randrange(1, 3 * unit + 1)
    raw[first : first + count * LEAF] = bytes(len(raw[first : first + count * LEAF]))


def sectors(raw: bytearray, rng: random.Random, unit: int) -> None:
    """Some pages of 4 KiB."""
    for _ in range(rng.randrange(1, 2 * unit + 2)):
        at = rng.randrange(max(len(raw) // 4096, 1)) * 4096
        raw[at : at + 4096] = rng.randbytes(len(raw[at : at + 4096]))


def cut(raw: bytearray, rng: random.Random, unit: int) -> None:
    del raw[max(len(raw) - rng.randrange(1, 3 * unit * LEAF), 0) :]


def longer(raw: bytearray, rng: random.Random, unit: int) -> None:
    raw += rng.randbytes(rng.randrange(1, 3 * LEAF))


def shifted(raw: bytearray, rng: random.Random, unit: int) -> None:
    """Bytes put in."""
    at = rng.randrange(len(raw) + 1)
    raw[at:at] = rng.randbytes(rng.randrange(1, 9))


def nothing(raw: bytearray, rng: random.Random, unit: int) -> None:
    pass


KINDS: list[Callable[[bytearray, random.Random, int], None]] = [
    flips, burst, hole, sectors, cut, longer, shifted, nothing
]  # fmt: skip


def run_cases(cases: int, run: Callable[[int], str]) -> Counter[str]:
    """How often a case became what; ``run`` is given the number of each, which an error names."""
    became: Counter[str] = Counter()
    for seed in range(cases):
        try:
            became[run(seed)] += 1
        except BaseException as error:
            error.add_note(f"case {seed}")
            raise
    return became
