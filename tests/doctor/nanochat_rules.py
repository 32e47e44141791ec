"""How nanochat chooses what to load, written from its documented behaviour."""

from __future__ import annotations

import os
import re
from pathlib import Path


def find_largest_model(checkpoints: Path) -> str:
    """The tag with the largest number after its ``d``."""
    tags = [name for name in os.listdir(checkpoints) if os.path.isdir(checkpoints / name)]
    return max((int(found[1]), tag) for tag in tags if (found := re.match(r"d(\d+)", tag)))[1]


def find_last_step(directory: Path) -> int:
    names = [name for name in os.listdir(directory) if re.search(r"model_(\d+)\.pt$", name)]
    return max(int(name.split("_")[-1].split(".")[0]) for name in names)
