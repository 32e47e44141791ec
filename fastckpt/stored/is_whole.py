"""Is a checkpoint file whole? Asked before it is kept, replaced or deleted because of the answer."""

from __future__ import annotations

from fastckpt.errors import CheckpointIOError, DamagedError, FastckptError, NotACheckpointError
from fastckpt.findings import Kind
from fastckpt.stored.verify import verify


def is_whole(path: str, *, threads: int | None = None) -> bool:
    """Whether a file is whole, or of a kind that cannot be judged: what is not understood is not called damaged.

    Example:
        >>> is_whole("model_000500.fckpt")  # doctest: +SKIP
        True

    Args:
        path: A ``.fckpt``, ``.pt`` or ``.safetensors`` file. All of it is read.
        threads: Worker threads; None takes one per CPU.

    Raises:
        CheckpointIOError: The system did not let it be read, which says nothing about what it holds.
    """
    try:
        report = verify(path, threads=threads)
    except (DamagedError, NotACheckpointError):
        return False
    except CheckpointIOError:
        raise
    except FastckptError:
        return True
    unread = next((finding for finding in report.findings if finding.kind is Kind.UNREADABLE), None)
    if unread is not None:
        raise CheckpointIOError(unread.message, path=path, offset=unread.offset)
    # Its seal is another file's, or damaged: that says nothing of what is in it.
    return report.ok or report.is_stale
