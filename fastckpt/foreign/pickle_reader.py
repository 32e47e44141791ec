"""A pickle machine that can only build plain containers.

It runs the opcodes of protocols 0 to 5. What a global name or a call means is
decided by the `Semantics` it is given; nothing is imported, and no method of
an object that the pickle names is ever called. Time and memory are bounded by
the pickle's size: lengths are checked against what is left before anything is
allocated, and work that one opcode could repeat on shared objects is charged
to a budget (see `Budget` in ``pickle_limits``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, Protocol

from fastckpt.errors import UnsupportedStateError
from fastckpt.foreign.model import Opaque
from fastckpt.foreign.pickle_input import u32_at
from fastckpt.foreign.pickle_limits import is_plain_key, slow_keys
from fastckpt.foreign.pickle_opcodes import OPCODES
from fastckpt.foreign.pickle_values import PickleValues
from fastckpt.layout.key_watch import KeyWatch
from fastckpt.layout.tree import AttributedDict

__all__ = ["KEY", "PickleReader", "Semantics"]

KEY: Final = "dict key"
"""The name of the placeholder for a dict key that is neither text nor a number: its one argument."""

_UNSET: Final = object()
"""Stands in the memo where nothing was put."""


class Semantics(Protocol):
    """What the objects outside of plain Python mean."""

    def find_global(self, module: str, name: str) -> object:
        """What stands for ``module.name``."""

    def call(self, function: object, args: tuple[Any, ...]) -> object:
        """The result of calling what `find_global` gave."""

    def build(self, instance: object, state: object) -> None:
        """Give ``instance`` its state."""

    def load_persistent(self, identifier: object) -> object:
        """The object that the pickle refers to by a persistent id."""


class _StopOpcode(Exception):
    pass


class PickleReader(PickleValues):
    """Reads one pickle out of ``data``, beginning at ``at``.

    Attributes:
        at: Position of the next byte; after `read`, of the first byte after the pickle.
    """

    def __init__(self, data: bytes, semantics: Semantics, at: int = 0) -> None:
        super().__init__(data, at)
        self.semantics = semantics
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.keys = KeyWatch()

    def read(self) -> Any:
        """The pickled object.

        Raises:
            PickleCutError: The data ends before the pickle does.
            DamagedError: The bytes are not a valid pickle.
            UnsupportedStateError: The pickle uses what a checkpoint never does.
        """
        data = self.data
        dispatch: list[Callable[[], None]] = [self.unknown_opcode] * 256
        for opcode, method in OPCODES.items():
            dispatch[opcode] = getattr(self, method)
        try:
            while True:
                opcode = data[self.at]
                self.at += 1
                dispatch[opcode]()
        except _StopOpcode:
            return self.stack[-1]
        except struct.error:
            raise self.cut() from None
        except IndexError:
            # Testing every access would cost more than all the rest, so the two things that can be short are
            # told apart here.
            if self.at >= len(data):
                raise self.cut() from None
            raise self.bad("an opcode takes more from the stack than there is") from None
        except UnicodeDecodeError as error:
            raise self.bad(f"text is not valid ({error.reason})") from None

    def pop_mark(self) -> list[Any]:
        """What was pushed since the last mark, which goes away with it."""
        if not self.marks:
            raise self.bad("there is no mark")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def unknown_opcode(self) -> None:
        raise self.bad(f"there is no opcode {self.data[self.at - 1]:#04x}")

    def stop(self) -> None:
        if not self.stack:
            raise self.bad("it ends without an object")
        raise _StopOpcode

    # --- containers ----------------------------------------------------------

    def empty_list(self) -> None:
        self.stack.append([])

    def empty_tuple(self) -> None:
        self.stack.append(())

    def empty_dict(self) -> None:
        self.stack.append({})

    def empty_set(self) -> None:
        self.stack.append(Opaque("builtins.set"))

    def list_(self) -> None:
        self.stack.append(self.pop_mark())

    def tuple_(self) -> None:
        self.stack.append(tuple(self.pop_mark()))

    def tuple1(self) -> None:
        self.stack[-1] = (self.stack[-1],)

    def tuple2(self) -> None:
        last = self.stack.pop()
        self.stack[-1] = (self.stack[-1], last)

    def tuple3(self) -> None:
        last = self.stack.pop()
        middle = self.stack.pop()
        self.stack[-1] = (self.stack[-1], middle, last)

    def dict_(self) -> None:
        result: dict[Any, Any] = {}
        self.set_items(result, self.pop_mark())
        self.stack.append(result)

    def frozenset_(self) -> None:
        self.stack.append(Opaque("builtins.frozenset", items=self.pop_mark()))

    def append(self) -> None:
        item = self.stack.pop()
        self.extend(self.stack[-1], [item])

    def appends(self) -> None:
        items = self.pop_mark()
        self.extend(self.stack[-1], items)

    def extend(self, target: object, items: list[Any]) -> None:
        if type(target) is list:
            target += items
        elif type(target) is Opaque:
            target.add_items(items)
        else:
            raise self.bad("items are appended to what is not a list")

    def setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self.set_items(self.stack[-1], [key, value])

    def setitems(self) -> None:
        items = self.pop_mark()
        self.set_items(self.stack[-1], items)

    def set_items(self, target: Any, items: list[Any]) -> None:
        if type(target) is Opaque:
            target.add_pairs(items)
            return
        if type(target) is not dict and type(target) is not AttributedDict:
            raise self.bad("keys are set in what is not a dict")
        if len(items) % 2:
            raise self.bad("a dict has a key without a value")
        for index in range(0, len(items), 2):
            key = items[index]
            if type(key) is not str:
                key = self.dict_key(key)
                if type(key) is int and not self.keys.admits(key, target):
                    raise slow_keys()
            target[key] = items[index + 1]

    def dict_key(self, key: object) -> object:
        """``key`` if it can stay one; else its placeholder, so that no foreign object is ever hashed."""
        if is_plain_key(key) or type(key) is Opaque:
            return key
        return Opaque(KEY, (key,))

    def additems(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        if type(target) is not Opaque:
            raise self.bad("items are added to what is not a set")
        target.add_items(items)

    # --- stack and memo ------------------------------------------------------

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def pop(self) -> None:
        # A mark on top counts as an object here.
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def pop_mark_(self) -> None:
        self.pop_mark()

    def dup(self) -> None:
        self.stack.append(self.stack[-1])

    def recall(self, index: int) -> None:
        value = self.memo[index] if 0 <= index < len(self.memo) else _UNSET
        if value is _UNSET:
            raise self.bad(f"the memo has no object {index}")
        self.stack.append(value)

    def put(self, index: int) -> None:
        """Remember what is on top of the stack."""
        memo = self.memo
        if index == len(memo):
            memo.append(self.stack[-1])
        elif 0 <= index < len(memo):
            memo[index] = self.stack[-1]
        elif 0 <= index <= len(self.data):
            memo.extend([_UNSET] * (index - len(memo)))
            memo.append(self.stack[-1])
        else:
            # A list, since a dict would be slow with ints that a file chose.
            raise self.bad("the number of an object in the memo is larger than the pickle")

    def memoize(self) -> None:
        self.memo.append(self.stack[-1])

    def binput(self) -> None:
        self.put(self.take_u8())

    def long_binput(self) -> None:
        # Two of five opcodes in a large pickle are this one.
        index = u32_at(self.data, self.at)[0]
        self.at += 4
        if index == len(self.memo):
            self.memo.append(self.stack[-1])
        else:
            self.put(index)

    def put_line(self) -> None:
        self.put(self.take_number())

    def binget(self) -> None:
        self.recall(self.take_u8())

    def long_binget(self) -> None:
        self.recall(self.take_u32())

    def get_line(self) -> None:
        self.recall(self.take_number())

    # --- globals and calls ---------------------------------------------------

    def global_line(self) -> None:
        module = self.take_line().decode("utf-8")
        name = self.take_line().decode("utf-8")
        self.stack.append(self.semantics.find_global(module, name))

    def stack_global(self) -> None:
        name = self.stack.pop()
        module = self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise self.bad("the name of a global is not text")
        self.stack.append(self.semantics.find_global(module, name))

    def extension(self) -> None:
        raise UnsupportedStateError(
            "the pickle names classes by extension codes, which only the program that wrote it can resolve"
        )

    def push_call(self, function: object, args: object) -> None:
        if type(args) is not tuple:
            raise self.bad("the arguments of a call are not a tuple")
        self.stack.append(self.semantics.call(function, args))

    def reduce(self) -> None:
        args = self.stack.pop()
        self.push_call(self.stack.pop(), args)

    def newobj_ex(self) -> None:
        keywords = self.stack.pop()
        args = self.stack.pop()
        function = self.stack.pop()
        if keywords and type(function) is not Opaque:
            raise self.bad("a known function is called with keywords")
        self.push_call(function, args)
        if keywords:
            self.stack[-1].add_state(keywords)

    def inst(self) -> None:
        module = self.take_line().decode("utf-8")
        name = self.take_line().decode("utf-8")
        args = tuple(self.pop_mark())
        self.push_call(self.semantics.find_global(module, name), args)

    def obj(self) -> None:
        items = self.pop_mark()
        if not items:
            raise self.bad("an instance has no class")
        self.push_call(items[0], tuple(items[1:]))

    def build(self) -> None:
        state = self.stack.pop()
        self.semantics.build(self.stack[-1], state)

    def persid_line(self) -> None:
        self.stack.append(self.semantics.load_persistent(self.take_line().decode("utf-8")))

    def binpersid(self) -> None:
        self.stack.append(self.semantics.load_persistent(self.stack.pop()))

    def out_of_band(self) -> None:
        raise UnsupportedStateError("the pickle refers to buffers that are kept outside of it")
