"""zstd: one standard frame per chunk, so that the stock ``zstd`` tool opens each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from fastckpt.codec.numbers import Numbers
from fastckpt.errors import DamagedError, UsageError

if TYPE_CHECKING:
    import zstandard


class ZstdCodec:
    """Encoder and decoder; contexts are per thread, because zstandard's are not shareable."""

    DEFAULT_LEVEL: Final = 1
    """On floats, level 3 is never smaller and takes 15 to 60 % longer."""

    def __init__(self, level: int = DEFAULT_LEVEL) -> None:
        try:
            import zstandard
        except ImportError:
            raise UsageError("codec zstd needs the zstandard package", next_step="pip install zstandard") from None
        self._zstandard = zstandard
        self._level = level
        self._local = threading.local()

    def encode(self, raw: bytes | bytearray | memoryview, numbers: Numbers | None = None) -> bytes | None:
        """One frame with its content size, or None when it would not be smaller. To zstd all numbers are bytes."""
        compressor: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._zstandard.ZstdCompressor(level=self._level, write_content_size=True)
            self._local.compressor = compressor
        frame = compressor.compress(raw)
        return frame if len(frame) < len(raw) else None

    def decode(self, stored: bytes | bytearray | memoryview, raw_size: int) -> bytes:
        """The raw bytes of one frame.

        Raises:
            DamagedError: Not a frame, or not of ``raw_size`` bytes; nothing
                larger than that is ever allocated.
        """
        zstandard = self._zstandard
        try:
            self._require_size(stored, raw_size)
            decompressor = getattr(self._local, "decompressor", None)
            if decompressor is None:
                decompressor = zstandard.ZstdDecompressor()
                self._local.decompressor = decompressor
            raw: bytes = decompressor.decompress(stored, max_output_size=raw_size, allow_extra_data=False)
            return raw
        except zstandard.ZstdError as error:
            raise DamagedError(f"a zstd frame does not decode: {error}") from None

    def decode_into(self, stored: bytes | bytearray | memoryview, raw: memoryview) -> None:
        """Fill ``raw`` with the raw bytes of one frame, by a copy. Raises what `decode` does."""
        raw[:] = self.decode(stored, len(raw))

    def pieces(self, stored: bytes, raw_size: int, piece_size: int) -> Iterator[bytes]:
        """The raw bytes of one frame that may be large, in pieces. Raises what `decode` does."""
        done = 0
        try:
            self._require_size(stored, raw_size)
            with self._zstandard.ZstdDecompressor().stream_reader(stored, read_across_frames=True) as reader:
                while piece := reader.read(piece_size):
                    done += len(piece)
                    if done > raw_size:
                        break
                    yield piece
        except self._zstandard.ZstdError as error:
            raise DamagedError(f"a zstd frame does not decode: {error}") from None
        if done != raw_size:
            raise DamagedError("a zstd frame has not the size that it states", expected=raw_size, actual=done)

    def _require_size(self, stored: bytes | bytearray | memoryview, raw_size: int) -> None:
        announced = self._zstandard.frame_content_size(stored)
        if announced != raw_size:
            raise DamagedError("the size that a zstd frame states is wrong", expected=raw_size, actual=announced)
