"""Codec names and ids, and what each can do.

A codec encodes one chunk at a time. It is looked up by its id when reading
and by a spec such as ``"zstd:9"`` when writing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from fastckpt.codec.numbers import Numbers
from fastckpt.codec.planes import PlanesCodec
from fastckpt.codec.zstd import ZstdCodec
from fastckpt.constants import CODEC_NONE, CODEC_PLANES, CODEC_ZSTD
from fastckpt.errors import UnsupportedVersionError, UsageError
from fastckpt.text import did_you_mean

Buffer = bytes | bytearray | memoryview


class Codec(Protocol):
    """What a codec offers. Instances are used from several threads at once."""

    def encode(self, raw: Buffer, numbers: Numbers | None = None) -> bytes | None:
        """The stored bytes, or None when they would not be fewer than the raw ones; ``numbers``: which these are."""

    def decode(self, stored: Buffer, raw_size: int) -> bytes | bytearray:
        """The raw bytes, exactly ``raw_size`` of them. Raises DamagedError otherwise."""

    def decode_into(self, stored: Buffer, raw: memoryview) -> None:
        """Fill ``raw``, all of it. Raises DamagedError otherwise; what is in it means nothing then."""


_DECODERS: Final[dict[int, Callable[[], Codec]]] = {CODEC_ZSTD: ZstdCodec, CODEC_PLANES: PlanesCodec}
_NAMES: Final[dict[int, str]] = {CODEC_NONE: "none", CODEC_ZSTD: "zstd", CODEC_PLANES: "planes"}


def codec_name(codec_id: int) -> str:
    """The name of a codec id, for messages."""
    return _NAMES.get(codec_id, f"codec {codec_id}")


def codec_for_reading(codec_id: int) -> Codec:
    """The decoder of a codec id other than CODEC_NONE.

    Raises:
        UnsupportedVersionError: Unknown id.
    """
    if codec_id not in _DECODERS:
        raise UnsupportedVersionError(
            f"this fastckpt has no decoder for {codec_name(codec_id)}", next_step="pip install --upgrade fastckpt"
        )
    return _DECODERS[codec_id]()


def codec_for_writing(spec: str) -> tuple[int, Codec | None]:
    """Id and encoder for ``"none"``, ``"planes"``, ``"zstd"`` or ``"zstd:LEVEL"`` (1 to 22; default 1).

    Raises:
        UsageError: Unknown codec or level.
    """
    name, _, level = spec.partition(":")
    if spec == "none":
        return CODEC_NONE, None
    if spec == "planes":
        return CODEC_PLANES, PlanesCodec()
    if name == "zstd" and (not level or (level.isdecimal() and 1 <= int(level) <= 22)) and spec != "zstd:":
        return CODEC_ZSTD, ZstdCodec(int(level or ZstdCodec.DEFAULT_LEVEL))
    known = ("none", "planes", "zstd")
    raise UsageError(
        f"unknown codec {spec!r}",
        expected='"none", "planes", "zstd" or "zstd:1" to "zstd:22"',
        next_step=None if name in known else did_you_mean(name, known),
    )
