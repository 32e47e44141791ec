"""planes: the fields of numbers, each stored by itself, by the native core. SPEC.md, section 10.4."""

from __future__ import annotations

from fastckpt import _core
from fastckpt.codec.numbers import BLOCK, Numbers
from fastckpt.constants import PLANES_KIND_BYTES
from fastckpt.errors import DamagedError


class PlanesCodec:
    """Encoder and decoder. It keeps nothing from call to call."""

    def encode(self, raw: bytes | bytearray | memoryview, numbers: Numbers | None = None) -> bytes | None:
        """The stored bytes of a chunk, or None when they would not be fewer than the raw ones."""
        if numbers is None:
            numbers = Numbers(bytes([PLANES_KIND_BYTES]) * -(-len(raw) // BLOCK))
        return _core.planes_encode(raw, numbers.kinds, row_length=numbers.row_length, phase=numbers.phase)

    def decode(self, stored: bytes | bytearray | memoryview, raw_size: int) -> bytearray:
        """The raw bytes of a chunk.

        Raises:
            DamagedError: They do not decode to ``raw_size`` bytes; no more than these are ever allocated.
        """
        raw = bytearray(raw_size)
        self.decode_into(stored, memoryview(raw))
        return raw

    def decode_into(self, stored: bytes | bytearray | memoryview, raw: memoryview) -> None:
        """Fill ``raw`` with the raw bytes of a chunk. Raises what `decode` does; ``raw`` means nothing then."""
        try:
            _core.planes_decode(stored, raw)
        except ValueError as error:
            raise DamagedError(f"a chunk of planes does not decode: {error}") from None
