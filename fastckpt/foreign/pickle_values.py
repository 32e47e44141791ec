"""The opcodes of a pickle that push a value by themselves: numbers, text, bytes."""

from __future__ import annotations

import struct
from typing import Any, Final

from fastckpt.errors import UnsupportedStateError
from fastckpt.foreign.model import Opaque
from fastckpt.foreign.pickle_input import PickleInput

MAX_PROTOCOL: Final = 5
HALF_TEXT: Final = "text that is not valid Unicode"
"""The name of the placeholder for such a text: its one argument is what stands in the pickle."""


class PickleValues(PickleInput):
    """A pickle's bytes and the stack that its opcodes work on."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        super().__init__(data, at)
        self.stack: list[Any] = []

    def proto(self) -> None:
        version = self.take_u8()
        if version > MAX_PROTOCOL:
            raise UnsupportedStateError(
                f"the pickle has protocol {version}; fastckpt reads up to {MAX_PROTOCOL}",
                next_step=f"save it again with pickle_protocol={MAX_PROTOCOL}",
            )

    def frame(self) -> None:
        if self.take_u64() > len(self.data) - self.at:
            raise self.cut()

    def none(self) -> None:
        self.stack.append(None)

    def newtrue(self) -> None:
        self.stack.append(True)

    def newfalse(self) -> None:
        self.stack.append(False)

    def int_line(self) -> None:
        # Protocol 0 has no opcodes of its own for the two truth values.
        if self.data.startswith((b"00\n", b"01\n"), self.at):
            self.stack.append(self.take_line() == b"01")
        else:
            self.stack.append(self.take_number())

    def long_line(self) -> None:
        self.stack.append(self.take_number(suffix=b"L"))

    def binint(self) -> None:
        self.stack.append(self.take_signed(4))

    def binint1(self) -> None:
        self.stack.append(self.data[self.at])
        self.at += 1

    def binint2(self) -> None:
        self.stack.append(self.take_u16())

    def long1(self) -> None:
        self.stack.append(self.take_signed(self.take_u8()))

    def long4(self) -> None:
        self.stack.append(self.take_signed(self.take_u32()))

    def float_line(self) -> None:
        try:
            self.stack.append(float(self.take_line()))
        except ValueError:
            raise self.bad("a float is not a number") from None

    def binfloat(self) -> None:
        self.stack.append(struct.unpack(">d", self.take(8))[0])

    # --- text and bytes ------------------------------------------------------

    def push_old_string(self, raw: bytes) -> None:
        # A str of Python 2 can be either; torch reads it as UTF-8 too.
        try:
            self.stack.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self.stack.append(raw)

    def string_line(self) -> None:
        line = self.take_line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise self.bad("a string has no quotes around it")
        if b"\\" in line:
            raise UnsupportedStateError("the pickle holds a string of Python 2 with escapes", next_step="save it again")
        self.push_old_string(line[1:-1])

    def binstring(self) -> None:
        self.push_old_string(self.take(self.take_u32()))

    def short_binstring(self) -> None:
        self.push_old_string(self.take(self.take_u8()))

    def unicode_line(self) -> None:
        self.push_text(self.take_line().decode("raw-unicode-escape").encode("utf-8", "surrogatepass"))

    def short_binunicode(self) -> None:
        self.push_text(self.take(self.take_u8()))

    def binunicode(self) -> None:
        self.push_text(self.take(self.take_u32()))

    def binunicode8(self) -> None:
        self.push_text(self.take(self.take_u64()))

    def push_text(self, raw: bytes) -> None:
        try:
            self.stack.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            # Python has texts with half a surrogate, such as names of files that are not UTF-8. A tree has none.
            raw.decode("utf-8", "surrogatepass")
            self.stack.append(Opaque(HALF_TEXT, (raw,)))

    def short_binbytes(self) -> None:
        self.stack.append(self.take(self.take_u8()))

    def binbytes(self) -> None:
        self.stack.append(self.take(self.take_u32()))

    def binbytes8(self) -> None:
        self.stack.append(self.take(self.take_u64()))

    def bytearray8(self) -> None:
        self.stack.append(Opaque("builtins.bytearray", (self.take(self.take_u64()),)))
