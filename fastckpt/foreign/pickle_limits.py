"""What a pickle may not have too much of."""

from __future__ import annotations

from fastckpt.constants import MAX_INT_KEY_SIZE
from fastckpt.errors import UnsupportedStateError


def is_plain_key(key: object) -> bool:
    """Whether ``key`` may be a dict key as it is: hashing a very long int takes time at every use."""
    return type(key) is str or (type(key) is int and key.bit_length() < 8 * MAX_INT_KEY_SIZE)


def slow_keys() -> UnsupportedStateError:
    """The error for what `KeyWatch` does not admit."""
    return UnsupportedStateError("the int keys of a dict are chosen to make it slow, to exhaust time")


class Budget:
    """How many items may still be copied on behalf of calls in the pickle.

    A call takes two bytes in a pickle but can copy a container of any size
    that was built once. Pickles of real objects copy each item at most once.
    """

    def __init__(self, items: int) -> None:
        self.left = items

    def spend(self, items: int) -> None:
        """Raise UnsupportedStateError when more is copied than an honest pickle of this size needs."""
        self.left -= items
        if self.left < 0:
            raise UnsupportedStateError("the pickle copies the same objects again and again, to exhaust memory")
