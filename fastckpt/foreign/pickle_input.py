"""The bytes of a pickle: arguments of opcodes, each checked against what is left."""

from __future__ import annotations

import struct
from typing import Final

from fastckpt.errors import DamagedError, UnsupportedStateError

MAX_DIGITS: Final = 4300
"""Digits of a number written as text. CPython's own limit: reading more takes quadratic time."""


# Raises struct.error when the data ends, as indexing raises IndexError.
u32_at: Final = struct.Struct("<I").unpack_from


class PickleCutError(DamagedError):
    """The pickle ends before its STOP opcode."""


class PickleInput:
    """A position in ``data``.

    The methods raise PickleCutError, IndexError or struct.error when the data
    ends, and never use more memory than the bytes they take.

    Attributes:
        at: Position of the next byte.
    """

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def bad(self, what: str) -> DamagedError:
        """The error for bytes that are not a pickle."""
        return DamagedError(f"the pickle is not valid before its byte {self.at}: {what}")

    def cut(self) -> PickleCutError:
        """The error for data that ends too early."""
        return PickleCutError(f"the pickle is cut: it goes on after its byte {len(self.data)}")

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        end = self.at + size
        if end > len(self.data):
            raise self.cut()
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def take_u8(self) -> int:
        """The next byte as a number."""
        value = self.data[self.at]
        self.at += 1
        return value

    def take_u16(self) -> int:
        """The next 2 bytes as a number."""
        return int.from_bytes(self.take(2), "little")

    def take_u32(self) -> int:
        """The next 4 bytes as a number."""
        value = u32_at(self.data, self.at)[0]
        self.at += 4
        return int(value)

    def take_u64(self) -> int:
        """The next 8 bytes as a number."""
        return int.from_bytes(self.take(8), "little")

    def take_signed(self, size: int) -> int:
        """The next ``size`` bytes as a number with a sign; 0 if there are none."""
        return int.from_bytes(self.take(size), "little", signed=True)

    def take_line(self) -> bytes:
        """The bytes up to the next line feed, which is passed over."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise self.cut()
        line = self.data[self.at : end]
        self.at = end + 1
        return line

    def take_number(self, *, suffix: bytes = b"") -> int:
        """The integer that the next line writes in decimal, with or without ``suffix``."""
        line = self.take_line().removesuffix(suffix)
        if len(line) > MAX_DIGITS:
            raise UnsupportedStateError(f"the pickle writes a number with {len(line)} digits as text")
        try:
            return int(line)
        except ValueError:
            raise self.bad("a number has other characters than digits") from None
