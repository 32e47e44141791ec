"""What an archive of a file is by the place that a manifest gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastckpt.errors import DamagedError
from fastckpt.foreign.model import ForeignFile
from fastckpt.sets.model import Piece


def items_of(file: ForeignFile) -> Callable[[Piece], Any]:
    """What gives the item of a file where the manifest says that a piece is; DamagedError if none is there."""
    at = {(archive.begin, archive.end - archive.begin): number for number, archive in enumerate(file.archives)}
    items: Any = file.tree if len(file.archives) > 1 else [file.tree]

    def item_at(piece: Piece) -> Any:
        number = at.get((piece.offset, piece.length))
        if number is None:
            raise DamagedError(
                f"the file does not hold {piece.name} where the manifest says", path=file.path, offset=piece.offset
            )
        return items[number]

    return item_at
