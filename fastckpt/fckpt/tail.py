"""What follows the last record of a file: further sections, index, directory, manifest copy, footer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from fastckpt.constants import (
    FOOTER_SIZE,
    SECTION_DIRECTORY,
    SECTION_FLAG_MUST_UNDERSTAND,
    SECTION_INDEX,
    SECTION_MANIFEST,
    SECTION_MANIFEST_COPY,
    SECTION_PARITY,
    SUPERBLOCK_SIZE,
)
from fastckpt.layout.blocks import Extent, block_digest
from fastckpt.layout.directory import directory_size, encode_directory
from fastckpt.layout.frame import Footer, Section, encode_footer, encode_index, index_size, root_digest

_REQUIRED: Final = SECTION_FLAG_MUST_UNDERSTAND

ParityPieces = Callable[[int, bytes], Iterable[bytes | memoryview]]
"""Takes where the parity section stands and the root digest; gives its sealed block, piece by piece."""


def tail_size(manifest: bytes, header_sizes: Sequence[int], sections: Mapping[int, bytes]) -> int:
    """Bytes after the last record."""
    further = sum(len(block) for block in sections.values())
    return further + index_size(header_sizes) + directory_size(len(header_sizes)) + len(manifest) + FOOTER_SIZE


def write_tail(
    write: Callable[[int, bytes | memoryview], None],
    offset: int,
    manifest: bytes,
    headers: Sequence[tuple[int, bytes]],
    sections: Mapping[int, bytes],
    parity: ParityPieces | None = None,
) -> int:
    """Write all that follows the last record, which ends at ``offset``; returns the size of the file.

    Args:
        write: Takes an offset in the file and the bytes that belong there.
        offset: See above.
        manifest: The manifest block.
        headers: Offset and block of every record header, in order.
        sections: Further sealed blocks, by kind; all of kinds below that of parity.
        parity: Makes the parity section, if there is to be one: of all that is written by then.
    """
    root = root_digest(block_digest(manifest), [block_digest(block) for _, block in headers])
    blocks: list[tuple[int, int, Iterable[bytes | memoryview]]]
    blocks = [(kind, 0, [block]) for kind, block in sorted(sections.items())]
    if parity is not None:
        blocks.append((SECTION_PARITY, 0, parity(offset + sum(map(len, sections.values())), root)))
    blocks.append((SECTION_INDEX, _REQUIRED, [encode_index(headers)]))
    blocks.append((SECTION_DIRECTORY, _REQUIRED, [encode_directory(headers)]))
    blocks.append((SECTION_MANIFEST_COPY, _REQUIRED, [manifest]))
    rows = [Section(SECTION_MANIFEST, _REQUIRED, Extent(SUPERBLOCK_SIZE, len(manifest)), block_digest(manifest))]
    for kind, flags, pieces in blocks:
        begin, digest = offset, b""
        for piece in pieces:
            write(offset, piece)
            offset += len(piece)
            digest = block_digest(piece)
        rows.append(Section(kind, flags, Extent(begin, offset - begin), digest))
    size = offset + FOOTER_SIZE
    write(offset, encode_footer(Footer(size, len(headers), root, tuple(rows))))
    return size
