"""The footer of a ``.fckpt``, and what a file is that has none."""

from __future__ import annotations

from contextlib import suppress

from fastckpt.constants import FOOTER_SIZE, MAGIC_SUPERBLOCK, SUPERBLOCK_SIZE
from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError, NotACheckpointError
from fastckpt.foreign.sniff import not_a_checkpoint, sniff
from fastckpt.io.source import Source
from fastckpt.layout.frame import Footer, decode_footer, decode_superblock
from fastckpt.text import quoted


def located(error: FastckptError, offset: int, path: str) -> FastckptError:
    """Say where in which file, and what to do about damage."""
    error.path = path
    if error.offset is None:
        error.offset = offset
    if isinstance(error, DamagedError) and error.next_step is None:
        error.next_step = f"fastckpt salvage {quoted(path)}"
    return error


def read_footer(source: Source) -> Footer:
    """The footer of an open file.

    Raises:
        NotACheckpointError: It is not a ``.fckpt`` file.
        UnsupportedVersionError: It needs a newer fastckpt.
        DamagedError: There is no whole footer.
        CheckpointIOError: It cannot be read.
    """
    if source.far and (whole := _footer_from_afar(source)) is not None:
        return whole
    size = source.size
    head = source.head(SUPERBLOCK_SIZE)
    if size < SUPERBLOCK_SIZE + FOOTER_SIZE and head[: len(MAGIC_SUPERBLOCK)] != MAGIC_SUPERBLOCK:
        raise source.unread_head or _not_fckpt(source, head)
    try:
        footer = footer_at_the_end(source)
    except DamagedError:
        # Is it a cut checkpoint, or no checkpoint at all? The superblock tells.
        if source.unread_head is not None:
            raise source.unread_head from None
        decode_failure = _head_failure(head)
        if isinstance(decode_failure, NotACheckpointError):
            raise _not_fckpt(source, head) from None
        if decode_failure is not None:
            raise located(decode_failure, 0, source.path) from None
        raise
    # A damaged superblock costs nothing as long as the footer is whole.
    failure = _head_failure(head)
    if failure is not None and not isinstance(failure, DamagedError | NotACheckpointError):
        raise located(failure, 0, source.path)
    return footer


def footer_at_the_end(source: Source) -> Footer:
    """The footer of an open file, whatever stands in front of it. Raises as `read_footer`, but NotACheckpointError."""
    offset = max(source.size - FOOTER_SIZE, 0)
    try:
        return decode_footer(source.read(offset, source.size - offset), file_size=source.size)
    except FastckptError as error:
        if isinstance(error, DamagedError):
            error.message = f"the save was cut short or the end is damaged: {error.message}"
        raise located(error, offset, source.path) from None


def footer_if_whole(source: Source) -> Footer | None:
    """The footer of an open file, or None if that is damaged or cannot be read. Raises UnsupportedVersionError."""
    try:
        return footer_at_the_end(source)
    except (DamagedError, CheckpointIOError):
        return None


def _footer_from_afar(source: Source) -> Footer | None:
    """The footer, if it is whole: it says what the superblock does, and came with the first request."""
    size = source.size
    for _ in range(source.attempts if size >= FOOTER_SIZE else 0):
        with suppress(DamagedError):
            return decode_footer(source.read(size - FOOTER_SIZE, FOOTER_SIZE), file_size=size)
        source.drop_cache()
    return None


def _not_fckpt(source: Source, head: bytes) -> NotACheckpointError:
    """The error that says what a file is that has neither a superblock nor a footer."""
    kind = sniff(head)
    if kind in (None, "tar"):
        return not_a_checkpoint(head, path=source.path, size=source.size)
    return NotACheckpointError(
        f"this is a {kind} file, not a .fckpt file",
        path=source.path,
        next_step=f"fastckpt convert {quoted(source.path)}",
    )


def _head_failure(head: bytes) -> FastckptError | None:
    try:
        decode_superblock(head)
    except FastckptError as error:
        return error
    return None
