"""Keys that a file chose to make a dict slow, found while they go in.

Python mixes a secret into the hash of text, but an int is its own hash. So who
writes a file can choose ints that all want the same place in a dict, or that
follow one another from place to place, and then each of them takes as many
steps as the dict has keys. Honest keys take a few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["KeyWatch", "makes_slow"]

_SMALL: Final = 128
"""A dict of so few keys is never slow."""
_STEPS_PER_KEY: Final = 64
"""Ints that differ only in their highest bits, the worst honest ones, take 30 (of 30,000) to 59 (of 350,000)."""
_FREE_STEPS: Final = 1 << 16


class KeyWatch:
    """Watches the dicts that are made from one file, in the order in which their keys go in."""

    def __init__(self) -> None:
        self._tables: dict[int, tuple[Mapping[Any, Any], _Table]] = {}

    def admits(self, key: object, into: Mapping[Any, Any]) -> bool:
        """Whether ``key``, which is not text and may be there already, can go into a dict that was watched so far."""
        size = len(into)
        if size < _SMALL:
            return True
        known = self._tables.get(id(into))
        if known is None:
            first = next(iter(into))
            if type(key) is int and type(first) is int and 0 <= key - first <= size:
                # A dict has more places than keys. Ints this close together want one each.
                return True
            # The dict stays referenced, so that no other one gets its id.
            known = self._tables[id(into)] = (into, _Table(into))
        return known[1].place(key)


def makes_slow(keys: Iterable[Any]) -> bool:
    """Whether a dict or a set of these keys would be slow. Raises TypeError for what cannot be a key."""
    watch, made = KeyWatch(), dict[Any, None]()
    for key in keys:
        if type(key) is not str and not watch.admits(key, made):
            return True
        made[key] = None
    return False


class _Table:
    """Takes the steps that CPython's dict takes (Objects/dictobject.c), and counts them."""

    def __init__(self, keys: Iterable[object]) -> None:
        self._size = 8
        self._slots: list[object] = [None] * 8
        self._used: list[object] = []
        self._steps = -_FREE_STEPS
        for key in keys:
            self.place(key)

    def place(self, key: object) -> bool:
        """Find the place of a key. False if the keys so far took more steps than honest ones do."""
        if self._find(key):
            self._used.append(key)
            if 3 * len(self._used) > 2 * self._size:
                self._grow()
        return not self._is_slow()

    def _is_slow(self) -> bool:
        return self._steps > _STEPS_PER_KEY * len(self._used)

    def _find(self, key: object) -> bool:
        """Whether the key is new."""
        slots, mask = self._slots, self._size - 1
        perturb = hash(key) & 0xFFFF_FFFF_FFFF_FFFF
        at = perturb & mask
        steps = 0
        while (there := slots[at]) is not None:
            if there == key:
                break
            perturb >>= 5
            at = (5 * at + perturb + 1) & mask
            steps += 1
        self._steps += steps
        slots[at] = key
        return there is None

    def _grow(self) -> None:
        while self._size < 3 * len(self._used):
            self._size *= 2
        self._slots = [None] * self._size
        for key in self._used:
            self._find(key)
            if self._is_slow():
                return
