"""What the nodes of a tree are in memory, and their tags in a file."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

Path = tuple[object, ...]
"""The keys and indices that lead from the root of a state to a node."""


@dataclass(frozen=True, slots=True)
class DTypeRef:
    """A ``torch.dtype``, by its torch name (``"bfloat16"``)."""

    name: str


@dataclass(frozen=True, slots=True)
class DeviceRef:
    """A ``torch.device``, by its string form (``"cuda:0"``)."""

    name: str


class AttributedDict(OrderedDict[Any, Any]):
    """An OrderedDict that carried attributes, such as the ``_metadata`` of ``Module.state_dict()``.

    ``attributes`` maps attribute name to value. The tensor layer turns it into
    a plain ``OrderedDict`` with the attributes set.
    """

    attributes: dict[str, Any]


PLAIN_TYPES: Final = (type(None), bool, int, float, complex, str, bytes, list, tuple, dict, OrderedDict)
"""Python's types that are nodes as they are."""

TAG_NONE: Final = 0
TAG_FALSE: Final = 1
TAG_TRUE: Final = 2
TAG_INT: Final = 3
TAG_FLOAT: Final = 4
TAG_COMPLEX: Final = 5
TAG_STR: Final = 6
TAG_BYTES: Final = 7
TAG_LIST: Final = 8
TAG_TUPLE: Final = 9
TAG_DICT: Final = 10
TAG_ORDERED_DICT: Final = 11
TAG_TENSOR: Final = 12
TAG_DTYPE: Final = 13
TAG_SIZE: Final = 14
TAG_DEVICE: Final = 15
TAG_NAMED_VALUE: Final = 16


def path_text(path: Path) -> str:
    """How a place inside a state is shown to a person: ``state[0]['exp_avg']``."""
    return "state" + "".join(f"[{key!r}]" for key in path)
