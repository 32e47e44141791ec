"""What a pickle that fastckpt writes makes by calls: the call, and what is put into the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Global(NamedTuple):
    """What is found under a name: ``module.name``."""

    module: str
    name: str


class StorageAs(NamedTuple):
    """The storage with this number, seen as a class of torch other than that of its element type."""

    number: int
    kind: str
    itemsize: int


class Made(NamedTuple):
    """What is made by a call, and what is put into it then.

    Attributes:
        by: The class or function, or how that is had.
        args: What it is called with.
        items: What is appended.
        pairs: Keys and values that are set.
        state: What is set in it, mostly a dict of attributes; None if nothing is.
        bare: Whether only ``__new__`` is called, and no ``__init__``.
    """

    by: Global | Made
    args: tuple[Any, ...] = ()
    items: Sequence[Any] = ()
    pairs: Sequence[tuple[Any, Any]] = ()
    state: Any = None
    bare: bool = False
