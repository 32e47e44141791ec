"""Where a page may be written."""

from __future__ import annotations

from collections.abc import Sequence

from fastckpt.errors import UsageError
from fastckpt.io.refuse_overwriting import refuse_overwriting


def refuse_page(output: str, paths: Sequence[str]) -> None:
    """Raise UsageError if a page would replace a checkpoint, or what has not the name of a page."""
    refuse_overwriting(output, paths)
    if not output.endswith((".html", ".htm", ".xhtml")):
        raise UsageError("the name of a page must end with .html", actual=output)
