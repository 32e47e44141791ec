"""`fastckpt.register`: a program's own classes in checkpoints."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from fastckpt.errors import UnsupportedStateError, UsageError
from fastckpt.layout.tree_nodes import PLAIN_TYPES

_PLAIN_TENSORS: Final = ("torch.Tensor", "torch.nn.parameter.Parameter")


class Registered(NamedTuple):
    """A class that a program registered; without functions it is an enum, namedtuple or dataclass."""

    cls: type
    name: str
    to_plain: Callable[[Any], Any] | None
    from_plain: Callable[[Any], Any] | None

    def plain(self, value: Any) -> Any:
        """What ``to_plain`` makes of an object. Raises UnsupportedStateError for whatever it raises."""
        return self._called("to_plain", self.to_plain, value, None)

    def made_of(self, plain: Any) -> Any:
        """The object that ``from_plain`` makes. Raises UnsupportedStateError for whatever it raises."""
        return self._called("from_plain", self.from_plain, plain, "load the tensors alone, with keys=")

    def _called(self, what: str, function: Callable[[Any], Any] | None, value: Any, next_step: str | None) -> Any:
        assert function is not None, "only such a class is asked"
        try:
            return function(value)
        except UnsupportedStateError:
            raise
        except Exception as error:
            text = f"the {what} registered for {self.name} raises {type(error).__name__}: {str(error)[:200]}"
            raise UnsupportedStateError(text, next_step=next_step) from error


_by_class: dict[type, Registered] = {}
_by_name: dict[str, Registered] = {}


def class_name(cls: type) -> str:
    """The name by which a file knows a class: ``module.Class``, or ``module:Outer.Inner`` if it is in another one."""
    return f"{cls.__module__}{':' if '.' in cls.__qualname__ else '.'}{cls.__qualname__}"


def is_namedtuple(cls: type) -> bool:
    """Whether a class is one that ``collections.namedtuple`` or ``typing.NamedTuple`` made."""
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple) and hasattr(cls, "_make")


def register(
    cls: type,
    to_plain: Callable[[Any], Any] | None = None,
    from_plain: Callable[[Any], Any] | None = None,
    *,
    name: str | None = None,
) -> None:
    """Let `save` and `load` know a class of yours. Register it before either; nothing in a file does.

    Args:
        cls: The class. Objects of classes derived from it are not meant.
        to_plain: Makes of an object what `save` can store (tensors too). Not needed for an enum,
            namedtuple, dataclass or tensor with ``__tensor_flatten__``: `save` knows these anyway, and `load` gives a
            `Placeholder` where the class is not registered.
        from_plain: Makes the object of that again; only `load` calls it.
        name: What the class is called in files; it has a dot in it. None takes module and class name.
            An enum, namedtuple or dataclass without functions is always called by module and class
            name when it is saved; ``name`` is then the one in the file, should the class have moved.

    Raises:
        UsageError: No class, or one that `save` knows without; just one of the two functions; a name without a dot,
            or one of another class.

    Example:
        >>> import uuid
        >>> fastckpt.register(uuid.UUID, str, uuid.UUID)
        >>> fastckpt.save({"run": uuid.UUID(int=7)}, "run.fckpt")
    """
    if not isinstance(cls, type):
        raise UsageError("register takes a class", actual=f"{cls!r:.80}", next_step="fastckpt.register(type(x), ...)")
    if cls in PLAIN_TYPES or class_name(cls) in _PLAIN_TENSORS:
        raise UsageError(f"{class_name(cls)} is stored as it is, and cannot be registered")
    if (to_plain is None) != (from_plain is None):
        raise UsageError("register takes both to_plain and from_plain, or neither")
    known_kind = issubclass(cls, enum.Enum) or is_namedtuple(cls) or dataclasses.is_dataclass(cls)
    if to_plain is None and not known_kind and not hasattr(cls, "__tensor_unflatten__"):
        raise UsageError(
            f"{class_name(cls)} is no enum, namedtuple, dataclass or tensor with __tensor_flatten__",
            next_step="give to_plain and from_plain",
        )
    name = name or class_name(cls)
    if "." not in name:
        raise UsageError("the name of a registered class has a dot in it, such as 'my.Config'", actual=name)
    known = _by_name.get(name)
    if known is not None and class_name(known.cls) != class_name(cls):
        raise UsageError(f"{name!r} is registered for {class_name(known.cls)}", actual=class_name(cls))
    _by_name[name] = _by_class[cls] = Registered(cls, name, to_plain, from_plain)


def of_class(cls: type) -> Registered | None:
    """What is registered for a class."""
    return _by_class.get(cls)


def of_name(name: str) -> Registered | None:
    """What is registered under a name."""
    return _by_name.get(name)
