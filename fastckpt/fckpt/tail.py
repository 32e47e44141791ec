"""What follows the last record of a file: further sections, index, directory, manifest copy, footer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from fastckpt.constants import (
    FOOTER_SIZE,
    SECTION_DIRECTORY,
    SECTION_FLAG_MUST_UNDERSTAND,
    SECTION_INDEX,
    SECTION_MANIFEST,
    SECTION_MANIFEST_COPY,
    SUPERBLOCK_SIZE,
)
from fastckpt.layout.blocks import Extent, block_digest
from fastckpt.layout.directory import directory_size, encode_directory
from fastckpt.layout.frame import Footer, Section, encode_footer, encode_index, index_size, root_digest

_REQUIRED: Final = SECTION_FLAG_MUST_UNDERSTAND


def tail_size(manifest: bytes, header_sizes: Sequence[int], sections: Mapping[int, bytes]) -> int:
    """Bytes after the last record."""
    further = sum(len(block) for block in sections.values())
    return further + index_size(header_sizes) + directory_size(len(header_sizes)) + len(manifest) + FOOTER_SIZE


def write_tail(
    write: Callable[[int, bytes], None],
    offset: int,
    manifest: bytes,
    headers: Sequence[tuple[int, bytes]],
    sections: Mapping[int, bytes],
) -> int:
    """Write all that follows the last record, which ends at ``offset``; returns the size of the file.

    Args:
        write: Takes an offset in the file and the bytes that belong there.
        offset: See above.
        manifest: The manifest block.
        headers: Offset and block of every record header, in order.
        sections: Further sealed blocks, by kind.
    """
    rows = [Section(SECTION_MANIFEST, _REQUIRED, Extent(SUPERBLOCK_SIZE, len(manifest)), block_digest(manifest))]
    blocks = [(kind, 0, block) for kind, block in sorted(sections.items())]
    blocks.append((SECTION_INDEX, _REQUIRED, encode_index(headers)))
    blocks.append((SECTION_DIRECTORY, _REQUIRED, encode_directory(headers)))
    blocks.append((SECTION_MANIFEST_COPY, _REQUIRED, manifest))
    for kind, flags, block in blocks:
        write(offset, block)
        rows.append(Section(kind, flags, Extent(offset, len(block)), block_digest(block)))
        offset += len(block)
    size = offset + FOOTER_SIZE
    root = root_digest(block_digest(manifest), [block_digest(block) for _, block in headers])
    write(offset, encode_footer(Footer(size, len(headers), root, tuple(rows))))
    return size
