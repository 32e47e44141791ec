"""Facts as JSON, written as they are gone through: a document can be larger than all that it tells of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final

from fastckpt.stored.plain import plain

_INDENT: Final = "  "
_SCALARS: Final = frozenset((type(None), bool, int, float, str, bytes))


def write_json(value: Any, write: Callable[[str], object]) -> None:
    """Write plain values, and dataclasses and mappings of them, as JSON; see `fastckpt.stored.plain.plain`.

    Args:
        value: What to write.
        write: Takes the text in pieces.
    """
    _write("", value, write, "\n")


def _write(before: str, value: Any, write: Callable[[str], object], line: str) -> None:
    """Write a value behind some text; ``line`` begins a new line."""
    kind = type(value)
    if kind in _SCALARS:
        write(before + _scalar(value))
    elif kind is dict or isinstance(value, Mapping):
        _write_items(before, value, write, line)
    elif isinstance(value, list | tuple | set | frozenset):
        inner = line + _INDENT
        before += "["
        for item in value:
            _write(before + inner, item, write, inner)
            before = ","
        write(line + "]" if value else before + "]")
    elif is_dataclass(value):
        _write_items(before, {field.name: getattr(value, field.name) for field in fields(value)}, write, line)
    else:
        write(before + _scalar(value))


def _write_items(before: str, items: Mapping[Any, Any], write: Callable[[str], object], line: str) -> None:
    inner = line + _INDENT
    if any(type(key) is not str for key in items):
        items = {str(plain(key)): item for key, item in items.items()}
    before += "{"
    for key, item in items.items():
        _write(f"{before}{inner}{quoted(key)}: ", item, write, inner)
        before = ","
    write(line + "}" if items else before + "}")


def _scalar(value: Any) -> str:
    value = plain(value)
    if isinstance(value, str):
        return quoted(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return float.__repr__(value) if isinstance(value, float) else str(value)
