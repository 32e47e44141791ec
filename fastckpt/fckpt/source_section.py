"""The source section: what is needed to give back a foreign file byte for byte.

A foreign file is storages and what lies between them (zip headers, the pickle,
a JSON header). The section keeps where each storage stood and, compressed, all
the bytes in between: the literals.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fastckpt.codec.zstd import ZstdCodec
from fastckpt.constants import CODEC_NONE, CODEC_ZSTD, MAGIC_SOURCE, MAX_LITERAL_SIZE, SECTION_SOURCE
from fastckpt.errors import DamagedError, FastckptError, UnsupportedStateError, UnsupportedVersionError
from fastckpt.fckpt.file import CheckpointFile
from fastckpt.io.source import Source
from fastckpt.layout.blocks import require_zero, seal, unseal

_HEAD: Final = struct.Struct("<IIQQQQ")
_ROW: Final = struct.Struct("<QIIQ")

KIND_CODES: Final = {"torch-zip": 1, "torch-legacy": 2, "safetensors": 3}
_PIECE: Final = 2**20
_UNITS: Final = (1, 2, 4, 8)
KIND_NAMES: Final = {code: kind for kind, code in KIND_CODES.items()}


class Segment(NamedTuple):
    """``size`` bytes of a storage (its whole length), at ``offset`` of the foreign file.

    With a ``unit`` of 2, 4 or 8 the bytes of each number of that size stand there in reverse order.
    """

    offset: int
    storage: int
    size: int
    unit: int = 1


@dataclass(frozen=True, slots=True)
class Literals:
    """Bytes as they stand in a section. Few of them can be many when they are decoded: that is done piece by piece.

    Attributes:
        stored: What stands there.
        codec: CODEC_NONE or CODEC_ZSTD.
        nbytes: How many they are.
    """

    stored: bytes
    codec: int
    nbytes: int

    def __iter__(self) -> Iterator[bytes]:
        """All of them, in pieces. Raises DamagedError if they do not decode to ``nbytes``."""
        if self.codec == CODEC_ZSTD:
            return ZstdCodec().pieces(self.stored, self.nbytes, _PIECE)
        return (self.stored[at : at + _PIECE] for at in range(0, len(self.stored), _PIECE))

    def beginning(self) -> bytes:
        """The first of them: a piece."""
        return next(iter(self), b"")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A foreign file taken apart.

    Attributes:
        kind: ``torch-zip``, ``torch-legacy`` or ``safetensors``.
        size: Its length in bytes.
        segments: Where its storages stand, by offset; none is empty, none overlap.
        literals: All other bytes, in order.
    """

    kind: str
    size: int
    segments: Sequence[Segment]
    literals: Literals

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """``(offset in the foreign file, bytes)`` of the literals, in pieces."""
        pieces = iter(self.literals)
        piece = b""
        for start, end in _gaps(self.segments, self.size):
            while start < end:
                piece = piece or next(pieces)
                part = piece[: end - start]
                yield start, part
                start, piece = start + len(part), piece[len(part) :]


def _gaps(segments: Sequence[Segment], size: int) -> Iterator[tuple[int, int]]:
    at = 0
    for segment in segments:
        if segment.offset > at:
            yield at, segment.offset
        at = segment.offset + segment.size
    if size > at:
        yield at, size


def read_source_file(source: Source, kind: str, segments: Sequence[Segment]) -> SourceFile:
    """Take a foreign file apart; its storages are not read.

    Raises:
        UnsupportedStateError: There is more between the storages than can be kept.
    """
    ordered = sorted(segment for segment in segments if segment.size)
    total = source.size - sum(segment.size for segment in ordered)
    if total > MAX_LITERAL_SIZE:
        raise UnsupportedStateError(
            f"{total} bytes of this file are not tensor data, more than can be kept for an exact way back",
            path=source.path,
            expected=f"at most {MAX_LITERAL_SIZE}",
            actual=total,
            next_step="convert with --no-exact to keep the state without the container",
        )
    literals = b"".join(source.read(start, end - start) for start, end in _gaps(ordered, source.size))
    return SourceFile(kind, source.size, ordered, Literals(literals, CODEC_NONE, len(literals)))


_LEVEL: Final = 3
"""Literals are pickles and tables, not floats: here it is smaller than level 1."""


def encode_source_section(file: SourceFile) -> bytes:
    """The sealed source section."""
    raw = file.literals.stored
    compressed = ZstdCodec(_LEVEL).encode(raw)
    codec, stored = (CODEC_NONE, raw) if compressed is None else (CODEC_ZSTD, compressed)
    head = _HEAD.pack(KIND_CODES[file.kind], codec, file.size, len(file.segments), len(raw), len(stored))
    rows = [_ROW.pack(s.offset, s.storage, s.unit if s.unit > 1 else 0, s.size) for s in file.segments]
    return seal(MAGIC_SOURCE, head, b"".join(rows), stored)


def source_kind_and_size(block: bytes) -> tuple[str, int]:
    """Kind and length of the foreign file of a sealed source section; its literals are not decoded.

    Raises:
        DamagedError: The section's digest does not match.
        UnsupportedVersionError: It describes a kind of file or uses a codec of a later version.
    """
    _, (kind, _, size, _, _, _) = _open_section(block)
    return KIND_NAMES[kind], size


def decode_source_section(block: bytes, storage_sizes: Sequence[int]) -> SourceFile:
    """Decode a sealed source section.

    Raises:
        DamagedError: Its digest does not match, or what it says cannot be.
        UnsupportedVersionError: It describes a kind of file or uses a codec of a later version.
        UsageError: Its literals are compressed, and zstandard is not installed.
    """
    body, (kind, codec, size, count, literal_size, stored_size) = _open_section(block)
    rows_end = _HEAD.size + count * _ROW.size
    if rows_end + stored_size > len(body) or literal_size > MAX_LITERAL_SIZE:
        raise DamagedError(
            "the source section reaches beyond its end", expected=len(body), actual=rows_end + stored_size
        )
    rows = _ROW.iter_unpack(body[_HEAD.size : rows_end])
    segments = [Segment(offset, storage, nbytes, unit or 1) for offset, storage, unit, nbytes in rows]
    at = 0
    for segment in segments:
        known = segment.storage < len(storage_sizes) and segment.size == storage_sizes[segment.storage]
        if segment.unit not in _UNITS:
            raise UnsupportedVersionError(
                f"the source section has numbers of {segment.unit} bytes", next_step="pip install --upgrade fastckpt"
            )
        if segment.offset < at or not known:
            raise DamagedError(f"the source section puts storage {segment.storage} where it cannot be")
        at = segment.offset + segment.size
    if len({segment.storage for segment in segments}) != len(segments):
        # A few bytes for each time would make a file as large as anyone likes.
        raise DamagedError("the source section names a storage twice")
    if at > size or literal_size != size - sum(segment.size for segment in segments):
        raise DamagedError("the source section does not add up to the size of its file", expected=size)
    require_zero(body[rows_end + stored_size :], what="padding of the source section")
    literals = Literals(bytes(body[rows_end : rows_end + stored_size]), codec, literal_size)
    decoded = sum(map(len, literals))
    if decoded != literal_size:
        raise DamagedError("the literals have the wrong size", expected=literal_size, actual=decoded)
    return SourceFile(KIND_NAMES[kind], size, segments, literals)


def _open_section(block: bytes) -> tuple[memoryview, tuple[int, int, int, int, int, int]]:
    body = unseal(block, MAGIC_SOURCE, what="source section")
    kind, codec, size, count, literal_size, stored_size = _HEAD.unpack_from(body)
    if kind not in KIND_NAMES or codec not in (CODEC_NONE, CODEC_ZSTD):
        raise UnsupportedVersionError(
            f"the source section has kind {kind} and codec {codec}", next_step="pip install --upgrade fastckpt"
        )
    return body, (kind, codec, size, count, literal_size, stored_size)


TORCH_KINDS = ("torch-zip", "torch-legacy")


def source_file(file: CheckpointFile) -> SourceFile | None:
    """The foreign file this one was converted from, if its bytes were kept.

    Raises:
        DamagedError: They were, and are damaged.
        UsageError: They are compressed, and zstandard is not installed.
    """
    section = file.footer.section(SECTION_SOURCE)
    if section is None:
        return None
    try:
        return decode_source_section(
            file.read_section(SECTION_SOURCE), [place.nbytes for place in file.manifest.storages]
        )
    except FastckptError as error:
        error.path = file.path
        if isinstance(error, DamagedError):
            error.next_step = "convert with --no-exact: the tensors do not need this section"
        raise
