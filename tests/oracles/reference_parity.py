"""Parity as SPEC.md says it, in plain NumPy: a second writer of it, and a second way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

LEAF = 16384
Bytes = npt.NDArray[np.uint8]


def _table() -> Bytes:
    """The products of any two numbers of GF(2^8) modulo 0x11D: carry-less, then reduced."""
    a = np.arange(256, dtype=np.uint32)[:, None]
    b = np.arange(256, dtype=np.uint32)[None, :]
    product = np.zeros((256, 256), np.uint32)
    for bit in range(8):
        product ^= np.where(b >> bit & 1, a << bit, 0).astype(np.uint32)
    for bit in range(14, 7, -1):
        product ^= np.where(product >> bit & 1, 0x11D << (bit - 8), 0).astype(np.uint32)
    return product.astype(np.uint8)


PRODUCTS = _table()


def power(base: int, exponent: int) -> int:
    """``base`` times itself, ``exponent`` times."""
    value = 1
    for _ in range(exponent):
        value = int(PRODUCTS[value, base])
    return value


def leaves_of(data: bytes) -> Bytes:
    """The leaves of a file, the last one filled up with zeros."""
    count = -(-len(data) // LEAF)
    return np.frombuffer(data.ljust(count * LEAF, b"\0"), np.uint8).reshape(count, LEAF)


def parity_of(data: bytes, groups: int, rows: int) -> Bytes:
    """An array [rows, groups, LEAF]."""
    leaves = leaves_of(data)
    parity = np.zeros((rows, groups, LEAF), np.uint8)
    for number, leaf in enumerate(leaves):
        for row in range(rows):
            parity[row, number % groups] ^= PRODUCTS[power(1 << row, number // groups)][leaf]
    return parity


def solve(matrix: Sequence[Sequence[int]], sums: Sequence[Bytes]) -> list[Bytes]:
    """The leaves x with ``matrix`` x = ``sums``: by Cramer's rule, which shares no step with elimination."""
    whole = determinant(matrix)
    inverse = int(np.nonzero(PRODUCTS[whole] == 1)[0][0])
    found = []
    for column in range(len(matrix)):
        value = np.zeros(LEAF, np.uint8)
        for row in range(len(matrix)):
            rest = [[*line[:column], *line[column + 1 :]] for at, line in enumerate(matrix) if at != row]
            value ^= PRODUCTS[int(PRODUCTS[determinant(rest), inverse])][sums[row]]
        found.append(value)
    return found


def determinant(matrix: Sequence[Sequence[int]]) -> int:
    """Of a small square matrix; signs do not matter in this field."""
    if not matrix:
        return 1
    total = 0
    for column, head in enumerate(matrix[0]):
        total ^= int(PRODUCTS[head, determinant([[*line[:column], *line[column + 1 :]] for line in matrix[1:]])])
    return total


def recovered(leaves: Mapping[int, Bytes], lost: Sequence[int], parity: Mapping[int, Bytes]) -> list[Bytes]:
    """Lost leaves of a group, by their numbers in it, from the others and as many of its rows."""
    rows = sorted(parity)[: len(lost)]
    sums = []
    for row in rows:
        rest = parity[row].copy()
        for number, leaf in leaves.items():
            rest ^= PRODUCTS[power(1 << row, number)][leaf]
        sums.append(rest)
    return solve([[power(1 << row, number) for number in lost] for row in rows], sums)
