"""Sealed blocks: the one shape that all of a file's metadata has.

A sealed block begins with an 8-byte magic and its own size, ends with the
XXH3-128 digest of everything before it, and fills whole 4 KiB sectors. It can
therefore be recognised wherever it is found, told apart from a block that was
never written (all zero) or only partly written, and checked by itself.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import xxhash

from fastckpt.constants import ALIGNMENT, DIGEST_SIZE
from fastckpt.errors import DamagedError

_PROLOGUE: Final = struct.Struct("<8sQ")
PROLOGUE_SIZE: Final = _PROLOGUE.size


class Extent(NamedTuple):
    """A range of a file in bytes."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """First byte after the range."""
        return self.offset + self.size


def align(position: int, alignment: int = ALIGNMENT) -> int:
    """The smallest multiple of ``alignment`` that is not below ``position``."""
    return -(-position // alignment) * alignment


def sealed_size(body_size: int) -> int:
    """Size in bytes of the sealed block that holds ``body_size`` bytes after its prologue."""
    return align(PROLOGUE_SIZE + body_size + DIGEST_SIZE)


def encode_prologue(magic: bytes, size: int) -> bytes:
    """The first bytes of a sealed block of so many."""
    return _PROLOGUE.pack(magic, size)


def seal(magic: bytes, *parts: bytes | bytearray | memoryview) -> bytes:
    """Build the sealed block whose body is ``parts``, concatenated."""
    body_size = sum(len(part) for part in parts)
    size = sealed_size(body_size)
    padding = bytes(size - PROLOGUE_SIZE - body_size - DIGEST_SIZE)
    covered = b"".join((encode_prologue(magic, size), *parts, padding))
    return covered + xxhash.xxh3_128_digest(covered)


def block_digest(block: bytes | memoryview) -> bytes:
    """The digest a sealed block ends with (as stored, not recomputed)."""
    return bytes(block[-DIGEST_SIZE:])


def read_prologue(raw: bytes | memoryview, magic: bytes, *, what: str, limit: int) -> int:
    """Size of the sealed block that begins with ``raw``.

    Args:
        raw: At least the first 16 bytes.
        magic: What it must begin with.
        what: The block's name, for messages.
        limit: Bytes from its first to the end of the file; a larger block is damage.

    Raises:
        DamagedError: Not such a block, or its size is impossible.
    """
    if len(raw) < PROLOGUE_SIZE:
        raise DamagedError(f"the {what} is cut", expected=f"{PROLOGUE_SIZE} bytes", actual=len(raw))
    found, size = _PROLOGUE.unpack_from(raw)
    if found != magic:
        unwritten = not any(bytes(raw[:PROLOGUE_SIZE]))
        raise DamagedError(
            f"the {what} was never written" if unwritten else f"there is no {what} here",
            expected=magic,
            actual="zeros" if unwritten else found,
        )
    if size % ALIGNMENT or not ALIGNMENT <= size <= limit:
        raise DamagedError(f"the {what} has an impossible size", expected=f"at most {limit}", actual=size)
    return int(size)


def unseal(block: bytes | memoryview, magic: bytes, *, what: str) -> memoryview:
    """Check a whole sealed block and return its body (padding included).

    Raises:
        DamagedError: Wrong magic, size or digest; the message tells a block
            that was never written from one that changed afterwards.
    """
    view = memoryview(block)
    size = read_prologue(view, magic, what=what, limit=len(view))
    if size != len(view):
        raise DamagedError(f"the {what} has the wrong size", expected=len(view), actual=size)
    actual = xxhash.xxh3_128_digest(view[:-DIGEST_SIZE])
    expected = bytes(view[-DIGEST_SIZE:])
    if actual != expected:
        raise DamagedError(
            f"the {what} is damaged: its digest does not match", expected=expected.hex(), actual=actual.hex()
        )
    return view[PROLOGUE_SIZE:-DIGEST_SIZE]


def require_zero(raw: bytes | memoryview, *, what: str) -> None:
    """Raise DamagedError unless every byte is zero (padding and reserved fields)."""
    # Compared as a whole: every record header is padded, and looking at each byte takes as long as all else in one.
    if bytes(raw) != bytes(len(raw)):
        raise DamagedError(f"the {what} is not zero")
