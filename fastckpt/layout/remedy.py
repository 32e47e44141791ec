"""What to do about an object that a checkpoint cannot store."""

from __future__ import annotations

from typing import Any


def remedy(value: Any) -> str:
    """An expression that gives something storable for ``x``, or the way to make its class storable."""
    kind = type(value)
    for base in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset):
        if isinstance(value, base):
            return f"{base.__name__}(x)"
    if isinstance(value, dict):
        return "dict(x)"
    if kind.__module__ == "torch":
        return "str(x)"
    if isinstance(value, type):
        return "save its name, x.__name__"
    if callable(getattr(value, "state_dict", None)):
        return "x.state_dict()"
    if any(base.__module__ == "numpy" and base.__name__ == "dtype" for base in kind.__mro__):
        return "x.str"
    if kind.__name__ in ("matrix", "memmap") and kind.__module__.partition(".")[0] == "numpy":
        return "numpy.asarray(x)"
    if callable(getattr(value, "tolist", None)):
        return "x.tolist()"
    if callable(value) and hasattr(value, "__name__"):
        return "leave the function out"
    if hasattr(value, "__next__"):
        return "list(x)"
    own = f"fastckpt.register({kind.__name__}, to_plain, from_plain)"
    return f"vars(x), or {own}" if hasattr(value, "__dict__") else own
