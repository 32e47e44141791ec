"""zstd: one standard frame per chunk, so that the stock ``zstd`` tool opens each."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from fastckpt.errors import DamagedError, UsageError

if TYPE_CHECKING:
    import zstandard


class ZstdCodec:
    """Encoder and decoder; contexts are per thread, because zstandard's are not shareable."""

    DEFAULT_LEVEL: Final = 3

    def __init__(self, level: int = DEFAULT_LEVEL) -> None:
        try:
            import zstandard
        except ImportError:
            raise UsageError("codec zstd needs the zstandard package", next_step="pip install zstandard") from None
        self._zstandard = zstandard
        self._level = level
        self._local = threading.local()

    def encode(self, raw: bytes | bytearray | memoryview) -> bytes | None:
        """One frame with its content size, or None when it would not be smaller."""
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
            announced = zstandard.frame_content_size(stored)
            if announced != raw_size:
                raise DamagedError("a zstd frame announces the wrong size", expected=raw_size, actual=announced)
            decompressor = getattr(self._local, "decompressor", None)
            if decompressor is None:
                decompressor = zstandard.ZstdDecompressor()
                self._local.decompressor = decompressor
            raw: bytes = decompressor.decompress(stored, max_output_size=raw_size, allow_extra_data=False)
            return raw
        except zstandard.ZstdError as error:
            raise DamagedError(f"a zstd frame does not decode: {error}") from None
