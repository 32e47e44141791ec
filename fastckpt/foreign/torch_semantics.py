"""What the globals, calls and persistent ids of a pickle that torch wrote stand for."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

from fastckpt.errors import UnsupportedStateError
from fastckpt.foreign.model import Opaque
from fastckpt.foreign.pickle_limits import Budget, is_plain_key, slow_keys
from fastckpt.foreign.torch_objects import (
    KNOWN_GLOBALS,
    MAX_EXTENT,
    Function,
    Storage,
    StorageType,
    Tensor,
    UnknownStorage,
    apply,
    bad_call,
    with_state,
)
from fastckpt.layout.key_watch import KeyWatch
from fastckpt.layout.tree import AttributedDict

MAX_GLOBALS: Final = 10_000
"""Different globals in one pickle; a checkpoint has some tens."""
MAX_NAME: Final = 1000
"""Characters of a global's name, its module included."""

# The names a module had when older versions of Python and torch wrote the file.
_RENAMED_MODULES: Final = MappingProxyType(
    {"__builtin__": "builtins", "copy_reg": "copyreg", "torch.tensor": "torch._tensor"}
)

# The classes of Python 2 by whose names protocols 0 to 2 call those of today.
_RENAMED: Final = MappingProxyType(
    {"builtins.xrange": "builtins.range", "builtins.long": "builtins.int", "builtins.unicode": "builtins.str"}
)


class TorchSemantics:
    """Gives meaning to the globals of one pickle; collects what it refers to.

    Attributes:
        storages: Every storage that is referred to, by key, as first seen.
        locations: How many storages were on which device.
        unknown: The globals that are not understood, in order.
        described: Bytes outside of the pickle that describe its tensors.
    """

    described = 0

    def __init__(self, pickle_size: int) -> None:
        self.storages: dict[str, Storage] = {}
        self.locations: dict[str, int] = {}
        self.unknown: dict[str, None] = {}
        # Bytes and dict items in a pickle take at least one byte each.
        self.budget = Budget(pickle_size)
        self._globals: dict[tuple[str, str], object] = {}
        # These two spend from the budget.
        self._own = {
            "collections.OrderedDict": Function("collections.OrderedDict", self._make_ordered_dict, 0, 1),
            "_codecs.encode": Function("_codecs.encode", self._make_bytes, 1, 3),
        }

    def find_global(self, module: str, name: str) -> object:
        """The known meaning of ``module.name``, or an `Opaque`. Nothing is imported."""
        found = self._globals.get((module, name))
        if found is None:
            found = self._globals[module, name] = self._resolve(module, name)
        return found

    def _resolve(self, module: str, name: str) -> object:
        global_name = f"{_RENAMED_MODULES.get(module, module)}.{name}"
        global_name = _RENAMED.get(global_name, global_name)
        if len(global_name) > MAX_NAME or len(self._globals) >= MAX_GLOBALS:
            raise UnsupportedStateError(
                f"the pickle names more than {MAX_GLOBALS} globals, or one with more than {MAX_NAME} characters"
            )
        known = self._own.get(global_name) or KNOWN_GLOBALS.get(global_name)
        if known is None:
            self.unknown[global_name] = None
            return Opaque(global_name, is_class=True)
        return known

    def call(self, function: object, args: tuple[Any, ...]) -> object:
        """The description of what ``function(*args)`` makes; a call of something unknown is unknown."""
        if type(function) is Function:
            return apply(function, args)
        if type(function) is Opaque:
            # What is called is mostly a class; an object with something in it is worth keeping, too.
            return Opaque(function.global_name, args if function.is_class else (function, args))
        if type(function) is StorageType:
            return Opaque(function.global_name, args)
        raise bad_call("a call", "something that cannot be called")

    def build(self, instance: object, state: object) -> None:
        """Keep the attributes of an OrderedDict or a tensor."""
        if type(instance) is AttributedDict:
            if type(state) is not dict:
                state = {"state": Opaque("state of an OrderedDict that is not a dict", [state])}
            self.budget.spend(len(state))
            if not all(type(name) is str for name in state):
                raise bad_call("an OrderedDict", "an attribute whose name is not text")
            instance.__dict__.setdefault("attributes", {}).update(state)
        elif type(instance) is Tensor:
            with_state(instance, state)
        elif type(instance) is Opaque:
            instance.add_state(state)
        else:
            raise bad_call("a plain value", "a state")

    def load_persistent(self, identifier: object) -> object:
        """The storage (or, in old files, the module class) that a persistent id names."""
        if type(identifier) is not tuple or not identifier:
            raise bad_call("a persistent id", "something else than a tuple")
        if identifier[0] == "module" and len(identifier) == 4:
            # The class of a module with its source text, which torch kept to warn about changes.
            return identifier[1]
        if identifier[0] != "storage" or len(identifier) not in (5, 6):
            raise bad_call("a persistent id", "neither a storage nor a module")
        return self._storage(*identifier[1:])

    def _storage(
        self, kind: object, key: object, location: object, numel: object, view: object = None
    ) -> Storage | Opaque:
        if type(kind) is not StorageType:
            if type(kind) is Opaque and type(key) is str:
                return Opaque(kind.global_name, [UnknownStorage(key), location, numel, view])
            raise bad_call("a storage", "something else than a storage class")
        if type(key) is not str or type(location) is not str:
            raise bad_call("a storage", "a key or location that is not text")
        if type(numel) is not int or not 0 <= numel < MAX_EXTENT:
            raise bad_call("a storage", "a length that is not a number from 0 to 2**63")
        first = self.storages.get(key)
        if first is None:
            first = self.storages[key] = Storage(key, kind, numel * kind.itemsize)
            self.locations[location] = self.locations.get(location, 0) + 1
        elif first.nbytes != numel * kind.itemsize:
            sizes = f"{first.nbytes} and {numel * kind.itemsize} bytes"
            raise bad_call("a storage", f"two sizes for the key {key[:80]!r}, {sizes}")
        if view is None:
            return first if first.type is kind else Storage(key, kind, first.nbytes)
        if type(view) is not tuple or len(view) != 3 or type(view[1]) is not int or not 0 <= view[1] < MAX_EXTENT:
            raise bad_call("a storage", "a view that is not a key, an offset and a length")
        return Storage(key, kind, first.nbytes, view[1] * kind.itemsize)

    def _make_ordered_dict(self, items: object = ()) -> object:
        result = AttributedDict()
        if items == () or items == []:
            return result
        if type(items) is not list:
            return Opaque("collections.OrderedDict", [items])
        self.budget.spend(len(items))
        keys = KeyWatch()
        for pair in items:
            if type(pair) not in (list, tuple) or len(pair) != 2 or not is_plain_key(pair[0]):
                return Opaque("collections.OrderedDict", [items])
            if type(pair[0]) is int and not keys.admits(pair[0], result):
                raise slow_keys()
            result[pair[0]] = pair[1]
        return result

    def _make_bytes(self, text: object, encoding: object = None, errors: object = None) -> object:
        if type(text) is not str or encoding != "latin1":
            return Opaque("_codecs.encode", [text, encoding, errors])
        self.budget.spend(len(text))
        try:
            return text.encode("latin1")
        except UnicodeEncodeError:
            raise bad_call("_codecs.encode", "text that is not latin-1") from None
