"""A leaf of a state as JSON has it."""

from __future__ import annotations

from typing import Any

from fastckpt.layout.tree import DeviceRef, DTypeRef, NamedRef, SizeRef
from fastckpt.stored.named_text import named_text
from fastckpt.stored.plain import plain


def leaf_value(leaf: Any) -> Any:
    """A plain value, or what one of torch's own small objects is called, as JSON has it."""
    if isinstance(leaf, list):
        return [leaf_value(item) for item in leaf]
    if isinstance(leaf, tuple):
        return tuple(leaf_value(item) for item in leaf)
    if type(leaf) is DTypeRef:
        return f"torch.{leaf.name}"
    if type(leaf) is SizeRef:
        return list(leaf.shape)
    if type(leaf) is DeviceRef:
        return leaf.name
    if type(leaf) is NamedRef:
        return named_text(leaf)
    return plain(leaf)
