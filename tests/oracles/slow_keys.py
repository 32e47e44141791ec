"""Ints that are chosen to make a dict slow: each takes as many steps as there are keys before it."""

from __future__ import annotations

import numpy as np

MODULUS = 2**61 - 1
"""Python's ints are their own hash modulo this number, without a secret."""


def same_hash(count: int) -> list[int]:
    """Ints that Python cannot tell apart by their hash."""
    return [k * MODULUS for k in range(1, count + 1)]


def same_way(count: int) -> list[int]:
    """Ints with hashes of their own, of which half take the same long way through the other half in a dict."""
    size = 1 << (3 * count // 2).bit_length()
    chain = [0]
    while len(chain) < count // 2:
        chain.append((5 * chain[-1] + 1) % size)
    taken = np.zeros(size, bool)
    taken[chain] = True
    near = np.zeros(size, bool)
    near[chain[: count // 8]] = True
    keys = (size * np.arange(1, 1 << 8)[:, np.newaxis] + np.array(chain)).ravel()
    perturb, slot = keys.copy(), keys % size
    while perturb.any():
        perturb >>= 5
        slot = (5 * slot + perturb + 1) % size
        on = taken[slot] | (perturb == 0)
        keys, perturb, slot = keys[on], perturb[on], slot[on]
    return [*chain, *keys[near[slot]][: count // 2].tolist()]
