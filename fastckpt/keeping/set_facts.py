"""Numbers by which a step may be the best: in its name, in the metadata of its file, in the state of a Trainer."""

from __future__ import annotations

import os
import re
from typing import Final

from fastckpt.errors import CheckpointIOError, FastckptError
from fastckpt.sets.listing import read_json
from fastckpt.sets.model import CheckpointSet
from fastckpt.sets.trainer import STATE
from fastckpt.stored.open_file import open_file

_IN_NAME: Final = re.compile(r"([A-Za-z][\w/]*?)=(-?\d+(?:\.\d+)?(?:e-?\d+)?)")


def facts_of(checkpoint: CheckpointSet) -> dict[str, object]:
    """What a step says of itself; nothing where a file is damaged.

    Raises:
        CheckpointIOError: What may say it cannot be read.
    """
    stem = os.path.splitext(os.path.basename(checkpoint.path))[0]
    found: dict[str, object] = {key: float(number) for key, number in _IN_NAME.findall(stem)}
    for member in checkpoint.members:
        try:
            if member.name == STATE:
                found |= _logged(read_json(member.path), checkpoint.step)
            elif member.name.endswith((".fckpt", ".ckpt")):
                with open_file(member.path) as file:
                    found |= file.metadata if file.format == "fckpt" else {}
        except CheckpointIOError:
            raise
        except FastckptError:
            continue
    return found


def _logged(state: object, step: int | None) -> dict[str, object]:
    """What a Trainer has logged at a step: ``eval_loss`` and others."""
    rows = state.get("log_history") if isinstance(state, dict) else None
    found: dict[str, object] = {}
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("step") == step:
            found |= row
    return found
