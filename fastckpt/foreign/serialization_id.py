"""The last record of torch's archive: 40 digits that are the same for the same content under the same names.

torch makes them of the names, in the order of a C++ hash table, and of the CRC-32s of the records. Nothing reads them;
but a file that has them right is, byte for byte, the one that torch would have written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

_WORD: Final = 2**64 - 1
_GOLDEN: Final = 0x9E3779B9
# std::hash of text in libstdc++ (MurmurHash64A): its multiplier and its seed.
_MULTIPLIER: Final = 0xC6A4A7935BD1E995
_SEED: Final = 0xC70F6907
# How libstdc++ enlarges a hash table: the number of buckets after each step, which is also how many items they hold.
_BUCKETS: Final = (13, 29, 59, 127, 257, 541, 1109, 2357, 5087, 10273, 20753, 42043, 85229, 172933, 351061, 712697)


def serialization_id(names: Iterable[str], crcs: Iterable[int]) -> bytes:
    """The digits for records of these names, in the order in which they were written.

    Args:
        names: Of all records before this one, without the top directory.
        crcs: The CRC-32s of those that are not empty.
    """
    return hash_of_names(names) + hash_of_crcs(crcs)


def hash_of_names(names: Iterable[str]) -> bytes:
    """The first 20 digits."""
    found = 0
    for name in _table_order([_text_hash(name.encode()) for name in names]):
        found = combine(found, name)
    return b"%020d" % found


def hash_of_crcs(crcs: Iterable[int]) -> bytes:
    """The last 20 digits."""
    found = 0
    for crc in crcs:
        found = combine(found, crc)
    return b"%020d" % found


def combine(seed: int, value: int) -> int:
    """One hash of two, as torch's ``hash_combine`` makes it."""
    return seed ^ ((value + _GOLDEN + (seed << 6) + (seed >> 2)) & _WORD)


def first_of(digits: bytes, others: Sequence[int], *, work: int) -> int | None:
    """The CRC-32 that, in front of ``others``, gives the last 20 digits; None if none does.

    Args:
        digits: Those 20.
        others: The CRC-32s of all records but the first.
        work: Steps back that are tried, of 40 us each. N records take about N * N / 3, as a hash has often come about
            in several ways.
    """
    ways = {int(digits)}
    for crc in reversed(others):
        work -= len(ways)
        if work < 0:
            return None
        ways = {before for found in ways for before in _before(found, crc)}
    return next((first for found in ways if 0 <= (first := found - _GOLDEN) <= 0xFFFFFFFF), None)


def _before(found: int, value: int) -> Iterator[int]:
    """What `combine` can have made ``found`` of, together with ``value``.

    Each round makes two more bits certain, from the lowest one up; the two lowest are tried.
    """
    for lowest in range(4):
        seed = lowest
        for _ in range(32):
            seed = (((seed ^ found) - value - _GOLDEN - (seed << 6)) << 2 | lowest) & _WORD
        if combine(seed, value) == found:
            yield seed


def _table_order(hashes: list[int]) -> list[int]:
    """The order in which a hash table gives back what was put into it: last buckets first, last items first."""
    order: list[int] = []
    for count in _BUCKETS:
        buckets: dict[int, list[int]] = {}
        for item in [*order, *hashes[len(order) : count]]:
            buckets.setdefault(item % count, []).append(item)
        order = [item for bucket in reversed(buckets.values()) for item in reversed(bucket)]
        if len(order) == len(hashes):
            break
    return order


def _text_hash(text: bytes) -> int:
    found = _SEED ^ (len(text) * _MULTIPLIER & _WORD)
    whole = len(text) // 8 * 8
    for at in range(0, whole, 8):
        found = (found ^ _mixed(int.from_bytes(text[at : at + 8], "little"))) * _MULTIPLIER & _WORD
    if whole < len(text):
        found = (found ^ int.from_bytes(text[whole:], "little")) * _MULTIPLIER & _WORD
    found = (found ^ found >> 47) * _MULTIPLIER & _WORD
    return found ^ found >> 47


def _mixed(word: int) -> int:
    word = word * _MULTIPLIER & _WORD
    return (word ^ word >> 47) * _MULTIPLIER & _WORD
