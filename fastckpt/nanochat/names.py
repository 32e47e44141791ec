"""File names in a nanochat checkpoint directory.

nanochat writes ``f"model_{step:06d}.pt"``: six digits at least, more when the
step needs them, ranks without padding. Until November 2025 the optimizer's file
had no rank. Only names that nanochat itself would write are taken: a backup
(``old_model_000005.pt``), a temp file or ``model_5.pt`` is not a checkpoint.
"""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

from fastckpt.text import quoted

MODEL: Final = "model"
OPTIM: Final = "optim"
META: Final = "meta"
BEFORE: Final = "before"
"""What is kept of a step while it is saved again: see `fastckpt.nanochat.step_change`."""
STATE_SUFFIXES: Final = ("pt", "fckpt", "safetensors")

_STEP: Final = r"(?P<step>\d{6}|[1-9]\d{6,17})"
_STEM: Final = re.compile(rf"(?P<role>{MODEL}|{META}|{OPTIM})_{_STEP}(?:_rank(?P<rank>0|[1-9]\d{{0,8}}))?", re.ASCII)

_HIDDEN: Final = re.compile(r"\.fckpt-step-(\d{6,18})\.([a-z.]+)", re.ASCII)


class Stem(NamedTuple):
    """What a file is in its step, as its name without the suffix says.

    Attributes:
        role: ``model``, ``optim`` or ``meta``.
        step: Training step.
        rank: Of an optimizer file; None for the other roles and for optimizer files of before November 2025.
    """

    role: str
    step: int
    rank: int | None = None

    def __str__(self) -> str:
        rank = "" if self.rank is None else f"_rank{self.rank}"
        return f"{self.role}_{self.step:06d}{rank}"


def parse_stem(text: str) -> Stem | None:
    """What a name without suffix says; None if nanochat would not write it."""
    match = _STEM.fullmatch(text)
    if match is None:
        return None
    rank = match["rank"]
    if rank is not None and match["role"] != OPTIM:
        return None
    return Stem(match["role"], int(match["step"]), None if rank is None else int(rank))


def parse_name(name: str) -> tuple[Stem, str] | None:
    """Stem and suffix of a file of a step: ``(model 500, "pt")``. None for any other file."""
    text, _, suffix = name.rpartition(".")
    stem = parse_stem(text)
    if stem is None or suffix not in (("json",) if stem.role == META else STATE_SUFFIXES):
        return None
    return stem, suffix


def hidden_name(step: int, kind: str) -> str:
    """A directory for a change to a step, inside the one that the step is in."""
    return f".fckpt-step-{step:06d}.{kind}"


def place_of_step(path: str) -> str:
    """The directory that the step of a file belongs to, also if the file is what the step was before."""
    directory = os.path.dirname(path)
    return os.path.dirname(directory) if parse_hidden(os.path.basename(directory)) else directory


def ask_doctor(directory: str) -> str:
    """The command that says what is wrong in a directory."""
    return f"fastckpt doctor {quoted(directory or os.curdir)}"


def parse_hidden(name: str) -> tuple[int, str] | None:
    """Step and kind of such a directory; None for any other name."""
    match = _HIDDEN.fullmatch(name)
    return (int(match[1]), match[2]) if match else None
