"""Values from a file in the types that JSON has."""

from __future__ import annotations

import math
from typing import Any, Final

_MAX_DECIMAL_BITS: Final = 8192
"""Python refuses to print larger ints in decimal."""


def plain(value: Any) -> Any:
    """The same in types JSON has: numbers that are not finite become text, bytes hexadecimal text."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _MAX_DECIMAL_BITS else hex(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"inf": "Infinity", "-inf": "-Infinity"}.get(str(value), "NaN")
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return str(value)
