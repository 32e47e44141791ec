"""Why a seal that differs from its file is of another one: then the file must not become again what it was."""

from __future__ import annotations

from fastckpt.io.source import Source
from fastckpt.seals.standing import WRITTEN_ANEW, Standing
from fastckpt.stored.verify import is_whole_by_itself


def why_another(source: Source, standing: Standing, *, threads: int) -> str:
    """Why an open file was written anew since it was sealed; empty if it was damaged, or is as it was sealed."""
    if standing.stale or standing.is_as_sealed:
        return standing.stale
    return WRITTEN_ANEW if is_whole_by_itself(source, threads=threads) else ""
